"""Measures a model: prompts and decoding at any depth, with any cache, on any number of threads.

A case does the work of the same test of llama-bench (llama.cpp), so that figures can stand side
by side: `pp512` computes 512 random tokens in batches and the last one's logits, `tg128` decodes
128 random tokens one by one without sampling, and `@ d4096` says that the cache held 4096 tokens
before. The weights of a file are loaded once for all its cases. Repetitions of the cases take
turns, so that a machine that drifts slows all of them alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from lariat import _kernels, _tiles
from lariat.architectures.loading import load_weights, read_config
from lariat.architectures.weights import Weights
from lariat.cache.blocks import SLOTS, BlockTable
from lariat.config import EngineConfig, ModelConfig
from lariat.formats.gguf_split import GGUFModel
from lariat.measure.cases import Case, Cost, ModelFacts, Result, check_fits
from lariat.measure.disturbance import Meter, Usage, add_up, load_average
from lariat.measure.machine import Pins, Probe, peak_memory, reset_peak_memory
from lariat.runtime import threads
from lariat.runtime.batch import Part, split
from lariat.runtime.runner import build_runner
from lariat.runtime.sampler import check_finite

_PROBE_AGE = 10.0  # seconds after which a ceiling is measured again
_SPAN = 64  # tokens that one cache decodes before it is the other's turn, see `run_growing`
_DECODE_COST = 8  # cost of a decoded token in tokens of a prompt, for the progress bar alone


class Benchmark:
    """One model file, its weights loaded once, and cases to measure on it.

    results  one for each case; after an interruption some have fewer samples

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
        """Load the weights of `path`.

        `probe` measures ceilings beside the cases, `pins` keeps threads on processors, `progress`
        gets the share that is loaded, 0 to 1, and `use_mmap` is as for `LLM`. Raises the errors of
        `LLM`, and ContextError for a case that is longer than the model's context.
        """
        self._probe, self._pins = probe, pins
        self._n_processors = pins.n_processors if pins else threads.available()
        self._cases = list(cases)
        self._ceilings: dict[tuple[str, int], tuple[float, float]] = {}  # value, when
        self._filled: dict[tuple[str, str, str], _Filled] = {}
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
        tiles = _tiles_in_use(self._weights)
        self.results = [
            Result(
                case,
                facts,
                _kernels.isa(),
                pins is not None,
                cost.bytes_per_token(case),
                cost.macs_per_token(case),
                tiles=tiles,
            )
            for case in cases
        ]

    def close(self) -> None:
        """Give back memory and the file."""
        for filled in self._filled.values():
            filled.runner.close()
        self._filled.clear()
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
        """Run all cases in turns, `repetitions` times.

        The cache is filled to all depths first. With `warm_up`, each case then runs once without
        being counted: prompts whole, decoding by one token. `delay` seconds pass before each case.
        """
        report = self._prepare(self._cases, repetitions, warm_up, progress)
        for _ in range(repetitions):
            for result in self.results:
                self._repeat(result, delay)
                report.add(_work(result.case))

    def run_growing(
        self,
        repetitions: int,
        *,
        warm_up: bool = True,
        delay: float = 0.0,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Like `run`, but measure decoding together where cases differ in `n_gen` and cache alone.

        Each cache grows from the same depth, in turns of 64 tokens, and the time to the n-th token
        is that of the case that decodes n. This takes no longer than the longest case, and a
        machine that drifts meanwhile slows all caches alike.
        """
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
                report.add(_work(result.case))
            for group in groups.values():
                time.sleep(delay)
                self._grow(group, report)

    # ---- how a case runs ---------------------------------------------------------------------

    def _prepare(
        self,
        cases: Sequence[Case],
        repetitions: int,
        warm_up: bool,
        progress: Callable[[float], None] | None,
    ) -> _Progress:
        """Fill the cache and warm up. Returns the progress, for the repetitions that follow."""
        first = {
            case: replace(case, n_gen=min(case.n_gen, 1 + case.spec.n_draft if case.spec else 1))
            for case in cases
        }
        depths: dict[tuple[str, str, str], int] = {}
        for case in cases:
            key = _key(case)
            depths[key] = max(depths.get(key, 0), case.n_depth * case.n_sequences)
        report = _Progress(
            sum(depths.values())
            + warm_up * sum(map(_work, first.values()))
            + repetitions * sum(map(_work, cases)),
            progress,
        )
        for case in sorted(cases, key=lambda case: -case.n_sequences):
            self._tables(case)
            report.add(depths.pop(_key(case), 0))
        for case in cases:
            if warm_up:
                self._time(first[case])
                report.add(_work(first[case]))
        return report

    def _repeat(self, result: Result, delay: float) -> None:
        time.sleep(delay)
        self._add_ceilings(result)
        load, meter = load_average(), Meter()
        ns = self._time(result.case)
        result.add(ns, meter.usage(), load)
        result.peak_memory = self._peak_memory()

    def _time(self, case: Case) -> int:
        """Nanoseconds of one repetition."""
        filled, tables = self._filled_for(case), self._tables(case)
        prompt, written = self._draw(case, case.n_prompt), self._draw(case, case.n_gen)
        try:
            start = time.perf_counter_ns()
            if case.n_prompt:
                filled.prompt(tables, prompt, case, self._use(case.n_threads_batch))
            if case.n_gen:
                decode = filled.speculate if case.spec else filled.decode
                decode(tables, written, case, self._use(case.n_threads))
            taken = time.perf_counter_ns() - start
            filled.check()
            return taken
        finally:
            for table in tables:
                table.truncate(case.n_depth)

    def _grow(self, group: list[Result], report: _Progress) -> None:
        """One repetition of cases of decoding that differ in length and cache alone."""
        longest = _longest(group)
        order = list(longest)
        ends = {result.case.n_gen for result in group}
        total = dict.fromkeys(order, 0)
        usages: dict[str, list[Usage]] = {name: [] for name in order}
        load = load_average()
        at = 0
        try:
            for stop in sorted({*ends, *range(_SPAN, max(ends), _SPAN)}):
                for result in group:
                    if at < result.case.n_gen:
                        self._add_ceilings(result)
                written = self._draw(group[0].case, stop - at)
                for name in order:
                    case = longest[name]
                    if at >= case.n_gen:
                        continue
                    filled, tables = self._filled_for(case), self._tables(case)
                    n_threads = self._use(case.n_threads)
                    meter, start = Meter(), time.perf_counter_ns()
                    filled.decode(tables, written, case, n_threads)
                    total[name] += time.perf_counter_ns() - start
                    usage = meter.usage()
                    usages[name] += [usage] if usage else []
                    filled.check()
                    report.add(_work(replace(case, n_gen=stop - at)))
                for result in group:
                    if result.case.n_gen == stop:
                        name = result.case.cache
                        result.add(total[name], add_up(usages[name]), load)
                        result.peak_memory = self._peak_memory()
                at = stop
                order.reverse()  # so that no cache is always the first after a pause
        finally:
            for case in longest.values():
                for table in self._tables(case):
                    table.truncate(case.n_depth)

    def _draw(self, case: Case, n: int) -> np.ndarray:
        """Draw random tokens for each sequence, int32 [n_sequences, n]."""
        return self._rng.integers(0, self._config.n_vocab, (case.n_sequences, n), np.int32)

    def _use(self, n_threads: int) -> int:
        """Return `n_threads`, after each has been pinned to its processor if that is asked for."""
        if self._pins:
            self._pins.place(n_threads)
        return n_threads

    def _filled_for(self, case: Case) -> _Filled:
        key = _key(case)
        if key not in self._filled:
            same = [other for other in self._cases if _key(other) == key]
            self._filled[key] = _Filled(self._config, self._weights, same)
        return self._filled[key]

    def _tables(self, case: Case) -> list[BlockTable]:
        """Block tables of `n_depth` tokens, one for each sequence; filled when first asked for."""
        filled, n_threads = self._filled_for(case), case.n_threads_batch
        n_missing = case.n_sequences - filled.n_tables(case.n_depth)
        for _ in range(n_missing):
            filled.fill(case, self._rng, self._use(n_threads))
        return filled.tables(case.n_depth)[: case.n_sequences]

    def _add_ceilings(self, result: Result) -> None:
        for name, n_threads in _ceilings_of(result.case):
            value = self._ceiling(name, n_threads)
            if value is not None:
                (result.bandwidths if name == "read" else result.int8_peaks).append(value)

    def _ceiling(self, name: str, n_threads: int) -> float | None:
        """The most that the machine can do; measured again when the last value is too old.

        More threads than processors cannot do more than one thread a processor. The probes would
        even show less, because they give each thread an equal share.
        """
        if self._probe is None:
            return None
        n_threads = min(n_threads, self._n_processors)
        value, when = self._ceilings.get((name, n_threads), (0.0, -_PROBE_AGE))
        if time.monotonic() - when >= _PROBE_AGE:
            self._use(n_threads)
            probe = self._probe.read_bandwidth if name == "read" else self._probe.int8_peak
            value = probe(n_threads)
            self._ceilings[name, n_threads] = (value, time.monotonic())
        return value

    def _peak_memory(self) -> int:
        return peak_memory() - (self._probe.n_bytes if self._probe else 0)


def _tiles_in_use(weights: Weights) -> dict[str, str]:
    """The kind of core whose tiles each weight type is multiplied with: by few columns, by many."""
    matrices = [*weights.matrices(), weights.output.weight]
    return {
        f"{matrix.type_name} {'few' if few else 'many'}": _tiles.core_of(matrix, few)
        for matrix in {matrix.type_name: matrix for matrix in matrices}.values()
        for few in (True, False)
    }


def _key(case: Case) -> tuple[str, str, str]:
    """Fields that are equal in cases that share a cache."""
    return case.cache, case.type_k, case.type_v


def _longest(group: Sequence[Result]) -> dict[str, Case]:
    """Return the case that decodes most of each cache, in the order of the group."""
    longest: dict[str, Case] = {}
    for case in (result.case for result in group):
        if case.cache not in longest or longest[case.cache].n_gen < case.n_gen:
            longest[case.cache] = case
    return longest


def _ceilings_of(case: Case) -> list[tuple[str, int]]:
    """Return the ceilings that bound a case, each with a number of threads. None bounds "both"."""
    ceilings = {"decode": [("read", case.n_threads)], "prompt": [("int8", case.n_threads_batch)]}
    return ceilings.get(case.phase, [])


def _work(case: Case) -> int:
    """Cost of a case in tokens of a prompt."""
    return (case.n_prompt + case.n_gen * _DECODE_COST) * case.n_sequences


class _Progress:
    """Adds up work and reports the share that is done."""

    def __init__(self, n_total: int, report: Callable[[float], None] | None) -> None:
        self._n_total, self._n_done, self._report = max(n_total, 1), 0, report

    def add(self, n: int) -> None:
        self._n_done += n
        if self._report:
            self._report(min(1.0, self._n_done / self._n_total))


class _Filled:
    """A runner with caches of one type, and block tables that are filled to several depths."""

    def __init__(self, config: ModelConfig, weights: Weights, cases: Sequence[Case]) -> None:
        """cases: all that have this cache; they say how large it must be."""
        first = cases[0]
        self._deepest = max(case.n_depth for case in cases) // SLOTS
        n_depths = len({case.n_depth for case in cases})
        n_grown = max(case.n_prompt + case.n_gen for case in cases) // SLOTS + 2
        n_blocks = (self._deepest + n_depths + n_grown) * max(case.n_sequences for case in cases)
        n_ubatch = max(min(case.n_ubatch, case.n_batch) for case in cases)
        settings = EngineConfig(
            n_ctx=n_blocks * SLOTS,
            n_batch=n_ubatch,
            n_ubatch=n_ubatch,
            cache=first.cache,
            type_k=first.type_k,
            type_v=first.type_v,
            rope=first.rope,
        )
        self.runner = build_runner(config, weights, settings)
        self._logits = np.zeros((0, config.n_vocab), np.float32)  # of the last pass
        self._deepest_tables: list[tuple[BlockTable, np.ndarray]] = []  # with their token ids
        self._tables: dict[int, list[BlockTable]] = {}  # by depth

    def n_tables(self, depth: int) -> int:
        """Number of tables that hold `depth` tokens."""
        return len(self._tables.get(depth, ()))

    def tables(self, depth: int) -> list[BlockTable]:
        """Tables that hold `depth` tokens; truncate them to it after use."""
        return self._tables[depth]

    def token_ids(self, sequence: int) -> np.ndarray:
        """Token ids that fill the tables of a sequence, int32, at least as many as the depth."""
        return self._deepest_tables[sequence][1]

    def fill(self, case: Case, rng: np.random.Generator, n_threads: int) -> None:
        """Make one more table that holds `n_depth` random tokens.

        Each sequence is computed once, to the deepest of its depths. A shallower table shares the
        first blocks of it, and only the tokens behind its last whole block are computed.
        """
        at = self.n_tables(case.n_depth)
        if at == len(self._deepest_tables):
            deepest = self.runner.new_table()
            n_ids = (self._deepest + 1) * SLOTS
            ids = rng.integers(0, self.runner.config.n_vocab, n_ids, np.int32)
            if self._deepest:
                part = self.runner.part(deepest, ids[: self._deepest * SLOTS].tolist())
                self._forward_all([part], case, n_threads)
            self._deepest_tables.append((deepest, ids))
        deepest, ids = self._deepest_tables[at]
        table = deepest.fork()
        table.truncate(case.n_depth // SLOTS * SLOTS)
        rest = ids[table.n_tokens : case.n_depth].tolist()
        if rest:
            self._forward_all([self.runner.part(table, rest)], case, n_threads)
        self._tables.setdefault(case.n_depth, []).append(table)

    def prompt(
        self, tables: Sequence[BlockTable], ids: np.ndarray, case: Case, n_threads: int
    ) -> None:
        """Compute ids [n_sequences, n] behind the tables, and each one's last logits."""
        parts = [
            self.runner.part(table, row.tolist(), "last")
            for table, row in zip(tables, ids, strict=True)
        ]
        self._forward_all(parts, case, n_threads)

    def decode(
        self, tables: Sequence[BlockTable], ids: np.ndarray, case: Case, n_threads: int
    ) -> None:
        """Compute ids [n_sequences, n] behind the tables, one of each sequence at a time."""
        for column in ids.T.tolist():
            parts = [
                self.runner.part(table, [i], "last")
                for table, i in zip(tables, column, strict=True)
            ]
            self._forward_all(parts, case, n_threads)

    def speculate(
        self, tables: Sequence[BlockTable], ids: np.ndarray, case: Case, n_threads: int
    ) -> None:
        """Compute ids [n_sequences, n] behind the tables as speculation does: of each sequence a
        token and its guesses at a time, of which those that do not come are cut off again."""
        assert case.spec is not None
        n_done, number = [0] * len(tables), 0
        while any(n < ids.shape[1] for n in n_done):
            parts, came = [], []
            for i, table in enumerate(tables):
                some = ids[i, n_done[i] : n_done[i] + 1 + case.spec.n_draft].tolist()
                if some:
                    number += 1
                    n_done[i] += min(1 + case.spec.n_accepted(number), len(some))
                    came.append((table, case.n_depth + case.n_prompt + n_done[i]))
                    parts.append(self.runner.part(table, some, "all"))
            self._forward_all(parts, case, n_threads)
            for table, n in came:
                table.truncate(n)

    def check(self) -> None:
        """Raise LariatError unless the last pass gave numbers: nonsense can be fast, too."""
        check_finite(self._logits)

    def _forward_all(self, parts: list[Part], case: Case, n_threads: int) -> None:
        for batch in split(parts, case.n_batch):
            for group in split(batch, case.n_ubatch):
                self._logits = self.runner.forward(group, n_threads)
