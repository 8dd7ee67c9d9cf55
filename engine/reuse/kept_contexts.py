"""Contexts of earlier prompts, which later prompts that have text in common with them begin from.

The blocks of the pool that they hold are others' as soon as somebody needs them: `make_room` closes
those that were used least recently.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lariat.cache.blocks import SLOTS, BlockPool
from lariat.errors import ContextError
from lariat.reuse.rearrange import Document, Plan, carry_out, plan
from lariat.runtime.context import Context
from lariat.runtime.runner import Runner

WAYS = ("exact", "repaired", "placed")
"""Ways to treat text that moved: compute it again, reuse it and repair what matters, or reuse it as
it is."""

_MIN_RUN = 16  # tokens that are moved together
_MAX_SHARE = 0.5  # of the pool's blocks that kept contexts may hold


class Engine(Protocol):
    """The side of an `LLM` that has contexts."""

    runner: Runner

    def context(self) -> Context:
        """Make an empty context."""


@dataclass
class Prepared:
    """A context that begins with a prompt, of which the last tokens are still to be computed.

    context       tokens of the prompt up to `rest`
    rest          its last tokens, for `LLM.stream`
    plan          how it was put together
    n_recomputed  of the reused tokens, those that were computed anew to repair them
    """

    context: Context
    rest: list[int]
    plan: Plan
    n_recomputed: int


@dataclass
class _Kept:
    context: Context
    tokens: list[int]
    n_exact: int


class KeptContexts:
    """Contexts of the last prompts. Threads may use it at once; the raw cache is needed for all
    `WAYS` but "exact"."""

    def __init__(self, llm: Engine, max_contexts: int = 8) -> None:
        """Keep at most `max_contexts`."""
        self._llm, self._max = llm, max_contexts
        self._kept: list[_Kept] = []  # the one used last is the last
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)

    def plan(self, ids: Sequence[int], documents: Sequence[Document], way: str) -> Plan:
        """Say how a prompt would be put together, and compute nothing.

        `way` is one of `WAYS`. ValueError for another one, `ContextError` if the cache cannot.
        """
        with self._lock:
            return self._best(ids, documents, way)[1]

    def prepare(self, ids: Sequence[int], documents: Sequence[Document], way: str) -> Prepared:
        """Put a prompt together in a context of its own; close or `keep` it. Computes all but its
        last tokens."""
        with self._lock:
            kept, chosen = self._best(ids, documents, way)
            if kept is not None:
                self._kept.remove(kept)
                self._kept.append(kept)
            n_new = sum(len(piece) for piece in chosen.pieces if piece.at is None)
            self._make_room(n_new, kept)
            context = kept.context.fork() if kept is not None else self._llm.context()
        try:
            n_recomputed = carry_out(context, chosen, repair=way == "repaired")
        except BaseException:
            context.close()
            raise
        rest = list(ids[chosen.pieces[-1].start :])
        return Prepared(context, rest, chosen, n_recomputed)

    def keep(self, prepared: Prepared) -> None:
        """Take over a context with all that was appended to it, for later prompts.

        One whose tokens all stand at the beginning of the new one is closed.
        """
        context, chosen = prepared.context, prepared.plan
        context.compact()
        tokens = context.tokens
        n_exact = chosen.n_exact if chosen.n_moved else len(tokens)
        with self._lock:
            for old in [k for k in self._kept if k.tokens == tokens[: len(k.tokens)]]:
                if old.n_exact <= n_exact:
                    self._drop(old)
            self._kept.append(_Kept(context, tokens, n_exact))
            max_bytes = _MAX_SHARE * self._pool.n_blocks * self._llm.runner.cache.block_bytes
            while len(self._kept) > self._max or (
                len(self._kept) > 1 and sum(k.context.nbytes for k in self._kept) > max_bytes
            ):
                self._drop(self._kept[0])

    def make_room(self, n_tokens: int) -> None:
        """Close contexts until so many tokens fit, or none is left."""
        with self._lock:
            self._make_room(n_tokens)

    def clear(self) -> None:
        """Close all."""
        with self._lock:
            while self._kept:
                self._drop(self._kept[0])

    @property
    def _pool(self) -> BlockPool:
        return self._llm.runner.cache.pool

    def _make_room(self, n_tokens: int, needed: _Kept | None = None) -> None:
        n_blocks = -(-n_tokens // SLOTS) + 1
        for kept in [kept for kept in self._kept if kept is not needed]:
            if self._pool.n_free >= n_blocks:
                return
            self._drop(kept)
            with self._llm.runner.exclusive:  # its blocks are free once no step runs
                self._llm.runner.sweep()

    def _drop(self, kept: _Kept) -> None:
        self._kept.remove(kept)
        kept.context.close()

    def _best(
        self, ids: Sequence[int], documents: Sequence[Document], way: str
    ) -> tuple[_Kept | None, Plan]:
        """The context to begin from, None for an empty one, and the plan."""
        if way not in WAYS:
            raise ValueError(f"reuse is {way!r}, expected one of {', '.join(WAYS)}")
        is_exact = way == "exact"
        if not is_exact and self._llm.runner.settings.cache != "raw":
            raise ContextError("text that moved is reused with the raw cache only: --cache raw")
        n_least = 0 if is_exact else _MIN_RUN
        best: tuple[_Kept | None, Plan] | None = None
        for kept in [*reversed(self._kept), None]:
            tokens, n_exact = (kept.tokens, kept.n_exact) if kept else ([], 0)
            one = plan(tokens, ids, n_exact=n_exact, n_least=n_least, documents=documents)
            if best is None or _cost(one) < _cost(best[1]):
                best = kept, one
        assert best is not None
        return best


def _cost(plan: Plan) -> tuple[int, int]:
    return plan.n_computed, plan.n_moved
