"""`lariat quantize`: writes a model's file again with weights of fewer bits."""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

from lariat.cli import console, interrupts, model_file
from lariat.cli.usage import UsageError

if TYPE_CHECKING:
    from lariat.tools.quantize import Report

_DESCRIPTION = """\
Write a GGUF file of F32, F16 or BF16 weights again with weights of TYPE:
Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K, IQ4_NL, IQ4_XS, Q4_0, Q4_1,
Q5_0, Q5_1, Q8_0, F16 or MXFP4_MOE (experts; other matrices become Q8_0). Matrices that lose most by
rounding get more bits than TYPE says; norms and biases stay. The file is equal to the one that
llama-quantize writes, and gets its name only when it is whole."""

_EPILOG = """\
example:
  lariat quantize model-f16.gguf model-q4_k_m.gguf Q4_K_M
  lariat quantize model-f16.gguf model-q2_k.gguf Q2_K --imatrix imatrix.gguf"""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "quantize",
        help="write a model with weights of fewer bits",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("source", metavar="IN", help="the GGUF file to read")
    parser.add_argument("target", metavar="OUT", help="the file to write")
    parser.add_argument("type", metavar="TYPE", type=str.upper, help="a name from the list above")
    parser.add_argument(
        "-t", "--threads", type=int, metavar="N", help="threads (default: the physical cores)"
    )
    parser.add_argument(
        "--imatrix",
        metavar="FILE",
        help="importance matrix, of `lariat imatrix` or llama.cpp: columns whose inputs are large "
        "are rounded with more care",
    )
    parser.add_argument("--pure", action="store_true", help="all matrices get TYPE")
    parser.add_argument(
        "--output-tensor-type", type=str.upper, metavar="TYPE", help="type of the output matrix"
    )
    parser.add_argument(
        "--token-embedding-type", type=str.upper, metavar="TYPE", help="type of the embedding"
    )
    parser.add_argument(
        "--leave-output-tensor", action="store_true", help="leave the output matrix as it is"
    )
    parser.add_argument(
        "--allow-requantize",
        action="store_true",
        help="accept weights that are quantized already, and lose precision again",
    )
    model_file.add_no_mmap(parser)
    parser.add_argument("-f", "--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="no bar and no table, only errors"
    )


def run(args: argparse.Namespace) -> int:
    """Write the file, print both sizes, and return the exit code."""
    from lariat.runtime import threads
    from lariat.tools.quantize import QuantizeConfig, quantize_file

    try:
        n_threads = threads.resolve(args.threads)
    except ValueError as error:
        raise UsageError(f"argument -t/--threads: {error}") from None
    try:
        config = QuantizeConfig(
            args.type,
            args.pure,
            args.output_tensor_type,
            args.token_embedding_type,
            args.leave_output_tensor,
            args.allow_requantize,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    interrupts.begin_work()
    start = time.perf_counter()
    with console.Bar("quantizing", enabled=not args.quiet) as bar:
        report = quantize_file(
            args.source,
            args.target,
            config,
            n_threads,
            args.force,
            bar,
            args.use_mmap,
            args.imatrix,
        )
    if not args.quiet:
        console.write(_table(args.source, args.target, report, time.perf_counter() - start))
    return 0


def _table(source: str, target: str, report: Report, seconds: float) -> str:
    rows = [("", "size", "bits a weight")]
    for path, n_bytes in ((source, report.n_bytes_before), (target, report.n_bytes)):
        bits = 8 * n_bytes / max(1, report.n_weights)
        name = console.printable(os.path.basename(path))
        rows.append((name, f"{n_bytes / 2**20:.2f} MiB", f"{bits:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{name:{widths[0]}}  {size:>{widths[1]}}  {bits:>{widths[2]}}" for name, size, bits in rows
    ]
    types = ", ".join(f"{n} {name}" for name, n in sorted(report.n_tensors.items()))
    speed = report.n_bytes_before / seconds / 1e6
    lines.append(f"{types}; {seconds:.1f} s, {speed:.0f} MB/s")
    return "\n".join(lines) + "\n"
