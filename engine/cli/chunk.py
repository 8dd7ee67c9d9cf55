"""`lariat chunk`: documents that are computed once, for any prompt."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lariat.cli import console, engine_flags, interrupts, model_file, prompt
from lariat.cli.usage import Parser, Text, UsageError

if TYPE_CHECKING:
    from lariat.measure.chunk_check import Check

_DESCRIPTION = """\
Keep documents in a library: a folder with the keys and values of each, computed once. A prompt can
have any of them before it, in any order, and does not compute them again (generate --library
--chunk)."""

_EPILOG = """\
examples:
  lariat chunk add rules -f rules.txt --library shelf
  lariat chunk add story -p "Once upon a time there was a hen." --library shelf
  lariat chunk list --library shelf
  lariat chunk verify --library shelf
  lariat generate --library shelf --chunk rules --chunk story -p "Question: ..."
  lariat chunk remove story --library shelf

A chunk can be used only with the model and the cache types that it was made with."""

_VERIFY = """\
Ask questions about each document of a library, behind other documents of it: passages of the
document, whose answer is how it goes on. Print how far the predictions are from those of the same
tokens computed as a whole (KL divergence, nats a token), how often the likeliest token is the same,
and how many of the answers are kept, with 95 % intervals. The index keeps the result. Placing a
document that was not verified, or that keeps less than nine tenths of the answers, gives a
warning."""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "chunk",
        help="documents that are computed once",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", required=True, parser_class=Parser
    )

    add = actions.add_parser("add", help="compute a document and keep it")
    add.set_defaults(run=run_add)
    add.add_argument("name", metavar="NAME", help="its name; a document of this name is replaced")
    prompt.add_arguments(add)
    prompt.add_parse_special(add)
    add.add_argument(
        "--behind",
        action=Text,
        default="",
        metavar="TEXT",
        help="compute it behind this text, which is cut off again, such as the beginning of the "
        "prompts that will have it; -e does not apply",
    )
    engine_flags.add(add, cache="raw")
    add.add_argument("-q", "--quiet", action="store_true", help="no bars, only errors")

    shown = actions.add_parser("list", help="names, tokens, bytes, types and models")
    shown.set_defaults(run=run_list)

    verify = actions.add_parser(
        "verify",
        help="measure what the documents lose when they are put together",
        description=_VERIFY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.set_defaults(run=run_verify)
    model_file.add_arguments(verify)
    engine_flags.add(verify, cache="raw")
    verify.add_argument(
        "--recompute",
        metavar="auto|none|all|N",
        default="auto",
        help="as for generate (default: auto)",
    )
    verify.add_argument(
        "--questions", type=int, metavar="N", default=32, help="about each document (default: 32)"
    )
    verify.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="default: text"
    )
    verify.add_argument("-q", "--quiet", action="store_true", help="no bars, only the result")

    remove = actions.add_parser("remove", help="forget a document")
    remove.set_defaults(run=run_remove)
    remove.add_argument("name", metavar="NAME", help="its name")
    for action in (add, shown, verify, remove):
        action.add_argument(
            "--library", metavar="DIR", required=True, help="the folder of the library"
        )


def run_add(args: argparse.Namespace) -> int:
    """Compute a document, keep it, and return the exit code."""
    config = engine_flags.config(args)
    overrides = model_file.overrides(args)
    text = prompt.read(args)

    from lariat.reuse.library import ChunkLibrary

    with engine_flags.load(args, config, overrides) as llm:
        library = ChunkLibrary(args.library)
        chunk = library.add(
            llm, args.name, text, behind=args.behind, parse_special=args.parse_special
        )
    console.write(f"{args.name}: {len(chunk)} tokens, {chunk.nbytes} bytes\n")
    return 0


def run_list(args: argparse.Namespace) -> int:
    """Print a line for each chunk, its fields separated by tabs, and return the exit code."""
    from lariat.reuse.library import ChunkLibrary

    for e in ChunkLibrary(args.library).entries():
        fields = (e.name, e.n_tokens, e.n_bytes, e.type_k, e.type_v, e.model)
        console.write("\t".join(map(str, fields)) + "\n")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Measure, keep the result, print a line for each document, and return the exit code."""
    from lariat.cli.reuse import recompute

    config = engine_flags.config(args)
    if config.cache != "raw":
        raise UsageError("argument --cache: chunks need the raw cache")
    if args.questions < 1:
        raise UsageError(f"argument --questions: {args.questions}, expected at least 1")
    setting = recompute(args)
    overrides = model_file.overrides(args)

    from lariat.measure.chunk_check import check_library, together
    from lariat.reuse.library import ChunkLibrary

    with engine_flags.load(args, config, overrides) as llm:
        library = ChunkLibrary(args.library)
        with console.Bar("asking", enabled=not args.quiet) as bar:
            checks = check_library(
                llm, library, recompute=setting, n_questions=args.questions, progress=bar
            )
    library.keep_verified({one.name: one.verified(args.recompute) for one in checks})
    rows = [*checks, together(checks)]
    if args.output == "json":
        console.write(json.dumps([_verdict(one) for one in rows], indent=2) + "\n")
    else:
        console.write(_verify_table(rows))
    return 0


def _verdict(check: Check) -> dict[str, Any]:
    low, high = check.kept
    return {
        "name": check.name or None, "n_questions": check.n, "n_answered": check.n_answered,
        "n_kept": check.n_kept, "kept_low": low, "kept_high": high,
        "kl": check.kl[0], "kl_error": check.kl[1],
        "top1": check.top1[0], "top1_error": check.top1[1],
    }  # fmt: skip


def _verify_table(checks: Sequence[Check]) -> str:
    """A line for each document and one for all; the last column says how many answers are kept."""
    rows = [("document", "questions", "KL", "top-1", "answers kept")]
    for one in checks:
        (kl, kl_error), (top1, top1_error), (low, high) = one.kl, one.top1, one.kept
        kept = f"{one.n_kept} of {one.n_answered} ({low:.0%} to {high:.0%})"
        rows.append(
            (
                console.brief(one.name) or "all",
                str(one.n),
                f"{kl:.4f} +/- {kl_error:.4f}",
                f"{top1:.1%} +/- {top1_error:.1%}",
                kept if one.n_answered else "full prefill answers none",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def run_remove(args: argparse.Namespace) -> int:
    """Forget a chunk and return the exit code."""
    from lariat.reuse.library import ChunkLibrary

    interrupts.begin_work()
    ChunkLibrary(args.library).remove(args.name)
    return 0
