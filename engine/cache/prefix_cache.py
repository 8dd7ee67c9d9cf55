"""Prefix sharing: sequences that begin with the same tokens hold the same blocks.

A full block of 32 tokens at the place where it was computed is named by a hash of all tokens from
the first to its last (a chain: the hash of the block before goes into it). What has the same name
has the same keys and values, with either cache, because the positions are the same too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from lariat.cache.blocks import SLOTS, BlockPool
from lariat.runtime.request import Request

# A prompt's last tokens are computed anyway, at least so many: fewer are summed by the kernel that
# is made for decoding, and the logits would differ in their last bits.
_N_COMPUTED = 5


class PrefixCache:
    """The named blocks of a pool; they are found until the pool needs them for something else."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool

    def reuse(self, sequence: Request) -> None:
        """Begin an empty sequence with the blocks that are there already."""
        assert not sequence.context.n_tokens
        blocks = []
        for key in self._wanted(sequence):
            block = self._pool.find(key)
            if block is None:
                break
            blocks.append(block)
        rows = np.zeros((len(blocks), 4), np.int32)
        rows[:, 0], rows[:, 2] = blocks, SLOTS
        sequence.context.assign(rows)
        for block in blocks:
            self._pool.release(block)
        sequence.n_named = len(blocks)

    def remember(self, sequence: Request) -> None:
        """Name the blocks that a sequence has filled."""
        n_full = sequence.context.n_tokens // SLOTS
        if sequence.is_lent or n_full <= sequence.n_named:
            return
        keys, blocks = _keys(sequence), sequence.context.segments[:, 0].tolist()
        for i in range(sequence.n_named, n_full):
            self._pool.keep(blocks[i], keys[i])
        sequence.n_named = n_full

    def is_coming(self, sequence: Request, running: Iterable[Request]) -> bool:
        """Whether the next block of `sequence`, which waits, is one that others are to compute."""
        missing = self._wanted(sequence)[sequence.context.n_tokens // SLOTS :][:1]
        return bool(missing) and any(
            missing[0] in _keys(other)[other.context.n_tokens // SLOTS :]
            for other in running
            if not other.is_lent
        )

    def _wanted(self, sequence: Request) -> list[bytes]:
        return _keys(sequence)[: max(0, len(sequence.ids) - _N_COMPUTED) // SLOTS]


def _keys(sequence: Request) -> list[bytes]:
    """The names of all its full blocks, those that are still to be computed too."""
    keys = sequence.block_keys
    for i in range(len(keys), len(sequence.ids) // SLOTS):
        tokens = np.array(sequence.ids[i * SLOTS : (i + 1) * SLOTS], np.int32)
        before = keys[-1] if keys else b""
        keys.append(hashlib.blake2b(before + tokens.tobytes(), digest_size=16).digest())
    return keys
