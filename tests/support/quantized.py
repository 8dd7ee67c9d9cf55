"""Weights and an importance of their columns that are the same everywhere, to the bit.

Digests of what llama.cpp makes of them stand in `tests/data/blocks_llama_cpp.json`. They come from
whole numbers alone, because random numbers of NumPy may be others in its next version.
"""

from __future__ import annotations

import numpy as np

N_COLS = 512


def _mixed(n: int, seed: int) -> np.ndarray:
    """uint64 [n], splitmix64 of seed + 0, 1, 2"""
    x = np.arange(n, dtype=np.uint64) + np.uint64(seed << 32)
    x *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ x >> np.uint64(shift)) * np.uint64(factor)
    return x ^ x >> np.uint64(31)


def _bells(n: int, seed: int) -> np.ndarray:
    """float32 [n]: sums of four even numbers, nearly normal, with deviation 1"""
    parts = _mixed(n, seed).view(np.uint16).reshape(n, 4).astype(np.float64)
    return ((parts.sum(axis=1) - 2 * 65535) / 37837.0).astype(np.float32)


def rows() -> np.ndarray:
    """float32 [40, N_COLS]: zeros, ties, outliers, one sign, scales from tiny to huge"""
    x = _bells(40 * N_COLS, 1).reshape(40, N_COLS)
    x[0] = 0
    x[1] = np.round(x[1] * 4) / 4  # many halves and equal magnitudes
    x[2, ::2] = -x[2, 1::2]  # largest magnitude with both signs
    x[3] *= np.float32(2.0) ** (np.arange(N_COLS) % 23 - 11).astype(np.float32)
    x[4] = np.arange(N_COLS) % 255 - 127
    x[5] *= np.float32(2.0**-20)
    x[6] *= np.float32(2.0**9)
    x[7] = np.abs(x[7])
    x[8] = -np.abs(x[8])
    x[9, :300] = 0
    x[10] = 3
    x[11] *= np.float32(2.0**-45)  # scales are zero in f16
    x[12, ::31] *= np.float32(64)
    return x


def importance() -> np.ndarray:
    """float32 [N_COLS], not negative, some zero"""
    worth = np.abs(_bells(N_COLS, 2)) ** np.float32(2)
    worth[5:40] = 0
    return worth
