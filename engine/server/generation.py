"""The streams of one request, merged into one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lariat.protocol import errors
from lariat.protocol.errors import ApiError
from lariat.runtime.request import Completion, Delta
from lariat.server import log
from lariat.server.tasks import cancelled

if TYPE_CHECKING:
    from lariat.config import SamplingParams
    from lariat.runtime.context import Context
    from lariat.server.service import Service


_N_EXPECTED = 512  # tokens of an answer without a limit
_N_STEPS = 16  # that wait for whoever iterates; behind them streams wait, and then the engine does

Begin = Callable[[], tuple["Context", str | list[int]]]
"""Gives a context, and the text or tokens to compute behind it."""


class Step(NamedTuple):
    """News of one of the streams.

    number      of the stream
    delta       what was written; None at the end
    completion  all of it so far
    """

    number: int
    delta: Delta | None
    completion: Completion


class Generation:
    """Texts behind prompts, each a stream that waits for a slot of its own.

    Iterate over it for steps, within `async with`, which cancels what is not finished. Who iterates
    slowly, because a client does not read, holds the streams up: only few steps are kept.
    `completions` has what is known of each stream.
    """

    def __init__(
        self,
        service: Service,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        begin: Begin | None = None,
        end: Callable[[], None] | None = None,
    ) -> None:
        """`begin` is called for each stream once it may run: it puts a context together. `end` is
        called when a stream that has begun is over, finished or not.

        ApiError with the status 429 if too many wait.
        """
        service.admission.check(len(prompts), sum(map(len, prompts)))
        self._service, self._begin, self._end = service, begin, end
        self._work = list(zip(prompts, params, strict=True))
        self._steps: asyncio.Queue[Step | ApiError] = asyncio.Queue(_N_STEPS)
        self._tasks: list[asyncio.Future[None]] = []
        self.completions = [Completion(ids) for ids in prompts]

    async def __aenter__(self) -> Generation:
        self._tasks = [
            asyncio.ensure_future(self._run(i, ids, params))
            for i, (ids, params) in enumerate(self._work)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            await cancelled(task)

    async def __aiter__(self) -> AsyncIterator[Step]:
        n_open = len(self._work)
        while n_open:
            step = await self._steps.get()
            if isinstance(step, ApiError):
                raise step
            n_open -= step.delta is None
            yield step

    async def _prompt(self, ids: list[int]) -> tuple[Context | None, str | list[int]]:
        """The context to continue, if there is one, and what is to be computed."""
        if self._begin is None:
            return None, ids
        beginning = asyncio.ensure_future(self._service.in_thread(self._begin))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(self._end_begun)
            raise

    def _end_begun(self, beginning: asyncio.Future[tuple[Context, str | list[int]]]) -> None:
        """The thread went on after the client had gone: what it has begun must be ended."""
        if not beginning.cancelled() and beginning.exception() is None and self._end is not None:
            self._end()

    async def _run(self, index: int, ids: list[int], params: SamplingParams) -> None:
        watch = self._service.metrics.stream(len(ids))
        try:
            async with self._service.admission.slot(len(ids)):
                watch.begin()
                n_written = params.max_tokens if params.max_tokens >= 0 else _N_EXPECTED
                await self._service.make_room(len(ids) + n_written)
                context, prompt = await self._prompt(ids)
                try:
                    stream = self._service.engine.stream(prompt, params, context=context)
                    try:
                        async for delta in stream.deltas():
                            self.completions[index] = stream.completion
                            watch.tokens(len(delta.token_ids))
                            await self._steps.put(Step(index, delta, stream.completion))
                    finally:
                        await stream.aclose()
                        self.completions[index] = stream.completion
                        watch.end(stream.completion)
                        self._service.prompt_speed.take(stream.completion.timings)
                finally:
                    if self._end is not None:
                        self._end()
            await self._steps.put(Step(index, None, stream.completion))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            told = errors.while_running(error)
            if told.status == 500:
                log.failure("the engine", error)
            await self._steps.put(told)
