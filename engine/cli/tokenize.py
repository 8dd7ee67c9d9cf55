"""`lariat tokenize`: the token ids of a text, and their pieces."""

from __future__ import annotations

import argparse
from typing import Any

from lariat.cli import console, model_file, prompt

_DESCRIPTION = """\
Print the token ids of a text, one on each line with its piece as the vocabulary spells it (spaces
as ▁, unprintable characters escaped). A file that has only a vocabulary is enough."""

_EPILOG = """\
example:
  lariat tokenize -m model.gguf -p "Once upon a time" --ids"""


def register(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "tokenize", help="token ids of a text", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.set_defaults(run=run)
    prompt.add_arguments(parser)
    parser.add_argument("--ids", action="store_true", help="print only the ids, as [1, 2, 3]")
    parser.add_argument("--no-bos", action="store_true", help="do not add the begin and end tokens")
    prompt.add_parse_special(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tokens and return the exit code."""
    overrides = model_file.overrides(args)
    text = prompt.read(args)

    from lariat.formats.gguf_split import GGUFModel
    from lariat.tokenizers.tokenizer import Tokenizer

    with GGUFModel(model_file.find(args), overrides, args.use_mmap) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf)
        ids = tokenizer.encode(text, add_bos=not args.no_bos, parse_special=args.parse_special)
        if args.ids:
            console.write(f"{ids}\n")
        else:
            lines = (f"{i:7d}  {console.printable(tokenizer.piece(i))}\n" for i in ids)
            console.write("".join(lines))
    return 0
