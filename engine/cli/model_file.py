"""The flags of the model file: -m, --no-mmap, and --override-kv for its metadata."""

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
        help="read the model file instead of mapping it: for storage that may fail or change",
    )


def shown(path: str) -> str:
    """The name of a model for the user."""
    return "the bundled demo model" if path == DEMO_MODEL else path


def overrides(args: argparse.Namespace) -> dict[str, str | int | float | bool]:
    """The values of --override-kv. Raises UsageError for a wrong form, or a key given twice."""
    values: dict[str, str | int | float | bool] = {}
    for text in args.override_kv:
        key, equals, rest = text.partition("=")
        type_name, colon, value = rest.partition(":")
        if not (key and equals and colon):
            raise UsageError(f"argument {_FLAG}: {text!r} is not of the form KEY=TYPE:VALUE")
        if key in values:
            raise UsageError(f"argument {_FLAG}: {key!r} is given twice")
        values[key] = _value(type_name, value)
    return values


def _value(type_name: str, text: str) -> str | int | float | bool:
    if type_name == "str":
        return text
    if type_name == "bool" and text in _BOOLS:
        return _BOOLS[text]
    try:
        if type_name == "int":
            return int(text)
        if type_name == "float" and math.isfinite(float(text)):
            return float(text)
    except ValueError:
        pass
    if type_name in ("int", "float", "bool"):
        expected = {"int": "a whole number", "float": "a finite number", "bool": "true or false"}
        raise UsageError(f"argument {_FLAG}: {text!r} is not {expected[type_name]}")
    raise UsageError(f"argument {_FLAG}: type {type_name!r} is not one of int, float, bool, str")
