"""Rows of a batch: lines of JSON, what each asks for, and what follows from its custom_id.

A line is one of OpenAI's batches (custom_id, method, url, body), or a plain row: a prompt or
messages, with fields of sampling beside it. https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import msgspec
from lariat.protocol import bodies, errors
from lariat.protocol.errors import ApiError

MAX_LINE = 10 << 20
"""Bytes of a row; longer ones are errors."""
MAX_ID = 512  # characters of a custom_id

CHAT, TEXT, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
URLS = (CHAT, TEXT, EMBEDDINGS)

_LINE = ("custom_id", "method", "url", "body")


@dataclass(frozen=True)
class Row:
    """One row.

    number     counts from 1, with blank lines
    key        its custom_id, or what stands for it; seeds and ids follow from it
    custom_id  for the answer; None: it has none, or it could not be read
    url        one of `URLS`, "" if it could not be read
    is_plain   whether it has no url of its own
    body       the request
    digest     of everything in it, 16 bytes
    error      why it cannot be computed
    """

    number: int
    key: str
    custom_id: str | None = None
    url: str = ""
    is_plain: bool = False
    body: dict[str, Any] = field(default_factory=dict)
    digest: bytes = b""
    error: ApiError | None = None


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, in memory one at a time. Of a line that is too long, its beginning."""
    while line := file.readline(MAX_LINE + 1):
        yield line
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(1 << 20)


def of_line(line: bytes, number: int) -> Row:
    """The row of a line. What is wrong with it is the row's `error`."""
    digest = _hash(line)
    row = Row(number, f"line {number}", digest=digest)
    try:
        return of_value(_decoded(line, number), number, str(number))
    except ApiError as error:
        return _failed(row, error)


def of_value(value: Any, number: int, default_id: str | None = None) -> Row:
    """The row of a decoded line, whose custom_id is `default_id` if it has none of its own.

    Without either, its seed follows from all that is in it.
    """
    digest = _hash(msgspec.json.encode(value, order="sorted"))
    row = Row(number, f"row {digest.hex()}", digest=digest)
    try:
        if not isinstance(value, dict):
            raise errors.bad(f"row {number} is no object")
        bodies.check_depth(value)
        given = value.get("custom_id")
        custom_id = _custom_id(given, number) if given is not None else default_id
        if custom_id is not None:
            row = Row(number, custom_id, custom_id, digest=digest)
        is_plain = not ("url" in value or "body" in value)
        row = Row(number, row.key, custom_id, "", is_plain, digest=digest)
        url, body = _plain(value, number) if is_plain else _of_batch(value, number)
        return Row(number, row.key, custom_id, url, is_plain, body, digest)
    except ApiError as error:
        return _failed(row, error)


def failed(row: Row, message: str) -> Row:
    """The row, with an error."""
    return _failed(row, errors.bad(message))


def seed(key: str, base: int) -> int:
    """The seed of a row: the first 8 bytes of BLAKE2b of the base and its key."""
    return int.from_bytes(_hash(f"{base}:{key}".encode("utf-8", "replace"))[:8], "little")


def _decoded(line: bytes, number: int) -> Any:
    if len(line.rstrip(b"\r\n")) > MAX_LINE:
        raise errors.bad(f"line {number} has more than {MAX_LINE >> 20} MiB")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise errors.bad(f"line {number} is not valid UTF-8 at byte {error.start}") from None
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        if not line.endswith(b"\n"):
            raise errors.bad(f"line {number} is cut off: it ends within its JSON") from None
        raise errors.bad(f"line {number} is not JSON: {error}") from None


def _custom_id(given: Any, number: int) -> str:
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if not isinstance(given, str) or not 0 < len(given) <= MAX_ID:
        raise errors.bad(
            f"row {number}: custom_id is no text of 1 to {MAX_ID} characters", "custom_id"
        )
    return given


def _of_batch(value: dict[str, Any], number: int) -> tuple[str, dict[str, Any]]:
    """Url and body of a line of OpenAI's batches."""
    unknown = [name for name in value if name not in _LINE]
    if unknown:
        raise errors.bad(f"row {number}: the field {unknown[0][:100]} is unknown here")
    if "custom_id" not in value:
        raise errors.bad(f"row {number} has no custom_id", "custom_id")
    if value.get("method", "POST") != "POST":
        raise errors.bad(f"row {number}: the method is not POST", "method")
    url = value.get("url")
    if url not in URLS:
        raise errors.ApiError(
            404, f"row {number}: the url {str(url)[:100]!r} is not one of {', '.join(URLS)}",
            param="url",
        )  # fmt: skip
    body = value.get("body")
    if not isinstance(body, dict):
        raise errors.bad(f"row {number}: the body is no object", "body")
    if body.get("stream"):
        raise errors.bad(f"row {number}: a batch has no streams", "stream")
    return url, body


def _plain(value: dict[str, Any], number: int) -> tuple[str, dict[str, Any]]:
    """Url and body of a plain row."""
    body = {name: one for name, one in value.items() if name != "custom_id" and one is not None}
    if ("prompt" in body) == ("messages" in body):
        raise errors.bad(f"row {number} needs a prompt, or messages, or url and body")
    if body.get("n", 1) != 1 or body.get("stream"):
        raise errors.bad(f"row {number}: n and stream are for rows with url and body", "n")
    prompt = body.get("prompt", "")
    ids = prompt if isinstance(prompt, list) else ()
    if not isinstance(prompt, (str, list)) or any(not isinstance(one, int) for one in ids):
        raise errors.bad(f"row {number}: its prompt is not one text, nor token ids", "prompt")
    return (TEXT if "prompt" in body else CHAT), body


def _failed(row: Row, error: ApiError) -> Row:
    return Row(row.number, row.key, row.custom_id, "", row.is_plain, digest=row.digest, error=error)


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
