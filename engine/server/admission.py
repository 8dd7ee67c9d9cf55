"""Who may run: at most so many streams at a time, and a queue of a bounded length before them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator

from lariat.protocol.errors import ApiError

_MAX_RETRY = 60  # seconds


class Admission:
    """Slots for streams of text. One event loop uses it.

    n_parallel          streams that run at a time
    max_queue           streams that may wait
    max_queued_tokens   tokens of their prompts
    """

    def __init__(self, n_parallel: int, max_queue: int, max_queued_tokens: int) -> None:
        self.n_parallel = n_parallel
        self._max_queue, self._max_queued_tokens = max_queue, max_queued_tokens
        self.n_running = 0
        self.n_queued_tokens = 0
        self.is_stopping = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._seconds = 1.0  # that a stream takes, about

    @property
    def n_waiting(self) -> int:
        """Streams that wait for a slot."""
        return len(self._waiting)

    def check(self, n_streams: int, n_tokens: int) -> None:
        """ApiError with the status 429 if the queue has no room for a request. If it is empty, any
        request may come: one that is split into many streams waits for itself."""
        self._check_running()
        is_full = self.n_running >= self.n_parallel
        too_many = self.n_waiting + n_streams > self._max_queue
        too_long = self.n_queued_tokens + n_tokens > self._max_queued_tokens
        if (is_full and self._max_queue == 0) or (self.n_waiting and (too_many or too_long)):
            seconds = self._seconds * (1 + self.n_waiting / self.n_parallel)
            raise ApiError(
                429,
                f"{self.n_running} requests run and {self.n_waiting} wait: try again later",
                code="rate_limit_exceeded",
                retry_after=max(1, min(_MAX_RETRY, round(seconds))),
            )

    @contextlib.asynccontextmanager
    async def slot(self, n_tokens: int) -> AsyncIterator[None]:
        """Wait for a slot, first come, first served; `n_tokens` are those of the prompt. Cancelling
        the task leaves the queue. ApiError if the server stops first."""
        self._check_running()
        if self.n_running >= self.n_parallel or self._waiting:
            await self._wait(n_tokens)
        else:
            self.n_running += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds += 0.1 * (time.monotonic() - start - self._seconds)
            self.n_running -= 1
            self._admit()

    def stop(self) -> None:
        """Let nobody in any more. Those that run go on; those that wait get an error."""
        self.is_stopping = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(_stopping())

    async def _wait(self, n_tokens: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.n_queued_tokens += n_tokens
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.n_running -= 1  # the slot came together with the end of the wait
                self._admit()
            raise
        finally:
            self.n_queued_tokens -= n_tokens
            if turn in self._waiting:
                self._waiting.remove(turn)

    def _admit(self) -> None:
        while self._waiting and self.n_running < self.n_parallel:
            turn = self._waiting.popleft()
            if not turn.done():
                self.n_running += 1
                turn.set_result(None)

    def _check_running(self) -> None:
        if self.is_stopping:
            raise _stopping()


def _stopping() -> ApiError:
    return ApiError(503, "the server is stopping", code="stopping", retry_after=10)
