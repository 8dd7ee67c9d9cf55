"""Server-sent events. https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations

from typing import Any

from lariat.protocol import bodies, errors
from lariat.protocol.errors import ApiError

COMMENT = b": still working\n\n"
"""Keeps a silent connection open: proxies and clients drop one after a minute or more."""

DONE = b"data: [DONE]\n\n"
"""The end of a stream, for clients of OpenAI."""


def event(body: Any, name: str | None = None) -> bytes:
    """An event with a body of msgspec as JSON, which has no newline."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + bodies.encode(body) + b"\n\n"


def failure(error: ApiError) -> bytes:
    """An error in the midst of a stream, in OpenAI's shape."""
    return event(errors.body(error))
