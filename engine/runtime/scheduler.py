"""What to run next: mixes prompt chunks and decoding sequences into one step.

Knows tokens and free blocks, nothing of arrays or kernels.
"""

from __future__ import annotations

from collections import deque

from lariat.cache.blocks import BlockPool
from lariat.cache.prefix_cache import PrefixCache
from lariat.errors import ContextError
from lariat.runtime.request import Request

_NO_BLOCK = "the KV cache is full: close contexts, or load with more n_ctx"


class Scheduler:
    """Sequences that run and sequences that wait for blocks of the cache.

    With `prefixes`, those that begin alike hold the same blocks.
    """

    def __init__(self, pool: BlockPool, n_batch: int, prefixes: PrefixCache | None = None) -> None:
        self._pool = pool
        self.prefixes = prefixes
        self._n_batch = n_batch
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    def add(self, sequence: Request) -> None:
        """Queue a request."""
        self._waiting.append(sequence)

    def remove(self, sequence: Request) -> None:
        """Drop a request, finished or not; its blocks are free at once. Twice does no harm."""
        self._remember(sequence)
        sequence.release()
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    @property
    def sequences(self) -> list[Request]:
        """All requests that run or wait."""
        return [*self._running, *self._waiting]

    @property
    def n_unfinished(self) -> int:
        """Requests that run or wait."""
        return len(self._running) + len(self._waiting)

    def schedule(self) -> list[tuple[Request, int]]:
        """Choose the next step: sequences, and how many of their pending tokens to compute.

        Oldest first: decoding sequences, one token each, then what is left of `n_batch` goes to
        prompts. When a sequence finds no block, an endless one evicts its oldest tokens; where none
        can, the youngest one gives its blocks back and waits, to be computed again later. Never
        more tokens than `n_batch`, nor more blocks than are free. Empty when nothing can run: those
        that wait in vain have failed.
        """
        step: list[tuple[Request, int]] = []
        room = self._n_batch
        promised = 0  # blocks that this step's choices will take
        for sequence in self._running:
            self._remember(sequence)
        for sequence in list(self._running):  # in order of age, so decoding ones come first
            if sequence not in self._running or room == 0:
                continue
            sequence.fit()
            n = min(sequence.n_pending, room)
            while sequence.context.n_new_blocks(n) + promised > self._pool.n_free:
                if self._evict():
                    continue
                # Never one that is chosen already: those are older.
                victim = self._youngest(sequence)
                if victim is None and sequence.shift():
                    continue
                if victim is None:
                    sequence.fail(ContextError(_NO_BLOCK))
                    break
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                step.append((sequence, n))
                room -= n
                promised += sequence.context.n_new_blocks(n)
        while self._waiting and room:
            sequence = self._waiting[0]
            sequence.fit()
            if self.prefixes and not sequence.is_lent:
                self.prefixes.reuse(sequence)
                if self.prefixes.is_coming(sequence, self._running):
                    sequence.context.clear()
                    break
            # Room for all it has, so that a prompt is not stuck half-way behind another.
            while sequence.context.n_new_blocks(sequence.n_pending) + promised > self._pool.n_free:
                if self._evict():
                    continue
                victim = None if sequence.is_endless else self._youngest_endless()
                if victim is not None:
                    for n in [n for chosen, n in step if chosen is victim]:
                        step.remove((victim, n))
                        room += n
                        promised -= victim.context.n_new_blocks(n)
                    self._preempt(victim)
                    self._waiting.rotate(-1)  # behind all others
                    continue
                if not sequence.is_lent:
                    sequence.context.clear()
                if sequence.is_endless and sequence.shift():
                    continue
                # Contexts hold the rest, and nobody here will ever free it.
                if all(other.is_endless for other in self._running):
                    sequence.fail(ContextError(_NO_BLOCK))
                return step
            sequence.book_reused()
            self._running.append(sequence)
            self._waiting.popleft()
            n = min(sequence.n_pending, room)
            step.append((sequence, n))
            room -= n
            promised += sequence.context.n_new_blocks(sequence.n_pending)
        return step

    def _youngest_endless(self) -> Request | None:
        """Who is to wait so that one that has an end may run."""
        endless = [s for s in self._running if s.is_endless and not s.is_lent]
        return endless[-1] if endless else None

    def _evict(self) -> bool:
        """Have the longest of the endless sequences evict tokens, if that can free a block."""
        for sequence in sorted(self._running, key=lambda s: -s.context.n_tokens):
            if sequence.is_endless and sequence.holds_oldest_alone and sequence.shift():
                return True
        return False

    def _youngest(self, sequence: Request) -> Request | None:
        """Who is to give its blocks back for `sequence`, if not an older one: the youngest that can
        be computed again."""
        for victim in reversed(self._running):
            if not victim.is_lent:
                return victim
            if victim is sequence:
                break
        return None

    def _remember(self, sequence: Request) -> None:
        if self.prefixes:
            self.prefixes.remember(sequence)

    def _preempt(self, victim: Request) -> None:
        self._running.remove(victim)
        self._remember(victim)
        victim.context.clear()
        self._waiting.appendleft(victim)
