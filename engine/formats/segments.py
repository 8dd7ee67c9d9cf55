"""The tensor `segments` of saved contexts and chunks: which slots of which blocks hold the tokens.

int32 [n_segments, 3]: block (counted from 0), first slot, length. The tokens are those of the
segments, one segment after the other.
"""

from __future__ import annotations

import numpy as np

BLOCK_SLOTS = 32  # positions of a block, in every file


def within_blocks(segments: np.ndarray, n_blocks: int) -> bool:
    """Whether all segments lie within the first `n_blocks` blocks.

    The sums are made in 64 bits: with 32 bits, forged numbers wrap around.
    """
    block, first, length = segments.astype(np.int64).T
    return bool(
        ((block >= 0) & (block < n_blocks) & (first >= 0) & (length >= 1)).all()
        and (first + length <= BLOCK_SLOTS).all()
    )
