"""Who may ask: pure ASGI layers in front of all routes.

A web page of any origin can make a browser send requests to this machine. It gets nowhere: the
header Host must name this server (a name that an attacker points here does not), Origin must be its
own or be listed, and a body must be JSON, which a browser sends to another origin only with leave.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from lariat.protocol.errors import ApiError
from lariat.server.endpoint import send_error
from lariat.server.options import ServerOptions
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send


class Guard:
    """Refuses requests of other hosts and origins, and those without a key.

    is_open   tells for a method and a path whether they need no key
    error     the body of errors for a path
    """

    def __init__(
        self,
        app: ASGIApp,
        options: ServerOptions,
        is_open: Callable[[str, str], bool],
        error: Callable[[str], Callable[[ApiError], object]],
    ) -> None:
        self._app = app
        self._is_open, self._error = is_open, error
        self._keys = [_digest(key.encode()) for key in options.api_keys]
        own = {"localhost", options.host.lower(), socket.gethostname().lower()}
        self._hosts = own | {name.lower() for name in options.allowed_hosts}
        self._origins = frozenset(options.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        method, path = scope["method"], scope["path"]
        error = self._refusal(headers, method, path)
        if error is None:
            await self._app(scope, receive, send)
            return
        more = {"www-authenticate": "Bearer"} if error.status == 401 else {}
        await send_error(send, error, self._error(path), more)

    def _refusal(self, headers: Headers, method: str, path: str) -> ApiError | None:
        host = headers.get("host", "")
        if not self._knows(host):
            return ApiError(403, "the header Host names another server (--allowed-host)")
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, host):
            return ApiError(403, "web pages of this origin may not use the server (--cors-origin)")
        site = headers.get("sec-fetch-site", "none")
        if origin is None and site in ("cross-site", "same-site"):
            is_navigation = headers.get("sec-fetch-mode") == "navigate" and method == "GET"
            if not (is_navigation and self._is_open(method, path)):
                return ApiError(403, "web pages of other origins may not use the server")
        if not self._keys or self._is_open(method, path):
            return None
        given = headers.get("x-api-key", "")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = token.strip()
        if not self._is_key(given.encode("latin-1", "replace")):
            return ApiError(401, "a valid API key is missing", code="invalid_api_key")
        return None

    def _knows(self, host: str) -> bool:
        """Whether Host names this server. Addresses do always: nobody can point one elsewhere."""
        if "*" in self._hosts:
            return True
        try:
            name = urlsplit(f"//{host}").hostname if _is_plain(host) else None
        except ValueError:  # half an address
            name = None
        if not name:
            return False
        return name in self._hosts or _is_address(name)

    def _is_own(self, origin: str, host: str) -> bool:
        return origin in self._origins or origin in (f"http://{host}", f"https://{host}")

    def _is_key(self, given: bytes) -> bool:
        """All keys are compared, in a time that tells nothing about them."""
        digest, found = _digest(given), False
        for key in self._keys:
            found |= hmac.compare_digest(digest, key)
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _is_plain(host: str) -> bool:
    return host.isascii() and not set(host) & set("/?#@\\ ")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_keys(keys: Iterable[str]) -> None:
    """Raise ValueError for keys that no client can send."""
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or key != key.strip():
            raise ValueError("an API key is empty, or has characters that a header cannot have")
