"""Prefix sharing: requests that begin with the same tokens hold the same blocks.

A full block of 32 tokens gets a key: a hash of all tokens from the first to the block's last. The
hash of the block before goes into it, so keys form a chain. Blocks with the same key have the same
keys and values, with either cache strategy, because their positions are the same too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from lariat.cache.blocks import SLOTS, BlockPool, BlockTable

# At least so many of a prompt's last tokens are computed: the logits of the last one are wanted.
_N_COMPUTED = 1


class Tokens(Protocol):
    """The side of a request that prefix sharing sees."""

    ids: list[int]  # all tokens
    table: BlockTable  # holds the first of them
    block_keys: list[bytes]  # of its full blocks, as far as they were asked for
    n_keyed: int  # blocks in the cache that have got their key

    @property
    def n_shareable(self) -> int:
        """How many of the first tokens are computed as every request computes them."""

    @property
    def n_reusable(self) -> int:
        """How many of the first tokens need not be computed for this request."""

    @property
    def is_lent(self) -> bool:
        """Whether the table is a context's, which may have been edited."""


class PrefixCache:
    """Finds blocks of a pool by their keys, until the pool needs them for something else."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool

    def reuse(self, request: Tokens) -> None:
        """Begin an empty table with the blocks that are there already."""
        assert not request.table.n_tokens
        blocks = []
        for key in self._wanted(request):
            block = self._pool.find(key)
            if block is None:
                break
            blocks.append(block)
        rows = np.zeros((len(blocks), 4), np.int32)
        rows[:, 0], rows[:, 2] = blocks, SLOTS
        request.table.assign(rows)
        for block in blocks:
            self._pool.release(block)
        request.n_keyed = len(blocks)

    def key_blocks(self, request: Tokens) -> None:
        """Give the blocks that a request has filled their keys."""
        n_full = min(request.table.n_tokens, request.n_shareable) // SLOTS
        if request.is_lent or n_full <= request.n_keyed:
            return
        keys, blocks = _keys(request), request.table.segments[:, 0].tolist()
        for i in range(request.n_keyed, n_full):
            self._pool.keep(blocks[i], keys[i])
        request.n_keyed = n_full

    def is_coming(self, request: Tokens, running: Iterable[Tokens]) -> bool:
        """Whether a running request is about to compute the next block of one that waits."""
        missing = self._wanted(request)[request.table.n_tokens // SLOTS :][:1]
        return bool(missing) and any(
            missing[0] in _keys(other)[other.table.n_tokens // SLOTS :]
            for other in running
            if not other.is_lent
        )

    def _wanted(self, request: Tokens) -> list[bytes]:
        n = min(len(request.ids) - _N_COMPUTED, request.n_reusable)
        return _keys(request)[: max(0, n) // SLOTS]


def _keys(request: Tokens) -> list[bytes]:
    """Keys of all full blocks that may be shared, also of those that are still to be computed."""
    keys = request.block_keys
    for i in range(len(keys), min(len(request.ids), request.n_shareable) // SLOTS):
        tokens = np.array(request.ids[i * SLOTS : (i + 1) * SLOTS], np.int32)
        before = keys[-1] if keys else b""
        keys.append(hashlib.blake2b(before + tokens.tobytes(), digest_size=16).digest())
    return keys
