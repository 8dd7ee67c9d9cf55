"""The two cache strategies: keys stored rotated (`roped`), or as projected (`raw`).

Both have the same methods, and the model does not know which it holds. A raw key gets its position
only when attention reads it, from the segment it stands in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from engine import _attention, _kernels
from engine._program import Step
from engine.batch import Batch
from engine.config import ModelConfig
from engine.context import SLOTS, BlockPool, Context
from engine.memory import allocate
from engine.rope import RopeTable

_ELEMENT_BYTES = {"f16": 2, "f32": 4}


def cache_bytes(config: ModelConfig, n_ctx: int, type_k: str, type_v: str) -> int:
    """Bytes that keys and values of `n_ctx` positions take, whole blocks."""
    per_slot = (
        config.head_dim_k * _ELEMENT_BYTES[type_k] + config.head_dim_v * _ELEMENT_BYTES[type_v]
    )
    return config.n_layers * config.n_kv_heads * _n_blocks(n_ctx) * SLOTS * per_slot


def _n_blocks(n_ctx: int) -> int:
    return -(-n_ctx // SLOTS)


class KVCache(ABC):
    """The pool's memory and what both strategies share.

    Layout [layer][block][kv_head][32 slots][head_dim], keys and values apart.
    """

    _raw = False

    def __init__(
        self, config: ModelConfig, n_ctx: int, type_k: str, type_v: str, rope: RopeTable
    ) -> None:
        n_blocks = _n_blocks(n_ctx)
        self.pool = BlockPool(n_blocks)
        self._rope = rope
        self._scale = 1.0 / math.sqrt(config.head_dim_k)
        n_rows = config.n_layers * n_blocks * config.n_kv_heads * SLOTS
        self._memory = _attention.Pool(
            allocate(n_rows * config.head_dim_k * _ELEMENT_BYTES[type_k]),
            allocate(n_rows * config.head_dim_v * _ELEMENT_BYTES[type_v]),
            config.n_layers,
            n_blocks,
            config.n_kv_heads,
            config.head_dim_k,
            config.head_dim_v,
            type_k == "f32",
            type_v == "f32",
        )
        self._plan = _attention.AttentionPlan(
            self._memory, config.n_heads, rope.kernel if self._raw else None
        )

    def new_context(self) -> Context:
        """Make an empty context in this cache."""
        return Context(self.pool)

    def prepare(self, batch: Batch) -> None:
        """Have the steps below do this batch when they are run."""
        self._rope.reach(int(batch.positions.max()))
        self._plan.fill(batch.token_starts, batch.n_past, batch.segment_starts, batch.segments)

    # The rest are steps of a program. Arrays of float32 [n_tokens, n_heads, head_dim], where keys
    # and values have n_kv_heads; positions and slots int32 [n_tokens].

    def rotate_queries(self, q: np.ndarray, positions: np.ndarray) -> Step:
        """Rotate q in place, and scale by 1 / sqrt(head_dim_k)."""
        return _kernels.rope(q, self._rope.kernel, positions, self._scale)

    @abstractmethod
    def store(
        self, layer: int, k: np.ndarray, v: np.ndarray, positions: np.ndarray, slots: np.ndarray
    ) -> Step:
        """Put keys and values into their slots. May change k."""

    def attend(self, layer: int, q: np.ndarray, out: np.ndarray) -> tuple[Step, Step]:
        """Attention of rotated queries over the cache, in two phases."""
        where = (self._memory, layer, q, self._plan, out)
        return _attention.attend(*where), _attention.merge(*where)


class RopedCache(KVCache):
    """Keys are rotated when they are written; their positions are fixed from then on."""

    def store(
        self, layer: int, k: np.ndarray, v: np.ndarray, positions: np.ndarray, slots: np.ndarray
    ) -> Step:
        """Rotate k in place, then store both."""
        return _attention.store(self._memory, layer, k, v, slots, self._rope.kernel, positions)


class RawCache(KVCache):
    """Keys are stored as projected and rotated when they are read."""

    _raw = True

    def store(
        self, layer: int, k: np.ndarray, v: np.ndarray, positions: np.ndarray, slots: np.ndarray
    ) -> Step:
        """Store both as they are."""
        return _attention.store(self._memory, layer, k, v, slots)


STRATEGIES: dict[str, type[KVCache]] = {"roped": RopedCache, "raw": RawCache}
