"""Rotary position embedding: frequencies and the cos/sin table that kernels read.

RoFormer, arXiv 2104.09864. All scaling goes into the frequencies, so kernels know only the table.
"""

from __future__ import annotations

import numpy as np

from engine import _kernels
from engine.config import ModelConfig

_FIRST_ROWS = 1024


def frequencies(config: ModelConfig, factors: np.ndarray | None = None) -> np.ndarray:
    """Angle per position of each pair of a head, float64 [head_dim_k / 2].

    Pairs beyond `rope_dim` do not turn. `factors` (the file's `rope_freqs.weight`, [rope_dim / 2])
    divide the frequencies; linear scaling divides all of them (arXiv 2306.15595).
    """
    pairs = np.arange(config.rope_dim // 2, dtype=np.float64)
    theta = config.rope_freq_base ** (-2.0 * pairs / config.rope_dim) / config.rope_scale
    if factors is not None:
        theta = theta / factors
    return np.concatenate([theta, np.zeros(config.head_dim_k // 2 - len(pairs))])


class RopeTable:
    """cos and sin of position times frequency, computed in float64, kept in float32.

    rows  float32 [n_positions, head_dim]: cos of each pair, then sin of each pair
    step  float32 [2, head_dim / 2]: 2 (1 - cos theta) and sin theta, for stepping a query from one
          position to the next
    kernel  the two as the kernels hold them; it stays the same object when the table grows
    """

    def __init__(self, theta: np.ndarray, n_positions: int) -> None:
        """`theta` float64 [head_dim / 2]; `n_positions` is the most that will be asked for."""
        self._theta = theta
        self._limit = max(n_positions, 32)
        self.step = np.stack([4 * np.sin(theta / 2) ** 2, np.sin(theta)]).astype(np.float32)
        self.rows = self._compute(0, min(self._limit, _FIRST_ROWS))
        self.kernel = _kernels.Rope(self.rows, self.step)

    def reach(self, position: int) -> None:
        """Have rows up to `position`. The table grows by doubling: a long context is paid for
        when it is used."""
        if position < len(self.rows):
            return
        n = min(self._limit, max(position + 1, 2 * len(self.rows)))
        if position >= n:
            raise ValueError(f"position {position} is beyond the context of {self._limit}")
        self.rows = np.concatenate([self.rows, self._compute(len(self.rows), n)])
        self.kernel.set(self.rows, self.step)

    def _compute(self, start: int, stop: int) -> np.ndarray:
        angle = np.arange(start, stop, dtype=np.float64)[:, None] * self._theta
        return np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
