"""Prompt cache: what a prompt has in common with a context from an earlier one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lariat.errors import ContextError
from lariat.runtime.context import Context


def fit(context: Context, ids: Sequence[int], n_least: int = 0) -> int:
    """Make the context one that begins with tokens of the prompt `ids`, computing little.

    Keeps the longest common prefix. With `n_least`, which needs the raw cache, later runs of at
    least so many tokens that stand in both are moved to where the prompt has them, and what lies
    between is computed; they still carry what they saw where they were computed. Returns how many
    tokens were reused; what is behind the last of them is not computed.
    """
    cached = context.tokens
    n = common_prefix(cached, ids)
    found = list(runs(cached[n:], ids[n:], n_least)) if n_least else []
    if not found:
        context.truncate(n)
        return n
    try:
        with context.fork() as old:
            context.truncate(n)
            for at, start, length in found:
                if len(context) < n + at:
                    context.append(list(ids[len(context) : n + at]))
                with old.fork() as run:
                    run.truncate(n + start + length)
                    run.delete(0, n + start)
                    context.append(run)
    except ContextError:  # no room for both: the prefix then has to do
        context.truncate(n)
        return n
    return n + sum(length for _, _, length in found)


def shift(context: Context, ids: Sequence[int], start: int, n_least: int = 16) -> None:
    """Make the context one that begins with tokens of `ids`: its own first ones, and then those
    from `start` on, moved up in place.

    They still carry what they saw. Where a few of them are others in `ids` (text behind another one
    may be tokenized in another way), runs of at least `n_least` equal ones stay, and what is new
    between them is computed. `ContextError` where keys cannot move; the context then is as far as
    it came.
    """
    cached = context.tokens
    n = done = taken = common_prefix(cached, ids)  # of `ids`, and of `cached`
    start = max(start, n)
    for at, found, length in runs(cached[start:], ids[n:], n_least):
        if start + found < taken:
            continue
        context.delete(done, done + start + found - taken)
        if n + at > done:
            context.insert(done, list(ids[done : n + at]))
        done, taken = n + at + length, start + found + length
    context.truncate(done)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def runs(
    cached: Sequence[int], wanted: Sequence[int], n_least: int
) -> Iterator[tuple[int, int, int]]:
    """Runs of at least `n_least` tokens of `wanted` that stand in `cached` too: place in `wanted`,
    in `cached`, and length."""
    places: dict[tuple[int, ...], int] = {}
    for i in range(len(cached) - n_least + 1):
        places.setdefault(tuple(cached[i : i + n_least]), i)
    at = 0
    while at + n_least <= len(wanted):
        start = places.get(tuple(wanted[at : at + n_least]))
        if start is None:
            at += 1
            continue
        length = common_prefix(cached[start:], wanted[at:])
        yield at, start, length
        at += length
