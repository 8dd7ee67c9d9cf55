"""Endpoints: what a route is, and how a request becomes an answer.

A route is an `Endpoint` in its file, which `routes` lists. This module does the rest for each:
reads and checks the body, runs the handler until it is done or the client is gone, and sends the
answer or the error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from lariat.protocol import bodies, errors
from lariat.protocol.errors import ApiError
from lariat.server import log, sse
from lariat.server.body import read_body
from lariat.server.tasks import cancelled
from starlette.datastructures import Headers, QueryParams

if TYPE_CHECKING:
    from lariat.protocol.served import Served
    from lariat.server.service import Service
    from starlette.types import Message, Receive, Scope, Send


class GoneError(Exception):
    """The client is gone, or takes nothing more."""


@dataclass
class Call:
    """A request to an endpoint.

    body     the decoded body, of the type that the endpoint asks for; None without one
    path     parameters in the path
    """

    service: Service
    body: Any
    path: Mapping[str, str]
    query: QueryParams
    headers: Headers

    @property
    def served(self) -> Served:
        """The model. ApiError with the status 503 while it is loaded."""
        return self.service.served


@dataclass(frozen=True)
class Raw:
    """An answer that is no JSON, or has another status than 200."""

    content: bytes
    media_type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Events:
    """An answer that is a stream of events: their bytes, see `sse`."""

    frames: AsyncIterator[bytes]
    ping: bytes = sse.COMMENT  # is sent while nothing else comes
    failure: Callable[[ApiError], bytes] = sse.failure  # the last event after an error


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True)
class Endpoint:
    """A route.

    handler   gets the call and returns a body (any type of msgspec), `Raw` or `Events`
    request   type of the body; None: it takes none
    answer    type of the body of the answer; None: no JSON, `media_type` then
    event     type of the events, if it can stream
    is_open   whether it needs no key
    is_listed whether the OpenAPI document has it
    error     body of an error
    error_type  its type
    """

    method: str
    path: str
    handler: Handler
    summary: str
    request: Any = None
    answer: Any = None
    event: Any = None
    media_type: str = "application/json"
    is_open: bool = False
    is_listed: bool = True
    error: Callable[[ApiError], Any] = errors.body
    error_type: Any = errors.ErrorBody


class EndpointApp:
    """An ASGI application for all endpoints of one path."""

    def __init__(self, service: Service, endpoints: list[Endpoint]) -> None:
        self._service = service
        self._endpoints = {endpoint.method: endpoint for endpoint in endpoints}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        scope["lariat.route"] = next(iter(self._endpoints.values())).path
        endpoint = self._endpoints.get(method)
        if endpoint is None:
            error = ApiError(405, f"{method} is not a method of {scope['lariat.route']}")
            headers = {"allow": ", ".join(sorted(self._endpoints))}
            await send_error(send, error, errors.body, headers)
            return
        exchange = _Exchange(self._service, endpoint, scope, receive, send)
        try:
            await exchange.run()
        except GoneError:
            scope["lariat.gone"] = True


class _Exchange:
    """One request and its answer."""

    def __init__(
        self, service: Service, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._service, self._endpoint = service, endpoint
        self._scope, self._receive, self._raw_send = scope, receive, send
        self._options = service.options
        self._has_begun = False
        self._ends = time.monotonic() + self._options.request_seconds

    async def run(self) -> None:
        """Answer, or raise `GoneError`."""
        try:
            await self._answer(await self._call())
        except Exception as error:
            if isinstance(error, GoneError) or self._has_begun:
                raise GoneError from None
            told = errors.of(error)
            if told.status == 500:
                log.failure(self._endpoint.path, error)
            await send_error(self._send, told, self._endpoint.error)

    def _left(self) -> float:
        """Seconds that are left for the answer."""
        return max(0.0, self._ends - time.monotonic())

    def _too_late(self) -> ApiError:
        seconds = self._options.request_seconds
        return ApiError(503, f"the answer was not ready within {seconds:g} seconds", code="timeout")

    async def _call(self) -> Call:
        headers = Headers(scope=self._scope)
        body = None
        if self._endpoint.request is not None:
            data = await read_body(headers, self._receive, self._options)
            body = bodies.decode(data, self._endpoint.request)
        query = QueryParams(self._scope["query_string"])
        path = self._scope.get("path_params", {})
        return Call(self._service, body, path, query, headers)

    async def _answer(self, call: Call) -> None:
        """Run the handler, unless the client goes first."""
        watcher = asyncio.ensure_future(self._disconnected())
        task: asyncio.Future[Any] = asyncio.ensure_future(self._endpoint.handler(call))
        try:
            await asyncio.wait(
                (watcher, task), timeout=self._left(), return_when=asyncio.FIRST_COMPLETED
            )
            if not task.done():
                raise GoneError if watcher.done() else self._too_late()
            answer = task.result()
            if isinstance(answer, Events):
                await self._stream(answer, watcher)
            elif isinstance(answer, Raw):
                await self._whole(answer)
            else:
                await self._whole(Raw(bodies.encode(answer), "application/json"))
        finally:
            await cancelled(task)
            await cancelled(watcher)

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _whole(self, answer: Raw) -> None:
        headers = {"content-type": answer.media_type, **answer.headers}
        await send_whole(self._send, answer.status, headers, answer.content)

    async def _stream(self, answer: Events, watcher: asyncio.Future[None]) -> None:
        """Send events as they come, and a comment where none comes."""
        frames = answer.frames
        following: asyncio.Future[bytes] = asyncio.ensure_future(_next(frames))
        try:
            await self._begin_stream()
            while True:
                await asyncio.wait(
                    (following, watcher),
                    timeout=min(self._options.ping_seconds, self._left()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if watcher.done():
                    raise GoneError
                if not self._left():
                    raise self._too_late()
                if not following.done():
                    await self._send_part(answer.ping)
                    continue
                frame = following.result()
                if not frame:
                    break
                await self._send_part(frame)
                following = asyncio.ensure_future(_next(frames))
        except (GoneError, asyncio.CancelledError):
            raise
        except Exception as error:
            told = errors.while_running(error)
            if told.status == 500:
                log.failure(self._endpoint.path, error)
            await self._send_part(answer.failure(told))
        finally:
            await cancelled(following)
            aclose = getattr(frames, "aclose", None)
            if aclose is not None:
                await aclose()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin_stream(self) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        await self._send(start)

    async def _send_part(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _send(self, message: Message) -> None:
        self._has_begun = True
        try:
            with anyio.fail_after(self._options.send_seconds):
                await self._raw_send(message)
        except (TimeoutError, OSError):
            raise GoneError from None


async def _next(frames: AsyncIterator[bytes]) -> bytes:
    """The next frame, b"" at the end."""
    async for frame in frames:
        return frame
    return b""


async def send_whole(send: Send, status: int, headers: Mapping[str, str], content: bytes) -> None:
    """Send an answer at once."""
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    pairs.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})


async def send_error(
    send: Send,
    error: ApiError,
    body: Callable[[ApiError], Any] = errors.body,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send an error."""
    pairs = {"content-type": "application/json", **(headers or {})}
    if error.retry_after is not None:
        pairs["retry-after"] = str(error.retry_after)
    await send_whole(send, error.status, pairs, bodies.encode(body(error)))
