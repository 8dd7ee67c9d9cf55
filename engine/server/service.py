"""The service: a model with its engine, and what all requests share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from lariat.async_llm import AsyncLLM
from lariat.protocol.errors import ApiError
from lariat.reuse.kept_contexts import KeptContexts
from lariat.reuse.library import ChunkLibrary
from lariat.server.admission import Admission
from lariat.server.held_contexts import HeldContexts
from lariat.server.metrics import Metrics

if TYPE_CHECKING:
    from lariat.cache.blocks import BlockPool
    from lariat.protocol.served import Served
    from lariat.reuse.library import Chunk
    from lariat.runtime.timings import Timings
    from lariat.server.options import ServerOptions

_N_THREADS = 4  # for templates and tokenizers; the engine has its own
_Result = TypeVar("_Result")


class PromptSpeed:
    """Tokens of prompts a second, a mean that favours the last prompts."""

    _LEAST = 32  # tokens of a prompt that tells something
    _NEW = 0.3  # share of the last one

    def __init__(self) -> None:
        self.tokens_per_s = 0.0

    def take(self, timings: Timings) -> None:
        """Take in a prompt that was read."""
        if timings.n_prompt < self._LEAST or not timings.prompt_s:
            return
        share = self._NEW if self.tokens_per_s else 1.0
        self.tokens_per_s += share * (timings.prompt_per_s - self.tokens_per_s)


class Service:
    """The engine and all that requests share. It exists before the model is loaded.

    options    limits and rights
    admission  which streams run, and which wait
    metrics    counts for /metrics
    kept       contexts of earlier conversations, once the model is loaded
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.admission = Admission(options.n_parallel, options.max_queue, options.max_queued_tokens)
        self.metrics = Metrics(self.admission, self._pool)
        self.prompt_speed = PromptSpeed()
        self._served: Served | None = None
        self._engine: AsyncLLM | None = None
        self.library = ChunkLibrary(options.library) if options.library is not None else None
        self.kept: KeptContexts | None = None  # of conversations, once the model is loaded
        self._contexts: HeldContexts | None = None
        self._threads = ThreadPoolExecutor(_N_THREADS, "lariat-request")

    def loaded(self, served: Served) -> None:
        """From now on requests are answered. Call it in the event loop."""
        self._engine = AsyncLLM(served.llm)
        self.kept = KeptContexts(served.llm)
        self._contexts = HeldContexts(served.llm, self.open_document)
        self._served = served

    @property
    def is_loaded(self) -> bool:
        """Whether there is a model."""
        return self._served is not None

    @property
    def served(self) -> Served:
        """The model. ApiError with the status 503 while it is loaded."""
        if self._served is None:
            raise _loading()
        return self._served

    @property
    def engine(self) -> AsyncLLM:
        """The model's streams. Errors as for `served`."""
        if self._engine is None:
            raise _loading()
        return self._engine

    @property
    def contexts(self) -> HeldContexts:
        """Contexts of clients. Errors as for `served`."""
        if self._contexts is None:
            raise _loading()
        return self._contexts

    def open_document(self, id: str) -> Chunk:
        """A document of the library. ApiError with the status 404 if there is none."""
        if self.library is None:
            raise ApiError(404, "the server has no library: start it with --library DIR")
        if all(entry.name != id for entry in self.library.entries()):
            raise ApiError(404, f"there is no document {id[:100]!r}", code="document_not_found")
        return self.library[id]

    async def make_room(self, n_tokens: int) -> None:
        """Give up contexts of earlier conversations if so many tokens have no room otherwise."""
        if self.kept:
            await self.in_thread(self.kept.make_room, n_tokens)

    def _pool(self) -> BlockPool | None:
        return self._served.llm.runner.cache.pool if self._served is not None else None

    async def in_thread(self, function: Callable[..., _Result], *args: object) -> _Result:
        """Call a function that takes a while, such as a template."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *args))

    def stop(self) -> None:
        """Take no more requests; those that run go on."""
        self.admission.stop()

    def close(self) -> None:
        """Give threads and contexts back. The model is closed by who has loaded it."""
        if self.kept is not None and self._contexts is not None:
            self.kept.clear()
            self._contexts.close_all()
        if self._engine is not None:
            self._engine.release()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def stalled_for(self) -> float:
        """Seconds since the engine has ended a step, if it has something to do; else 0."""
        if self._engine is None:
            return 0.0
        health = self._engine.health()
        if health.step_s is not None:
            return health.step_s
        has_work = health.n_running or health.n_waiting
        return health.idle_s or 0.0 if has_work else 0.0


def _loading() -> ApiError:
    return ApiError(503, "the model is being loaded", code="loading", retry_after=5)
