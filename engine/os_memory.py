"""Large blocks of memory from the system, and files that are mapped into them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Iterable

import numpy as np

_HUGE_PAGE = 2 << 20
# Smaller blocks get no huge pages: these would waste more memory than they save time.
_MIN_HUGE = 4 << 20
_POPULATE_READ, _POPULATE_WRITE = 22, 23  # MADV_..., for which Python has no names
_LINE = 64  # bytes of a cache line; a vector of 64 bytes must not lie in two of them


def allocate(n_bytes: int, huge: bool = True) -> np.ndarray:
    """Zeroed uint8 [n_bytes], page-aligned, with `huge` in huge pages if the system has them.

    Pages take memory only when they are written, and go back to the system with the array. Raises
    MemoryError with a sentence.
    """
    # A huge page begins at a multiple of its size, but a mapping may begin at any page.
    spare = _HUGE_PAGE if huge and n_bytes >= _MIN_HUGE else 0
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = mmap.mmap(-1, max(n_bytes, 1) + spare, flags=flags)
    except (OSError, OverflowError) as error:
        size = f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
        raise MemoryError(f"the system refuses {size} of memory") from error
    if spare and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel that was built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    start = -array.ctypes.data % _HUGE_PAGE if spare else 0
    return array[start : start + n_bytes]


def give_back(part: np.ndarray) -> None:
    """Give the pages that lie whole within `part`, uint8 [n], back to the system.

    Their contents are lost. They take memory again when they are written. Does nothing where the
    system (other than Linux) has other rules for it.
    """
    if not sys.platform.startswith("linux"):
        return
    page = mmap.PAGESIZE
    start = -(-part.ctypes.data // page) * page
    n_bytes = (part.ctypes.data + part.nbytes) // page * page - start
    if n_bytes > 0:
        _madvise(start, n_bytes, mmap.MADV_DONTNEED)


@functools.cache
def _libc_madvise() -> Callable[[int, int, int], int]:
    madvise = ctypes.CDLL(None).madvise  # unlike the one of mmap, it lets other threads run
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    found: Callable[[int, int, int], int] = madvise
    return found


def _madvise(address: int, n_bytes: int, advice: int) -> None:
    _libc_madvise()(address, n_bytes, advice)


class Arena:
    """One block of memory, handed out in pieces that follow each other.

    So all weights lie in the order in which they are read, and share huge pages. Separate blocks
    would each end in small pages, and reading these stops at every 4 KB.
    """

    def __init__(self, n_bytes: int, n_pieces: int) -> None:
        """Reserve `n_bytes` for `n_pieces` pieces. Memory that is not written costs nothing."""
        self._memory = allocate(n_bytes + n_pieces * _LINE)
        self._used = 0

    def take(self, n_bytes: int) -> np.ndarray:
        """The next uint8 [n_bytes], 64-byte aligned. Raises MemoryError if it does not fit."""
        start = -(-self._used // _LINE) * _LINE
        if start + n_bytes > len(self._memory):
            raise MemoryError(f"{n_bytes} bytes do not fit into the rest of the arena")
        self._used = start + n_bytes
        return self._memory[start : self._used]


def map_file(target: np.ndarray, fd: int, offset: int) -> bool:
    """Map bytes of a file over `target`, uint8 [n], contiguous, a part of an allocated block.

    Nothing is read or copied. Pages come from the system's cache of the file when they are used, or
    with `map_pages`. A page that is written becomes a copy; the file never changes. Returns False,
    and does nothing, if these are not whole pages or the system allows no more mappings.
    """
    assert target.flags.c_contiguous
    page = mmap.ALLOCATIONGRANULARITY
    if any(n % page for n in (target.ctypes.data, target.nbytes, offset)):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
    ]  # fmt: skip
    access, fixed = mmap.PROT_READ | mmap.PROT_WRITE, 0x10  # MAP_FIXED, on Linux and macOS
    at = libc.mmap(target.ctypes.data, target.nbytes, access, mmap.MAP_PRIVATE | fixed, fd, offset)
    return bool(at == target.ctypes.data)


def map_pages(parts: Iterable[tuple[np.ndarray, bool]], n_threads: int) -> None:
    """Let the system map all pages of `parts` (uint8 [n]) of a file now, with `n_threads` threads.

    Otherwise a page fault for every few pages would cost as much as to read them. Each part comes
    with whether it will be written. If so, its pages are copied now: copying a page that was read
    before stops all threads. Linux before 5.14 cannot do this, and maps pages when they are used.
    """
    from concurrent.futures import ThreadPoolExecutor  # takes 5 ms, and few processes need it

    def populate(part: np.ndarray, is_written: bool) -> None:
        _madvise(part.ctypes.data, part.nbytes, _POPULATE_WRITE if is_written else _POPULATE_READ)

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda each: populate(*each), parts))
