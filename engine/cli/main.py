"""The command `lariat`: chooses the command, and turns errors into a sentence and an exit code.

Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted, 141 if the reader of standard output
went away. A shell reports 141 for a program that SIGPIPE ended; nothing is printed then either.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lariat.cli import console, interrupts
from lariat.cli.usage import Parser, UsageError
from lariat.errors import LariatError

# One module for each command. `register(commands)` adds its parser with the function to run. Only
# that function imports the engine, so --help is quick.
_COMMANDS = (
    "batch",
    "bench",
    "chat",
    "chunk",
    "eval",
    "generate",
    "imatrix",
    "info",
    "list",
    "perplexity",
    "prepare",
    "quantize",
    "serve",
    "tokenize",
)

_DESCRIPTION = """\
Run LLaMA models from GGUF files on this machine's processor.

Text goes to standard output, everything else to standard error."""

_EPILOG = """\
examples:
  lariat generate -p "Once upon a time"
  lariat generate -m model.gguf -p "Once upon a time" -n 128
  lariat chat -hf unsloth/Qwen3-0.6B-GGUF:Q8_0
  lariat info -m model.gguf -c 8192
  lariat tokenize -m model.gguf -p "Hello"

`lariat COMMAND --help` explains the flags of a command."""

_MISSING_PARTS = (
    "lariat._kernels",
    "huggingface_hub",
    "jinja2",
    "markupsafe",
    "msgspec",
    "numpy",
    "safetensors",
    "sentencepiece",
    "threadpoolctl",
    "tqdm",
    "xxhash",
)

# Messages of glibc's dynamic linker when there is too little memory.
_NO_MEMORY_FOR_CODE = ("failed to map segment", "annot allocate memory")


class _Version(argparse.Action):
    """--version. The version is looked up only if it is asked for."""

    def __call__(self, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            console.write(f"lariat {version('lariat')}\n")
        except PackageNotFoundError:
            console.write("lariat, run from a source tree that is not installed\n")
        raise SystemExit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: that of the process) and return the exit code."""
    if argv is None:
        interrupts.watch()
        # The kernels have threads of their own. Those of NumPy's BLAS would take 10 ms to start,
        # and none of its functions is used for more than small matrices.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        return _run(argv)
    except Exception as error:
        if interrupts.explain(error):
            return interrupts.CODE
        raise


def _run(argv: Sequence[str] | None) -> int:
    try:
        try:
            given = sys.argv[1:] if argv is None else argv
            args = _parser(given).parse_args(argv)
            code: int = args.run(args)
        except SystemExit as done:  # --help and --version
            code = int(done.code or 0)
        console.write("")  # flushes, so that a full disk is noticed
        return code
    except UsageError as error:
        return _fail(str(error), 2)
    except console.ClosedPipeError:
        return 141
    except KeyboardInterrupt:
        return interrupts.CODE
    except (LariatError, console.OutputError) as error:
        return _fail(str(error), 1)
    except OSError as error:
        what = error.strerror or str(error)
        return _fail(f"{os.fspath(error.filename)}: {what}" if error.filename else what, 1)
    except MemoryError as error:
        return _fail(f"not enough memory{f': {error}' if str(error) else ''}", 1)
    except ImportError as error:
        if interrupts.explain(error):
            raise
        if any(words in str(error) for words in _NO_MEMORY_FOR_CODE):
            return _fail(f"not enough memory: {error}", 1)
        if error.name is None:  # the kernels refuse LARIAT_ISA
            return _fail(str(error), 1)
        if not error.name.startswith(_MISSING_PARTS):
            raise
        return _fail(f"lariat is not fully installed ({error}): run `make build`", 1)


def _parser(given: Sequence[str]) -> Parser:
    """The parser for a command line. It knows only the command that is asked for, if there is one:
    to import all of them would take a tenth of a small model's start."""
    parser = Parser(prog="lariat", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in given[:1] if given and given[0] in _COMMANDS else _COMMANDS:
        importlib.import_module(f"lariat.cli.{name}").register(commands)
    return parser


def _fail(message: str, code: int) -> int:
    console.note(f"lariat: error: {console.brief(message)}")
    return code
