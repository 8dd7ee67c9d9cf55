"""Which cache slots hold a context: the block pool and lists of segments.

No arrays of keys or values here, only numbers: what is edited when a context is edited.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import numpy as np

SLOTS = 32  # positions of a block; the kernels' tiles are made for it


class BlockPool:
    """Hands out blocks of 32 positions and counts who holds each.

    `copy` is called with (source, target, first slot, length) when slots of one block must be
    copied to the same slots of another; without it only the numbers are kept.

    A block may have a key that says what it holds. When nobody holds such a block it is free, but
    keeps its contents until no other block is free: the one that was released first goes first.

    A block may be sealed: its slots are not written any more while anybody holds it or it has a
    key, even those that a shortened list gave up. A sealed block that can be reopened is the
    exception: a list that was cut short in it goes on in it, and it is not sealed any more.

    thin  bool [n_blocks]: blocks that have lost a part of their contents, see `window_only`; they
          have no key
    """

    def __init__(
        self, n_blocks: int, copy: Callable[[int, int, int, int], None] | None = None
    ) -> None:
        self.n_blocks = n_blocks
        self._copy = copy
        self._n_touched = 0  # blocks from here on were never handed out; the lowest goes first
        self._free: list[int] = []  # of those that were: a stack
        self._kept: dict[int, None] = {}  # free blocks with a key, oldest first
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._n_holders: list[int] = []  # of each block that was handed out
        self._sealed: list[bool] = []
        self._reopenable: set[int] = set()  # sealed blocks
        self.thin = np.zeros(n_blocks, bool)
        self._tables: weakref.WeakSet[BlockTable] = weakref.WeakSet()  # all that may hold blocks
        self._is_doubtful = False

    @property
    def n_free(self) -> int:
        """Blocks that nobody holds."""
        return self.n_blocks - self._n_touched + len(self._free) + len(self._kept)

    def n_holders(self, block: int) -> int:
        """How many segments hold a block."""
        return self._n_holders[block] if block < self._n_touched else 0

    def allocate(self) -> int:
        """Take a free block. Raises IndexError if there is none."""
        block = self._n_touched
        if not self._free and block < self.n_blocks:
            self._n_holders[block:], self._sealed[block:] = [0], [False]
            self._n_touched = block + 1
        else:
            if not self._free and self._kept:
                self.forget(next(iter(self._kept)))
            block = self._free.pop()
        self._n_holders[block] = 1
        self.thin[block] = False
        self.reopen(block)
        return block

    def is_empty(self, block: int) -> bool:
        """Whether nobody wants what a block holds."""
        return self.n_holders(block) == 0 and block not in self._kept

    def seal(self, block: int, *, reopenable: bool = False) -> None:
        """Have nobody write to a block until it is handed out anew; if it is `reopenable`, until a
        list that ends in it goes on."""
        self._sealed[block] = True
        (self._reopenable.add if reopenable else self._reopenable.discard)(block)

    def reopen(self, block: int) -> None:
        """Let a block be written to."""
        self._sealed[block] = False
        self._reopenable.discard(block)

    def is_writable(self, block: int) -> bool:
        """Whether the list that ends in this block may go on in it."""
        return not self._sealed[block] or block in self._reopenable

    def is_sealed(self, block: int) -> bool:
        """Whether `seal` was called for what the block holds now."""
        return self._sealed[block]

    def make_thin(self, block: int) -> None:
        """Note that a block loses a part of its contents, until it is handed out anew."""
        self.forget(block)
        self.thin[block] = True

    def find(self, key: bytes) -> int | None:
        """Hold the block that has this key, if there is one."""
        block = self._block_of.get(key)
        if block is not None:
            self._kept.pop(block, None)
            self._n_holders[block] += 1
        return block

    def keep(self, block: int, key: bytes) -> None:
        """Give a block, which somebody holds, a key, unless another block has it already or this
        one is thin."""
        assert self._n_holders[block] > 0
        if key not in self._block_of and not self.thin[block]:
            self.forget(block)
            self._key_of[block], self._block_of[key] = key, block

    def forget(self, block: int) -> None:
        """Take a block's key away: its contents change."""
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]
            if block in self._kept:
                del self._kept[block]
                self._free.append(block)

    def forget_all(self) -> None:
        """Take every block's key away."""
        for block in list(self._key_of):
            self.forget(block)

    def retain(self, block: int) -> None:
        """Hold a block that somebody holds already."""
        assert self._n_holders[block] > 0
        self._n_holders[block] += 1

    def release(self, block: int) -> None:
        """Give up one hold; the last one frees the block."""
        assert self._n_holders[block] > 0
        self._n_holders[block] -= 1
        if self._n_holders[block]:
            return
        if block in self._key_of:
            self._kept[block] = None
        else:
            self._free.append(block)

    # ---- after an exception at any line ----

    def register(self, table: BlockTable) -> None:
        """Count the blocks of `table` in `recount`. Call it before the table holds any."""
        self._tables.add(table)

    def doubt(self) -> None:
        """Have the counts checked: an exception may have struck between two of them."""
        self._is_doubtful = True

    def recount(self) -> None:
        """Count holders anew from the tables that are there, if somebody had doubts.

        Blocks that no table holds become free. Nobody may be in the midst of an edit.
        """
        if not self._is_doubtful:
            return
        counts = [0] * self._n_touched
        for table in list(self._tables):
            for block in table.segments[:, 0].tolist():
                counts[block] += 1
        # A key survives where both directions agree.
        keys = {b: k for b, k in self._key_of.items() if self._block_of.get(k) == b}
        unheld = [b for b in range(self._n_touched) if not counts[b]]
        order = [b for b in self._kept if not counts[b]]
        self._n_holders = counts
        self._key_of, self._block_of = keys, {k: b for b, k in keys.items()}
        self._kept = dict.fromkeys(
            [*(b for b in order if b in keys), *(b for b in unheld if b in keys and b not in order)]
        )
        self._free = [b for b in unheld if b not in keys]
        self._sealed += [False] * (self._n_touched - len(self._sealed))
        self._is_doubtful = False

    def copied(self, block: int, first: int, length: int) -> int:
        """Take a free block whose slots `first` to `first + length` are those of `block`."""
        target = self.allocate()
        self.thin[target] = self.thin[block]
        if self._copy is not None:
            self._copy(block, target, first, length)
        return target


class BlockTable:
    """A context's place in the cache: segments in the order of its tokens.

    segments  int32 [n_segments, 4]: block, first slot, length, first position. Positions are
              consecutive over the whole list, from 0. Each segment holds its block once.
    pool      whose blocks they are

    Blocks may be held by other lists too. Slots are written only behind the last segment, and only
    where nothing else holds its block: a shared one is copied first. Behind a sealed block comes a
    fresh one, unless it can be reopened.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self._table: np.ndarray = np.zeros((8, 4), np.int32)
        self._n_segments = 0
        pool.register(self)  # last: another thread may count the blocks of all tables

    def __del__(self) -> None:
        if getattr(self, "_n_segments", 0):  # nobody cleared it: an exception kept them from it
            self.pool.doubt()

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache, over all segments; also the position of the next one.

        Read off the last segment, so that an exception between two lines leaves no second number.
        """
        if not self._n_segments:
            return 0
        last = self._table[self._n_segments - 1]
        return int(last[3]) + int(last[2])

    @property
    def segments(self) -> np.ndarray:
        """The segments so far, a view."""
        return self._table[: self._n_segments]

    def n_new_blocks(self, n: int, *, alone: bool = False) -> int:
        """How many blocks `append(n)` will take from the pool; `alone`: once nobody else holds the
        last block."""
        room = self._room()
        copied = n > 0 and room > 0 and not alone and self._tail_is_shared()
        return copied + max(0, -(-(n - room) // SLOTS))

    def append(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Make room for `n` more tokens.

        Returns their slots (int32 [n], block * 32 + slot) and positions (int32 [n]). Raises
        IndexError, with nothing changed, if the pool has too few blocks: ask `n_new_blocks` first.
        """
        if self.n_new_blocks(n) > self.pool.n_free:
            raise IndexError("the pool has too few free blocks")
        if n and self._room():
            if self._tail_is_shared():
                self._own_tail()
            self.pool.forget(int(self._table[self._n_segments - 1, 0]))
            self.pool.reopen(int(self._table[self._n_segments - 1, 0]))
        slots = np.empty(n, np.int32)
        positions = np.arange(self.n_tokens, self.n_tokens + n, dtype=np.int32)
        done = 0
        while done < n:
            if self._room() == 0:
                self._add_segment(self.pool.allocate())
            last = self._table[self._n_segments - 1]
            take = min(self._room(), n - done)
            first = last[0] * SLOTS + last[1] + last[2]
            slots[done : done + take] = np.arange(first, first + take)
            last[2] += take
            done += take
        return slots, positions

    def truncate(self, n_tokens: int) -> None:
        """Forget all but the first `n_tokens` tokens; blocks no longer used go back."""
        while self._n_segments and self.n_tokens > n_tokens:
            last = self._table[self._n_segments - 1]
            drop = min(int(last[2]), self.n_tokens - n_tokens)
            last[2] -= drop
            if last[2] == 0:
                self._n_segments -= 1
                self.pool.release(int(last[0]))

    def clear(self) -> None:
        """Forget everything and give all blocks back."""
        while self._n_segments:  # one by one, so that an interrupted call can be repeated
            self._n_segments -= 1
            self.pool.release(int(self._table[self._n_segments, 0]))

    def fork(self) -> BlockTable:
        """Make a second list of the same tokens, by reference."""
        other = BlockTable(self.pool)
        other.assign(self.segments)
        return other

    def renewed(self, *rounds: Sequence[tuple[int, int]]) -> list[BlockTable]:
        """Make a list of the same tokens for each round, in which those of its ranges and of the
        rounds before have fresh slots.

        rounds: of each, (start, stop) in ascending order, without overlap. The fresh slots of all
        rounds are packed together in blocks that nobody else holds; all other tokens stay where
        they are, by reference. IndexError, with nothing changed, if the pool has too few blocks.
        """
        fresh, found = BlockTable(self.pool), [self]
        try:
            fresh.append(sum(stop - start for ranges in rounds for start, stop in ranges))
            done = 0
            for ranges in rounds:
                rows, at, last = [], 0, found[-1]
                for start, stop in ranges:
                    rows += [last.cut(at, start), fresh.cut(done, done + stop - start)]
                    at, done = stop, done + stop - start
                found.append(BlockTable(self.pool))
                found[-1].assign(np.concatenate([*rows, last.cut(at, last.n_tokens)]))
        finally:
            fresh.clear()
        return found[1:]

    def delete(self, start: int, stop: int) -> None:
        """Take out the tokens from `start` to before `stop`; those behind move up."""
        self.assign(np.concatenate([self.cut(0, start), self.cut(stop, self.n_tokens)]))

    def cut(self, start: int, stop: int) -> np.ndarray:
        """Segments of the tokens from `start` to before `stop`: int32 [n, 4], a copy."""
        ends = np.cumsum(self.segments[:, 2])
        if start >= stop:
            return np.zeros((0, 4), np.int32)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        rows = self.segments[first : last + 1].copy()
        rows[-1, 2] -= ends[last] - stop
        skip = start - (ends[first] - self.segments[first, 2])
        rows[0, 1:] += (skip, -skip, skip)
        return rows

    def assign(self, rows: np.ndarray) -> None:
        """Replace all segments by `rows` int32 [n, 4], whose positions are counted anew.

        The blocks of `rows` must be held by someone, by this list for example. No key is touched.
        """
        rows = _joined(rows)
        for block in rows[:, 0].tolist():
            self.pool.retain(block)
        old = self.segments[:, 0].tolist()
        n = len(rows)
        self._table, self._n_segments = np.concatenate([rows, np.zeros((8, 4), np.int32)]), n
        for block in old:
            self.pool.release(block)

    def restore(self, rows: np.ndarray) -> None:
        """Go back to segments from before an edit that an exception has cut short.

        Nobody may have taken a block since. The pool counts its holders anew.
        """
        self._table, self._n_segments = (
            np.concatenate([rows, np.zeros((8, 4), np.int32)]),
            len(rows),
        )
        self.pool.doubt()

    def place(self, rows: np.ndarray) -> np.ndarray:
        """Take fresh blocks for `rows` int32 [n, 3] (block counted from 0, first slot, length).

        The list must be empty. The blocks have the order of those of `rows`: whoever writes their
        contents counts on it. Returns the slots of all tokens. IndexError if blocks are missing.
        """
        n_blocks = int(rows[:, 0].max(initial=-1)) + 1
        if n_blocks > self.pool.n_free:
            raise IndexError("the pool has too few free blocks")
        blocks = np.array(sorted(self.pool.allocate() for _ in range(n_blocks)), np.int32)
        table = np.zeros((len(rows), 4), np.int32)
        table[:, 0], table[:, 1:3] = blocks[rows[:, 0]], rows[:, 1:]
        self.assign(table)
        for block in blocks.tolist():
            self.pool.release(block)
        return slots_of(table)

    def _room(self) -> int:
        """Slots behind the last segment."""
        if self._n_segments == 0:
            return 0
        last = self._table[self._n_segments - 1]
        if not self.pool.is_writable(int(last[0])):
            return 0
        return SLOTS - int(last[1]) - int(last[2])

    def _tail_is_shared(self) -> bool:
        return self.pool.n_holders(int(self._table[self._n_segments - 1, 0])) > 1

    def _own_tail(self) -> None:
        last = self._table[self._n_segments - 1]
        block, first, length, _ = last.tolist()
        last[0] = self.pool.copied(block, first, length)
        self.pool.release(block)

    def _add_segment(self, block: int) -> None:
        if self._n_segments == len(self._table):
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        self._table[self._n_segments] = (block, 0, 0, self.n_tokens)
        self._n_segments += 1


def numbered(rows: np.ndarray) -> np.ndarray:
    """The first positions that segments have in this order, int32 [n]."""
    return (np.cumsum(rows[:, 2]) - rows[:, 2]).astype(np.int32)


def slots_of(rows: np.ndarray) -> np.ndarray:
    """The slots of all tokens of segments, int32 [n_tokens], block * 32 + slot."""
    firsts = rows[:, 0] * SLOTS + rows[:, 1] - numbered(rows)
    return (np.repeat(firsts, rows[:, 2]) + np.arange(rows[:, 2].sum())).astype(np.int32)


def _joined(rows: np.ndarray) -> np.ndarray:
    """Segments with new positions; those that follow each other in one block become one."""
    rows = rows[rows[:, 2] > 0]
    rows[:, 3] = numbered(rows)
    if len(rows) < 2:
        return rows
    goes_on = (rows[1:, 0] == rows[:-1, 0]) & (rows[1:, 1] == rows[:-1, 1] + rows[:-1, 2])
    starts = np.flatnonzero(np.concatenate([[True], ~goes_on]))
    lengths = np.add.reduceat(rows[:, 2], starts)
    rows = rows[starts]
    rows[:, 2] = lengths
    return rows
