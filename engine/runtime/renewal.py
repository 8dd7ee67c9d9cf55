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

    table   the same tokens, in which those of the ranges have fresh slots; see `BlockTable.renewed`
    n_left  tokens that are not computed yet
    """

    def __init__(
        self, table: BlockTable, ranges: Sequence[tuple[int, int]], on_end: Callable[[], None]
    ) -> None:
        """Take the blocks for it; IndexError if the pool has too few.

        ranges: (start, stop) in ascending order, without overlap; at least one token. `on_end` is
        called once, when all are computed and stand in `table`.
        """
        self._renewed = table
        self.table = table.renewed(ranges)
        self._left = list(ranges)
        self._on_end = on_end

    @property
    def n_left(self) -> int:
        """Tokens that are not computed yet."""
        return sum(stop - start for start, stop in self._left)

    def next(self, n: int) -> list[tuple[int, int]]:
        """The first `n` tokens that are left, as ranges (start, stop)."""
        found = []
        for start, stop in self._left:
            if n > 0:
                found.append((start, min(stop, start + n)))
                n -= stop - start
        return found

    def computed(self, n: int) -> None:
        """The first `n` tokens that are left are computed."""
        while n:
            start, stop = self._left.pop(0)
            if stop - start > n:
                self._left.insert(0, (start + n, stop))
            n -= min(n, stop - start)
        if not self._left:
            self._renewed.assign(self.table.segments)
            self._on_end()
            self.clear()

    def clear(self) -> None:
        """Give its blocks back. Twice does no harm."""
        self.table.clear()
