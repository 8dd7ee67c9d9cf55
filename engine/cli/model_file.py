"""The flags of the model: -m or -hf, --no-mmap, and --override-kv for its metadata."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

from lariat.cli import console, interrupts
from lariat.cli.usage import UsageError
from lariat.demo import DEMO_MODEL

_FLAG = "--override-kv"
_HF = ("-hf", "-hfr", "--hf-repo")
_CACHED = re.compile(r".*/models--([^/]+?)--([^/]+)/snapshots/[^/]+/(.+)")
_BOOLS = {"true": True, "false": False}


def add_arguments(parser: Any) -> None:
    """Add -m, -hf, --override-kv and --no-mmap to a parser or a group of one."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "-m",
        "--model",
        metavar="FILE",
        default=DEMO_MODEL,
        help="the GGUF file (default: a small model that comes with lariat and tells stories)",
    )
    add_hub(parser, either)
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


def add_hub(parser: Any, either: Any, action: str = "store") -> None:
    """Add -hf to the group `either`, and the flags that go with it to `parser`."""
    either.add_argument(
        *_HF,
        dest="hf_repo",
        metavar="OWNER/REPO[:TYPE]",
        action=action,
        help="a model on the Hugging Face Hub, kept in its cache; without TYPE it is Q4_K_M, then "
        "Q8_0, then any (`lariat list` shows what is there; HF_TOKEN, HF_ENDPOINT and "
        "HF_HUB_OFFLINE are obeyed)",
    )
    parser.add_argument(
        "-hff",
        "--hf-file",
        metavar="FILE",
        help="with -hf, the file of the repository, or a pattern such as '*q8_0.gguf'",
    )
    parser.add_argument(
        "-hft",
        "--hf-token",
        metavar="TOKEN",
        help="with -hf, the token for a private repository (better: HF_TOKEN, which nobody sees in "
        "a list of processes)",
    )
    parser.add_argument(
        "--offline", action="store_true", help="with -hf, take the model from the cache alone"
    )


def find(args: argparse.Namespace) -> str:
    """The path of the model; `args.model` is it from now on. A model of -hf is fetched if need be.

    Raises UsageError for a wrong name, HubError, and OSError where the cache cannot be written.
    """
    _check_file(args)
    if args.hf_repo is not None:
        args.model = _fetch(args.hf_repo, args)
        args.hf_repo = args.hf_file = None  # it is found
    return str(args.model)


def find_all(args: argparse.Namespace) -> list[str]:
    """The paths of all models, where -m and -hf may be given several times. Raises as `find`."""
    _check_file(args)
    return [*(args.model or ()), *(_fetch(name, args) for name in args.hf_repo or ())]


def _check_file(args: argparse.Namespace) -> None:
    if args.hf_file is not None and not args.hf_repo:
        raise UsageError("argument -hff/--hf-file: needs a repository, -hf OWNER/REPO")


def _fetch(name: str, args: argparse.Namespace) -> str:
    """The path of a model on the Hub. With -q there is no bar and no warning."""
    from lariat.hub.models import find_model
    from lariat.hub.names import parse

    try:
        parsed = parse(name)
    except ValueError as error:
        raise UsageError(f"argument {'/'.join(_HF)}: {error}") from None
    interrupts.begin_work()
    quiet = getattr(args, "quiet", False)
    with _no_logs(), console.Bar("asking the Hub", enabled=not quiet) as bar:

        def progress(share: float, path: str) -> None:
            bar(share, f"downloading {console.brief(path)[-40:]}")

        def warn(message: str) -> None:
            if not quiet:
                console.note(f"lariat: warning: {console.brief(message)}")

        path = find_model(
            parsed, args.hf_file, token=args.hf_token, offline=args.offline, progress=progress,
            warn=warn,
        )  # fmt: skip
    return str(path)


@contextlib.contextmanager
def _no_logs() -> Iterator[None]:
    """Without the log lines of `huggingface_hub`, whose errors are told as a sentence."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def shown(path: str) -> str:
    """The name of a model for the user; of one in the Hub's cache, repository and file."""
    if path == DEMO_MODEL:
        return "the bundled demo model"
    cached = _CACHED.fullmatch(path)
    return "/".join(cached.groups()) if cached else path


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
