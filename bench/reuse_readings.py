"""Ways to reuse documents that the engine does not have, to be measured beside its own.

`ByDeviation` chooses single tokens whose values are most off at an early layer (CacheBlend, arXiv
2405.16444), `ByAttention` those that the question attends to. Both are choosers as
`Context.append(recompute=...)` takes them. A `Reading` weighs or hides keys of documents while the
question is computed, which no kernel of the engine does: `Reader` computes questions and answers in
NumPy, over keys and values from the engine's cache. It knows models of the `llama` architecture.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from lariat import LLM, Context, GGUFFile
from lariat.architectures.weights import split_halves
from lariat.cache.blocks import BlockTable
from lariat.formats import context_file
from lariat.formats.block_formats import dequantize
from lariat.reuse.recompute import Recompute
from lariat.runtime.placed import Choice, Placed
from lariat.runtime.runner import Runner
from lariat.runtime.sampler import log_softmax

Span = tuple[int, int]


@dataclass(frozen=True)
class Reading:
    """How a question reads the documents before it; as they are unless told otherwise.

    parallel     each document begins at position 0
    temperature  divides the scores of their keys, and `scale` multiplies the logarithm of their
                 weight against the question's own keys (APE, arXiv 2502.05431)
    n_hidden     first tokens of each document but the first that nobody sees: they are sinks
    """

    parallel: bool = False
    temperature: float = 1.0
    scale: float = 1.0
    n_hidden: int = 0


class Reader:
    """A model of the `llama` architecture in float32, for tokens behind keys and values of others.

    Matrices are [n_rows, n_cols]; rows of Wq and Wk are in the order of the engine's cache.
    """

    def __init__(self, path: str) -> None:
        with GGUFFile(path) as file:
            name = file.get_str("general.architecture")
            if name != "llama":
                raise SystemExit(f"{path}: readings know 'llama' models, and not {name!r}")
            self._weights = {
                tensor.name: dequantize(file.data(tensor.name), tensor.type)
                for tensor in file.tensors.values()
            }
            self._n_layers = file.get_int("llama.block_count")
            self._n_heads = file.get_int("llama.attention.head_count")
            self._n_kv_heads = file.get_int("llama.attention.head_count_kv")
            self._base = file.get_float("llama.rope.freq_base", 10000.0)
            self._epsilon = file.get_float("llama.attention.layer_norm_rms_epsilon")
        self._embedding = self._weights["token_embd.weight"]
        self._head_dim = self._embedding.shape[1] // self._n_heads
        for i in range(self._n_layers):
            for matrix, n_heads in (("attn_q", self._n_heads), ("attn_k", self._n_kv_heads)):
                order = split_halves(n_heads, self._head_dim)
                key = f"blk.{i}.{matrix}.weight"
                self._weights[key] = self._weights[key][order]

    def read(
        self,
        keys: np.ndarray,
        values: np.ndarray,
        documents: Sequence[Span],
        ids: Sequence[int],
        reading: Reading,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute tokens behind others.

        keys, values  of the others, f16 or f32 [n_layers, n_others, n_kv_heads, head_dim], before
                      RoPE
        documents     (start, stop) of each among the others

        Returns logits of `ids`, float32 [n, n_vocab], and how much they attend to each of the
        others, float32 [n_others]: the mean over tokens, heads and layers.
        """
        n, n_others = len(ids), keys.shape[1]
        positions, hidden = np.arange(n_others), np.zeros(n_others, bool)
        for start, stop in documents:
            if reading.parallel:
                positions[start:stop] = np.arange(stop - start)
            if start:
                hidden[start : start + reading.n_hidden] = True
        own = positions.max(initial=-1) + 1 + np.arange(n)
        future = np.triu(np.full((n, n), -np.inf, np.float32), 1)
        mass = np.zeros(n_others, np.float32)
        x = self._embedding[ids]
        for i in range(self._n_layers):
            h = self._norm(x, f"blk.{i}.attn_norm")
            q = self._rotate(self._heads(h, f"blk.{i}.attn_q"), own)
            k = self._rotate(self._heads(h, f"blk.{i}.attn_k"), own)
            v = self._heads(h, f"blk.{i}.attn_v")
            k_others = self._rotate(keys[i].astype(np.float32), positions)
            with_others = self._scores(q, k_others) / reading.temperature
            with_others[..., hidden] = -np.inf
            with_own = self._scores(q, k) + future
            # float32 [n_heads, n, 1]: the documents count as one key with this score.
            together = _log_sum_exp(with_others)
            total = np.logaddexp(reading.scale * together, _log_sum_exp(with_own))
            weights = np.exp(with_others - together + reading.scale * together - total)
            mass += weights.mean(axis=(0, 1)) / self._n_layers
            out = self._weighted(weights, values[i].astype(np.float32))
            out += self._weighted(np.exp(with_own - total), v)
            x = x + out @ self._weights[f"blk.{i}.attn_output.weight"].T
            h = self._norm(x, f"blk.{i}.ffn_norm")
            gate = h @ self._weights[f"blk.{i}.ffn_gate.weight"].T
            up = h @ self._weights[f"blk.{i}.ffn_up.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self._weights[f"blk.{i}.ffn_down.weight"].T
        output = self._weights.get("output.weight", self._embedding)
        return self._norm(x, "output_norm") @ output.T, mass

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        mean = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean + self._epsilon) * self._weights[f"{name}.weight"].reshape(-1)

    def _heads(self, h: np.ndarray, name: str) -> np.ndarray:
        """float32 [n, heads, head_dim]."""
        return (h @ self._weights[f"{name}.weight"].T).reshape(len(h), -1, self._head_dim)

    def _rotate(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Rotate pairs of dims i and i + head_dim / 2, float32 [n, heads, head_dim]."""
        half = self._head_dim // 2
        angles = positions[:, None, None] * self._base ** (-np.arange(half) / half)
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    def _scores(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        """float32 [n_heads, n_queries, n_keys]."""
        k = np.repeat(k, self._n_heads // self._n_kv_heads, axis=1)
        return q.transpose(1, 0, 2) @ k.transpose(1, 2, 0) / np.float32(self._head_dim**0.5)

    def _weighted(self, weights: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Weighted sums of values, float32 [n_queries, n_heads * head_dim]."""
        v = np.repeat(v, self._n_heads // self._n_kv_heads, axis=1)
        return (weights @ v.transpose(1, 0, 2)).transpose(1, 0, 2).reshape(weights.shape[1], -1)


@lru_cache(maxsize=1)
def reader(path: str) -> Reader:
    """The reader of a model; the last one is kept."""
    return Reader(path)


def stored_in(llm: LLM, context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of a context, f16 or f32 [n_layers, n, n_kv_heads, head_dim] each."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "context"
        context.save(path)
        saved = context_file.load(path, llm.runner.signature())
    return saved.keys, saved.values


def predict(
    path: str,
    stored: tuple[np.ndarray, np.ndarray],
    documents: Sequence[Sequence[int]],
    question: Sequence[int],
    answer: Sequence[int],
    reading: Reading,
) -> np.ndarray:
    """Log probabilities of each token of `answer`, as `lariat.measure.reuse_quality.predict` gives
    them; `stored` ends with the documents."""
    stops = stored[0].shape[1] - np.cumsum([0, *map(len, documents[::-1])])[::-1]
    spans = [(int(a), int(b)) for a, b in itertools.pairwise(stops)]
    logits, _ = reader(path).read(*stored, spans, [*question, *answer[:-1]], reading)
    return log_softmax(logits[len(question) - 1 :])


def _log_sum_exp(x: np.ndarray) -> np.ndarray:
    """Over the last axis, which stays as one; -inf for no numbers."""
    top = x.max(axis=-1, keepdims=True, initial=np.float32(-1e30))
    with np.errstate(divide="ignore"):
        return top + np.log(np.exp(x - top).sum(axis=-1, keepdims=True))


@dataclass(frozen=True, eq=False)
class ByDeviation:
    """Chooses the tokens whose values at a layer are furthest from those of full prefill.

    first  first tokens of each document that are computed anyway
    share  of the tokens of documents that are not exact, to be chosen
    layer  at which they are compared: those below must be computed for all tokens, which counts
    """

    first: int
    share: float
    layer: int = 1
    _known: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)

    def choose(
        self,
        runner: Runner,
        table: BlockTable,
        ids: Sequence[int],
        documents: Sequence[Placed],
        question: Sequence[int],
    ) -> Choice:
        """See `lariat.runtime.placed.Chooser`."""
        end = max(one.stop for one in documents)
        full = self._full(runner, list(ids[:end]))
        now = runner.cache.read(table).values[self.layer, :end].astype(np.float32)
        off = ((now - full) ** 2).sum(axis=(1, 2))
        moved = _moved(documents, ids)
        n_tried = round(
            sum(stop - start for start, stop in moved) * self.layer / len(runner.config.layers)
        )
        return Choice(_best(off, moved, self.first, self.share), n_tried)

    def _full(self, runner: Runner, ids: list[int]) -> np.ndarray:
        """Values of full prefill at the layer, float32 [n, n_kv_heads, head_dim]."""
        if tuple(ids) not in self._known:
            table = runner.new_table()
            try:
                runner.compute(table, ids)
                values = runner.cache.read(table).values[self.layer].astype(np.float32)
            finally:
                table.clear()
            self._known.clear()
            self._known[tuple(ids)] = values
        return self._known[tuple(ids)]


@dataclass(frozen=True, eq=False)
class ByAttention:
    """Chooses the tokens that the question attends to most; `first` and `share` as in
    `ByDeviation`. The question is computed once for it, which counts."""

    path: str
    first: int
    share: float

    def choose(
        self,
        runner: Runner,
        table: BlockTable,
        ids: Sequence[int],
        documents: Sequence[Placed],
        question: Sequence[int],
    ) -> Choice:
        """See `lariat.runtime.placed.Chooser`."""
        stored = runner.cache.read(table)
        spans = [(one.start, one.stop) for one in documents]
        behind = ids[table.n_tokens :]
        _, mass = reader(self.path).read(stored.keys, stored.values, spans, behind, Reading())
        return Choice(_best(mass, _moved(documents, ids), self.first, self.share), len(behind))


@dataclass(frozen=True)
class AtOnce:
    """Computes in one round what another chooser has computed in two."""

    chooser: Recompute

    def choose(
        self,
        runner: Runner,
        table: BlockTable,
        ids: Sequence[int],
        documents: Sequence[Placed],
        question: Sequence[int],
    ) -> Choice:
        """See `lariat.runtime.placed.Chooser`."""
        found = self.chooser.choose(runner, table, ids, documents, question)
        return Choice([*found.ranges, *found.last], found.n_tried)


def _moved(documents: Sequence[Placed], ids: Sequence[int]) -> list[Span]:
    """(start, stop) of the documents that do not stand where they were computed."""
    return [(one.start, one.stop) for one in documents if one.sink != tuple(ids[: one.start])]


def _best(scores: np.ndarray, spans: Sequence[Span], first: int, share: float) -> list[Span]:
    """First tokens of documents, and the share of their tokens with the highest scores."""
    firsts = [(start, min(stop, start + first)) for start, stop in spans]
    places = np.array([i for start, stop in spans for i in range(start, stop)], int)
    chosen = places[np.argsort(-scores[places], kind="stable")[: round(share * len(places))]]
    return [*firsts, *((place, place + 1) for place in chosen.tolist())]
