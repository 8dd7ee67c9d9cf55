"""The flags of the chat template."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lariat.cli.usage import UsageError
from lariat.errors import LariatError

_MAX_BYTES = 1 << 20  # of the file of a template or a system prompt


def add(group: argparse._ArgumentGroup) -> None:
    """Add the flags."""
    template = group.add_mutually_exclusive_group()
    template.add_argument(
        "--chat-template",
        metavar="NAME|JINJA",
        help="how messages are written as text: a well-known format (an unknown NAME lists them), "
        "or a template in Jinja (default: the file's own template)",
    )
    template.add_argument(
        "--chat-template-file", metavar="FILE", help="a template in Jinja from a UTF-8 file"
    )
    group.add_argument(
        "--chat-template-kwargs",
        metavar="JSON",
        help="more variables of a template in Jinja, such as '{\"enable_thinking\": false}'",
    )


def template(args: argparse.Namespace) -> str | None:
    """The template, None for the file's own. `ChatError` for an unknown name; else as `read`."""
    from lariat.chat import chat_template

    if args.chat_template is not None:
        chat_template.check_known(args.chat_template)
    if args.chat_template_file is not None:
        return read(args.chat_template_file)
    return args.chat_template


def variables(args: argparse.Namespace) -> dict[str, Any]:
    """Variables of the template. Raises UsageError unless they are an object of JSON."""
    text = args.chat_template_kwargs
    if text is None:
        return {}
    flag = "argument --chat-template-kwargs"
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{flag}: is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise UsageError(f'{flag}: expected an object such as {{"enable_thinking": false}}')
    return given


def read(path: str) -> str:
    """The text of a file. LariatError if it is too large or not UTF-8, OSError from the file."""
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise LariatError(f"{path} is larger than {_MAX_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise LariatError(f"{path} is not valid UTF-8 at offset {bad.start}") from None
