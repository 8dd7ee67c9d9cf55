"""Where tokens of a context went in an edit: whoever notes places in a context moves them by this.

Documents that were placed (`placed`) and text behind edits (`edits`) are such places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

Order: TypeAlias = "Sequence[int | tuple[int, int]]"
"""The tokens of a context after an edit, in order: (start, stop) of tokens that it had before, or a
number of new ones."""


class Run(NamedTuple):
    """Neighbours that an edit left together: `n` tokens that began at `before`, and now at `at`."""

    before: int
    at: int
    n: int


def runs(order: Order, start: int, stop: int) -> list[Run]:
    """Where the tokens from `start` to before `stop` stand after an edit, in the new order.

    Neighbours that stayed neighbours are one run; tokens that were taken out are in none.
    """
    found: list[Run] = []
    for run in _kept(order):
        first, end = max(start, run.before), min(stop, run.before + run.n)
        if first >= end:
            continue
        new = Run(first, run.at + first - run.before, end - first)
        last = found[-1] if found else None
        if last and (last.before + last.n, last.at + last.n) == (new.before, new.at):
            found[-1] = last._replace(n=last.n + new.n)
        else:
            found.append(new)
    return found


def _kept(order: Order) -> Iterator[Run]:
    """The pieces of tokens that were there before."""
    at = 0
    for piece in order:
        if isinstance(piece, tuple):
            start, stop = piece
            yield Run(start, at, stop - start)
            at += stop - start
        else:
            at += piece
