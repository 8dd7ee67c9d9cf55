"""The flags of the prompt: -p TEXT or -f FILE, -e for escapes, and its special tokens."""

from __future__ import annotations

import argparse
import os
import re
import select
import sys

from lariat.cli import model_file
from lariat.cli.usage import Text, UsageError
from lariat.errors import LariatError

_MAX_BYTES = 64 << 20  # of a prompt file; more does not fit, and /dev/zero never ends

_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([ntr\\\"']))")
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}


def add_arguments(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, required: bool = True
) -> None:
    """Add the flags of the model file, -p or -f, and -e."""
    model_file.add_arguments(parser)
    either = parser.add_mutually_exclusive_group(required=required)
    either.add_argument(
        "-p", "--prompt", action=Text, metavar="TEXT", help="the text to begin with"
    )
    either.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="read the prompt from a UTF-8 file, or from standard input if FILE is -; one newline "
        "at its end is dropped",
    )
    parser.add_argument(
        "-e",
        "--escape",
        action="store_true",
        help=r"read \n \t \r \\ \" \' \xHH in the prompt and in -r as escapes",
    )


def add_parse_special(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, default: bool = True
) -> None:
    """Add --parse-special and --no-parse-special. llama.cpp's programs have the same defaults."""
    parser.add_argument(
        "--parse-special",
        action=argparse.BooleanOptionalAction,
        default=default,
        help="take control tokens that are written in the text, such as </s>, for those tokens, or "
        f"for text (default: --{'' if default else 'no-'}parse-special)",
    )


def read(args: argparse.Namespace) -> str:
    """The prompt. Raises UsageError or LariatError if it is empty or not UTF-8, and OSError."""
    if args.prompt is not None:
        # Python turns bytes of the command line that are not UTF-8 into lone surrogates.
        data, name = args.prompt.encode("utf-8", "surrogateescape"), "the prompt"
    else:
        data, name = _from_file(args.file)
        if len(data) > _MAX_BYTES:
            raise LariatError(f"{name} is larger than {_MAX_BYTES} bytes, too large for a prompt")
        data = data.removesuffix(b"\n")
    error = LariatError if args.prompt is None else UsageError
    if not data:
        raise error(f"{name} is empty")
    text = _decode(data, name, error)
    return _decode(unescape(data), f"{name} without its escapes", error) if args.escape else text


def stop_texts(args: argparse.Namespace) -> tuple[str, ...]:
    """The texts of -r. Raises UsageError if one is empty or not UTF-8."""
    texts = []
    for text in args.stop:
        data = text.encode("utf-8", "surrogateescape")
        if not data:
            raise UsageError("argument -r/--reverse-prompt: the text is empty")
        data = unescape(data) if args.escape else data
        texts.append(_decode(data, "the text of -r/--reverse-prompt", UsageError))
    return tuple(texts)


def unescape(data: bytes) -> bytes:
    """Replace escapes by their characters; other backslashes stay, as in llama.cpp."""

    def replace(match: re.Match[bytes]) -> bytes:
        digits, letter = match.groups()
        return bytes([int(digits, 16)]) if digits else _ESCAPED.get(letter, letter)

    return _ESCAPE.sub(replace, data)


def _from_file(path: str) -> tuple[bytes, str]:
    """At most `_MAX_BYTES` + 1 bytes of a file or of standard input, and its name for errors."""
    if path != "-":
        with open(path, "rb") as file:
            return file.read(_MAX_BYTES + 1), path
    if sys.stdin is None:  # the shell's <&-
        raise LariatError("standard input is closed")
    parts, n_bytes, fd = [], 0, sys.stdin.fileno()
    while n_bytes <= _MAX_BYTES:
        try:
            part = os.read(fd, 1 << 16)
        except BlockingIOError:  # a pipe that does not wait by itself
            select.select([fd], [], [])
            continue
        if not part:
            break
        parts.append(part)
        n_bytes += len(part)
    return b"".join(parts), "standard input"


def _decode(data: bytes, name: str, error: type[Exception]) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise error(
            f"{name} is not valid UTF-8: byte 0x{data[bad.start]:02x} at offset {bad.start}"
        ) from None
