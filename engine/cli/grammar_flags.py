"""The flags that hold a text to a grammar or a JSON schema."""

from __future__ import annotations

import argparse
from pathlib import Path

from lariat.cli.usage import Text, UsageError
from lariat.errors import LariatError
from lariat.structured.grammar import Grammar

_MAX_BYTES = 1 << 20  # of a file; a grammar is much shorter


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags, as a group. The names are llama.cpp's where it has them."""
    group = parser.add_argument_group("what the text must follow").add_mutually_exclusive_group()
    group.add_argument(
        *("-j", "--json-schema"),
        action=Text,
        metavar="SCHEMA",
        help="JSON of a schema; {} is any JSON",
    )
    group.add_argument(
        *("-jf", "--json-schema-file"), metavar="FILE", help="JSON of a schema in a file"
    )
    group.add_argument(
        "--grammar",
        action=Text,
        metavar="TEXT",
        help="a grammar in GBNF, or in Lark as llguidance reads it",
    )
    group.add_argument("--grammar-file", metavar="FILE", help="a grammar in a file")
    group.add_argument(
        "--regex", action=Text, metavar="REGEX", help="a regular expression of the whole text"
    )


def asked(args: argparse.Namespace) -> Grammar | None:
    """The grammar of the flags. Raises UsageError that names the flag at fault, LariatError for a
    file at fault or a library that is missing, OSError."""
    for flag, text, make in (
        ("-j/--json-schema", args.json_schema, Grammar.json_schema),
        ("--grammar", args.grammar, Grammar.parse),
        ("--regex", args.regex, Grammar.regex),
    ):
        if text is not None:
            try:
                return make(text)
            except LariatError:
                raise
            except ValueError as error:
                raise UsageError(f"argument {flag}: {error}") from None
    for path, make in (
        (args.json_schema_file, Grammar.json_schema),
        (args.grammar_file, Grammar.parse),
    ):
        if path is not None:
            try:
                return make(_read(path))
            except ValueError as error:
                raise LariatError(f"{path}: {error}") from None
    return None


def _read(path: str) -> str:
    with Path(path).open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise LariatError(f"{path}: is larger than {_MAX_BYTES} bytes")
    return data.decode("utf-8")
