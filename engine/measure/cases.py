"""Cases of a benchmark, the least that each must read and multiply, and results.

Names and fields are those of llama-bench of llama.cpp where it has them.
"""

from __future__ import annotations

import itertools
import math
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
from lariat.measure.disturbance import Usage, add_up

# Speed of the cache that is rotated when it is read, divided by the speed of the one that is
# rotated when it is written, as llama.cpp pull request 3234 reported it.
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


_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Speculation:
    """Speculation whose guesses cost nothing, and come as often as they are told to.

    n_draft     guesses beside each token
    acceptance  probability that a guess comes, if all before it do
    """

    n_draft: int
    acceptance: float

    def __str__(self) -> str:
        return f"{self.n_draft}:{self.acceptance:g}"

    @property
    def tokens_per_pass(self) -> float:
        """Mean number of tokens of a pass: those that come, and one more."""
        return sum(self.acceptance**i for i in range(self.n_draft + 1))

    def n_accepted(self, number: int) -> int:
        """How many guesses of a pass come, by the number of the pass.

        Multiples of the golden ratio take the place of random numbers: few of them, too, have
        nearly the mean of many, and each repetition does the same work.
        """
        u, n = number * _GOLDEN % 1.0, 0
        while n < self.n_draft and u < self.acceptance ** (n + 1):
            n += 1
        return n


@dataclass(frozen=True)
class Case:
    """One test of one model."""

    n_prompt: int = 0  # tokens computed in batches ...
    n_gen: int = 0  # ... then decoded one by one
    n_depth: int = 0  # tokens in the cache before
    n_threads: int = 1  # of decoding
    n_threads_batch: int = 1  # of prompts
    n_batch: int = 2048
    n_ubatch: int = 512
    cache: str = "roped"
    type_k: str = "f16"
    type_v: str = "f16"
    n_sequences: int = 1  # sequences that do all this in one batch
    rope: RopeConfig = field(default_factory=RopeConfig)
    spec: Speculation | None = None  # of decoding

    @property
    def name(self) -> str:
        """As llama-bench writes it: "pp512", "tg128 @ d4096", "pp512+tg128"; and "tg128 spec 4:0.7"
        with speculation."""
        parts = [f"pp{self.n_prompt}"] if self.n_prompt else []
        parts += [f"tg{self.n_gen}"] if self.n_gen else []
        spec = f" spec {self.spec}" if self.spec else ""
        return "+".join(parts) + spec + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def phase(self) -> str:
        """ "prompt", "decode", or "both". The ceiling that bounds a case depends on it."""
        return "both" if self.n_prompt and self.n_gen else "prompt" if self.n_prompt else "decode"

    @property
    def n_tokens(self) -> int:
        """Tokens of a repetition, over all sequences."""
        return (self.n_prompt + self.n_gen) * self.n_sequences

    @property
    def n_positions(self) -> int:
        """Length of the context that each sequence needs."""
        return self.n_depth + self.n_prompt + self.n_gen


# From the outermost loop to the innermost, as in llama-bench. The cache changes faster still.
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
    specs: Sequence[Speculation | None] = (None,),
    **values: Sequence[int] | Sequence[str],
) -> list[Case]:
    """Make a case of every combination: (n_prompt, n_gen) pairs with lists of the other fields.

    Without `n_threads_batch`, prompts use the threads of decoding. Cases that differ in the cache
    or the speculation alone stand next to each other, because they are there to be compared.
    """
    outer = [name for name in _ORDER if name in values]
    cases = []
    for chosen in itertools.product(*(values[name] for name in outer)):
        others: dict[str, Any] = dict(zip(outer, chosen, strict=True), rope=rope or RopeConfig())
        others.setdefault("n_threads_batch", others.get("n_threads", 1))
        for n_prompt, n_gen in shapes:
            for cache, spec in itertools.product(values.get("cache", ["roped"]), specs):
                spec = spec if n_gen else None
                cases.append(Case(n_prompt, n_gen, cache=str(cache), spec=spec, **others))
    return list(dict.fromkeys(cases))


def check_fits(case: Case, config: ModelConfig, name: str) -> None:
    """Raise ContextError if the case is longer than the trained context of the model `name` and no
    RoPE scaling is asked for; ModelError if the model cannot have the case's cache types."""
    check_types(config, case.type_k, case.type_v)
    if case.n_positions > config.n_ctx_train and case.rope == RopeConfig():
        depth = f"at depth {case.n_depth} " if case.n_depth else ""
        raise ContextError(
            f"{case.name} needs {case.n_positions} positions {depth}and the context of {name} "
            f"has {config.n_ctx_train}"
        )


@dataclass(frozen=True)
class ModelFacts:
    """Size and types of a model file, as a benchmark reports them."""

    path: str
    type: str  # "llama 7B Q4_0": architecture, parameters, commonest type
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
    """Times of one case, and the figures that are needed to judge them."""

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
    usages: list[Usage] = field(default_factory=list)  # of processors, during the repetitions
    load_averages: list[float] = field(default_factory=list)  # before each repetition
    peak_memory: int = 0  # bytes of the process, up to the last repetition
    tiles: dict[str, str] = field(default_factory=dict)  # "Q4_K few" -> the kind of core

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
        """Bytes a second that as many threads can read, measured beside decode; else None."""
        return statistics.fmean(self.bandwidths) if self.bandwidths else None

    @property
    def int8_peak(self) -> float | None:
        """Products of bytes a second of as many threads, measured beside prompts; else None."""
        return statistics.fmean(self.int8_peaks) if self.int8_peaks else None

    @property
    def share_of_bandwidth(self) -> float | None:
        """Share of the read bandwidth that decode reaches."""
        if self.read_bandwidth is None:
            return None
        return self.avg_ts * self.bytes_per_token / self.read_bandwidth

    @property
    def share_of_int8_peak(self) -> float | None:
        """Share of the int8 peak that a prompt's matrices reach."""
        if self.int8_peak is None or self.macs_per_token is None:
            return None
        return self.avg_ts * self.macs_per_token / self.int8_peak

    @property
    def load_average(self) -> float | None:
        """Mean number of runnable threads, ours included; None where the system does not say."""
        return statistics.fmean(self.load_averages) if self.load_averages else None

    @property
    def usage(self) -> Usage | None:
        """Use of the processors over all repetitions; None where the system does not count it."""
        return add_up(self.usages)

    def add(self, ns: int, usage: Usage | None = None, load_average: float | None = None) -> None:
        """Add a repetition, with the use of the processors meanwhile and the load before."""
        self.test_time = self.test_time or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.samples_ns.append(ns)
        if usage is not None:
            self.usages.append(usage)
        if load_average is not None:
            self.load_averages.append(load_average)


def _deviation(samples: Sequence[float]) -> float:
    return statistics.stdev(samples) if len(samples) > 1 else 0.0


class Cost:
    """The least that a case reads and multiplies."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        inner, output = list(weights.matrices()), weights.output.weight
        self._config = config
        experts = list(weights.expert_matrices())
        n_used = config.experts.n_used if config.experts else 0
        # The embedding is left out: a token reads one row of it.
        self._weight_bytes = sum(
            _kernels.packed_bytes(m.type_name, m.n_rows, m.n_cols) for m in [*inner, output]
        )
        self._expert_bytes = sum(  # of one expert in each layer
            _kernels.packed_bytes(m.type_name, m.n_rows, m.n_cols) for m in experts
        )
        self._output_macs = output.n_rows * output.n_cols
        macs = [(m.n_rows * m.n_cols, m.quantized) for m in inner]
        macs += [(n_used * m.n_rows * m.n_cols, m.quantized) for m in experts]
        self._inner_macs = sum(n for n, _ in macs)
        self._int8_macs = sum(n for n, quantized in macs if quantized)

    def pass_bytes(self, n_tokens: int) -> float:
        """Bytes of the weights that a forward pass of so many tokens reads: of experts, those that
        tokens go to, on average if they go to all alike."""
        c, n_read = self._config.experts, 0.0
        if c is not None:
            n_read = c.n_experts * (1 - (1 - c.n_used / c.n_experts) ** n_tokens)
        return self._weight_bytes + n_read * self._expert_bytes

    def bytes_per_token(self, case: Case) -> float:
        """Bytes that a token must read from memory, on average over the case.

        Each forward pass reads all matrices but the embedding (of experts, those that are chosen),
        and the keys and values that its tokens attend to: in layers with a window, those in it.
        """
        c = self._config
        position = cache_bytes(c, SLOTS, case.type_k, case.type_v) / SLOTS
        n_bytes, n_attended = 0.0, 0.0
        for parts in _passes([case.n_prompt] * case.n_sequences, case):
            n_bytes += self.pass_bytes(sum(n for n, _ in parts))
            n_attended += sum(self._n_read(case.n_depth + end, n) for n, end in parts)
        first = case.n_depth + case.n_prompt
        n_columns = 1 + case.spec.n_draft if case.spec else 1
        n_passes = case.n_gen / (case.spec.tokens_per_pass if case.spec else 1)
        if case.n_gen:
            for parts in _passes([n_columns] * case.n_sequences, case):
                n_bytes += n_passes * self.pass_bytes(sum(n for n, _ in parts))
        for i in range(case.n_gen):
            n_read = self._n_read(first + i + n_columns, n_columns) * n_passes / case.n_gen
            n_attended += case.n_sequences * n_read
        return (n_bytes + n_attended * position) / max(case.n_tokens, 1)

    def _n_read(self, n_keys: int, n_tokens: int) -> float:
        """Keys that the last `n_tokens` of `n_keys` attend to, together, in the mean of layers."""
        windows = [layer.window or n_keys for layer in self._config.layers]
        return sum(min(n_keys, window + n_tokens - 1) for window in windows) / len(windows)

    def macs_per_token(self, case: Case) -> float | None:
        """Products with weights for a token of a prompt; None where most weights are floats.

        The output matrix counts once a prompt, because only the last token's logits are wanted.
        """
        if case.phase != "prompt" or 2 * self._int8_macs < self._inner_macs:
            return None
        return self._inner_macs + self._output_macs / case.n_prompt


def _passes(lengths: list[int], case: Case) -> list[list[tuple[int, int]]]:
    """Cut sequences of tokens into forward passes, as a benchmark does.

    Returns the parts of each pass: how many tokens, and where they end in their sequence.
    """
    n_left_of_batch = n_left_of_pass = 0
    passes: list[list[tuple[int, int]]] = []
    for length in lengths:
        at = 0
        while at < length:
            if n_left_of_batch == 0:
                n_left_of_batch, n_left_of_pass = case.n_batch, 0
            if n_left_of_pass == 0:
                n_left_of_pass = min(case.n_ubatch, n_left_of_batch)
                passes.append([])
            n = min(n_left_of_pass, length - at)
            at += n
            n_left_of_pass -= n
            n_left_of_batch -= n
            passes[-1].append((n, at))
    return passes
