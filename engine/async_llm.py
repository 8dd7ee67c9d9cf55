"""AsyncLLM: the same streams and completions for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from lariat.config import SamplingParams
from lariat.errors import LariatError
from lariat.llm import LLM, is_list_of_prompts
from lariat.runtime import rope_choice, threads
from lariat.runtime.context import Context
from lariat.runtime.request import Completion, Delta, Request
from lariat.runtime.runner import Health

_N_TOKENIZERS = 4  # threads that make requests of prompts


class AsyncLLM:
    """Streams of an `LLM` for tasks of asyncio, which the event loop never waits for.

    llm  stays usable beside it, from other threads

    The engine goes on while nobody reads, and stops only when a stream has hundreds of unread
    pieces. Close it, or use it in an `async with` statement; that closes the `llm` too.
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self._mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = (
            weakref.WeakKeyDictionary()
        )
        self._workers = ThreadPoolExecutor(_N_TOKENIZERS, thread_name_prefix="lariat-prompt")

    def stream(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        *,
        context: Context | None = None,
        parse_special: bool = False,
        rope_read: rope_choice.Asked = None,
        prompt_progress: Callable[[int, int], None] | None = None,
    ) -> AsyncStream:
        """Generate text piece by piece; parameters as for `LLM.stream`.

        The prompt is tokenized in a thread, from now on. What is wrong with it is raised by
        `async with`, or for the first piece. `prompt_progress` is called in the engine's thread.
        Call it where an event loop runs. RuntimeError elsewhere, and in a forked process.
        """
        threads.check_not_forked()
        self.llm.runner.check_open()
        loop = asyncio.get_running_loop()
        mailbox = self._mailboxes.setdefault(loop, _Mailbox(loop))
        make = partial(
            self.llm.request,
            prompt,
            params,
            context=context,
            prompt_progress=prompt_progress,
            parse_special=parse_special,
            rope_read=rope_read,
        )
        begin = _Begin(self.llm, mailbox, make, context)
        return AsyncStream(begin, loop.run_in_executor(self._workers, begin))

    async def generate(
        self,
        prompt: str | list[int] | list[str] | list[list[int]],
        params: SamplingParams | None = None,
        *,
        context: Context | None = None,
        parse_special: bool = False,
        rope_read: rope_choice.Asked = None,
        prompt_progress: Callable[[int, int], None] | None = None,
    ) -> Completion | list[Completion]:
        """Complete a prompt (text or token ids), or a list of prompts in one batch; see
        `LLM.generate`. `prompt_progress` is for a single completion, too."""
        params = self.llm.checked_params(params)
        self.llm.check_rope_read(rope_read)
        is_one = not is_list_of_prompts(prompt) or (context is not None and len(prompt) == 0)
        given = [one for one in (context, prompt_progress) if one is not None]
        if given and (params.n > 1 or not is_one):
            raise ValueError("a context goes on with one completion, not with several")
        prompts: list[Any] = [prompt] if is_one else list(prompt)
        streams = [
            self.stream(
                one,
                own,
                context=context,
                parse_special=parse_special,
                rope_read=rope_read,
                prompt_progress=prompt_progress,
            )
            for one in prompts
            for own in params.each(self.llm.settings.seed)
        ]
        try:
            completions = [await _read(stream, is_one) for stream in streams]
        finally:
            for stream in streams:
                await stream.aclose()
        for i, completion in enumerate(completions):
            completion.prompt_logprobs = completions[i - i % params.n].prompt_logprobs
        return completions[0] if is_one and params.n == 1 else completions

    def health(self) -> Health:
        """How the engine is, at once, whatever runs."""
        return self.llm.health()

    async def close(self) -> None:
        """End all streams and close the `llm`. Closing twice does nothing."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.llm.close)
        self.release()

    def release(self) -> None:
        """End the threads of this object, and leave the `llm` as it is. There can be no more
        streams; prompts that no thread has taken yet are cancelled. Twice does no harm."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncStream(AsyncIterator[str]):
    """Asynchronous iterator over the text of one completion, see `AsyncLLM.stream`.

    A task that is cancelled while it waits for a piece gives the request up, and so does whoever
    drops the stream. To wait for a limited time, use `asyncio.wait` with a task for the piece.
    """

    def __init__(self, begin: _Begin, begun: asyncio.Future[Request]) -> None:
        """Use `AsyncLLM.stream`."""
        self._begin, self._begun = begin, begun
        begun.add_done_callback(_take_error)

    @property
    def completion(self) -> Completion:
        """The completion so far; an empty one until the prompt is tokenized."""
        request = self._begin.request
        return Completion([]) if request is None else request.completion

    @property
    def has_begun(self) -> bool:
        """Whether the prompt is tokenized, and nothing was wrong with it."""
        return self._begin.request is not None

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> str:
        while (delta := await self._next()) is not None:
            if delta.text:
                return delta.text
        raise StopAsyncIteration

    async def deltas(self) -> AsyncIterator[Delta]:
        """Iterate over what each step brings: text, tokens and log-probabilities; see
        `Stream.deltas`."""
        while (delta := await self._next()) is not None:
            yield delta

    async def _next(self) -> Delta | None:
        """Wait for the next delta; None at the end."""
        try:
            request = await asyncio.shield(self._begun)
            while True:
                news = self._begin.news()
                self._begin.engine.look(request)
                if request.deltas:
                    delta = request.deltas.popleft()
                    self._begin.engine.taken(request)
                    return delta
                if request.closed:
                    break
                await news.wait()
        except asyncio.CancelledError:
            self._begin.give_up()
            raise
        if request.error is not None and not self._begin.is_given_up:
            raise request.error
        return None

    async def aclose(self) -> None:
        """Stop generating; the blocks of the cache are free after the pass that runs. Closing twice
        does nothing."""
        self._begin.give_up()

    async def __aenter__(self) -> AsyncStream:
        try:
            await asyncio.shield(self._begun)
        except asyncio.CancelledError:
            self._begin.give_up()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_begin"):
            self._begin.give_up()


class _Begin:
    """Makes a request of a prompt and has the engine compute it; a worker thread calls it.

    The stream may be given up at any time meanwhile, so it does not refer to the stream.
    """

    def __init__(
        self,
        llm: LLM,
        mailbox: _Mailbox,
        make: Callable[[], Request],
        context: Context | None,
    ) -> None:
        self.engine = llm.engine
        self.request: Request | None = None
        self.is_given_up = False
        self._llm, self._mailbox, self._make, self._context = llm, mailbox, make, context

    def __call__(self) -> Request:
        request = self._make()
        if not self.is_given_up:
            self.engine.start(request, self._context)
            self.engine.watch(request, self._mailbox)
        self.request = request
        if self.is_given_up:  # while the request was made
            self.engine.give_up(request)
        return request

    def news(self) -> asyncio.Event:
        """An event that is set when the request has news."""
        assert self.request is not None
        return self._mailbox.news(self.request)

    def give_up(self) -> None:
        """Give the request up, now or once it is made."""
        self.is_given_up = True
        if self.request is not None:
            self.engine.give_up(self.request)
            self._mailbox.announce(self.request)


class _Mailbox:
    """Takes news from the engine thread to an event loop: all of a step in one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._news: weakref.WeakKeyDictionary[Request, asyncio.Event] = weakref.WeakKeyDictionary()

    def news(self, request: Request) -> asyncio.Event:
        """An event that is not set, and will be when the request has news."""
        event = self._news.get(request)
        if event is None:
            event = self._news[request] = asyncio.Event()
        event.clear()
        return event

    def deliver(self, requests: list[Request]) -> None:
        """See `lariat.runtime.engine_thread.Mailbox`."""
        loop = self._loop()
        if loop is None:
            raise RuntimeError("the event loop is gone")
        loop.call_soon_threadsafe(self._set, requests)

    def announce(self, request: Request) -> None:
        """Have those that wait for the request look again, from any thread."""
        loop = self._loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self._set, [request])

    def _set(self, requests: list[Request]) -> None:
        for request in requests:
            event = self._news.get(request)
            if event is not None:
                event.set()


async def _read(stream: AsyncStream, is_one: bool) -> Completion:
    """Read to the end. An error of its own is raised, or stands in the completion if there are
    several prompts."""
    try:
        async for _ in stream:
            pass
    except (LariatError, ValueError) as error:
        if is_one:
            raise
        if not stream.has_begun:
            return Completion([], finish_reason="error", error=error)
        if stream.completion.error is not error:
            raise
    except Exception as error:
        if is_one or stream.completion.error is not error:
            raise
    return stream.completion


def _take_error(begun: asyncio.Future[Request]) -> None:
    """An error that nobody asks for, because the stream was dropped, is not reported."""
    if not begun.cancelled():
        begun.exception()
