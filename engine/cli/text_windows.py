"""The text that `perplexity` and `imatrix` cut into windows, and how many of them count."""

from __future__ import annotations

import argparse
from typing import Any

from lariat.cli import prompt
from lariat.cli.usage import UsageError


def add(parser: argparse.ArgumentParser, verb: str, *, required: bool) -> Any:
    """Add the flags, and return their group; `verb` says what is done with a window."""
    group = parser.add_argument_group("text")
    prompt.add_arguments(group, required=required)
    prompt.add_parse_special(group, default=False)
    group.add_argument(
        "--chunks",
        type=int,
        default=-1,
        metavar="N",
        help=f"windows to {verb}, counted as llama.cpp counts them; -1: all (default: -1)",
    )
    return group


def asked(args: argparse.Namespace) -> int:
    """The number of windows, -1 for all. Raises UsageError for 0 and other negative numbers."""
    n: int = args.chunks
    if n == 0 or n < -1:
        raise UsageError(f"argument --chunks: {n}, expected 1 or more, or -1 for all")
    return n
