"""Errors as clients get them: a status of HTTP, and a body in OpenAI's or Anthropic's shape.

OpenAI: https://platform.openai.com/docs/guides/error-codes. Anthropic:
https://docs.anthropic.com/en/api/errors.
"""

from __future__ import annotations

import re

import msgspec
from lariat.errors import ContextError, LariatError

MAX_MESSAGE = 600  # characters; values of a request that are longer are cut in messages

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """A request that gets no answer.

    status       of HTTP
    message      one sentence
    param        the field at fault, such as "messages[2].content"
    code         a word for programs, such as "context_length_exceeded"
    retry_after  seconds after which it may be sent again
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def message(self) -> str:
        """One sentence, of at most `MAX_MESSAGE` characters."""
        text = str(self)
        return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that is wrong in itself: status 400."""
    return ApiError(400, message, param=param, code=code)


def too_long(n_prompt: int, n_ctx: int) -> ApiError:
    """A prompt that leaves no room in the context."""
    return bad(
        f"the prompt has {n_prompt} tokens, and the context of {n_ctx} tokens needs room for at"
        " least one more",
        code="context_length_exceeded",
    )


def of(error: BaseException) -> ApiError:
    """The error that clients get for an exception, before anything was computed.

    Of an error that is nobody's intention they learn nothing.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextError):
        is_long = "more than the context of" in str(error)
        return bad(str(error), code="context_length_exceeded" if is_long else None)
    if isinstance(error, (LariatError, ValueError)):
        return bad(str(error))
    if isinstance(error, MemoryError):
        return ApiError(503, "there is not enough memory for this request", retry_after=10)
    if isinstance(error, RecursionError):
        return bad("the request is nested too deeply")
    return ApiError(500, "the server failed at this request; its log says why")


def while_running(error: BaseException) -> ApiError:
    """The error for an exception of the engine: a full cache is not the clients' fault."""
    if isinstance(error, ContextError):
        return ApiError(503, str(error), code="cache_full", retry_after=1)
    if isinstance(error, LariatError):
        return ApiError(500, str(error))
    return of(error)


class ErrorDetail(msgspec.Struct, kw_only=True):
    """The subject of an error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, kw_only=True):
    """An error in OpenAI's shape."""

    error: ErrorDetail


class AnthropicErrorDetail(msgspec.Struct, kw_only=True):
    """The subject of an error."""

    type: str
    message: str


class AnthropicErrorBody(msgspec.Struct, kw_only=True):
    """An error in Anthropic's shape."""

    type: str = "error"
    error: AnthropicErrorDetail


def body(error: ApiError) -> ErrorBody:
    """An error in OpenAI's shape."""
    type = _TYPES.get(error.status, "server_error" if error.status >= 500 else None)
    return ErrorBody(
        error=ErrorDetail(
            message=error.message,
            type=type or "invalid_request_error",
            param=error.param,
            code=error.code,
        )
    )


def anthropic_body(error: ApiError) -> AnthropicErrorBody:
    """An error in Anthropic's shape."""
    type = _ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else None)
    return AnthropicErrorBody(
        error=AnthropicErrorDetail(type=type or "invalid_request_error", message=error.message)
    )


_PLACE = re.compile(r" - at `\$?\.?(.*)`$")


def of_decoding(error: msgspec.MsgspecError | RecursionError) -> ApiError:
    """An error of msgspec, whose message ends with the place of the fault."""
    text = str(error)
    place = _PLACE.search(text)
    unknown = re.search(r"unknown field `([^`]*)`", text)
    param = place[1] if place else None
    if unknown:
        param = f"{param}.{unknown[1]}" if param else unknown[1]
        return bad(
            f"the field {param} is unknown here, and an answer without it might not be what was"
            " asked for",
            param=param,
            code="unknown_field",
        )
    message = text[: place.start()] if place else text
    message = message[:1].lower() + message[1:]
    where = f" at {param}" if param else ""
    return bad(f"the body is not as expected{where}: {message}", param=param)
