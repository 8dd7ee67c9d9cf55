"""Chooses the next step: mixes prompts and decoding requests.

The scheduler decides and keeps the queues; the runner acts. It knows tokens and free blocks,
nothing of arrays or kernels, and calls nobody back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from lariat.cache.blocks import BlockPool
from lariat.cache.prefix_cache import PrefixCache
from lariat.errors import ContextError
from lariat.runtime.request import Request

_MAX_PASSED = 8  # requests that wait for others' blocks, and are passed by in a step
_NO_BLOCK = "the KV cache is full: close contexts, or load with more n_ctx"


@dataclass
class Step:
    """One decision of the scheduler.

    compute  requests, and how many of their pending tokens to compute: those that decode first,
             then prompts, those with the fewest tokens left first
    evict    requests, and which of their tokens, (start, stop), to take out of the cache. They come
             first and alone: a step that evicts computes nothing, and the next one finds the room.
    """

    compute: list[tuple[Request, int]] = field(default_factory=list)
    evict: list[tuple[Request, tuple[int, int]]] = field(default_factory=list)
    n_tokens_left: int = 0  # of `n_batch`
    n_promised: int = 0  # blocks that `compute` will take, and later the rest of its prompts

    def add(self, request: Request, n: int) -> None:
        """Compute so many pending tokens."""
        self.compute.append((request, n))
        self.n_tokens_left = max(0, self.n_tokens_left - n)
        self.n_promised += request.n_new_blocks(n)

    def drop(self, request: Request) -> None:
        """Compute nothing of a request that was preempted after it was chosen."""
        for chosen, n in [one for one in self.compute if one[0] is request]:
            self.compute.remove((chosen, n))
            self.n_tokens_left += n
            self.n_promised -= chosen.n_new_blocks(n)


class Scheduler:
    """Requests that run and requests that wait for blocks of the cache.

    With `prefixes`, requests that begin alike hold the same blocks.
    """

    def __init__(self, pool: BlockPool, n_batch: int, prefixes: PrefixCache | None = None) -> None:
        self._pool = pool
        self.prefixes = prefixes
        self._n_batch = n_batch
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def remove(self, request: Request) -> None:
        """Drop a request, finished or not; its blocks are free at once. Twice does no harm."""
        self._key_blocks(request)
        request.release()
        if request in self._running:
            self._running.remove(request)
        elif request in self._waiting:
            self._waiting.remove(request)

    @property
    def requests(self) -> list[Request]:
        """All requests that run or wait."""
        return [*self._running, *self._waiting]

    @property
    def n_running(self) -> int:
        """Requests that were let in: their blocks are there, or promised."""
        return len(self._running)

    @property
    def n_unfinished(self) -> int:
        """Requests that run or wait."""
        return len(self._running) + len(self._waiting)

    def schedule(self, budget: int | None = None) -> Step:
        """Choose the next step.

        Decoding requests come first, oldest first, one token each; prompts share what is left of
        `n_batch`, but get at most `budget` tokens if any request decodes. Where a request finds no
        block, an endless one evicts its oldest tokens; where none can, the youngest is preempted,
        gives its blocks back and is recomputed later. Never more tokens than `n_batch`, nor more
        blocks than are free. A step without anything to do means that nothing can run: requests
        that wait in vain have failed.
        """
        step = Step(n_tokens_left=self._n_batch)
        for request in self._running:
            self._key_blocks(request)
        for request in [request for request in self._running if not request.in_prompt]:
            self._continue(request, 1, step)
        if step.compute and budget is not None:
            step.n_tokens_left = min(step.n_tokens_left, budget)
        if not step.evict:
            self._admit_waiting(step)
        if not step.evict:
            self._read_prompts(step)
        if step.evict:
            step.compute.clear()
        return step

    # ---- requests that run ----

    def _continue(self, request: Request, n: int, step: Step) -> None:
        """Compute `n` tokens of a running request, if it stays one, unless the step evicts."""
        if step.n_tokens_left == 0 or step.evict or request not in self._running:
            return
        if self._shorten(request, step) and self._find_room(request, n, step):
            step.add(request, n)

    def _read_prompts(self, step: Step) -> None:
        """Share the tokens that are left among the prompts, and promise blocks to all of them."""
        decoding = {request for request, _ in step.compute}
        prompts = [r for r in self._running if r not in decoding and not r.closed]
        for request, n in _shares(prompts, step.n_tokens_left):
            self._continue(request, n, step)
        step.n_promised = sum(
            request.n_new_blocks(1 if request in decoding else request.n_pending)
            for request in self._running
        )

    def _n_owed(self, step: Step) -> int:
        """Blocks that prompts of running requests will take, before `step` has any of them."""
        decoding = {request for request, _ in step.compute}
        return sum(r.n_new_blocks(r.n_pending) for r in self._running if r not in decoding)

    def _find_room(self, request: Request, n: int, step: Step) -> bool:
        """Make room for `n` tokens of a running request; False: it must not run in this step."""
        while not self._has_room(request, n, step):
            if self._evict_from_longest(step):
                return False
            victim = self._youngest(request)
            if victim is None and self._evict_from(request, step):
                if step.evict:
                    return False
                continue
            if victim is None:
                request.fail(ContextError(_NO_BLOCK))
                return False
            step.drop(victim)  # one that decodes may be younger than a prompt
            self._preempt(victim)
            if victim is request:
                return False
        return True

    # ---- requests that wait ----

    def _admit_waiting(self, step: Step) -> None:
        """Let waiting requests run, the oldest first, as long as the next one has room beside all
        that the others still have to read. They may read in another order, see `_shares`.

        Those that wait for blocks which a running request is about to compute are passed by: the
        others do not wait with them, but leave them their room.
        """
        n_passed = n_kept = 0
        for request in list(self._waiting):
            if not step.n_tokens_left or n_passed > _MAX_PASSED:
                return
            if not self._shorten(request, step):
                return
            if self.prefixes and not request.is_lent:
                self.prefixes.reuse(request)
                if self.prefixes.is_coming(request, self._running):
                    request.table.clear()
                    n_passed += 1
                    n_kept += request.n_new_blocks(request.n_pending)
                    continue
            if not self._find_room_for_all(request, step, n_kept):
                if step.evict and not request.is_lent:
                    request.table.clear()  # the next step looks for its prefix again
                return
            request.count_reused()
            self._running.append(request)
            self._waiting.remove(request)

    def _find_room_for_all(self, request: Request, step: Step, n_kept: int) -> bool:
        """Make room for all pending tokens: a prompt must not get stuck half-way behind another.
        Nothing is evicted or preempted for it while `n_kept` blocks are those of older ones."""
        if n_kept:
            has_room = self._has_room(request, request.n_pending, step, self._n_owed(step) + n_kept)
            if not has_room and not request.is_lent:
                request.table.clear()
            return has_room
        while not self._has_room(request, request.n_pending, step, self._n_owed(step)):
            if self._evict_from_longest(step):
                return False
            victim = None if request.is_endless else self._youngest_endless()
            if victim is not None:
                step.drop(victim)
                self._preempt(victim)
                self._waiting.rotate(-1)  # behind all others
                continue
            if not request.is_lent:
                request.table.clear()
            if request.is_endless and self._evict_from(request, step):
                if step.evict:
                    return False
                continue
            # Contexts hold the rest, and endless requests never give theirs back.
            if all(other.is_endless for other in self._running):
                request.fail(ContextError(_NO_BLOCK))
            return False
        return True

    # ---- below: one decision each ----

    def _has_room(self, request: Request, n: int, step: Step, n_owed: int = 0) -> bool:
        return request.n_new_blocks(n) + step.n_promised + n_owed <= self._pool.n_free

    def _shorten(self, request: Request, step: Step) -> bool:
        """Evict until a request has no more tokens than n_ctx; False: the step evicts first."""
        while request.is_too_long and self._evict_from(request, step):
            if step.evict:
                return False
        return True

    def _evict_from(self, request: Request, step: Step) -> bool:
        """Have a request evict its oldest tokens; False: it cannot shift.

        A preempted request has none in the cache, so it forgets them at once.
        """
        oldest = request.oldest()
        if oldest is None:
            return False
        if request.waits_for_recompute:
            request.evicted(*oldest)
        else:
            step.evict.append((request, oldest))
        return True

    def _evict_from_longest(self, step: Step) -> bool:
        """Have the longest of the endless requests evict tokens, if that can free a block."""
        for request in sorted(self._running, key=lambda r: -r.table.n_tokens):
            if (
                request.is_endless
                and request.holds_oldest_alone
                and self._evict_from(request, step)
            ):
                return True
        return False

    def _youngest_endless(self) -> Request | None:
        """The request to wait so that one that has an end may run."""
        endless = [r for r in self._running if r.is_endless and not r.is_lent]
        return endless[-1] if endless else None

    def _youngest(self, request: Request) -> Request | None:
        """The youngest request that can be recomputed, down to `request` itself; None: an older one
        would have to go."""
        for victim in reversed(self._running):
            if not victim.is_lent:
                return victim
            if victim is request:
                break
        return None

    def _key_blocks(self, request: Request) -> None:
        if self.prefixes:
            self.prefixes.key_blocks(request)

    def _preempt(self, victim: Request) -> None:
        self._running.remove(victim)
        self._key_blocks(victim)
        victim.table.clear()
        self._waiting.appendleft(victim)


def _shares(prompts: list[Request], n_tokens: int) -> list[tuple[Request, int]]:
    """How many of `n_tokens` each prompt gets, those with the fewest left first; `prompts` by age.

    Half of them go to the prompts with the fewest tokens left, so that a short one does not wait
    for a long one. The other half, and what is over, go to the oldest, so that a long one takes at
    most about twice its time, whatever comes behind it.
    """
    by_length = sorted(prompts, key=lambda request: request.n_pending)
    shares = dict.fromkeys(by_length, 0)
    n_left = n_tokens // 2 + _deal(by_length, n_tokens - n_tokens // 2, shares)
    _deal(prompts, n_left, shares)
    return [(request, n) for request, n in shares.items() if n]


def _deal(prompts: list[Request], n_tokens: int, shares: dict[Request, int]) -> int:
    """Give the first of the prompts as many of `n_tokens` as they can have, beside their shares;
    returns what is left. A question that is read with several settings comes whole."""
    for request in prompts:
        if n_tokens <= 0:
            break
        n = request.n_ready - shares[request]
        n = n if request.is_choosing else min(n, n_tokens)
        shares[request] += n
        n_tokens -= n
    return n_tokens
