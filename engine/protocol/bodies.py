"""Bodies of requests and answers as bytes: JSON, decoded strictly.

A field that is not known is an error, because an answer that ignores it might not be what was
asked for. JSON has no infinity and no NaN, and neither goes out.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from lariat.protocol import errors

MAX_DEPTH = 64
"""How deeply arrays and objects of a request may be nested."""

_Body = TypeVar("_Body")
_encode = msgspec.json.Encoder().encode


def decode(data: bytes, type: type[_Body]) -> _Body:
    """A body. `ApiError` with the status 400 and the place of the fault for any other."""
    try:
        value = msgspec.json.decode(data)
        check_depth(value)
        return msgspec.convert(value, type)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise errors.of_decoding(error) from None
    except UnicodeDecodeError as error:
        raise errors.bad(f"the body is no UTF-8: {error.reason}") from None


def check_depth(value: Any) -> None:
    """`ApiError` for values that are nested too deeply."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    raise errors.bad(f"the body is nested more than {MAX_DEPTH} levels deep")


def encode(body: Any) -> bytes:
    """JSON of an answer."""
    return _encode(body)
