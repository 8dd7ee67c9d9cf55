from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

Bytes = bytes | mmap.mmap
Bounds = NDArray[np.int64]

def find_bounds(head: Bytes, start: int, n: int) -> tuple[Bounds, int]: ...
def split(blob: bytes, bounds: Bounds) -> list[bytes]: ...
def split_pairs(blob: bytes, bounds: Bounds) -> list[tuple[str, str]]: ...
def hashes(blob: bytes, bounds: Bounds) -> NDArray[np.uint64]: ...
