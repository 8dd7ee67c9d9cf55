"""Threads: how many there are, on which cores, and what holds while they run."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lariat import _machine
from lariat.checks import check_whole
from threadpoolctl import LibController, ThreadpoolController

MAX_THREADS = 512
_TOPOLOGY = "/sys/devices/system/cpu"
_PF_FORKNOEXEC = 0x40  # of the flags in /proc/PID/stat: include/linux/sched.h
_NOT_SPREAD = (0, 2)  # omp_proc_bind_false and _master: all threads stay where the first one is
_TRIAL_SECONDS = 2.0  # a team runs within a millisecond, if other processes let it

_blas: ThreadpoolController | None = None
_owner_pid: int | None = None  # the process that has run kernels
_tried_pid: int | None = None  # the process in which `check_not_forked` has tried a team
_is_stale = False  # the result of that


def available() -> int:
    """Physical cores that this process may use: those of its affinity mask, at most its quota."""
    granted, n_cores = quota(), max(1, len(cores()))
    return n_cores if granted is None else max(1, min(n_cores, math.floor(granted)))


def processors() -> list[int]:
    """The processors that this process may use, ascending: its mask's, or OpenMP's places."""
    return _affinity()


def quota() -> float | None:
    """Processors' worth of time that the control group grants; None without a limit."""
    return _cgroup_quota()


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
    """Raise RuntimeError in a forked process: OpenMP would wait for threads that do not exist.

    Any library may have used OpenMP before the fork, so the first call in a forked process tries.
    """
    global _tried_pid, _is_stale
    if _tried_pid != os.getpid() and threading.current_thread() is threading.main_thread():
        _is_stale = not is_forked() and _was_forked() and not _team_runs()
        _tried_pid = os.getpid()
    if is_forked() or (_is_stale and threading.current_thread() is threading.main_thread()):
        raise RuntimeError(
            "this process was forked after the threads of Lariat or of another library had "
            "started, and cannot use them; start it with multiprocessing's 'spawn' method instead"
        )


def claim() -> None:
    """Call it before kernels run: a process that is forked later must not run them.

    Raises RuntimeError as `check_not_forked` does.
    """
    global _owner_pid
    check_not_forked()
    if _owner_pid is None:
        _owner_pid = os.getpid()


@contextmanager
def forward_pass() -> Iterator[None]:
    """Hold NumPy's BLAS to one thread, so that two pools of threads do not fight for the cores.

    Raises RuntimeError as `check_not_forked` does.
    """
    global _blas
    claim()
    if _blas is None:
        _blas = ThreadpoolController().select(user_api="blas")
    limited: list[tuple[LibController, int]] = []
    try:
        # `limit` of the controller does the same, and asks each library for its description: 20 us.
        for library in _blas.lib_controllers:
            n = library.num_threads
            if n != 1:
                limited.append((library, n))
                library.set_num_threads(1)
        yield
    finally:
        for library, n in limited:
            library.set_num_threads(n)


def _was_forked() -> bool:
    """Whether this process runs no program of its own since it was forked."""
    try:
        flags = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6]
    except (OSError, IndexError):
        return False  # macOS, where OpenMP's library survives forks
    return bool(int(flags) & _PF_FORKNOEXEC)


def _team_runs() -> bool:
    """Whether OpenMP's threads run in this process, found out by a copy of it that may hang.

    Only the thread that called fork can have lost its team, and only it is in the copy.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads that the copy lacks
        copy = os.fork()
    if copy == 0:
        try:
            _machine.thread_ids(2)
        finally:
            os._exit(0)
    end = time.monotonic() + _TRIAL_SECONDS
    try:
        while time.monotonic() < end:
            if os.waitpid(copy, os.WNOHANG)[0]:
                return True
            time.sleep(0.001)
        os.kill(copy, signal.SIGKILL)
        os.waitpid(copy, 0)
    except (ChildProcessError, ProcessLookupError):  # the program's handler of SIGCHLD was faster
        return time.monotonic() < end
    return False


def _affinity() -> list[int]:
    if bound := _places():
        return bound
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _places() -> list[int]:
    """The processors over which OpenMP spreads its threads, if the user has told it to bind them.

    With OMP_PROC_BIND, OMP_PLACES or GOMP_CPU_AFFINITY, OpenMP binds the first thread when it is
    loaded. So that thread's affinity mask says nothing about the others.
    """
    openmp = ctypes.CDLL(_machine.__file__)  # finds OpenMP's library, whatever its file is named
    if not hasattr(openmp, "omp_get_num_places") or openmp.omp_get_proc_bind() in _NOT_SPREAD:
        return []
    found: set[int] = set()
    for place in range(openmp.omp_get_num_places()):
        ids = (ctypes.c_int * openmp.omp_get_place_num_procs(place))()
        openmp.omp_get_place_proc_ids(place, ids)
        found.update(ids)
    return sorted(found)


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
