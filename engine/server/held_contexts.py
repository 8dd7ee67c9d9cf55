"""Contexts that clients made and edit, by their ids, and the segments that each is made of."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lariat.protocol.contexts import (
    ContextAnswer,
    ContextUsage,
    DocumentSegment,
    SegmentAnswer,
    SegmentInput,
    TextSegment,
)
from lariat.protocol.errors import ApiError, bad

if TYPE_CHECKING:
    from lariat.llm import LLM
    from lariat.reuse.library import Chunk
    from lariat.runtime.context import Context

MAX_CONTEXTS = 64


@dataclass
class _Segment:
    id: str
    type: str
    label: str | None
    n_tokens: int


@dataclass
class HeldContext:
    """A context and its segments, in order; together they are all of its tokens.

    One thread at a time edits it, within `editing`. Any thread may have it described meanwhile: it
    then is as it was before. `document` opens one of the library.
    """

    id: str
    context: Context
    document: Callable[[str], Chunk]
    n_exact: int = 0
    _segments: list[_Segment] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    # Whoever takes `_lock` holds this one meanwhile, so that no edit finds it taken by a look.
    _looking: threading.Lock = field(default_factory=threading.Lock)
    _is_over: bool = False  # it is to be closed

    def __post_init__(self) -> None:
        """Its description before the edit that is under way, or as it was looked at last."""
        self._before = self.described()

    @contextmanager
    def editing(self) -> Iterator[ContextUsage]:
        """Edit it; the usage takes counts, and the time. After an exception all is as it was.

        ApiError with the status 409 if another request edits it, and 404 if one has closed it.
        """
        self._acquire()
        try:
            start = time.perf_counter()
            usage = ContextUsage()
            before, n_exact = self.context.fork(), self.n_exact
            segments = [replace(one) for one in self._segments]
            try:
                yield usage
            except BaseException:
                self.context, before = before, self.context
                self._segments, self.n_exact = segments, n_exact
                raise
            finally:
                before.close()
                usage.seconds = round(time.perf_counter() - start, 4)
        finally:
            self._release()

    def put_in(self, inputs: list[SegmentInput], at: int | None, usage: ContextUsage) -> None:
        """Put segments before that with the number `at`; None: behind all."""
        number = len(self._segments) if at is None else at
        if number > len(self._segments):
            raise bad(f"at is {number}, and there are {len(self._segments)} segments", "at")
        for one in inputs:
            self._put_in(number, one, usage)
            number += 1

    def edit(
        self,
        id: str,
        start: int | None,
        stop: int | None,
        text: str,
        parse_special: bool,
        usage: ContextUsage,
    ) -> None:
        """Replace tokens `start` to before `stop` of a segment by a text. All of them: by nothing
        the segment is gone."""
        number = self._number(id)
        segment, place = self._segments[number], self._start(number)
        start, stop = start or 0, segment.n_tokens if stop is None else stop
        if not start <= stop <= segment.n_tokens:
            raise bad(f"the segment has {segment.n_tokens} tokens, {start} to {stop} are none")
        self._delete(number, place + start, place + stop, usage)
        segment.n_tokens -= stop - start
        if text:
            self._insert(number, place + start, text, parse_special, usage)
        if not segment.n_tokens:
            del self._segments[number]

    def move(self, id: str, to: int, usage: ContextUsage) -> None:
        """Give a segment another place: the number `to`."""
        number = self._number(id)
        if to >= len(self._segments):
            raise bad(f"to is {to}, and there are {len(self._segments)} segments", "to")
        start = self._start(number)
        segment = self._segments.pop(number)
        self._segments.insert(to, segment)
        place = self._start(to)
        self.context.move(start, start + segment.n_tokens, place)
        if place != start:
            self._moved(min(start, place), usage)

    def begin_stream(self) -> Context:
        """The context for a stream, which alone uses it until `end_stream`. ApiError as for
        `editing`."""
        self._acquire()
        return self.context

    def end_stream(self) -> None:
        """Make a segment of the tokens that the stream has read and written."""
        try:
            self._segments.append(_Segment(_id("seg"), "completion", None, 0))
            self._take_in()
        finally:
            self._release()

    def repair(self, share: float, usage: ContextUsage) -> None:
        """Compute anew what recalls edits; see `Context.repair`."""
        usage.recomputed_tokens += self.context.repair(share=share)

    def recompute(self, usage: ContextUsage) -> None:
        """Compute all tokens anew that are not exact."""
        n = len(self.context)
        if self.n_exact < n:
            usage.recomputed_tokens += self.context.recompute([(self.n_exact, n)])
        self.n_exact = n

    def fork(self) -> HeldContext:
        """Make another one of the same tokens, with ids of its own. ApiError as for `editing`."""
        self._acquire()
        try:
            other = HeldContext(_id("ctx"), self.context.fork(), self.document, self.n_exact)
            other._segments = [
                _Segment(_id("seg"), one.type, one.label, one.n_tokens) for one in self._segments
            ]
        finally:
            self._release()
        return other

    def restored(self) -> None:
        """It was loaded from a file, which has no segments: they are one."""
        n = len(self.context)
        self._segments = [_Segment(_id("seg"), "saved", None, n)] if n else []
        self.n_exact = 0

    def look(self) -> ContextAnswer:
        """The body that describes it, from any thread: as it was before an edit that is under
        way."""
        with self._looking:
            if self._lock.acquire(blocking=False):
                try:
                    self._note()
                finally:
                    self._release()
            return self._before

    def described(self, usage: ContextUsage | None = None) -> ContextAnswer:
        """The body that describes it to the thread that edits it."""
        found, start = [], 0
        for one in self._segments:
            found.append(
                SegmentAnswer(
                    id=one.id,
                    type=one.type,
                    label=one.label,
                    start=start,
                    stop=start + one.n_tokens,
                )
            )
            start += one.n_tokens
        n = len(self.context)
        return ContextAnswer(
            id=self.id, n_tokens=n, exact=self.n_exact >= n, exact_tokens=min(self.n_exact, n),
            segments=found, usage=usage or ContextUsage(),
        )  # fmt: skip

    # ---- below: tokens and segments stay together ----

    def _acquire(self) -> None:
        with self._looking:
            if not self._lock.acquire(blocking=False):
                raise ApiError(409, f"another request uses the context {self.id}", code="busy")
            try:
                if self._is_over:
                    raise _unknown(self.id)
                self._note()
            except BaseException:
                self._release()
                raise

    def _note(self) -> None:
        """Take in what streams have written, and keep the description."""
        self._take_in()
        self._before = self.described()

    def close(self) -> None:
        """Close the context. ApiError as for `editing`."""
        self._acquire()
        self._is_over = True
        self._release()

    def give_up(self) -> None:
        """Close the context now, or when the request that uses it is over."""
        self._is_over = True
        if self._lock.acquire(blocking=False):
            self._release()

    def _release(self) -> None:
        self._lock.release()
        if self._is_over and self._lock.acquire(blocking=False):
            self.context.close()
            self._lock.release()

    def _take_in(self) -> None:
        """Count tokens of the last stream. It may have got one more after its client had gone, and
        its prompt may have replaced the last tokens before it."""
        n_new = len(self.context) - self._start(len(self._segments))
        if not n_new and self._segments and self._segments[-1].n_tokens:
            return
        is_exact = self.n_exact >= self._start(len(self._segments)) + min(n_new, 0)
        for segment in reversed(self._segments[:-1]):
            if n_new >= 0:
                break
            n_taken = min(segment.n_tokens, -n_new)
            segment.n_tokens -= n_taken
            n_new += n_taken
        if self._segments:
            self._segments[-1].n_tokens += n_new
        self._segments = [segment for segment in self._segments if segment.n_tokens]
        if is_exact:
            self.n_exact = len(self.context)

    def _put_in(self, number: int, given: SegmentInput, usage: ContextUsage) -> None:
        at = self._start(number)
        if isinstance(given, DocumentSegment):
            chunk, n_before = self.document(given.id), len(self.context)
            n_computed = self.context.insert(at, chunk, recompute=given.recompute)
            n_new = len(self.context) - n_before
            usage.computed_tokens += n_computed
            usage.reused_tokens += n_new - n_computed
            segment = _Segment(_id("seg"), "document", given.label or given.id, n_new)
            self._segments.insert(number, segment)
            if not n_before and chunk.is_exact:  # it stands where it was computed
                self.n_exact = n_new
            else:
                self._moved(at, usage)
            return
        self._segments.insert(number, _Segment(_id("seg"), "", given.label, 0))
        if isinstance(given, TextSegment):
            self._segments[number].type = "text"
            self._insert(number, at, given.text, given.parse_special, usage)
        else:
            self._segments[number].type = "tokens"
            self._insert(number, at, given.token_ids, False, usage)

    def _insert(
        self,
        number: int,
        at: int,
        what: str | list[int],
        parse_special: bool,
        usage: ContextUsage,
    ) -> None:
        """Put text or ids before token `at`, into the segment `number`; text may replace tokens of
        the word before it."""
        n_before = len(self.context)
        is_exact = self.n_exact >= at
        n_computed = self.context.insert(at, what, parse_special=parse_special)
        n_replaced = n_before + n_computed - len(self.context)
        usage.computed_tokens += n_computed
        end = at - n_replaced + n_computed
        for before in range(number, -1, -1):
            within = self._segments[before]
            available = at - self._start(number) if before == number else within.n_tokens
            n_taken = min(available, n_replaced)
            within.n_tokens -= n_taken
            n_replaced -= n_taken
            if not n_replaced:
                break
        self._segments[number].n_tokens += n_computed
        if is_exact:
            self.n_exact = end
        if n_before > at:
            self._moved(end, usage)

    def _delete(self, number: int, start: int, stop: int, usage: ContextUsage) -> None:
        self.context.delete(start, stop)
        if start < stop and start < len(self.context):
            self._moved(start, usage)
        self.n_exact = min(self.n_exact, len(self.context))

    def _moved(self, at: int, usage: ContextUsage) -> None:
        """Tokens from `at` on stand behind other text now."""
        usage.moved_tokens = max(usage.moved_tokens, len(self.context) - at)
        self.n_exact = min(self.n_exact, at)

    def _number(self, id: str) -> int:
        for number, segment in enumerate(self._segments):
            if segment.id == id:
                return number
        raise ApiError(404, f"the context has no segment {id[:100]!r}", param="segment")

    def _start(self, number: int) -> int:
        return sum(one.n_tokens for one in self._segments[:number])


class HeldContexts:
    """All contexts that clients hold. Nobody closes them but the client, or the server's end."""

    def __init__(self, llm: LLM, document: Callable[[str], Chunk]) -> None:
        self._llm, self._document = llm, document
        self._held: dict[str, HeldContext] = {}
        self._lock = threading.Lock()

    def new(self) -> HeldContext:
        """Make an empty one."""
        return self._add(HeldContext(_id("ctx"), self._llm.context(), self._document))

    def fork(self, of: HeldContext) -> HeldContext:
        """Make one of the same tokens. ApiError as for `HeldContext.editing`."""
        return self._add(of.fork())

    def __getitem__(self, id: str) -> HeldContext:
        """One of them. ApiError with the status 404 if there is none."""
        held = self._held.get(id)
        if held is None:
            raise _unknown(id)
        return held

    def all(self) -> list[HeldContext]:
        """All, the oldest first."""
        return list(self._held.values())

    def close(self, id: str) -> None:
        """Close one, and forget it. ApiError as for `HeldContext.editing`."""
        self[id].close()
        with self._lock:
            self._held.pop(id, None)

    def give_up(self, id: str) -> None:
        """Forget one, and close it now or when the request that uses it is over."""
        with self._lock:
            held = self._held.pop(id, None)
        if held is not None:
            held.give_up()

    def close_all(self) -> None:
        """Forget all."""
        for id in list(self._held):
            self.give_up(id)

    def _add(self, held: HeldContext) -> HeldContext:
        """ApiError with the status 429 if there are too many already."""
        with self._lock:
            if len(self._held) < MAX_CONTEXTS:
                self._held[held.id] = held
                return held
        held.context.close()
        told = f"the server holds {MAX_CONTEXTS} contexts: delete one"
        raise ApiError(429, told, code="too_many_contexts")


def _unknown(id: str) -> ApiError:
    return ApiError(404, f"there is no context {id[:100]!r}", code="not_found")


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"
