"""What a benchmark measures, what that costs at least, and what came out.

Names and fields are those of llama-bench of llama.cpp where it has them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lariat import _kernels
from lariat.architectures.weights import Weights
from lariat.cache.blocks import SLOTS
from lariat.cache.kv_cache import cache_bytes, check_types
from lariat.config import ModelConfig, RopeConfig
from lariat.errors import ContextError
from lariat.formats.gguf import GGUFFile

# What llama.cpp pull request 3234 reported for the cache that is rotated when it is read, as a
# share of the speed of the rotated cache.
PUBLISHED_RATIOS = {
    "pp512": 1.06,
    "tg128": 0.97,
    "tg256": 0.95,
    "tg512": 0.89,
    "tg1024": 0.76,
    "tg2048": 0.58,
    "tg4096": 0.42,
    "tg8192": 0.31,
}


@dataclass(frozen=True)
class Case:
    """One thing to measure, on one model."""

    n_prompt: int = 0  # tokens computed in batches ...
    n_gen: int = 0  # ... then decoded one by one
    n_depth: int = 0  # tokens in the context before
    n_threads: int = 1  # of decoding
    n_threads_batch: int = 1  # of prompts
    n_batch: int = 2048
    n_ubatch: int = 512
    cache: str = "roped"
    type_k: str = "f16"
    type_v: str = "f16"
    n_sequences: int = 1  # that do all this together, each in a context of its own
    rope: RopeConfig = field(default_factory=RopeConfig)

    @property
    def name(self) -> str:
        """As llama-bench writes it: "pp512", "tg128 @ d4096", "pp512+tg128"."""
        parts = [f"pp{self.n_prompt}"] if self.n_prompt else []
        parts += [f"tg{self.n_gen}"] if self.n_gen else []
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def kind(self) -> str:
        """ "prompt", "decode", or "both": which ceiling bounds it."""
        return "both" if self.n_prompt and self.n_gen else "prompt" if self.n_prompt else "decode"

    @property
    def n_tokens(self) -> int:
        """Tokens of a repetition, over all sequences."""
        return (self.n_prompt + self.n_gen) * self.n_sequences

    @property
    def n_positions(self) -> int:
        """Length of the context that each sequence needs."""
        return self.n_depth + self.n_prompt + self.n_gen


# From the slowest to the fastest, as llama-bench has them; the cache changes faster still.
_ORDER = (
    "n_batch",
    "n_ubatch",
    "type_k",
    "type_v",
    "n_threads",
    "n_threads_batch",
    "n_sequences",
    "n_depth",
)


def combinations(
    shapes: Sequence[tuple[int, int]],
    rope: RopeConfig | None = None,
    **values: Sequence[int] | Sequence[str],
) -> list[Case]:
    """Make a case of every combination: (n_prompt, n_gen) pairs with lists of the other fields.

    Without `n_threads_batch`, prompts use the threads of decoding. Strategies of the cache come
    next to each other, because they are there to be compared.
    """
    outer = [name for name in _ORDER if name in values]
    cases = []
    for chosen in itertools.product(*(values[name] for name in outer)):
        others: dict[str, Any] = dict(zip(outer, chosen, strict=True), rope=rope or RopeConfig())
        others.setdefault("n_threads_batch", others.get("n_threads", 1))
        for n_prompt, n_gen in shapes:
            for cache in values.get("cache", ["roped"]):
                cases.append(Case(n_prompt, n_gen, cache=str(cache), **others))
    return list(dict.fromkeys(cases))


def check_fits(case: Case, config: ModelConfig, name: str) -> None:
    """Raise ContextError if the case is longer than the context of the model `name`, and nothing
    is said of its positions; ModelError if the model cannot have the case's cache types."""
    check_types(config, case.type_k, case.type_v)
    if case.n_positions > config.n_ctx_train and case.rope == RopeConfig():
        depth = f"at depth {case.n_depth} " if case.n_depth else ""
        raise ContextError(
            f"{case.name} needs {case.n_positions} positions {depth}and the context of {name} "
            f"has {config.n_ctx_train}"
        )


@dataclass(frozen=True)
class ModelFacts:
    """What a file holds, as a benchmark reports it."""

    path: str
    type: str  # "llama 7B Q4_0": architecture, parameters, the type of most of them
    n_bytes: int  # of all tensors
    n_params: int
    use_mmap: bool = True  # the file was mapped, not read

    @classmethod
    def of(cls, gguf: GGUFFile) -> ModelFacts:
        """Count the tensors of an open file."""
        sizes: dict[str, int] = {}
        for info in gguf.tensors.values():
            n = int(np.prod(info.shape, dtype=np.int64))
            sizes[info.type.name] = sizes.get(info.type.name, 0) + n
        n_params = sum(sizes.values())
        main_type = max(sizes, key=lambda name: sizes[name])
        return cls(
            str(gguf.path),
            f"{gguf.get_str('general.architecture')} {_short(n_params)} {main_type}",
            sum(info.n_bytes for info in gguf.tensors.values()),
            n_params,
            gguf.use_mmap,
        )


def _short(n_params: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n_params >= size:
            return f"{n_params / size:.0f}{unit}"
    return str(n_params)


@dataclass
class Result:
    """Times of one case, with what is needed to judge them."""

    case: Case
    model: ModelFacts
    isa: str
    pinned: bool  # each thread on a processor of its own
    bytes_per_token: float  # read from memory
    macs_per_token: float | None  # products of bytes; None where weights are mostly floats
    test_time: str = ""  # UTC, of the first repetition
    samples_ns: list[int] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)  # bytes/s, beside samples of decode
    int8_peaks: list[float] = field(default_factory=list)  # products/s, beside those of prompts
    peak_memory: int = 0  # bytes of the process, up to the last repetition

    @property
    def samples_ts(self) -> list[float]:
        """Tokens a second of each repetition."""
        return [1e9 * self.case.n_tokens / ns for ns in self.samples_ns]

    @property
    def avg_ns(self) -> float:
        """Mean nanoseconds of a repetition."""
        return statistics.fmean(self.samples_ns)

    @property
    def stddev_ns(self) -> float:
        """Standard deviation of the repetitions, 0 of a single one."""
        return _deviation(self.samples_ns)

    @property
    def avg_ts(self) -> float:
        """Mean tokens a second."""
        return statistics.fmean(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        """Standard deviation of the repetitions, 0 of a single one."""
        return _deviation(self.samples_ts)

    @property
    def read_bandwidth(self) -> float | None:
        """Bytes a second that as many threads read at the time; of decode only."""
        return statistics.fmean(self.bandwidths) if self.bandwidths else None

    @property
    def int8_peak(self) -> float | None:
        """Products of bytes a second that as many threads do at the time; of prompts only."""
        return statistics.fmean(self.int8_peaks) if self.int8_peaks else None

    @property
    def share_of_bandwidth(self) -> float | None:
        """What decode reaches of the read bandwidth."""
        if self.read_bandwidth is None:
            return None
        return self.avg_ts * self.bytes_per_token / self.read_bandwidth

    @property
    def share_of_int8_peak(self) -> float | None:
        """What a prompt's matrices reach of the int8 peak."""
        if self.int8_peak is None or self.macs_per_token is None:
            return None
        return self.avg_ts * self.macs_per_token / self.int8_peak

    def add(self, ns: int) -> None:
        """Book a repetition."""
        self.test_time = self.test_time or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.samples_ns.append(ns)


def _deviation(samples: Sequence[float]) -> float:
    return statistics.stdev(samples) if len(samples) > 1 else 0.0


class Cost:
    """What a case reads and multiplies at least."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        inner, output = list(weights.matrices()), weights.output.weight
        self._config = config
        # The embedding is left out: a token reads one row of it.
        self.weight_bytes = sum(
            _kernels.packed_bytes(m.type_name, m.n_rows, m.n_cols) for m in [*inner, output]
        )
        self._inner_macs = sum(m.n_rows * m.n_cols for m in inner)
        self._output_macs = output.n_rows * output.n_cols
        self._int8_macs = sum(m.n_rows * m.n_cols for m in inner if m.quantized)

    def bytes_per_token(self, case: Case) -> float:
        """Bytes that a token must bring from memory, on average over the case.

        Each forward pass reads all matrices (interleaved as they are in memory; not the embedding)
        and the keys and values that its tokens see.
        """
        c = self._config
        position = cache_bytes(c, SLOTS, case.type_k, case.type_v) / SLOTS
        n_passes, n_seen = 0, 0.0
        for sizes in _passes([case.n_prompt] * case.n_sequences, case):
            n_passes += 1
            n_seen += sum(case.n_depth + end for end in sizes)
        first = case.n_depth + case.n_prompt
        passes_a_step = len(_passes([1] * case.n_sequences, case)) if case.n_gen else 0
        n_passes += passes_a_step * case.n_gen
        n_seen += case.n_sequences * case.n_gen * (first + (case.n_gen + 1) / 2)
        return (n_passes * self.weight_bytes + n_seen * position) / max(case.n_tokens, 1)

    def macs_per_token(self, case: Case) -> float | None:
        """Products with weights for a token of a prompt; None if most weights are floats.

        The output matrix counts once a prompt, because only the last token's logits are wanted.
        """
        if case.kind != "prompt" or 2 * self._int8_macs < self._inner_macs:
            return None
        return self._inner_macs + self._output_macs / case.n_prompt


def _passes(lengths: list[int], case: Case) -> list[list[int]]:
    """Cut sequences of tokens into forward passes as `_Cache.prompt` does.

    Returns for each pass where its pieces end, counted from the start of their sequence.
    """
    room_batch = room = 0
    passes: list[list[int]] = []
    for length in lengths:
        at = 0
        while at < length:
            if room_batch == 0:
                room_batch, room = case.n_batch, 0
            if room == 0:
                room = min(case.n_ubatch, room_batch)
                passes.append([])
            take = min(room, length - at)
            at, room, room_batch = at + take, room - take, room_batch - take
            passes[-1].append(at)
    return passes
