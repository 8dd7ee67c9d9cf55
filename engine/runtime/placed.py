"""Documents in a context: plans to place them, and who says which of their tokens are recomputed.

A document that was computed elsewhere has not seen what stands before it. Which of its tokens are
worth computing anew may depend on the text that comes behind it, the question. So the context
remembers where its documents stand until that text is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lariat.cache.blocks import BlockTable
from lariat.cache.kv_cache import FileBlocks
from lariat.runtime.order import Order, runs
from lariat.runtime.runner import Runner


@dataclass(frozen=True)
class Placed:
    """A document in a context: tokens `start` to before `stop`.

    chooser  says which of them are computed anew; None: none
    sink     the tokens that it was computed behind: where only they stand before it, it is exact;
             None: never
    """

    start: int
    stop: int
    chooser: Chooser | None
    sink: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Choice:
    """Tokens of a context to compute anew.

    ranges   (start, stop), in any order; they may overlap
    n_tried  tokens that were computed to choose them
    last     others like `ranges`, which stay what they were until those are computed
    """

    ranges: Sequence[tuple[int, int]] = ()
    n_tried: int = 0
    last: Sequence[tuple[int, int]] = ()

    @property
    def rounds(self) -> list[Sequence[tuple[int, int]]]:
        """`ranges` and `last`, as far as they hold tokens."""
        return [ranges for ranges in (self.ranges, self.last) if ranges]


class Chooser(Protocol):
    """Says which tokens of documents are computed anew. Equal ones decide once for all theirs."""

    def choose(
        self,
        runner: Runner,
        table: BlockTable,
        ids: Sequence[int],
        documents: Sequence[Placed],
        question: Sequence[int],
    ) -> Choice:
        """Choose among `documents`, which stand in this order in a context.

        table, ids  of the whole context; `table` holds all documents, and not yet all of `ids`
        question    token ids behind the last document, possibly none

        The lock is held.
        """


@dataclass(frozen=True)
class Placement:
    """A plan: tokens to put into a context whose keys and values lie in a file.

    ids          token ids that come into the context
    blocks       keys and values in the file; the last `len(ids)` positions are those of `ids`
    n_recompute  first ones of `ids` that are computed in the context at once
    n_sink       first ones of `ids` that are no part of the document
    chooser      says what else is computed anew once the text behind is known; None: nothing
    sink         see `Placed`
    """

    ids: list[int]
    blocks: FileBlocks
    n_recompute: int
    n_sink: int = 0
    chooser: Chooser | None = None
    sink: tuple[int, ...] | None = None

    def placed(self, at: int) -> Placed:
        """The document once it stands at token `at`."""
        return Placed(at + self.n_sink, at + len(self.ids), self.chooser, self.sink)


class Placeable(Protocol):
    """A document that `Context.insert` takes: it plans, the context carries the plan out."""

    def plan(
        self,
        runner: Runner,
        before: list[int],
        *,
        is_empty: bool,
        continues: bool,
        recompute: str | int | Chooser,
    ) -> Placement:
        """Plan to put the document behind the tokens `before` of a context.

        is_empty: the context has no tokens. continues: those before are ordinary text, which the
        document continues. ContextError where it does not fit the runner's cache.
        """


def rearranged(placed: Sequence[Placed], order: Order) -> list[Placed]:
    """Where documents stand after an edit that gave a context's tokens this order.

    Of a document that is cut, the part up to the cut counts as the document from now on.
    """
    moved = [
        replace(one, start=run.at, stop=run.at + run.n)
        for one in placed
        for run in runs(order, one.start, one.stop)
        if run.before == one.start
    ]
    return sorted(moved, key=lambda one: one.start)


def choose(
    runner: Runner,
    table: BlockTable,
    ids: Sequence[int],
    placed: Sequence[Placed],
) -> Choice:
    """Which tokens of a context are to be computed anew: the text behind its documents chooses.

    Text behind them that is computed already has seen them as they were, so it is computed anew
    too, last. The ranges are in ascending order, and none of them touch; no token is in both
    rounds. The lock is held.
    """
    n_cached = table.n_tokens
    # The text behind may have replaced the last tokens of the last document.
    placed = [replace(one, stop=min(one.stop, n_cached)) for one in placed if one.start < n_cached]
    groups: dict[Chooser, list[Placed]] = {}
    for one in placed:
        if one.chooser is not None:
            groups.setdefault(one.chooser, []).append(one)
    end = max((one.stop for one in placed), default=0)
    choices = [
        chooser.choose(runner, table, ids, documents, ids[end:])
        for chooser, documents in groups.items()
    ]
    last = united([each for choice in choices for each in choice.last])
    first = without(united([each for choice in choices for each in choice.ranges]), last)
    behind = (end, n_cached)
    if last:
        last = united([*last, behind])
    elif first:
        first = united([*first, behind])
    return Choice(first, sum(choice.n_tried for choice in choices), last)


def without(
    ranges: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The tokens of `ranges` that `others` do not hold; both ascending, as `united` gives them."""
    found: list[tuple[int, int]] = []
    for start, stop in ranges:
        for first, end in others:
            if first < stop and start < end:
                found.append((start, first))
                start = end
        found.append((start, stop))
    return [(start, stop) for start, stop in found if start < stop]


def united(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same tokens as ascending ranges, none of which touch."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if start >= stop:
            continue
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found
