"""Edits that turn a context into another prompt: tokens of both stay or move, others are put in.

A plan says which tokens of a prompt are where: in the context, in chunks of a library, or nowhere.
Carrying it out edits the context in place, so that it knows what was edited and can repair what
recalls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lariat.reuse.library import Chunk
from lariat.reuse.prompt_reuse import common_prefix, runs
from lariat.runtime.context import Context

_MIN_RUN = 16  # tokens that are moved together
_N_AT_ONCE = 512  # tokens that are computed while nobody else computes
_FIRST = 4  # tokens of a chunk to compute where text behind it is computed already


@dataclass(frozen=True)
class Document:
    """Tokens `start` to before `stop` of a prompt, which stand in a chunk, `n_behind` tokens before
    its end."""

    start: int
    stop: int
    chunk: Chunk
    n_behind: int = 0


@dataclass(frozen=True)
class Piece:
    """Tokens `start` to before `stop` of a prompt.

    at        where they begin in the context; None: they are not in it
    document  whose chunk has them; None: without `at` they are computed
    """

    start: int
    stop: int
    at: int | None = None
    document: Document | None = None

    @property
    def is_computed(self) -> bool:
        """Whether nobody has them."""
        return self.at is None and self.document is None

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """How a prompt is put together.

    ids      its tokens
    pieces   all of them in order
    n_exact  first tokens that are what computing them here would give, as far as they are there
    """

    ids: Sequence[int]
    pieces: Sequence[Piece]
    n_exact: int

    @property
    def n_computed(self) -> int:
        """Tokens to compute."""
        return sum(len(piece) for piece in self.pieces if piece.is_computed)

    @property
    def n_moved(self) -> int:
        """Tokens that are reused, and stand behind other text than they were computed behind."""
        return sum(
            piece.stop - max(piece.start, min(self.n_exact, piece.stop))
            for piece in self.pieces
            if not piece.is_computed
        )


def find_document(chunk: Chunk, ids: Sequence[int]) -> Document | None:
    """Where a chunk stands in a prompt: its longest run of equal tokens. Text around a document may
    change its first and last ones."""
    found = runs(chunk.tokens, ids, min(_MIN_RUN, len(chunk)))
    best = max(found, key=lambda run: run[2], default=None)
    if best is None:
        return None
    at, start, length = best
    return Document(at, at + length, chunk, len(chunk) - start - length)


def plan(
    cached: Sequence[int],
    ids: Sequence[int],
    *,
    n_exact: int,
    n_least: int = 0,
    documents: Sequence[Document] = (),
) -> Plan:
    """Plan to make a context of tokens `cached` one of tokens `ids`.

    n_exact    first tokens of the context that are what computing them there would give
    n_least    runs of so many tokens may be moved; 0: only the exact beginning is kept
    documents  of the prompt; they are taken from their files where the context has not all of them

    The last token is always computed, for its logits.
    """
    n = common_prefix(cached, ids[:-1])
    if not n_least:
        n = min(n, n_exact)
    found = [Piece(0, n, 0)] if n else []
    if n_least:
        found += _used_once(
            Piece(n + at, n + at + length, n + start)
            for at, start, length in runs(cached[n:], ids[n:-1], n_least)
        )
        found = _with_documents(found, documents)
    pieces, done = [], 0
    for piece in found:
        if piece.start > done:
            pieces.append(Piece(done, piece.start))
        pieces.append(piece)
        done = piece.stop
    pieces.append(Piece(done, len(ids)))
    # Computed tokens are exact as long as all before them are.
    moved = [p.start for p in pieces if not p.is_computed and p is not pieces[0]]
    if pieces[0].at == 0 and n > n_exact:
        moved.append(n_exact)
    if pieces[0].at != 0 and not pieces[0].is_computed:
        moved.append(0)
    return Plan(ids, pieces, min(moved, default=len(ids)))


def carry_out(context: Context, plan: Plan, *, repair: bool) -> int:
    """Edit a context as planned, up to the last piece, whose tokens are still to be computed.

    repair: compute tokens anew that recall edits, and those of chunks that the question is about.
    Returns how many tokens were computed to repair. Where an edit fails, the context is between the
    two prompts.
    """
    layout = _layout(len(context), plan)
    for piece in plan.pieces[:-1]:
        _drop_unused(context, layout, piece.start)
        if piece.at is not None:
            _move_up(context, layout, piece)
        elif piece.document is not None:
            is_last = all(other.at is None for other in layout)
            how = "none" if not repair else "auto" if is_last else _FIRST
            _put_in(context, piece, how)
        else:
            for start in range(piece.start, piece.stop, _N_AT_ONCE):
                stop = min(piece.stop, start + _N_AT_ONCE)
                context.insert(start, list(plan.ids[start:stop]))
    context.truncate(plan.pieces[-1].start)
    return context.repair() if repair and plan.n_moved else 0


def _used_once(found: Iterable[Piece]) -> list[Piece]:
    """Runs without those whose tokens an earlier one takes already: tokens move, nobody copies."""
    taken: list[tuple[int, int]] = []
    kept = []
    for piece in found:
        first = piece.at or 0
        last = first + len(piece)
        if all(last <= start or stop <= first for start, stop in taken):
            taken.append((first, last))
            kept.append(piece)
    return kept


def _with_documents(found: list[Piece], documents: Sequence[Document]) -> list[Piece]:
    """The pieces of a context, and chunks in place of those that have a document only in part."""
    pieces = list(found)
    for document in documents:
        start, stop = document.start, document.stop
        if any(p.start <= start and stop <= p.stop for p in pieces):
            continue
        cut: list[Piece] = []
        for p in pieces:
            if p.start < start and p.at is not None:
                cut.append(replace(p, stop=min(p.stop, start)))
            if p.stop > stop and p.at is not None:
                first = max(p.start, stop)
                cut.append(replace(p, start=first, at=p.at + first - p.start))
            if p.at is None:
                cut.append(p)
        pieces = sorted([*cut, Piece(start, stop, None, document)], key=lambda p: p.start)
    return pieces


def _layout(n: int, plan: Plan) -> list[Piece]:
    """The context's tokens in order, as pieces of the plan and, between them, pieces (0, length)
    that nobody wants: those have `at` None."""
    layout, done = [], 0
    for piece in sorted((p for p in plan.pieces if p.at is not None), key=lambda p: p.at or 0):
        start = piece.at or 0
        if start > done:
            layout.append(Piece(0, start - done))
        layout.append(piece)
        done = start + len(piece)
    if n > done:
        layout.append(Piece(0, n - done))
    return layout


def _drop_unused(context: Context, layout: list[Piece], at: int) -> None:
    """Delete what stands at token `at` and nobody wants, so that the edit is known where it was."""
    while layout and layout[0].at is None:
        context.delete(at, at + len(layout.pop(0)))


def _move_up(context: Context, layout: list[Piece], piece: Piece) -> None:
    """Bring a piece to its place, before what stands there."""
    start = piece.start
    for i, other in enumerate(layout):
        if other is piece:
            del layout[i]
            break
        start += len(other)
    if start > piece.start:
        context.move(start, start + len(piece), piece.start)


def _put_in(context: Context, piece: Piece, recompute: str | int) -> None:
    """Put a document's chunk in, without its tokens that the prompt has not."""
    document, at = piece.document, piece.start
    assert document is not None
    n_before = len(context)
    context.insert(at, document.chunk, recompute=recompute)
    stop = at + len(context) - n_before
    context.delete(stop - document.n_behind, stop)
    stop -= document.n_behind
    context.delete(at, stop - len(piece))
