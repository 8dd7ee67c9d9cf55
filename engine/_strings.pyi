from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

Bytes = bytes | mmap.mmap
Bounds = NDArray[np.int64]

def find_bounds(head: Bytes, start: int, n: int) -> tuple[Bounds, int]: ...
def split(blob: bytes, bounds: Bounds) -> list[bytes]: ...
def split_pairs(blob: bytes, bounds: Bounds) -> list[tuple[str, str]]: ...
def sentencepiece_pieces(
    names: list[bytes], scores: NDArray[np.float32], types: NDArray[np.uint8]
) -> bytes: ...
def hashes(blob: bytes, bounds: Bounds) -> NDArray[np.uint64]: ...
