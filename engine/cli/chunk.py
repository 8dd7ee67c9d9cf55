"""`lariat chunk`: documents that are computed once, for any prompt."""

from __future__ import annotations

import argparse
from typing import Any

from lariat.cli import console, engine_flags, interrupts, model_file, prompt
from lariat.cli.usage import Parser

_DESCRIPTION = """\
Keep documents in a library: a folder with the keys and values of each, computed once. A prompt can
have any of them before it, in any order, and does not compute them again (generate --library
--chunk)."""

_EPILOG = """\
examples:
  lariat chunk add rules -f rules.txt --library shelf
  lariat chunk add story -p "Once upon a time there was a hen." --library shelf
  lariat chunk list --library shelf
  lariat generate --library shelf --chunk rules --chunk story -p "Question: ..."
  lariat chunk remove story --library shelf

A chunk can be used only with the model and the cache types that it was made with."""


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
    engine_flags.add(add, cache="raw")
    add.add_argument("-q", "--quiet", action="store_true", help="no bars, only errors")

    shown = actions.add_parser("list", help="names, tokens, bytes, types and models")
    shown.set_defaults(run=run_list)

    remove = actions.add_parser("remove", help="forget a document")
    remove.set_defaults(run=run_remove)
    remove.add_argument("name", metavar="NAME", help="its name")
    for action in (add, shown, remove):
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
        chunk = library.add(llm, args.name, text, parse_special=args.parse_special)
    console.write(f"{args.name}: {len(chunk)} tokens, {chunk.nbytes} bytes\n")
    return 0


def run_list(args: argparse.Namespace) -> int:
    """Print a line for each chunk, its fields separated by tabs, and return the exit code."""
    from lariat.reuse.library import ChunkLibrary

    for e in ChunkLibrary(args.library).entries():
        fields = (e.name, e.n_tokens, e.n_bytes, e.type_k, e.type_v, e.model)
        console.write("\t".join(map(str, fields)) + "\n")
    return 0


def run_remove(args: argparse.Namespace) -> int:
    """Forget a chunk and return the exit code."""
    from lariat.reuse.library import ChunkLibrary

    interrupts.begin_work()
    ChunkLibrary(args.library).remove(args.name)
    return 0
