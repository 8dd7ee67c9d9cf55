"""The best that this machine can do, and the memory of this process: the ceilings of a benchmark.

Decoding is bounded by the rate at which memory is read, a prompt by the rate at which bytes are
multiplied, and attention in it by the rate for floats. These rates drift with the neighbours of a
virtual machine, so they are measured in the same run as the speeds that are compared with them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from lariat import _kernels, _machine
from lariat.errors import LariatError
from lariat.os_memory import allocate
from lariat.runtime import threads

_READ_BYTES = 1 << 30  # well beyond any cache
_MIN_READ_BYTES = 64 << 20
_READ_PASSES = 3  # long ones: neighbours share the memory, and decode reads all the time
_MULTIPLY_PASSES = 20  # short ones, so that some run undisturbed on a busy system
_PASS_SECONDS = 0.005


class Probe:
    """Measures the ceilings with the instruction set in use.

    It holds `n_bytes` of memory to read, which count as this process's.
    """

    def __init__(self, n_threads: int, n_bytes: int | None = None) -> None:
        """Let `n_threads` threads touch the memory first, so that it lies where they run."""
        if n_bytes is None:
            n_bytes = max(_MIN_READ_BYTES, min(_READ_BYTES, _available_memory() // 8))
        n_bytes = -(-n_bytes // _machine.STEP_BYTES) * _machine.STEP_BYTES
        self.n_bytes = n_bytes
        self._memory: np.ndarray = allocate(n_bytes)
        threads.claim()
        _machine.fill(self._memory, n_threads)
        self._n_steps = 256

    def read_bandwidth(self, n_threads: int, n_passes: int = _READ_PASSES) -> float:
        """Bytes a second that `n_threads` threads read: the best of `n_passes` passes."""
        isa = _kernels.isa()
        best = min(_seconds(_machine.read, self._memory, isa, n_threads) for _ in range(n_passes))
        return self.n_bytes / best

    def int8_peak(self, n_threads: int) -> float:
        """Products of bytes, each added to a sum, a second: the best of twenty short passes."""
        return self._peak(_machine.multiply, n_threads)

    def float_peak(self, n_threads: int) -> float:
        """Products of float32, each added to a sum, a second: the best of twenty short passes."""
        return self._peak(_machine.multiply_floats, n_threads)

    def _peak(self, multiply: Callable[..., object], n_threads: int) -> float:
        while self._shortest(multiply, 1, 2) < _PASS_SECONDS:
            self._n_steps *= 2
        best = self._shortest(multiply, n_threads, _MULTIPLY_PASSES)
        return n_threads * self._n_steps * _machine.STEP_PRODUCTS / best

    def _shortest(self, multiply: Callable[..., object], n_threads: int, n_passes: int) -> float:
        isa = _kernels.isa()
        return min(_seconds(multiply, self._n_steps, 1, isa, n_threads) for _ in range(n_passes))


def _seconds(work: Callable[..., object], *args: object) -> float:
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


class Pins:
    """Keeps each thread of the kernels on a processor of its own; use it in a `with` statement.

    Threads share a core only if there are more threads than cores. Raises LariatError if the system
    cannot do it.
    """

    def __init__(self) -> None:
        if not hasattr(os, "sched_setaffinity") or not _machine.thread_ids(1):
            raise LariatError("this system cannot keep threads on processors")
        self._before = os.sched_getaffinity(0)
        self._processors = processors(threads.cores())
        self.n_processors = len(self._processors)  # the system would tell a pinned thread 1
        self._placed: set[int] = set()
        self._n_threads = 0

    def place(self, n_threads: int) -> None:
        """Pin a team of `n_threads`.

        Call it whenever the number of threads changes: OpenMP ends threads that it does not need,
        and starts others.
        """
        if n_threads == self._n_threads:
            return
        self._n_threads = n_threads
        for i, thread in enumerate(_machine.thread_ids(n_threads)):
            _set_affinity(thread, {self._processors[i % len(self._processors)]})
            self._placed.add(thread)

    def release(self) -> None:
        """Let all threads run anywhere again."""
        for thread in self._placed | {int(task.name) for task in Path("/proc/self/task").iterdir()}:
            _set_affinity(thread, self._before)
        self._placed.clear()
        self._n_threads = 0

    def __enter__(self) -> Pins:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _set_affinity(thread: int, processors: Iterable[int]) -> None:
    try:
        os.sched_setaffinity(thread, processors)
    except ProcessLookupError:  # it has ended
        pass
    except OSError as error:
        raise LariatError(f"cannot keep threads on processors: {error.strerror}") from None


def processors(cores: Sequence[Sequence[int]]) -> list[int]:
    """The processors of `cores` (see `threads.cores`): one of each core first, then the others."""
    ranks = ((rank, cpu) for core in cores for rank, cpu in enumerate(core))
    return [cpu for _, cpu in sorted(ranks)]


def peak_memory() -> int:
    """The peak of this process's memory in bytes, since its start or `reset_peak_memory`."""
    n_kib = _read_kib("/proc/self/status", "VmHWM")
    if n_kib is not None:
        return n_kib * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Forget the peak so far, if the system allows it (Linux: proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _available_memory() -> int:
    n_kib = _read_kib("/proc/meminfo", "MemAvailable")
    return n_kib * 1024 if n_kib is not None else 8 * _READ_BYTES


def _read_kib(path: str, key: str) -> int | None:
    """The number behind `key` in a file of lines such as "VmHWM:   1234 kB"."""
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None
