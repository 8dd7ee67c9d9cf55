"""Measures a model: prompts and decoding at any depth, with any cache, on any number of threads.

What a case does is what llama-bench of llama.cpp does, so that figures can stand side by side:
`pp512` computes 512 random tokens in batches and wants the last one's logits, `tg128` decodes 128
random tokens one by one without sampling, and `@ d4096` says that the context held 4096 tokens
before. The weights of a file are loaded once for all its cases, and repetitions of the cases are
interleaved, so that a machine that drifts slows all of them alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from lariat import _kernels
from lariat.architectures.loading import load_weights, read_config
from lariat.architectures.model import Model
from lariat.architectures.weights import Weights
from lariat.cache.blocks import SLOTS, BlockTable
from lariat.cache.kv_cache import STRATEGIES
from lariat.cache.rope import RopeTables
from lariat.config import ModelConfig
from lariat.formats.gguf_split import GGUFModel
from lariat.measure.cases import Case, Cost, ModelFacts, Result, check_fits
from lariat.measure.machine import Pins, Probe, peak_memory, reset_peak_memory
from lariat.runtime import threads
from lariat.runtime.batch import Part, make_batch, split
from lariat.runtime.sampler import check_finite

_PROBE_AGE = 10.0  # seconds after which a ceiling is measured again
_SPAN = 64  # tokens that one cache decodes before it is the other's turn, see `run_growing`
_DECODE_COST = 8  # of a token, in prompt tokens: only for how far a progress bar is


class Benchmark:
    """One model file, its weights loaded once, and cases to measure on it.

    results  one for each case; those of an interrupted run have fewer samples

    Close it, or use it in a `with` statement.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        cases: Sequence[Case],
        *,
        probe: Probe | None = None,
        pins: Pins | None = None,
        progress: Callable[[float], None] | None = None,
        use_mmap: bool = True,
    ) -> None:
        """`probe` measures ceilings beside the cases, `pins` holds threads on processors, and
        `progress` gets the share loaded, 0 to 1; `use_mmap` as for `LLM`. Raises what `LLM` raises,
        and `ContextError` for a case that is longer than the model's context."""
        self._probe, self._pins = probe, pins
        self._n_processors = pins.n_processors if pins else threads.available()
        self._cases = list(cases)
        self._ceilings: dict[tuple[str, int], tuple[float, float]] = {}  # value, when
        self._caches: dict[tuple[str, str, str], _Cache] = {}
        self._rng = np.random.default_rng(0)
        reset_peak_memory()
        self._gguf = GGUFModel(path, use_mmap=use_mmap)
        try:
            self._config = read_config(self._gguf)
            for case in cases:
                check_fits(case, self._config, str(self._gguf.path))
            n_threads = self._use(max(case.n_threads_batch for case in cases))
            with threads.forward_pass():
                self._weights = load_weights(self._gguf, self._config, n_threads, progress)
        except BaseException:
            self._gguf.close()
            raise
        facts, cost = ModelFacts.of(self._gguf), Cost(self._config, self._weights)
        self.results = [
            Result(
                case,
                facts,
                _kernels.isa(),
                pins is not None,
                cost.bytes_per_token(case),
                cost.macs_per_token(case),
            )
            for case in cases
        ]

    def close(self) -> None:
        """Give back memory and the file."""
        self._caches.clear()
        del self._weights
        self._gguf.close()

    def __enter__(self) -> Benchmark:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        repetitions: int,
        *,
        warm_up: bool = True,
        delay: float = 0.0,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Run all cases once, then all of them again, `repetitions` times.

        Contexts are filled to their depths first; then, with `warm_up`, each case runs without
        being counted: prompts whole, decoding by one token. `delay` seconds pass before each case.
        """
        report = self._prepare(self._cases, repetitions, warm_up, progress)
        for _ in range(repetitions):
            for result in self.results:
                self._repeat(result, delay)
                report.add(_units(result.case))

    def run_growing(
        self,
        repetitions: int,
        *,
        warm_up: bool = True,
        delay: float = 0.0,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Like `run`, but cases of decoding that differ in `n_gen` and cache only are measured
        together: each cache grows from the same depth, in turns of 64 tokens, and the time to the
        n-th token is that of the case that decodes n. It costs no more than the longest case, and
        a machine that drifts within it drifts for all caches."""
        prompts = [result for result in self.results if result.case.n_prompt]
        groups: dict[Case, list[Result]] = {}
        for result in self.results:
            if not result.case.n_prompt:
                key = replace(result.case, n_gen=0, cache="")
                groups.setdefault(key, []).append(result)
        longest = [case for group in groups.values() for case in _longest(group).values()]
        cases = [*(result.case for result in prompts), *longest]
        report = self._prepare(cases, repetitions, warm_up, progress)
        for _ in range(repetitions):
            for result in prompts:
                self._repeat(result, delay)
                report.add(_units(result.case))
            for group in groups.values():
                time.sleep(delay)
                self._grow(group, report)

    # ---- below: how a case runs --------------------------------------------------------------

    def _prepare(
        self,
        cases: Sequence[Case],
        repetitions: int,
        warm_up: bool,
        progress: Callable[[float], None] | None,
    ) -> _Progress:
        """Fill contexts and warm up. Returns what counts the repetitions that follow."""
        first = {case: replace(case, n_gen=min(case.n_gen, 1)) for case in cases}
        depths: dict[tuple[str, str, str], int] = {}
        for case in cases:
            key = _key(case)
            depths[key] = max(depths.get(key, 0), case.n_depth * case.n_sequences)
        report = _Progress(
            sum(depths.values())
            + warm_up * sum(map(_units, first.values()))
            + repetitions * sum(map(_units, cases)),
            progress,
        )
        for case in sorted(cases, key=lambda case: -case.n_sequences):
            self._contexts(case)
            report.add(depths.pop(_key(case), 0))
        for case in cases:
            if warm_up:
                self._time(first[case])
                report.add(_units(first[case]))
        return report

    def _repeat(self, result: Result, delay: float) -> None:
        time.sleep(delay)
        self._book_ceilings(result)
        result.add(self._time(result.case))
        result.peak_memory = self._peak_memory()

    def _time(self, case: Case) -> int:
        """Nanoseconds of one repetition."""
        cache, contexts = self._cache(case), self._contexts(case)
        prompt, written = self._draw(case, case.n_prompt), self._draw(case, case.n_gen)
        try:
            start = time.perf_counter_ns()
            if case.n_prompt:
                cache.prompt(contexts, prompt, case, self._use(case.n_threads_batch))
            if case.n_gen:
                cache.decode(contexts, written, case, self._use(case.n_threads))
            taken = time.perf_counter_ns() - start
            cache.check()
            return taken
        finally:
            for context in contexts:
                context.truncate(case.n_depth)

    def _grow(self, group: list[Result], report: _Progress) -> None:
        """One repetition of cases of decoding that differ in length and cache only."""
        longest = _longest(group)
        order = list(longest)
        ends = {result.case.n_gen for result in group}
        total = dict.fromkeys(order, 0)
        at = 0
        try:
            for stop in sorted({*ends, *range(_SPAN, max(ends), _SPAN)}):
                for result in group:
                    if at < result.case.n_gen:
                        self._book_ceilings(result)
                written = self._draw(group[0].case, stop - at)
                for name in order:
                    case = longest[name]
                    if at >= case.n_gen:
                        continue
                    cache, contexts = self._cache(case), self._contexts(case)
                    n_threads = self._use(case.n_threads)
                    start = time.perf_counter_ns()
                    cache.decode(contexts, written, case, n_threads)
                    total[name] += time.perf_counter_ns() - start
                    cache.check()
                    report.add(_units(replace(case, n_gen=stop - at)))
                for result in group:
                    if result.case.n_gen == stop:
                        result.add(total[result.case.cache])
                        result.peak_memory = self._peak_memory()
                at = stop
                order.reverse()  # none is always the first after a pause
        finally:
            for case in longest.values():
                for context in self._contexts(case):
                    context.truncate(case.n_depth)

    def _draw(self, case: Case, n: int) -> np.ndarray:
        """Random tokens for each sequence, int32 [n_sequences, n]"""
        return self._rng.integers(0, self._config.n_vocab, (case.n_sequences, n), np.int32)

    def _use(self, n_threads: int) -> int:
        """Return `n_threads`, with each on its processor if they are to be pinned."""
        if self._pins:
            self._pins.place(n_threads)
        return n_threads

    def _cache(self, case: Case) -> _Cache:
        key = _key(case)
        if key not in self._caches:
            same = [other for other in self._cases if _key(other) == key]
            self._caches[key] = _Cache(self._config, self._weights, same)
        return self._caches[key]

    def _contexts(self, case: Case) -> list[BlockTable]:
        """One context a sequence, holding `n_depth` tokens; filled when first asked for."""
        cache, n_threads = self._cache(case), case.n_threads_batch
        n_missing = case.n_sequences - cache.n_filled(case.n_depth)
        for _ in range(n_missing):
            cache.fill(case, self._rng, self._use(n_threads))
        return cache.filled(case.n_depth)[: case.n_sequences]

    def _book_ceilings(self, result: Result) -> None:
        for kind, n_threads in _ceilings_of(result.case):
            value = self._ceiling(kind, n_threads)
            if value is not None:
                (result.bandwidths if kind == "read" else result.int8_peaks).append(value)

    def _ceiling(self, kind: str, n_threads: int) -> float | None:
        """What the machine can do at best, measured again when the last time is too long ago.

        More threads than processors can do no more than one a processor; of equal shares, as the
        probes have them, they would do less."""
        if self._probe is None:
            return None
        n_threads = min(n_threads, self._n_processors)
        value, when = self._ceilings.get((kind, n_threads), (0.0, -_PROBE_AGE))
        if time.monotonic() - when >= _PROBE_AGE:
            self._use(n_threads)
            probe = self._probe.read_bandwidth if kind == "read" else self._probe.int8_peak
            value = probe(n_threads)
            self._ceilings[kind, n_threads] = (value, time.monotonic())
        return value

    def _peak_memory(self) -> int:
        return peak_memory() - (self._probe.n_bytes if self._probe else 0)


def _key(case: Case) -> tuple[str, str, str]:
    """What cases have in common that share a cache."""
    return case.cache, case.type_k, case.type_v


def _longest(group: Sequence[Result]) -> dict[str, Case]:
    """Of each cache the case that decodes most, in the order of the group."""
    longest: dict[str, Case] = {}
    for case in (result.case for result in group):
        if case.cache not in longest or longest[case.cache].n_gen < case.n_gen:
            longest[case.cache] = case
    return longest


def _ceilings_of(case: Case) -> list[tuple[str, int]]:
    """Which ceiling bounds a case, on how many threads; none bounds a prompt and decode alike."""
    kinds = {"decode": [("read", case.n_threads)], "prompt": [("int8", case.n_threads_batch)]}
    return kinds.get(case.kind, [])


def _units(case: Case) -> int:
    return (case.n_prompt + case.n_gen * _DECODE_COST) * case.n_sequences


class _Progress:
    """Adds up units of work and reports the share that is done."""

    def __init__(self, n_units: int, report: Callable[[float], None] | None) -> None:
        self._n_units, self._done, self._report = max(n_units, 1), 0, report

    def add(self, n: int) -> None:
        self._done += n
        if self._report:
            self._report(min(1.0, self._done / self._n_units))


class _Cache:
    """A KV cache of one kind, a model that uses it, and contexts that are filled to some depth."""

    def __init__(self, config: ModelConfig, weights: Weights, cases: Sequence[Case]) -> None:
        first = cases[0]
        self._deepest = max(case.n_depth for case in cases) // SLOTS
        n_branches = len({case.n_depth for case in cases})
        grows = max(case.n_prompt + case.n_gen for case in cases) // SLOTS + 2
        n_blocks = (self._deepest + n_branches + grows) * max(case.n_sequences for case in cases)
        n_positions = max(case.n_positions for case in cases)
        rope = RopeTables(config, n_positions + SLOTS, weights.rope_factors, first.rope)
        self._cache = STRATEGIES[first.cache](
            config, n_blocks * SLOTS, first.type_k, first.type_v, rope
        )
        n_ubatch = max(min(case.n_ubatch, case.n_batch) for case in cases)
        self._model = Model(config, weights, self._cache, n_ubatch)
        self._n_vocab = config.n_vocab
        self._logits = np.zeros((0, config.n_vocab), np.float32)  # of the last pass
        self._trunks: list[tuple[BlockTable, np.ndarray]] = []
        self._filled: dict[int, list[BlockTable]] = {}

    def n_filled(self, depth: int) -> int:
        """How many contexts hold `depth` tokens."""
        return len(self._filled.get(depth, ()))

    def filled(self, depth: int) -> list[BlockTable]:
        """Contexts that hold `depth` tokens; truncate them to it after use."""
        return self._filled[depth]

    def fill(self, case: Case, rng: np.random.Generator, n_threads: int) -> None:
        """Make one more context that holds `n_depth` random tokens.

        Each sequence is computed once, to the deepest of its depths; shallower contexts read the
        first blocks of it and compute only the tokens behind its last whole block.
        """
        at = self.n_filled(case.n_depth)
        if at == len(self._trunks):
            trunk = self._cache.new_table()
            ids = rng.integers(0, self._n_vocab, (self._deepest + 1) * SLOTS, np.int32)
            if self._deepest:
                chunk = Part(trunk, ids[: self._deepest * SLOTS].tolist())
                self._forward_all([chunk], case, n_threads)
            self._trunks.append((trunk, ids))
        trunk, ids = self._trunks[at]
        context = trunk.fork()
        context.truncate(case.n_depth // SLOTS * SLOTS)
        rest = ids[context.n_tokens : case.n_depth].tolist()
        if rest:
            self._forward_all([Part(context, rest)], case, n_threads)
        self._filled.setdefault(case.n_depth, []).append(context)

    def prompt(
        self, contexts: Sequence[BlockTable], ids: np.ndarray, case: Case, n_threads: int
    ) -> None:
        """Compute ids [n_sequences, n] behind the contexts, and each one's last logits."""
        chunks = [
            Part(context, row.tolist(), "last") for context, row in zip(contexts, ids, strict=True)
        ]
        self._forward_all(chunks, case, n_threads)

    def decode(
        self, contexts: Sequence[BlockTable], ids: np.ndarray, case: Case, n_threads: int
    ) -> None:
        """Compute ids [n_sequences, n] behind the contexts, one of each sequence at a time."""
        for column in ids.T.tolist():
            chunks = [
                Part(context, [i], "last") for context, i in zip(contexts, column, strict=True)
            ]
            self._forward_all(chunks, case, n_threads)

    def _forward_all(self, chunks: list[Part], case: Case, n_threads: int) -> None:
        for batch in split(chunks, case.n_batch):
            for group in split(batch, case.n_ubatch):
                with threads.forward_pass():
                    self._logits = self._model.forward(make_batch(group), n_threads)

    def check(self) -> None:
        """LariatError unless the last pass gave numbers: nonsense can be fast, too."""
        check_finite(self._logits)
