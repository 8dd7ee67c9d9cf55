"""Reads the body of a request, within limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from lariat.protocol import errors
from lariat.protocol.errors import ApiError

if TYPE_CHECKING:
    from lariat.server.options import ServerOptions
    from starlette.datastructures import Headers
    from starlette.types import Receive


async def read_body(headers: Headers, receive: Receive, options: ServerOptions) -> bytes:
    """The body. ApiError for one that is no JSON (status 415), too large (413), or too slow (408).

    A web page of another origin can send any other type without asking, and JSON cannot.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "the header Content-Type has to be application/json")
    declared = headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > options.max_body:
        raise _too_large(options)
    parts: list[bytes] = []
    n = 0
    try:
        with anyio.fail_after(options.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise errors.bad("the body is not complete")
                parts.append(message.get("body", b""))
                n += len(parts[-1])
                if n > options.max_body:
                    raise _too_large(options)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise ApiError(
            408, f"the body did not come within {options.body_seconds:g} seconds"
        ) from None


def _too_large(options: ServerOptions) -> ApiError:
    return ApiError(413, f"the body is larger than {options.max_body} bytes")
