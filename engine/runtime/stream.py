"""Stream: the text of one completion, piece by piece."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lariat.runtime.context import Context
from lariat.runtime.engine_thread import EngineThread
from lariat.runtime.request import Completion, Delta, Request


class Stream:
    """Iterator over the text of one completion, see `LLM.stream`."""

    def __init__(
        self, engine: EngineThread, request: Request, context: Context | None = None
    ) -> None:
        """Use `LLM.stream`."""
        self._engine, self._request = engine, request
        engine.start(request, context)

    @property
    def completion(self) -> Completion:
        """The completion so far."""
        return self._request.completion

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while (delta := self._next()) is not None:
            if delta.text:
                return delta.text
        raise StopIteration

    def deltas(self) -> Iterator[Delta]:
        """Iterate over what each step brings: text, tokens and log-probabilities.

        The texts together are those of the stream itself. What one iterator has given out, another
        does not.
        """
        while (delta := self._next()) is not None:
            yield delta

    def _next(self) -> Delta | None:
        """Wait for the next delta; None at the end."""
        while True:
            with contextlib.suppress(IndexError):  # another thread may take the last one
                return self._request.deltas.popleft()
            if not self._engine.advance(self._request):
                return None

    def close(self) -> None:
        """Stop generating and free the blocks of the cache. Closing twice does nothing."""
        self._engine.cancel(self._request)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_request"):
            self.close()
