"""The service: a model with its engine, and what all requests share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from lariat.async_llm import AsyncLLM
from lariat.protocol.errors import ApiError
from lariat.server.admission import Admission
from lariat.server.metrics import Metrics

if TYPE_CHECKING:
    from lariat.cache.blocks import BlockPool
    from lariat.protocol.served import Served
    from lariat.server.options import ServerOptions

_N_THREADS = 4  # for templates and tokenizers; the engine has its own
_Result = TypeVar("_Result")


class Service:
    """What answers requests. It exists before the model is loaded.

    options    limits and rights
    admission  which streams run, and which wait
    metrics    counts for /metrics
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.admission = Admission(options.n_parallel, options.max_queue, options.max_queued_tokens)
        self.metrics = Metrics(self.admission, self._pool)
        self._served: Served | None = None
        self._engine: AsyncLLM | None = None
        self._threads = ThreadPoolExecutor(_N_THREADS, "lariat-request")

    def loaded(self, served: Served) -> None:
        """From now on requests are answered. Call it in the event loop."""
        self._engine = AsyncLLM(served.llm)
        self._served = served

    @property
    def is_loaded(self) -> bool:
        """Whether there is a model."""
        return self._served is not None

    @property
    def served(self) -> Served:
        """The model. ApiError with the status 503 while it is loaded."""
        if self._served is None:
            raise ApiError(503, "the model is being loaded", code="loading", retry_after=5)
        return self._served

    @property
    def engine(self) -> AsyncLLM:
        """The model's streams. Errors as for `served`."""
        if self._engine is None:
            raise ApiError(503, "the model is being loaded", code="loading", retry_after=5)
        return self._engine

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
        """Give threads back. The model is closed by who has loaded it."""
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
