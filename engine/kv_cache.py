"""The two cache strategies: keys stored rotated (`roped`), or as projected (`raw`).

Both have the same methods, and the model does not know which it holds. A raw key gets its position
only when attention reads it, from the segment it stands in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from engine import _attention, _kernels
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
        self._config = config
        self._scratch = _attention.Scratch()
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

    def new_context(self) -> Context:
        """Make an empty context in this cache."""
        return Context(self.pool)

    def plan(self, batch: Batch) -> _attention.AttentionPlan:
        """Cut the batch's attention into tasks, once for all layers."""
        return _attention.AttentionPlan(
            batch.token_starts,
            batch.n_past,
            batch.segment_starts,
            batch.segments,
            self._config.n_heads,
            self._config.n_kv_heads,
        )

    def rotate_queries(self, q: np.ndarray, batch: Batch, n_threads: int) -> None:
        """Rotate q [n_tokens, n_heads, head_dim_k] in place, and scale by 1 / sqrt(head_dim_k)."""
        self._rope.reach(int(batch.positions.max()))
        scale = 1.0 / math.sqrt(self._config.head_dim_k)
        _kernels.rope(q, self._rope.rows, batch.positions, scale, n_threads)

    @abstractmethod
    def store(self, layer: int, k: np.ndarray, v: np.ndarray, batch: Batch, n_threads: int) -> None:
        """Put keys and values [n_tokens, n_kv_heads, head_dim] of the batch into their slots."""

    def attend(
        self,
        layer: int,
        q: np.ndarray,
        plan: _attention.AttentionPlan,
        out: np.ndarray,
        n_threads: int,
    ) -> None:
        """Attention of rotated queries over the cache into out [n_tokens, n_heads, head_dim_v]."""
        _attention.attend(
            self._memory,
            layer,
            q,
            plan,
            self._rope.rows,
            self._rope.step,
            self._raw,
            self._scratch,
            out,
            n_threads,
        )


class RopedCache(KVCache):
    """Keys are rotated when they are written; their positions are fixed from then on."""

    def store(self, layer: int, k: np.ndarray, v: np.ndarray, batch: Batch, n_threads: int) -> None:
        """Rotate k in place, then store both."""
        _kernels.rope(k, self._rope.rows, batch.positions, 1.0, n_threads)
        _attention.store(self._memory, layer, k, v, batch.slots, n_threads)


class RawCache(KVCache):
    """Keys are stored as projected and rotated when they are read."""

    _raw = True

    def store(self, layer: int, k: np.ndarray, v: np.ndarray, batch: Batch, n_threads: int) -> None:
        """Store both as they are."""
        _attention.store(self._memory, layer, k, v, batch.slots, n_threads)


STRATEGIES: dict[str, type[KVCache]] = {"roped": RopedCache, "raw": RawCache}
