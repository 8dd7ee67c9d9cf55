"""The ASGI application: routes behind layers that are pure ASGI themselves.

Layers that wrap the answer (Starlette's BaseHTTPMiddleware) would hide that a client is gone.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from lariat.protocol import errors
from lariat.protocol.errors import ApiError
from lariat.server import log, openapi
from lariat.server.endpoint import Endpoint, EndpointApp, Raw, send_error
from lariat.server.routes import ENDPOINTS
from lariat.server.security import Guard
from lariat.server.service import Service
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NO_ROUTE = "none"


def build_app(service: Service, more: Sequence[BaseRoute] = ()) -> ASGIApp:
    """The application of a service. `more` are routes behind the endpoints, such as files."""
    document = openapi.document(ENDPOINTS)

    async def openapi_json(_: object) -> Raw:
        return Raw(document, "application/json")

    own = Endpoint("GET", "/openapi.json", openapi_json, "This document.")
    endpoints = (*ENDPOINTS, own)
    by_path: dict[str, list[Endpoint]] = defaultdict(list)
    for endpoint in endpoints:
        by_path[endpoint.path].append(endpoint)
    routes: list[BaseRoute] = [
        Route(path, EndpointApp(service, some)) for path, some in by_path.items()
    ]
    router = Router([*routes, *more], redirect_slashes=False, default=_not_found)
    open_paths = {(e.method, e.path) for e in endpoints if e.is_open}

    def is_open(method: str, path: str) -> bool:
        return ("GET" if method == "HEAD" else method, path) in open_paths

    bodies_of = {e.path: e.error for e in endpoints}
    app: ASGIApp = Guard(router, service.options, is_open, lambda p: bodies_of.get(p, errors.body))
    if service.options.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=service.options.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    return Counted(app, service)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send_error(send, ApiError(404, "there is no such route", code="not_found"))


class Counted:
    """Counts requests by route and status, and logs them if that is asked for."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. An exception of ours becomes status 500 if nothing was sent."""
        if scope["type"] != "http":
            return
        status = 0
        start = time.monotonic()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception as error:
            log.failure(scope.get("lariat.route", _NO_ROUTE), error)
            if status:
                raise
            await send_error(counted, errors.of(error))
        finally:
            route = scope.get("lariat.route", _NO_ROUTE)
            said = "499" if scope.get("lariat.gone") else str(status)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._service.metrics.requests.labels(route, method, said).inc()
            if self._service.options.log_requests:
                log.note(f"lariat: {method} {route} {said} {time.monotonic() - start:.3f} s")


_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))
