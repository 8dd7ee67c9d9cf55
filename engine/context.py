"""Which cache slots hold a sequence's context: the block pool and lists of segments.

No arrays of keys or values here, only numbers: what is edited when a context is edited.
"""

from __future__ import annotations

import numpy as np

SLOTS = 32  # positions of a block; the kernels' tiles are made for it


class BlockPool:
    """Hands out blocks of 32 positions and counts who holds each."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        # A stack that starts with the lowest block on top, so that little memory is touched.
        self._free = list(range(n_blocks - 1, -1, -1))
        self._n_holders = [0] * n_blocks

    @property
    def n_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def allocate(self) -> int:
        """Take a free block. Raises IndexError if there is none."""
        block = self._free.pop()
        self._n_holders[block] = 1
        return block

    def release(self, block: int) -> None:
        """Give up one hold; the last one frees the block."""
        assert self._n_holders[block] > 0
        self._n_holders[block] -= 1
        if self._n_holders[block] == 0:
            self._free.append(block)


class Context:
    """A sequence's place in the cache: a list of segments in the order of its tokens.

    segments  int32 [n_segments, 4]: block, first slot, length, first position. Within a segment
              positions are consecutive.
    n_tokens  tokens in the cache, over all segments
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._table: np.ndarray = np.zeros((8, 4), np.int32)
        self._n_segments = 0
        self.n_tokens = 0
        self.next_position = 0

    @property
    def segments(self) -> np.ndarray:
        """The segments so far, a view."""
        return self._table[: self._n_segments]

    def n_new_blocks(self, n: int) -> int:
        """How many blocks `append(n)` will take from the pool."""
        return max(0, -(-(n - self._room()) // SLOTS))

    def append(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Make room for `n` more tokens.

        Returns their slots (int32 [n], block * 32 + slot) and positions (int32 [n]). Raises
        IndexError, with nothing changed, if the pool has too few blocks: ask `n_new_blocks` first.
        """
        if self.n_new_blocks(n) > self._pool.n_free:
            raise IndexError("the pool has too few free blocks")
        slots = np.empty(n, np.int32)
        positions = np.arange(self.next_position, self.next_position + n, dtype=np.int32)
        done = 0
        while done < n:
            if self._room() == 0:
                self._add_segment(self._pool.allocate(), self.next_position)
            last = self._table[self._n_segments - 1]
            take = min(self._room(), n - done)
            first = last[0] * SLOTS + last[1] + last[2]
            slots[done : done + take] = np.arange(first, first + take)
            last[2] += take
            self.n_tokens += take
            self.next_position += take
            done += take
        return slots, positions

    def truncate(self, n_tokens: int) -> None:
        """Forget all but the first `n_tokens` tokens; blocks no longer used go back."""
        while self._n_segments and self.n_tokens > n_tokens:
            last = self._table[self._n_segments - 1]
            drop = min(int(last[2]), self.n_tokens - n_tokens)
            last[2] -= drop
            self.n_tokens -= drop
            self.next_position = int(last[3] + last[2])
            if last[2] == 0:
                self._n_segments -= 1
                self._pool.release(int(last[0]))
        if self._n_segments == 0:
            self.next_position = 0

    def clear(self) -> None:
        """Forget everything and give all blocks back."""
        while self._n_segments:  # one by one, so that an interrupted call can be repeated
            self._n_segments -= 1
            self._pool.release(int(self._table[self._n_segments, 0]))
        self.n_tokens = self.next_position = 0

    def _room(self) -> int:
        """Free slots behind the last segment."""
        if self._n_segments == 0:
            return 0
        last = self._table[self._n_segments - 1]
        return SLOTS - int(last[1]) - int(last[2])

    def _add_segment(self, block: int, position: int) -> None:
        if self._n_segments == len(self._table):
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        self._table[self._n_segments] = (block, 0, 0, position)
        self._n_segments += 1
