"""The model file of a command: -m, how it is read, and --override-kv for its metadata."""

from __future__ import annotations

import argparse
import math
from typing import Any

from lariat.cli.usage import UsageError
from lariat.demo import DEMO_MODEL

_FLAG = "--override-kv"
_BOOLS = {"true": True, "false": False}


def add_arguments(parser: Any) -> None:
    """Add -m, --override-kv and --no-mmap to a parser or a group of one."""
    parser.add_argument(
        "-m",
        "--model",
        metavar="FILE",
        default=DEMO_MODEL,
        help="the GGUF file (default: a small model that comes with lariat and tells stories)",
    )
    parser.add_argument(
        _FLAG,
        action="append",
        default=[],
        metavar="KEY=TYPE:VALUE",
        help="replace or add a value of the file's metadata; TYPE is int, float, bool or str, as "
        "in tokenizer.ggml.pre=str:llama-bpe; may be given several times",
    )
    add_no_mmap(parser)


def add_no_mmap(parser: Any) -> None:
    """Add --no-mmap to a parser or a group of one."""
    parser.add_argument(
        "--no-mmap",
        dest="use_mmap",
        action="store_false",
        help="read the model file, do not map it: for storage that may fail or change meanwhile",
    )


def shown(path: str) -> str:
    """How a model is named to the user."""
    return "the bundled demo model" if path == DEMO_MODEL else path


def overrides(args: argparse.Namespace) -> dict[str, str | int | float | bool]:
    """The values of --override-kv. UsageError if one is not of the form, or given twice."""
    values: dict[str, str | int | float | bool] = {}
    for text in args.override_kv:
        key, equals, rest = text.partition("=")
        kind, colon, value = rest.partition(":")
        if not (key and equals and colon):
            raise UsageError(f"argument {_FLAG}: {text!r} is not of the form KEY=TYPE:VALUE")
        if key in values:
            raise UsageError(f"argument {_FLAG}: {key!r} is given twice")
        values[key] = _value(kind, value)
    return values


def _value(kind: str, text: str) -> str | int | float | bool:
    if kind == "str":
        return text
    if kind == "bool" and text in _BOOLS:
        return _BOOLS[text]
    try:
        if kind == "int":
            return int(text)
        if kind == "float" and math.isfinite(float(text)):
            return float(text)
    except ValueError:
        pass
    if kind in ("int", "float", "bool"):
        expected = {"int": "a whole number", "float": "a finite number", "bool": "true or false"}
        raise UsageError(f"argument {_FLAG}: {text!r} is not {expected[kind]}")
    raise UsageError(f"argument {_FLAG}: type {kind!r} is not one of int, float, bool, str")
