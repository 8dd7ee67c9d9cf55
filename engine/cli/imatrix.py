"""`lariat imatrix`: makes an importance matrix, for `lariat quantize --imatrix`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lariat.cli import console, engine_flags, model_file, prompt, text_windows
from lariat.errors import LariatError

_DESCRIPTION = """\
Write how large the inputs of each column of a model's matrices are, over a text. With this file,
`lariat quantize --imatrix` rounds columns with large inputs with more care. llama-quantize reads it
too. The text is cut into windows of -c tokens as for `lariat perplexity`."""

_EPILOG = """\
example:
  lariat imatrix -m model-f16.gguf -f text.txt --chunks 100
  lariat quantize model-f16.gguf model-q2_k.gguf Q2_K --imatrix imatrix.gguf"""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "imatrix",
        help="how large the inputs of a model's matrices are, for quantize",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    text_windows.add(parser, "compute", required=True)
    parser.add_argument(
        "-o", "--output", default="imatrix.gguf", metavar="FILE", help="default: imatrix.gguf"
    )
    parser.add_argument(
        "--process-output", action="store_true", help="the output matrix too, if it has its own"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no bars")
    engine_flags.add(parser, n_ctx=512)


def run(args: argparse.Namespace) -> int:
    """Write the file, and return the exit code."""
    n_windows = text_windows.asked(args)
    config = engine_flags.config(args)
    overrides = model_file.overrides(args)
    text = prompt.read(args)

    from lariat.formats.atomic import check_writable
    from lariat.formats.imatrix import write_imatrix
    from lariat.tools import importance, perplexity

    check_writable(Path(args.output), LariatError)
    with (
        engine_flags.load(args, config, overrides) as llm,
        console.Bar("computing", enabled=not args.quiet) as bar,
    ):
        windows = perplexity.cut(llm, text, llm.n_ctx, n_windows, parse_special=args.parse_special)
        sums, counts = importance.collect(llm, windows, args.process_output, bar)
    dataset = args.file if args.file not in (None, "-") else ""
    write_imatrix(args.output, sums, counts, dataset, len(windows), windows.shape[1])
    if not args.quiet:
        name, n = console.printable(args.output), windows.size
        console.write(f"{name}: {len(sums)} matrices, {n} tokens in {len(windows)} windows\n")
    return 0
