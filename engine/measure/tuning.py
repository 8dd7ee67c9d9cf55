"""How many threads are fastest, found with few measurements.

Numbers of threads are compared in pairs that are measured one right after the other, because a
shared machine drifts. The search begins with all processors and halves their number as long as that
may pay; then it looks between the best number and its neighbours. The best ones are measured again,
and of those that are as fast the fewest threads win: they leave cores to others.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from lariat.architectures.loading import load_weights, read_config
from lariat.config import EngineConfig
from lariat.formats.gguf_split import GGUFModel
from lariat.runtime import threads
from lariat.runtime.runner import Runner, build_runner

N_PROMPT = 64
"""Tokens of a prompt that are read at once: enough for the products to take the time."""

_N_CTX = 512
# Of a measurement: a shorter one repeats the work. Under a quota it has two of the periods in which
# Linux counts.
_LEAST_SECONDS, _LEAST_SECONDS_OF_QUOTA = 0.05, 0.2
_N_ROUNDS = 7  # of the search
_N_LAST_ROUNDS = 17  # of the best ones
_N_BEST = 3
_HOPELESS = 0.7  # of the best speed: with fewer threads still it will not be better
_NEAR = 0.95  # of the best speed: may be the best, measured again
_AS_FAST = 0.98  # of the best speed, in pairs
_NEIGHBOUR = 32  # the search ends where neighbours are nearer than that part of the best number

Seconds = Callable[[int], float]
"""Runs a piece of work with so many threads, and says how long it took."""


class Found:
    """The best number of threads, and what each that was tried took.

    best     the fewest threads that are as fast as any
    seconds  by number of threads, all measurements
    """

    def __init__(self) -> None:
        self.best = 0
        self.seconds: dict[int, list[float]] = {}

    def speed(self, n_threads: int) -> float:
        """Pieces of work a second, at the median."""
        return 1 / statistics.median(self.seconds[n_threads])


def fewest_fastest(
    seconds: Seconds, n_most: int, progress: Callable[[float], None] | None = None
) -> Found:
    """Find the best number of threads among 1 to `n_most`. `progress` gets the share that is done
    of the longest search, 0 to 1."""
    search = _Search(seconds, n_most)
    n = n_most
    while n > 1:
        n //= 2
        search.compare(n)
        if progress:
            progress(0.5 * (1 - n / n_most))
        if search.scores[n] < _HOPELESS * search.scores[search.fastest]:
            break
    while between := search.between():
        for n in between:
            search.compare(n)
    if progress:
        progress(0.7)
    search.found.best = search.fewest()
    if progress:
        progress(1.0)
    return search.found


class _Search:
    """Numbers of threads that were tried, and how fast they are.

    scores   by number of threads, the speed as a multiple of that of the first one
    fastest  the number with the highest score
    """

    def __init__(self, seconds: Seconds, first: int) -> None:
        self.found = Found()
        self.scores = {first: 1.0}
        self._seconds = seconds
        seconds(first)  # wakes the threads, and fetches the weights
        self.found.seconds[first] = [seconds(first)]

    @property
    def fastest(self) -> int:
        return max(self.scores, key=lambda n: self.scores[n])

    def compare(self, n: int) -> None:
        """Measure a number of threads beside the fastest one so far."""
        fastest = self.fastest
        self.scores[n] = self.scores[fastest] * self._pairs((fastest, n), _N_ROUNDS)[n]

    def between(self) -> list[int]:
        """The middles between the fastest number and its neighbours, where these are far away."""
        tried = sorted(self.scores)
        at = tried.index(self.fastest)
        near = max(1, self.fastest // _NEIGHBOUR)
        neighbours = [*tried[max(0, at - 1) : at], *tried[at + 1 : at + 2]]
        return [(tried[at] + n) // 2 for n in neighbours if abs(tried[at] - n) > near]

    def fewest(self) -> int:
        """Of those that are nearly the fastest, the fewest threads that are as fast in pairs."""
        fastest = self.fastest
        near = sorted(n for n in self.scores if self.scores[n] >= _NEAR * self.scores[fastest])
        near = list(dict.fromkeys((*near[: _N_BEST - 1], fastest)))
        speeds = self._pairs(near, _N_LAST_ROUNDS)
        least = _AS_FAST * max(speeds.values())
        return min(n for n in near if speeds[n] >= least)

    def _pairs(self, counts: Sequence[int], n_rounds: int) -> dict[int, float]:
        """Measure numbers of threads in turns. Returns the speed of each as a multiple of that of
        the first, at the median of the rounds."""
        times: dict[int, list[float]] = {n: [] for n in counts}
        for i in range(n_rounds):
            for n in counts if i % 2 else reversed(counts):  # none is always first
                times[n].append(self._seconds(n))
        for n in counts:
            self.found.seconds.setdefault(n, []).extend(times[n])
        first = times[counts[0]]
        return {
            n: statistics.median(a / b for a, b in zip(first, times[n], strict=True))
            for n in counts
        }


class Work:
    """A model that decodes a token or reads a prompt with any number of threads."""

    def __init__(self, runner: Runner, n_vocab: int, n_ctx: int) -> None:
        self._runner, self._n_ctx = runner, n_ctx
        self._ids = np.random.default_rng(0).integers(0, n_vocab, N_PROMPT).tolist()
        self._n_at_once: dict[int, int] = {}  # by number of tokens, repetitions of a measurement

    def decode(self, n_threads: int) -> float:
        """Seconds of a token that is decoded."""
        return self._seconds(1, n_threads)

    def prompt(self, n_threads: int) -> float:
        """Seconds of a prompt of `N_PROMPT` tokens."""
        return self._seconds(N_PROMPT, n_threads)

    def _seconds(self, n_tokens: int, n_threads: int) -> float:
        if n_tokens not in self._n_at_once:
            self._n_at_once[n_tokens] = 1
            once = self._seconds(n_tokens, n_threads)
            least = _LEAST_SECONDS if threads.quota() is None else _LEAST_SECONDS_OF_QUOTA
            self._n_at_once[n_tokens] = max(1, math.ceil(least / once))
        n = self._n_at_once[n_tokens]
        table = self._runner.new_table()
        try:
            start = time.perf_counter()
            for _ in range(n):
                if table.n_tokens + n_tokens > self._n_ctx:
                    table.truncate(0)
                part = self._runner.part(table, self._ids[:n_tokens], "last")
                self._runner.forward([part], n_threads)
            return (time.perf_counter() - start) / n
        finally:
            table.truncate(0)


@contextmanager
def loaded(
    path: str,
    *,
    use_mmap: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Iterator[tuple[GGUFModel, Work]]:
    """Load a model to be measured. Raises the errors of `LLM`."""
    with GGUFModel(path, use_mmap=use_mmap) as gguf:
        config = read_config(gguf)
        with threads.forward_pass():
            weights = load_weights(gguf, config, threads.available(), progress)
        n_ctx = min(_N_CTX, config.n_ctx_train)
        runner = build_runner(config, weights, EngineConfig(n_ctx=n_ctx, n_ubatch=N_PROMPT))
        try:
            yield gguf, Work(runner, config.n_vocab, n_ctx)
        finally:
            runner.close()
