"""Computes rows, many at a time: a row begins as soon as there is room, whichever ended.

Rows are read a window at a time and sorted within it, so that those that begin alike run together
and share what they have in common.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lariat.errors import ContextError
from lariat.jobs.answers import Answers, Work, Written, n_expected
from lariat.jobs.rows import Row
from lariat.protocol import errors

if TYPE_CHECKING:
    from lariat.runtime.request import Request

_WINDOW = 512  # rows that are read ahead, unless more run
_WINDOW_BYTES = 32 << 20  # of their bodies, roughly
_UNLIMITED = 256  # tokens that are expected of a text without a limit


@dataclass
class Progress:
    """The progress so far.

    n_rows    rows, of which `n_failed` failed
    n_prompt  tokens that were read, also those that were in the cache
    n_tokens  tokens that were written
    """

    n_rows: int = 0
    n_failed: int = 0
    n_prompt: int = 0
    n_tokens: int = 0
    since: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.since


@dataclass
class _Running:
    work: Work
    n_reserved: int
    requests: list[Request]
    written: list[Written]

    def take(self) -> bool:
        """Take what came. Whether all is over."""
        is_over = True
        for request, one in zip(self.requests, self.written, strict=True):
            if request.deltas:
                one.deltas.extend(request.deltas)
                request.deltas.clear()
            is_over = is_over and request.closed
        return is_over


class Batch:
    """Rows in, lines out. `progress` has what was done, at any time.

    n_parallel  texts that are computed at a time

    Use it in one thread, and use its model for nothing else meanwhile.
    """

    def __init__(self, answers: Answers, n_parallel: int = 32) -> None:
        self._answers, self._n_parallel = answers, n_parallel
        self._llm = answers.served.llm
        self._waiting: deque[Work] = deque()
        self._running: list[_Running] = []
        self._done: deque[tuple[Row, bytes]] = deque()
        self.progress = Progress()

    def lines(self, given: Iterable[Row]) -> Iterator[tuple[Row, bytes]]:
        """Each row and its line of the output, as they are done."""
        coming = iter(given)
        try:
            while True:
                self._fill(coming)
                while self._done:
                    yield self._done.popleft()
                if not self._running:
                    if not self._waiting:
                        return
                    continue
                self._step()
        finally:
            for running in self._running:
                for request in running.requests:
                    self._llm.engine.cancel(request)
            self._running.clear()

    # ---- rows that begin ----

    def _fill(self, coming: Iterator[Row]) -> None:
        while sum(len(one.requests) for one in self._running) < self._n_parallel:
            while not self._waiting:
                if not self._read(coming):
                    return
            if not self._begin(self._waiting[0]):
                return
            self._waiting.popleft()

    def _read(self, coming: Iterator[Row]) -> bool:
        """Read a window of rows; False at their end."""
        window: list[Row] = []
        n_bytes = 0
        for row in coming:
            window.append(row)
            n_bytes += _size(row.body)
            if len(window) >= max(_WINDOW, 4 * self._n_parallel) or n_bytes > _WINDOW_BYTES:
                break
        found: list[Work] = []
        for work in self._answers.works(window):
            if isinstance(work, Work):
                found.append(work)
            else:
                row, error = work
                self._end(row, self._answers.refusal(row, error), is_failed=True)
        found.sort(key=lambda work: work.prompts)
        self._waiting.extend(found)
        return bool(window)

    def _begin(self, work: Work) -> bool:
        """Begin a row; False if it has to wait for others, which hold the cache."""
        n = n_expected(work, self._llm.n_ctx, _UNLIMITED)
        n_free = self._llm.n_ctx - sum(one.n_reserved for one in self._running)
        if n > n_free and self._running:
            return False
        if not work.params:
            return self._embed(work)
        requests: list[Request] = []
        try:
            for ids, params in zip(work.prompts, work.params, strict=True):
                request = self._llm.request(ids, params)
                self._llm.engine.start(request)
                requests.append(request)
        except Exception as error:
            for request in requests:
                self._llm.engine.cancel(request)
            told = errors.of(error)
            if told.status == 500:
                raise
            self._end(work.row, self._answers.refusal(work.row, told), is_failed=True)
            return True
        written = [Written(request.completion) for request in requests]
        self._running.append(_Running(work, n, requests, written))
        return True

    def _embed(self, work: Work) -> bool:
        try:
            line = self._answers.vectors(work)
        except ContextError as error:
            if self._running:
                return False
            self._fail(work, error)
        except Exception as error:
            self._fail(work, error)
        else:
            self.progress.n_prompt += sum(map(len, work.prompts))
            self._end(work.row, line)
        return True

    # ---- rows that run ----

    def _step(self) -> None:
        """Let the engine go on until some row has news."""
        open_requests = [r for one in self._running for r in one.requests if not r.closed]
        if open_requests:
            # One that decodes has news after each step; a long prompt would hide others' ends.
            reading = (r for r in open_requests if r.completion.token_ids)
            try:
                self._llm.engine.advance(next(reading, open_requests[0]))
            except Exception as error:
                struck = [r for r in open_requests if r.closed]
                if not struck:
                    raise
                for request in struck:
                    if request.error is None and request.completion.finish_reason is None:
                        request.error = error
        still = []
        for running in self._running:
            if running.take():
                self._finish(running)
            else:
                still.append(running)
        self._running = still

    def _finish(self, running: _Running) -> None:
        work = running.work
        wrong = [r.error for r in running.requests if r.error is not None]
        if wrong:
            self._fail(work, wrong[0])
            return
        line = self._answers.line(work, running.written)
        self.progress.n_prompt += sum(map(len, work.prompts))
        self.progress.n_tokens += sum(len(one.completion.token_ids) for one in running.written)
        self._end(work.row, line)

    def _fail(self, work: Work, error: BaseException) -> None:
        if not isinstance(error, Exception):
            raise error
        told = errors.while_running(error)
        self._end(work.row, self._answers.refusal(work.row, told), is_failed=True)

    def _end(self, row: Row, line: bytes, is_failed: bool = False) -> None:
        self.progress.n_rows += 1
        self.progress.n_failed += is_failed
        self._done.append((row, line))


def _size(body: dict[str, object]) -> int:
    return 200 + sum(len(one) if isinstance(one, str) else 64 for one in body.values())
