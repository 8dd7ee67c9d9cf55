"""Tokens of a context that are computed anew before a request's own, in pieces.

They are part of the request's work: the scheduler gives them to steps like tokens of a prompt, so
other requests go on meanwhile. Their keys and values go into slots of their own, and the context
keeps its old ones until all are computed; so it stays whole if the request is given up before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lariat.cache.blocks import BlockTable


class Renewal:
    """Ranges of the tokens of a table that are to be computed anew, in place.

    It has rounds: tokens of a later one are computed when those before are, and until then they
    are what they were.
    """

    def __init__(
        self,
        table: BlockTable,
        rounds: Sequence[Sequence[tuple[int, int]]],
        on_end: Callable[[], None],
    ) -> None:
        """Take the blocks for it; IndexError, with nothing changed, if the pool has too few.

        rounds: of each, (start, stop) in ascending order, without overlap; at least one token.
        `on_end` is called once, when all are computed and stand in `table`.
        """
        self._renewed, self._on_end = table, on_end
        self._left = [list(ranges) for ranges in rounds]
        self._tables = table.renewed(*rounds)

    @property
    def n_left(self) -> int:
        """Tokens that are not computed yet."""
        return sum(stop - start for ranges in self._left for start, stop in ranges)

    @property
    def n_ready(self) -> int:
        """Tokens of this round that are not computed yet: one pass may compute them."""
        return sum(stop - start for start, stop in self._left[0]) if self._left else 0

    @property
    def table(self) -> BlockTable:
        """The same tokens, in which those of this round have fresh slots; see
        `BlockTable.renewed`."""
        return self._tables[0]

    def n_new_blocks(self, n: int) -> int:
        """How many blocks `n` tokens behind those of the table will take when all are computed."""
        return self._tables[-1].n_new_blocks(n, alone=True)

    def next(self, n: int) -> list[tuple[int, int]]:
        """The first `n` tokens of this round that are left, as ranges (start, stop)."""
        found = []
        for start, stop in self._left[0] if self._left else ():
            if n > 0:
                found.append((start, min(stop, start + n)))
                n -= stop - start
        return found

    def computed(self, n: int) -> None:
        """The first `n` tokens of this round that are left are computed."""
        left = self._left[0]
        while n:
            start, stop = left.pop(0)
            if stop - start > n:
                left.insert(0, (start + n, stop))
            n -= min(n, stop - start)
        if left:
            return
        if len(self._left) == 1:
            self._renewed.assign(self.table.segments)
            self._on_end()
        del self._left[0]
        self._tables.pop(0).clear()

    def clear(self) -> None:
        """Give its blocks back. Twice does no harm."""
        for table in self._tables:
            table.clear()
