"""Large blocks of memory, straight from the system."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

# Below this, a huge page would waste more than it saves in translation misses.
_HUGE = 4 << 20


def allocate(n_bytes: int) -> np.ndarray:
    """Zeroed uint8 [n_bytes], page-aligned, in huge pages where the system gives them.

    Pages count only once they are written, and go back to the system with the array.
    Raises MemoryError with a sentence.
    """
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = mmap.mmap(-1, max(n_bytes, 1), flags=flags)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"the system refuses {n_bytes / 1e9:.1f} GB of memory") from error
    if n_bytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:n_bytes]
