"""Large blocks of memory, straight from the system."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_HUGE_PAGE = 2 << 20
# Below this, a huge page would waste more than it saves in translation misses.
_HUGE = 4 << 20
_POPULATE_READ, _POPULATE_WRITE = 22, 23  # MADV_..., which Python has no names for
_LINE = 64  # bytes of a cache line, which vectors of 64 bytes must not straddle


def allocate(n_bytes: int) -> np.ndarray:
    """Zeroed uint8 [n_bytes], page-aligned, in huge pages where the system gives them.

    Pages count only once they are written, and go back to the system with the array.
    Raises MemoryError with a sentence.
    """
    # A huge page begins at a multiple of its size, and the system begins a mapping anywhere.
    room = _HUGE_PAGE if n_bytes >= _HUGE else 0
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = mmap.mmap(-1, max(n_bytes, 1) + room, flags=flags)
    except (OSError, OverflowError) as error:
        size = f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
        raise MemoryError(f"the system refuses {size} of memory") from error
    if room and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    start = -array.ctypes.data % _HUGE_PAGE if room else 0
    return array[start : start + n_bytes]


class Arena:
    """One block of memory, handed out in pieces that follow each other.

    So all weights lie in the order in which they are read and share their huge pages, where blocks
    of their own would each end in small ones: reading those stops at every 4 KB.
    """

    def __init__(self, n_bytes: int, n_pieces: int) -> None:
        """Room for `n_pieces` pieces of `n_bytes` in all; what is not written costs nothing."""
        self._memory = allocate(n_bytes + n_pieces * _LINE)
        self._used = 0

    def take(self, n_bytes: int) -> np.ndarray:
        """The next uint8 [n_bytes], 64-byte aligned. Raises MemoryError where there is no room."""
        start = -(-self._used // _LINE) * _LINE
        if start + n_bytes > len(self._memory):
            raise MemoryError(f"{n_bytes} bytes do not fit into what is left of the arena")
        self._used = start + n_bytes
        return self._memory[start : self._used]


def map_file(target: np.ndarray, fd: int, offset: int) -> bool:
    """Let `target` (uint8 [n], contiguous, a part of what `allocate` gave) show bytes of a file.

    Nothing is read or copied: pages come from the system's cache of the file when they are used,
    or by `map_pages`, and one that is written to becomes a copy, never a change of the file. False,
    with nothing done, where that cannot be: no whole pages, or the system has no room for one more
    mapping.
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
    """Have the system map all pages of `parts` (uint8 [n]) of a file, with `n_threads` threads: a
    fault for each few of them costs as much as reading them.

    Beside each part stands whether it will be written to. Then its pages become copies at once:
    later, when they have been read, each copy stops all threads. Linux before 5.14 refuses, and
    faults have to do.
    """
    madvise = ctypes.CDLL(None).madvise  # which lets other threads run, unlike that of mmap
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def populate(part: np.ndarray, is_written: bool) -> None:
        madvise(part.ctypes.data, part.nbytes, _POPULATE_WRITE if is_written else _POPULATE_READ)

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda each: populate(*each), parts))
