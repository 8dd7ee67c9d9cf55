"""The prompt of a command: -p TEXT or -f FILE, with -e for escapes."""

from __future__ import annotations

import argparse
import re

from engine.cli.main import UsageError
from engine.errors import LariatError

_MAX_BYTES = 64 << 20  # of a prompt file; more fits no context, and /dev/zero never ends

_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([ntr\\\"']))")
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add -m, and -p or -f, and -e."""
    parser.add_argument("-m", "--model", metavar="FILE", required=True, help="the GGUF file")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("-p", "--prompt", metavar="TEXT", help="the text to begin with")
    either.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="read the prompt from a UTF-8 file; one newline at its end is dropped",
    )
    parser.add_argument(
        "-e",
        "--escape",
        action="store_true",
        help=r"the escapes \n \t \r \\ \" \' \xHH in the prompt (and in -r) are what they stand for",
    )


def read(args: argparse.Namespace) -> str:
    """The prompt. UsageError or LariatError if it is empty or not UTF-8, OSError from the file."""
    if args.prompt is not None:
        # Python has turned bytes of the command line that are not UTF-8 into lone surrogates.
        data = args.prompt.encode("utf-8", "surrogateescape")
        return _decode(data, args.escape, "the prompt", UsageError)
    with open(args.file, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise LariatError(f"{args.file}: the prompt is larger than {_MAX_BYTES} bytes")
    return _decode(data.removesuffix(b"\n"), args.escape, args.file, LariatError)


def unescape(data: bytes) -> bytes:
    """Replace escapes by what they stand for; other backslashes stay, as in llama.cpp."""

    def replace(match: re.Match[bytes]) -> bytes:
        digits, letter = match.groups()
        return bytes([int(digits, 16)]) if digits else _ESCAPED.get(letter, letter)

    return _ESCAPE.sub(replace, data)


def _decode(data: bytes, escape: bool, name: str, error: type[Exception]) -> str:
    data = unescape(data) if escape else data
    if not data:
        raise error("the prompt is empty" if name == "the prompt" else f"{name}: the prompt is empty")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise error(
            f"{name}{'' if error is UsageError else ':'} is not valid UTF-8: "
            f"byte 0x{data[bad.start]:02x} at offset {bad.start}"
        ) from None
