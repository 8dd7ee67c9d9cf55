"""Runner: one loaded model with its KV cache, and the only code that runs it.

`build_runner` puts config, weights, RoPE, cache and model together; nothing else does. A step is
schedule, run, sample: the scheduler says what to compute, to evict and to preempt, the runner does
it. Whoever touches scheduler, model or cache holds the lock (`Runner.exclusive`).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from lariat._lock import Exclusive
from lariat.architectures.model import Model, Stopped
from lariat.architectures.weights import Weights
from lariat.cache.blocks import BlockTable
from lariat.cache.kv_cache import SPARE_BLOCKS, STRATEGIES, KVCache
from lariat.cache.prefix_cache import PrefixCache
from lariat.cache.rope import RopeTables
from lariat.checks import as_index, check_type
from lariat.config import EngineConfig, ModelConfig, RopeConfig
from lariat.errors import ContextError
from lariat.runtime import rope_choice, sampler, threads
from lariat.runtime.batch import Part, make_batch, split
from lariat.runtime.drafting import Drafting, Guesser
from lariat.runtime.pace import Pace
from lariat.runtime.request import Request
from lariat.runtime.rope_choice import RopeRead
from lariat.runtime.scheduler import Scheduler, Step

_LOGITS = 64 << 20  # bytes of logits of the tokens of one forward pass
NO_ROOM = "the KV cache has too few free blocks: close or compact contexts, or load with more n_ctx"


def build_runner(
    config: ModelConfig,
    weights: Weights,
    settings: EngineConfig,
    *,
    n_spare: int = SPARE_BLOCKS,
    fingerprint: Callable[[], str] = str,
    guesser: Guesser | None = None,
) -> Runner:
    """Put a runner together; several may share the same weights.

    `n_spare` blocks are added to those that `settings.n_ctx` needs (0: as trained). `fingerprint`
    says which model this is, for files of keys and values; it is called when a file needs it.
    `guesser` guesses tokens if `settings.speculative` is "draft".
    """
    n_ctx = settings.n_ctx or config.n_ctx_train
    factors, factors_of = weights.rope_factors, ""
    if weights.long_rope_factors is not None:
        is_long = n_ctx > (config.rope.yarn_orig_ctx or n_ctx)
        factors_of = "long factors" if is_long else "short factors"
        factors = weights.long_rope_factors if is_long else factors
    rope = RopeTables(config, n_ctx + 32, factors, settings.rope, factors_of)
    cache = STRATEGIES[settings.cache](
        config, n_ctx, settings.type_k, settings.type_v, rope, n_spare, settings.swa_window_only
    )
    n_ubatch = min(settings.n_ubatch, settings.n_batch, n_ctx)
    model = Model(config, weights, cache, n_ubatch)
    return Runner(
        config, settings, model, cache, rope,
        n_ctx=n_ctx, n_ubatch=n_ubatch, fingerprint=fingerprint,
        drafting=Drafting(settings, n_ctx, guesser),
    )  # fmt: skip


@dataclass(frozen=True)
class Health:
    """How an engine is.

    n_running, n_waiting  requests that have begun, and requests in the queue
    n_blocks, n_free      blocks of the KV cache, all and those that nobody holds
    step_s                seconds since the step that is running began; None: none is running
    idle_s                seconds since the last step ended; None: there was none
    """

    n_running: int
    n_waiting: int
    n_blocks: int
    n_free: int
    step_s: float | None
    idle_s: float | None


class Runner:
    """A model, its cache, and the requests that use them.

    config     shape and constants of the model
    settings   how it is run
    n_ctx      positions of the KV cache, shared by all requests and contexts
    n_ubatch   max tokens of one `forward`
    n_threads  threads for decoding; `n_threads_batch` for prompts
    cache      the KV cache; hold the lock to change it
    model      the forward pass
    scheduler  requests that run and wait
    stop       ends a pass early
    exclusive  the lock of all of them: `with runner.exclusive:` raises RuntimeError from within the
               runner's own callbacks and in a forked process, ValueError when it is closed
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: EngineConfig,
        model: Model,
        cache: KVCache,
        rope: RopeTables,
        *,
        n_ctx: int,
        n_ubatch: int,
        fingerprint: Callable[[], str],
        drafting: Drafting,
    ) -> None:
        """Use `build_runner`."""
        self.config, self.settings = config, settings
        self.n_ctx, self.n_ubatch = n_ctx, n_ubatch
        self.model, self.cache = model, cache
        self.n_threads = threads.resolve(settings.n_threads)
        self.n_threads_batch = threads.resolve(
            self.n_threads if settings.n_threads_batch is None else settings.n_threads_batch,
            "n_threads_batch",
        )
        self.scheduler = Scheduler(cache.pool, settings.n_batch)
        self._n_rows = max(1, _LOGITS // (4 * config.n_vocab))
        self._rope, self._drafting = rope, drafting
        self._make_fingerprint, self._fingerprint = fingerprint, ""
        self._closed = False
        self.exclusive = Exclusive(self._check_usable)
        self.stop = model.stop
        self._discarded: list[BlockTable] = []  # of contexts that were closed
        self._submitted: deque[Request] = deque()  # since the last step
        self._pace = Pace()
        self._step_since: float | None = None  # time.monotonic(), of the step that is running
        self._step_ended: float | None = None  # and of the last one
        self._share_prefixes()

    # ---- who may use it ----

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def check_open(self) -> None:
        """Raise ValueError after `close`."""
        if self._closed:
            raise ValueError("the model is closed")

    def close(self) -> None:
        """Give the memory back. Closing twice does nothing."""
        if self._closed:
            return
        if threads.is_forked():  # only this thread is left, and another one may hold the lock
            self._closed = True
            return
        with self.exclusive:
            self._closed = True
            self._drafting.close()
            del self.model, self.cache, self.scheduler

    def _check_usable(self) -> None:
        threads.check_not_forked()
        self.check_open()

    def token_ids(self, ids: Sequence[int]) -> list[int]:
        """Token ids as plain ints. ValueError for bytes, which look like ids, for other things that
        are none, and for ids that are not in the vocabulary."""
        if isinstance(ids, (bytes, bytearray, memoryview)):
            raise ValueError("bytes are neither text nor token ids: decode them first")
        if not is_list(ids):
            raise ValueError(
                f"a prompt is text or a list of token ids, and not of type {type(ids).__name__}"
            )
        checked = []
        for i in ids:
            token = None if isinstance(i, (bool, np.bool_)) else as_index(i)
            if token is None:
                raise ValueError(f"{i!r} is not a token id")
            if not 0 <= token < self.config.n_vocab:
                raise ValueError(
                    f"token id {token} is out of range, expected 0 to {self.config.n_vocab - 1}"
                )
            checked.append(token)
        return checked

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """Token ids as plain ints; see `LLM.check_ids`."""
        self.check_open()
        checked = self.token_ids(ids)
        if not checked:
            raise ValueError("the prompt is empty")
        if len(checked) > self.n_ctx:
            raise ContextError(
                f"the prompt has {len(checked)} tokens, more than the context of {self.n_ctx}"
            )
        return checked

    def check_can_shift(self) -> None:
        """Raise `ContextError` if a full context could not evict tokens: the others must move."""
        if not self.settings.can_shift:
            raise ContextError(
                f"context_shift needs keys that can move, and those of type {self.settings.type_k} "
                "cannot in the roped cache: use the raw cache, or another type of keys"
            )

    # ---- below requests: tables, parts, passes ----

    def new_table(self) -> BlockTable:
        """Make an empty place in the KV cache. Clear it when done with it."""
        self.check_open()
        return self.cache.new_table()

    def part(
        self,
        table: BlockTable,
        ids: Sequence[int],
        logits: str = "none",
        request: Request | None = None,
        rope: RopeConfig | None = None,
    ) -> Part:
        """Tokens to compute behind those of `table`, for `forward`; `logits` as for `Part`, `rope`
        as for `Reading`."""
        n_known = table.n_tokens + len(ids) if request is None else len(request.ids)
        return Part(table, ids, logits, self._rope.reading(n_known, rope), request)

    def forward(self, parts: Sequence[Part], n_threads: int | None = None) -> np.ndarray:
        """Run one forward pass over at most `n_ubatch` tokens.

        Returns the rows that the parts ask for, float32 [n_rows, n_vocab], or [n_rows, dim] if they
        are hidden ones, in their order; the next pass overwrites them. A table that is appended to
        stands in one part only.
        """
        batch = make_batch(parts)
        if n_threads is None:
            n_guesses = sum(len(part.request.drafts) for part in parts if part.request)
            is_decoding = batch.n_tokens == len(parts) + n_guesses  # both read all weights
            n_threads = self.n_threads if is_decoding else self.n_threads_batch
        with threads.forward_pass():
            return self.model.forward(batch, n_threads)

    def compute(
        self,
        table: BlockTable,
        ids: list[int],
        logits: str = "none",
        rope: RopeConfig | None = None,
    ) -> np.ndarray:
        """Compute tokens behind those of `table`, in passes of at most `n_ubatch`.

        Returns copies of the rows, float32 [n_rows, n_vocab], hidden ones [n_rows, dim].
        ContextError if blocks are missing, before anything is computed; LariatError if a number is
        not finite.
        """
        if table.n_new_blocks(len(ids)) > self.cache.pool.n_free:
            raise ContextError(NO_ROOM)
        part = self.part(table, ids, logits, rope=rope)
        groups = split([part], self.n_ubatch) if ids else []
        rows = [self.forward(group).copy() for group in groups]
        for some in rows:
            sampler.check_finite(some)
        return np.concatenate(rows) if rows else np.zeros((0, self.config.n_vocab), np.float32)

    def recompute(
        self, table: BlockTable, ids: Sequence[int], *rounds: Sequence[tuple[int, int]]
    ) -> None:
        """Compute tokens of a table anew, in place: they then have seen all that is before them.

        ids     all tokens of `table`, which may differ from those that were computed
        rounds  of each, (start, stop) of those to compute, in ascending order, without overlap

        Their keys and values go into fresh blocks, because the old ones may be others' too; all
        tokens keep their positions, so this works with both caches and all types. All ranges of a
        round are one batch, in which each is a part over the same table that ends behind the range;
        more than `n_ubatch` tokens go in several passes from left to right. Tokens between the
        ranges are not computed, and keep what they saw.

        To repair what stands behind an edit, pass one range that begins behind it. Hold the lock.
        ContextError if blocks are missing; the table is as it was after any exception.
        """
        some = [[(start, stop) for start, stop in each if start < stop] for each in rounds]
        some = [ranges for ranges in some if ranges]
        if not some:
            return
        try:
            tables = table.renewed(*some)
        except IndexError:
            raise ContextError(NO_ROOM) from None
        try:
            reading = self._rope.reading(table.n_tokens)
            for renewed, ranges in zip(tables, some, strict=True):
                parts = [
                    Part(renewed, ids[start:stop], reading=reading, start=start)
                    for start, stop in ranges
                ]
                for group in split(parts, self.n_ubatch):
                    self.forward(group, self.n_threads_batch)
            table.assign(tables[-1].segments)
        finally:
            for renewed in tables:
                renewed.clear()

    # ---- contexts and files ----

    def signature(self, n_tokens: int | None = None) -> dict[str, str]:
        """Describe what two caches must share to understand each other's keys and values.

        `n_tokens`: of a context that never had more; None: any. RoPE belongs to it with both
        caches: raw keys have no angle, but the tokens that they saw had one.
        """
        if not self._fingerprint:
            self._fingerprint = self._make_fingerprint()
        s = self.settings
        return {
            "model": self._fingerprint, "cache": s.cache, "type_k": s.type_k, "type_v": s.type_v,
            "rope": self._rope.settings(n_tokens),
        }  # fmt: skip

    def set_rope(self, rope: RopeConfig) -> None:
        """Read all keys with other angles from now on; see `LLM.set_rope`."""
        check_type("rope", rope, RopeConfig)
        if self.settings.cache != "raw":
            raise ContextError("RoPE can change while keys stay only in the raw cache")
        with self.exclusive:
            self._rope.set(rope)
            self._share_prefixes()

    def discard(self, table: BlockTable) -> None:
        """Free the blocks of a closed context, now or at the next step of a running request."""
        if not self._closed:
            self._discarded.append(table)
            self._sweep_if_idle()

    # ---- requests ----

    def rope_read(self, asked: Sequence[RopeConfig], n_before: int) -> RopeRead:
        """How a request is read that asks for one of these settings behind `n_before` tokens."""
        complete = dict.fromkeys(self._rope.complete(rope) for rope in asked)
        return RopeRead(tuple(complete), n_before)

    @property
    def requests(self) -> list[Request]:
        """All requests that run, wait or have just been submitted."""
        return [*self.scheduler.requests, *self._submitted]

    def submit(self, request: Request) -> None:
        """Queue a request for the next step, even while one is running."""
        self._submitted.append(request)

    def give_up(self, request: Request) -> None:
        """Compute nothing more of a request; its blocks are free after the next `sweep`.

        A pass that is for nobody else ends at once.
        """
        request.closed = True
        self.stop.look()

    def cancel(self, request: Request) -> None:
        """Give a request up; its blocks are free now or after the pass that is running."""
        self.give_up(request)
        self._sweep_if_idle()

    def health(self) -> Health:
        """How the engine is, at once, whatever runs."""
        try:
            pool, scheduler = self.cache.pool, self.scheduler
        except AttributeError:  # closed
            return Health(0, 0, 0, 0, None, None)
        n_running = scheduler.n_running
        n_waiting = scheduler.n_unfinished - n_running + len(self._submitted)
        now, since, ended = time.monotonic(), self._step_since, self._step_ended
        return Health(
            n_running,
            n_waiting,
            pool.n_blocks,
            pool.n_free,
            None if since is None else now - since,
            None if ended is None else now - ended,
        )

    def step(self) -> None:
        """Schedule, run, sample: one step for all requests. The lock is held.

        A step of several passes ends after any of them if a thread waits for the lock, or if a
        request is new. An exception ends the requests of the pass that it strikes, and is raised.
        """
        start = time.perf_counter()
        self._step_since = time.monotonic()
        try:
            step = self._schedule()
            parts = self._parts(step)
            for i, group in enumerate(split(parts, self.n_ubatch, self._n_rows) if parts else []):
                if i:
                    if self.exclusive.is_wanted or self._submitted:
                        return
                    self._take_out()
                    group = [part for part in group if part.request and not part.request.closed]
                if group:
                    self._pass(group, start)
                    start = time.perf_counter()
            choosing = [request for request, _ in step.compute if request.is_choosing]
            for request in choosing:  # last: the blocks that are free now are promised to nobody
                if not request.closed:
                    n = request.n_computed
                    if self._compute_for([request], partial(self._choose_rope, request)):
                        seconds = time.perf_counter() - start
                        request.count(request.n_computed - n, seconds, in_prompt=True)
                    start = time.perf_counter()
        finally:
            self._take_out()
            self._step_since, self._step_ended = None, time.monotonic()

    def _pass(self, group: Sequence[Part], start: float) -> None:
        """Compute parts of requests, and give each its next token. Tokens are counted, and the
        seconds since `start`."""
        requests = list(dict.fromkeys(part.request for part in group if part.request))
        before = [(r, r.n_computed, r.in_prompt, r.is_prompt_done) for r in requests]
        if not self._compute_for(requests, lambda: _deal_out(self.forward(group), group)):
            return
        seconds, n_prompt, n_decode = time.perf_counter() - start, 0, 0
        for request, n_before, was_prompt, was_done in before:
            n = request.n_computed - n_before
            request.count(n, seconds, was_prompt and not was_done)
            if was_prompt:
                n_prompt += n
            else:
                n_decode += n
        self._pace.add(n_prompt, n_decode, seconds)

    def _compute_for(self, requests: list[Request], work: Callable[[], None]) -> bool:
        """Do work of these requests alone, which stops when all of them are given up.

        If it does not come to its end, nothing of it stays in the cache. Returns whether it did.
        """
        n_cached = [request.table.n_tokens for request in requests]
        try:
            self.stop.begin(requests)
            work()
        except BaseException as error:
            is_own = not isinstance(error, Stopped)
            for request, n in zip(requests, n_cached, strict=True):
                request.table.truncate(n)
                if is_own:
                    request.give_up(error)
            if is_own:
                raise
            return False
        finally:
            self.stop.end()
        return True

    def sweep(self) -> None:
        """Take in requests that are new, take out those that are finished or given up, and free
        closed contexts.

        An exception may have struck between two lines and lost blocks; the pool then counts them
        anew. The lock is held, and no edit is under way.
        """
        self.take_in()
        self._take_out()

    def take_in(self) -> None:
        """Let the scheduler have requests that are new. The lock is held."""
        while self._submitted:
            if self._submitted[0] not in self.scheduler.requests:  # struck between these lines?
                self.scheduler.add(self._submitted[0])
            self._submitted.popleft()

    def _take_out(self) -> None:
        """The rest of `sweep`: within a step no request is taken in, because it may run in the
        thread of somebody who steps for his own requests alone."""
        if self.exclusive.failed:
            self.cache.pool.doubt()
            self.exclusive.failed = False
        self.cache.pool.recount()
        while self._discarded:
            self._discarded.pop().clear()
        for request in self.scheduler.requests:
            if request.finished or request.closed:
                request.closed = True
                self.scheduler.remove(request)

    def _sweep_if_idle(self) -> None:
        """Sweep now, unless a step that is running will do so at its end."""
        if self._closed or self.exclusive.is_held or threads.is_forked():
            return
        with contextlib.suppress(ValueError), self.exclusive:  # closed by another thread meanwhile
            self.sweep()

    def _schedule(self) -> Step:
        """Ask for a step, and evict as long as the scheduler wants room first."""
        while True:
            self._take_out()
            is_one = self.scheduler.n_unfinished == 1
            step = self.scheduler.schedule(None if is_one else self._pace.budget)
            if not step.evict:
                return step
            for request, (start, stop) in step.evict:
                try:
                    self._delete(request.table, start, stop)
                except ContextError as error:  # keys that were given back
                    request.fail(error)
                except IndexError:  # rotated keys that others hold too would have to be copied
                    request.fail(
                        ContextError("the KV cache has no free blocks to move tokens up in")
                    )
                else:
                    request.evicted(start, stop)

    def _delete(self, table: BlockTable, start: int, stop: int) -> None:
        """Take tokens out of a table; those behind move up. IndexError if blocks are missing."""
        kept = [table.cut(0, start), table.cut(stop, table.n_tokens)]
        self.cache.edit(table, np.concatenate(kept), self.n_threads)

    def _parts(self, step: Step) -> list[Part]:
        """The tokens of a step. Logits are wanted wherever a request has no more pending."""
        parts: list[Part] = []
        n_tokens = min(self.n_ubatch, self._n_rows)
        self._drafting.add(step, n_tokens, self.cache.pool.n_free)
        for request, n in step.compute:
            if request.n_renewing:
                table, ranges = request.renewing(n)
                reading = self._rope.reading(table.n_tokens)
                parts += [
                    Part(table, request.ids[start:stop], "none", reading, request, start)
                    for start, stop in ranges
                ]
            elif not request.is_choosing:
                ids = request.ids[request.table.n_tokens : request.table.n_tokens + n]
                ids += request.drafts
                parts.append(
                    self.part(request.table, ids, request.logits_of(n), request, request.rope)
                )
        return parts

    def _choose_rope(self, request: Request) -> None:
        """Read a request's question with each of its settings, and go on with the likeliest."""
        assert request.read is not None
        ids = request.ids[request.table.n_tokens :]
        try:
            chosen = rope_choice.read_question(
                request.table, ids, request.read.candidates, self.compute
            )
            request.chosen(chosen.rope, chosen.n_tried)
            request.report_prompt()
            request.take(chosen.logits[None])
        except Stopped:
            raise
        except Exception as error:  # this request's own; the others go on
            request.fail(error)

    def _share_prefixes(self) -> None:
        """Begin to share prefixes anew: blocks computed with other angles hold other keys.

        Dynamic scaling shares none, because its angles depend on the length of each context.
        """
        pool = self.cache.pool
        pool.forget_all()
        for request in self.requests:
            request.hide_blocks()
        share = self.settings.prefix_sharing and self._rope.rope.scaling != "dynamic"
        self.scheduler.prefixes = PrefixCache(pool) if share else None


def _deal_out(logits: np.ndarray, group: Sequence[Part]) -> None:
    """Give each request the logits that its part wants, of float32 [n_rows, n_vocab]."""
    at = 0
    for part in group:
        request = part.request
        assert request is not None
        rows = logits[at : at + part.n_rows]
        at += len(rows)
        if request.closed:  # given up meanwhile
            request.reject_drafts()
            continue
        try:
            if part.start is not None:
                request.renewed(len(part.token_ids))
            request.report_prompt()
            if len(rows):
                request.take(rows)
        except Exception as error:  # this request's own; the others go on
            request.fail(error)


def is_list(value: object) -> bool:
    """Whether a value may be a list of token ids or of prompts: one of values in an order."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) or (
        hasattr(value, "__len__")
        and hasattr(value, "__getitem__")
        and not isinstance(value, Mapping)
    )
