"""Perplexity of a text, and how far a model's predictions are from another run's.

The text is cut and scored as llama.cpp's llama-perplexity does it, so that figures can be compared:
chunks of n_ctx tokens, each computed from an empty context with BOS in place of its first token
where the vocabulary begins texts with BOS, and of each chunk the tokens after the middle are scored
(those before have too little context to be fair).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from lariat.errors import LariatError, quote
from lariat.llm import LLM
from lariat.runtime.batch import Part, split
from lariat.runtime.sampler import check_finite

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

_LOGITS = 64 << 20  # bytes of logits at once: 128 rows of a vocabulary of 128k
_FORMAT, _VERSION = "lariat-kl-base", "1"
_FLOOR = 64.0  # nats below the likeliest token, where stored log-probabilities end


def cut(llm: LLM, text: str, n_ctx: int, n_chunks: int = -1) -> Ids:
    """Token ids of `text` in whole chunks: int32 [n_chunks, n_ctx].

    `n_chunks` -1 takes all that the text gives; what is left at its end is not used. Raises
    LariatError where the text has fewer than 2 n_ctx tokens, as llama-perplexity does.
    """
    ids = llm.tokenize(text)
    if len(ids) < 2 * n_ctx:
        raise LariatError(
            f"the text has {len(ids)} tokens, and perplexity with a context of {n_ctx} needs at"
            f" least {2 * n_ctx}: take a longer text or a smaller context"
        )
    most = len(ids) // n_ctx
    n = most if n_chunks < 0 else min(n_chunks, most)
    chunks = np.array(ids[: n * n_ctx], np.int32).reshape(n, n_ctx)
    if llm.tokenizer.add_bos and llm.tokenizer.bos_id is not None:
        chunks[:, 0] = llm.tokenizer.bos_id
    return chunks


def n_scored(n_ctx: int) -> int:
    """Tokens of a chunk that are scored: those after the first of its second half."""
    return n_ctx - 1 - n_ctx // 2


class Rows(NamedTuple):
    """Predictions of consecutive tokens of one chunk."""

    chunk: int
    first: int  # of the chunk's scored tokens
    targets: Ids  # [n], the tokens that came
    log_probs: Floats  # [n, n_vocab], what was predicted


def predictions(llm: LLM, chunks: Ids) -> Iterator[Rows]:
    """Run the chunks, each from an empty context; yields some rows at a time.

    Raises LariatError where logits are not finite.
    """
    n_ctx = chunks.shape[1]
    half = n_ctx // 2
    n_rows = max(1, min(llm.runner.n_ubatch, _LOGITS // (4 * llm.n_vocab)))
    for i, ids in enumerate(chunks.tolist()):
        context = llm.runner.new_table()
        try:
            for group in split([Part(context, ids[:half])], llm.runner.n_ubatch):
                llm.runner.forward(group)
            for at in range(half, n_ctx - 1, n_rows):
                end = min(at + n_rows, n_ctx - 1)
                logits = llm.runner.forward([Part(context, ids[at:end], "all")])
                check_finite(logits)
                targets = np.array(ids[at + 1 : end + 1], np.int32)
                yield Rows(i, at - half, targets, log_softmax(logits))
        finally:
            context.clear()


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities [n, n_vocab] in float32, their normalizer summed in float64."""
    top = logits.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        raise LariatError("the logits are not finite: the model or its file is damaged")
    shifted = logits - top
    normalizer = np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64))
    return shifted - normalizer.astype(np.float32)


def exp(x: float) -> float:
    """e^x; infinity where it is too large, as for a model that is certain of what does not come."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


class Mean:
    """A running mean with the standard error of the mean."""

    def __init__(self) -> None:
        self.n, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take more values."""
        wide = values.astype(np.float64)
        self.n += wide.size
        self._sum += float(wide.sum())
        self._squares += float((wide * wide).sum())

    @property
    def value(self) -> float:
        """The mean so far."""
        return self._sum / self.n if self.n else math.nan

    @property
    def error(self) -> float:
        """Its standard error, taking values as independent."""
        if self.n < 2:
            return math.nan
        return math.sqrt(max(self._squares / self.n - self.value**2, 0.0) / (self.n - 1))


class Perplexity:
    """exp of the mean negative log-likelihood of the tokens that came."""

    def __init__(self) -> None:
        self.nll = Mean()

    def add(self, rows: Rows) -> None:
        """Take the rows of a chunk."""
        self.nll.add(-_of(rows.log_probs, rows.targets))

    @property
    def value(self) -> float:
        """The perplexity so far."""
        return exp(self.nll.value)

    @property
    def error(self) -> float:
        """Its standard error, as llama-perplexity gives it: that of the mean, times the value."""
        return self.value * self.nll.error


def measure(
    llm: LLM,
    chunks: Ids,
    *,
    base: BaseWriter | None = None,
    on_chunk: Callable[[int, float], None] | None = None,
) -> Perplexity:
    """Perplexity of chunks as `cut` makes them.

    `base` gets all predictions. `on_chunk` is called with the chunks that are done and the
    perplexity so far.
    """
    perplexity = Perplexity()
    for rows in predictions(llm, chunks):
        perplexity.add(rows)
        if base:
            base.add(rows)
        if on_chunk and rows.first + len(rows.targets) == n_scored(chunks.shape[1]):
            on_chunk(rows.chunk + 1, perplexity.value)
    return perplexity


class BaseWriter:
    """Writes the predictions of a run to a safetensors file, to compare other runs with.

    tokens     int32 [n_chunks, n_ctx]
    ranges     float32 [n_chunks, n_scored, 2], least log-probability kept, and the step of a level
    log_probs  uint16 [n_chunks, n_scored, n_vocab], levels above the least

    16 bits over at most 64 nats, so steps of 0.001 at most. Memory does not
    grow with the text. The file is written beside `path` and renamed when it is whole; until then,
    or when the block is left by an error, `path` is as it was.
    """

    def __init__(self, path: str | os.PathLike[str], chunks: Ids, n_vocab: int) -> None:
        self._path = os.fspath(path)
        self._part = f"{self._path}.{os.getpid()}.part"
        n, n_ctx = chunks.shape
        shapes = {
            "tokens": ("I32", [n, n_ctx], 4),
            "ranges": ("F32", [n, n_scored(n_ctx), 2], 4),
            "log_probs": ("U16", [n, n_scored(n_ctx), n_vocab], 2),
        }
        header: dict[str, Any] = {"__metadata__": {"format": _FORMAT, "version": _VERSION}}
        end = 0
        for name, (dtype, shape, width) in shapes.items():
            start, end = end, end + width * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        try:
            with open(self._part, "xb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.write(chunks.astype("<i4").tobytes())
                file.flush()
                _reserve(file.fileno(), 8 + len(text) + end)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(self._part)
            raise
        offset = {name: 8 + len(text) + header[name]["data_offsets"][0] for name in shapes}
        self._ranges = np.memmap(
            self._part, "<f4", "r+", offset["ranges"], tuple(shapes["ranges"][1])
        )
        self._levels = np.memmap(
            self._part, "<u2", "r+", offset["log_probs"], tuple(shapes["log_probs"][1])
        )

    def add(self, rows: Rows) -> None:
        """Store some rows."""
        top = rows.log_probs.max(axis=1)
        least = np.maximum(rows.log_probs.min(axis=1), top - _FLOOR)
        step = np.maximum((top - least) / 65535, 1e-9).astype(np.float32)
        levels = (rows.log_probs - least[:, None]) / step[:, None]
        where = slice(rows.first, rows.first + len(rows.targets))
        self._ranges[rows.chunk, where] = np.stack([least, step], axis=1)
        self._levels[rows.chunk, where] = np.clip(np.rint(levels), 0, 65535).astype(np.uint16)

    def __enter__(self) -> BaseWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._ranges.flush()
                self._levels.flush()
                os.replace(self._part, self._path)
        finally:
            del self._ranges, self._levels
            if os.path.exists(self._part):
                os.unlink(self._part)


class Base:
    """The predictions of an earlier run, memory-mapped; see `BaseWriter`.

    Raises LariatError if the file is not such a file or is damaged, OSError if it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from safetensors import SafetensorError, safe_open

        self._name = os.fspath(path)
        os.stat(self._name)  # the library's own error carries no name
        try:
            with safe_open(self._name, "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise LariatError(f"{self._name} is no file of predictions")
                if metadata.get("version") != _VERSION:
                    version = quote(str(metadata.get("version")))
                    raise LariatError(f"{self._name} has version {version}, this reads {_VERSION}")
                shape = tuple(file.get_slice("log_probs").get_shape())
                names = ("tokens", "ranges", "log_probs")
                # Of types that NumPy has not, the library cannot even make an error.
                if [file.get_slice(name).get_dtype() for name in names] != ["I32", "F32", "U16"]:
                    raise LariatError(f"{self._name} is damaged: its tensors are of other types")
                self.chunks: Ids = file.get_tensor("tokens")
                self._ranges: Floats = file.get_tensor("ranges")
        except SafetensorError as error:
            raise LariatError(f"{self._name} is damaged: {quote(str(error), 200)}") from None
        n, n_ctx = self.chunks.shape if self.chunks.ndim == 2 else (0, 0)
        if (
            not n
            or shape[:2] != (n, n_scored(n_ctx))
            or self._ranges.shape != (*shape[:2], 2)
            or not np.isfinite(self._ranges).all()
            or not 0 <= self.chunks.min() <= self.chunks.max() < shape[2]
        ):
            raise LariatError(f"{self._name} is damaged: its parts do not fit each other")
        self.n_vocab = shape[2]
        # The library reads whole tensors or copies slices; levels come last, so they can be mapped.
        offset = os.path.getsize(self._name) - 2 * math.prod(shape)
        self._levels = np.memmap(self._name, "<u2", "r", offset, shape)

    def check(self, llm: LLM, chunks: Ids | None) -> None:
        """Raise LariatError unless the file is of this vocabulary, and of these chunks if given."""
        if self.n_vocab != llm.n_vocab:
            raise LariatError(
                f"{self._name} is of a vocabulary of {self.n_vocab} tokens, the model has"
                f" {llm.n_vocab}"
            )
        if chunks is not None and not np.array_equal(chunks, self.chunks):
            raise LariatError(
                f"{self._name} is of another text, another context or another number of chunks"
                f" ({len(self.chunks)} of {self.chunks.shape[1]} tokens)"
            )

    def log_probs(self, rows: Rows) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The base's log-probabilities [n, n_vocab] for the same rows, and which are above its
        floor."""
        where = (rows.chunk, slice(rows.first, rows.first + len(rows.targets)))
        least, step = self._ranges[where][:, :1], self._ranges[where][:, 1:]
        levels = self._levels[where]
        return least + step * levels, levels > 0


@dataclass
class Divergence:
    """How a run's predictions differ from a base's, over all scored tokens."""

    base: Perplexity
    run: Perplexity
    log_ratio: Mean  # ln(PPL(run) / PPL(base)): both runs have the same tokens, so errors cancel
    kl: Mean  # nats: sum of p_base ln(p_base / p_run)
    kl_values: Floats  # [n_tokens], sorted
    same_top: Mean  # share of tokens whose likeliest is the same
    delta_p: Mean  # p_run - p_base of the token that came
    delta_p_squared: Mean

    def kl_percentile(self, percent: float) -> float:
        """The KL divergence that this share of the tokens does not pass, in nats."""
        return float(np.percentile(self.kl_values, percent))


def compare(
    llm: LLM, base: Base, *, on_chunk: Callable[[int, float], None] | None = None
) -> Divergence:
    """Run the base's chunks and compare; `on_chunk` as in `measure`."""
    found = Divergence(
        Perplexity(), Perplexity(), Mean(), Mean(), np.empty(0, np.float32), Mean(), Mean(), Mean()
    )
    values = []
    for rows in predictions(llm, base.chunks):
        expected, kept = base.log_probs(rows)
        p = np.exp(expected)
        kl = np.where(kept, p * (expected - rows.log_probs), 0.0).sum(axis=1, dtype=np.float64)
        of_base = Rows(rows.chunk, rows.first, rows.targets, expected)
        ours, theirs = (_of(r.log_probs, r.targets) for r in (rows, of_base))
        found.run.add(rows)
        found.base.add(of_base)
        found.log_ratio.add(theirs - ours)
        found.kl.add(kl)
        found.same_top.add(rows.log_probs.argmax(axis=1) == expected.argmax(axis=1))
        delta = np.exp(ours) - np.exp(theirs)
        found.delta_p.add(delta)
        found.delta_p_squared.add(delta * delta)
        values.append(kl.astype(np.float32))
        if on_chunk and rows.first + len(rows.targets) == n_scored(base.chunks.shape[1]):
            on_chunk(rows.chunk + 1, found.run.value)
    found.kl_values = np.sort(np.concatenate(values))
    return found


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Give a file its size. A full disk is an OSError here, not a signal at a mapped page."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, n_bytes)
    else:
        os.ftruncate(descriptor, n_bytes)


def _of(log_probs: Floats, targets: Ids) -> Floats:
    """The log-probability of each row's target, [n]"""
    return log_probs[np.arange(len(targets)), targets]
