"""CPU time that others take while something is measured, so that a result can be judged.

Linux counts in /proc/stat (proc(5)) how long its processors were busy and how long the host of a
virtual machine ran others instead of them (steal). Busy time less the CPU time of this process is
what other processes used: the foreign load. Where there is no such file (macOS), nothing is known.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Quiet runs of one command differ by some 3 % (docs/results.md). Others slow a parallel program by
# at least their share of the processors, so from 5 % on they explain more than chance does.
MAX_SHARE = 0.05
# The counters advance in ticks of 10 ms on each processor. A shorter sum may be one tick that was
# counted on the wrong side of a boundary, so it says nothing.
_MIN_SECONDS = 0.05


@dataclass(frozen=True)
class Usage:
    """Use of all processors over some time, in CPU seconds.

    total    wall time multiplied by the number of processors
    steal    time that the host of this virtual machine gave to other guests
    foreign  time that other processes of this system ran; single values can be slightly negative,
             because the system counts in ticks
    """

    total: float
    steal: float
    foreign: float

    @property
    def share_of_steal(self) -> float:
        """Steal as a share of all processors' time, 0 to 1."""
        return _share(self.steal, self.total)

    @property
    def share_of_foreign(self) -> float:
        """Foreign load as a share of all processors' time, 0 to 1."""
        return _share(self.foreign, self.total)

    @property
    def share_of_others(self) -> float:
        """Steal and foreign load together, 0 to 1."""
        return _share(max(0.0, self.steal) + max(0.0, self.foreign), self.total)

    @property
    def is_disturbed(self) -> bool:
        """Whether others took so much that the speed measured meanwhile is not to be trusted."""
        others = max(0.0, self.steal) + max(0.0, self.foreign)
        return others > _MIN_SECONDS and others > MAX_SHARE * self.total


def _share(seconds: float, total: float) -> float:
    """Between 0 and 1: in a short time, ticks that were counted late can come to more than all."""
    return min(1.0, max(0.0, seconds) / total)


def add_up(usages: Sequence[Usage]) -> Usage | None:
    """Return the use over several periods, or None of none."""
    if not usages:
        return None
    return Usage(
        sum(usage.total for usage in usages),
        sum(usage.steal for usage in usages),
        sum(usage.foreign for usage in usages),
    )


class Meter:
    """Measures the use of the processors from the moment when it is made."""

    def __init__(self, stat: str = "/proc/stat") -> None:
        """stat: path of the file that Linux calls /proc/stat"""
        self._stat = stat
        self._own = time.process_time()
        self._start = time.perf_counter()
        self._counted = _read(stat)

    def usage(self) -> Usage | None:
        """Return the use since then, or None where the system does not count it."""
        now, before = _read(self._stat), self._counted
        seconds = time.perf_counter() - self._start
        own = time.process_time() - self._own
        if now is None or before is None:
            return None
        busy = now.busy - before.busy
        if busy <= 0 and own > _MIN_SECONDS:  # a sandbox has the file, but its counters stand still
            return None
        return Usage(seconds * now.n_processors, now.steal - before.steal, busy - own)


def load_average() -> float | None:
    """Mean number of runnable threads in the last minute, ours included; None where unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


class _Counters(NamedTuple):
    """CPU seconds of all processors since the system started."""

    busy: float
    steal: float
    n_processors: int


def _read(stat: str) -> _Counters | None:
    try:
        with open(stat) as file:
            lines = [line.split() for line in file if line.startswith("cpu")]
        # A guest's time is part of user's and nice's, so it must not be added.
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, lines[0][1:9])
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
    busy = user + nice + system + irq + softirq
    return _Counters(busy / ticks, steal / ticks, max(1, len(lines) - 1))
