"""Segments in files: whether they lie within the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from lariat.cache.blocks import SLOTS
from lariat.formats.segments import BLOCK_SLOTS, within_blocks

MAX = 2**31 - 1


@pytest.mark.parametrize(
    "row",
    [(3, 0, 1), (MAX, 0, 1), (-1, 0, 1), (0, -1, 2), (0, 0, 0), (0, 0, -1), (0, 0, 33), (0, 31, 2),
     (0, MAX, 1), (0, MAX, MAX), (0, 1, MAX), (0, -MAX - 1, MAX)],
)  # fmt: skip
def test_segments_beyond_the_blocks_are_seen(row):
    within = np.int32([(0, 0, 32), (2, 31, 1), (1, 5, 27)])
    assert within_blocks(within, 3)
    assert within_blocks(within[:0], 0)
    assert not within_blocks(np.concatenate([within, np.int32([row])]), 3)


def test_blocks_in_files_are_those_of_the_cache():
    assert BLOCK_SLOTS == SLOTS
