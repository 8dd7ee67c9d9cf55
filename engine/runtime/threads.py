"""Threads: how many there are, on which cores, and what holds while they run."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lariat.checks import check_whole
from threadpoolctl import ThreadpoolController

MAX_THREADS = 512
_TOPOLOGY = "/sys/devices/system/cpu"

_blas: ThreadpoolController | None = None
_owner_pid: int | None = None


def available() -> int:
    """Physical cores that this process may use: those of its affinity mask, at most its quota."""
    quota, n_cores = _cgroup_quota(), max(1, len(cores()))
    return n_cores if quota is None else max(1, min(n_cores, math.floor(quota)))


def cores(topology: str = _TOPOLOGY) -> list[list[int]]:
    """The physical cores that this process may use: of each, its processors (hyper-threads).

    Without a topology every processor counts as a core. Source: the kernel's cputopology.rst.
    """
    found: dict[str, list[int]] = {}
    for cpu in _affinity():
        try:
            siblings = Path(topology, f"cpu{cpu}", "topology", "thread_siblings_list")
            core = siblings.read_text().strip()
        except OSError:
            core = str(cpu)
        found.setdefault(core, []).append(cpu)
    return list(found.values())


def resolve(n: int | None, name: str = "n_threads") -> int:
    """`n`, or the available cores if it is None. Raises ValueError outside 1 to 512."""
    if n is None:
        return min(available(), MAX_THREADS)
    return check_whole(name, n, 1, MAX_THREADS)


def check_startable(n_threads: int) -> None:
    """Raise MemoryError if the system does not let this many threads run at once.

    OpenMP would end the process if it could not start one.
    """
    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(n_threads - 1):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise MemoryError(f"the system refuses to start {n_threads} threads") from None
    finally:
        end.set()
        for thread in started:
            thread.join()


def is_forked() -> bool:
    """Whether this process was forked from the one that started the threads of the kernels."""
    return _owner_pid is not None and _owner_pid != os.getpid()


def check_not_forked() -> None:
    """Raise RuntimeError in a forked process: OpenMP would wait for threads that do not exist."""
    if is_forked():
        raise RuntimeError(
            "this process was forked after Lariat's threads had started and cannot use them; "
            "start it with multiprocessing's 'spawn' method instead"
        )


@contextmanager
def forward_pass() -> Iterator[None]:
    """Hold NumPy's BLAS to one thread, so that two pools of threads do not fight for the cores.

    Raises RuntimeError as `check_not_forked` does.
    """
    global _blas, _owner_pid
    check_not_forked()
    if _owner_pid is None:
        _owner_pid = os.getpid()
    if _blas is None:
        _blas = ThreadpoolController().select(user_api="blas")
    with _blas.limit(limits=1):
        yield


def _affinity() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cgroup_quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float | None:
    """CPUs that the control group grants (its own or a parent's), None without a limit."""
    try:
        lines = Path(own).read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if controllers == "":  # version 2
            quotas += [_read_quota(f / "cpu.max") for f in _with_parents(Path(root), path)]
        elif "cpu" in controllers.split(","):  # version 1
            for folder in _with_parents(Path(root, "cpu"), path):
                quota = _read_number(folder / "cpu.cfs_quota_us")
                period = _read_number(folder / "cpu.cfs_period_us")
                if quota and period and quota > 0:
                    quotas.append(quota / period)
    known = [quota for quota in quotas if quota is not None]
    return min(known) if known else None


def _with_parents(root: Path, path: str) -> list[Path]:
    """The group's folder and those above it, up to `root`."""
    folder = root / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _read_quota(path: Path) -> float | None:
    """Read cpu.max: "max 100000" or "150000 100000" (microseconds a period)."""
    try:
        quota, period = path.read_text().split()
        return None if quota == "max" else float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _read_number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
