"""The flags of every command that writes text: its length, its end, and the sampling."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lariat.cli import prompt
from lariat.cli.usage import Flag, add_flags, checked
from lariat.config import SamplingParams

if TYPE_CHECKING:
    from lariat.formats.gguf_sampling import FileSampling

_LENGTH = (
    Flag(
        ("-n", "--predict", "--n-predict"),
        "max_tokens",
        int,
        "N",
        "maximum of tokens to write; -1: until the model ends or the context is full",
    ),
)
_SAMPLING = (  # in the order of the stages
    Flag(
        ("--repeat-penalty",),
        "repeat_penalty",
        float,
        "X",
        "above 1: make tokens that occurred less likely; 1: off",
    ),
    Flag(
        ("--repeat-last-n",),
        "repeat_last_n",
        int,
        "N",
        "number of last tokens that the penalties look at; 0: none, -1: the whole context",
    ),
    Flag(
        ("--frequency-penalty",),
        "frequency_penalty",
        float,
        "X",
        "subtracted from a token's logit for each time it occurred; 0: off",
    ),
    Flag(
        ("--presence-penalty",),
        "presence_penalty",
        float,
        "X",
        "subtracted from a token's logit if it occurred; 0: off",
    ),
    Flag(("--top-k",), "top_k", int, "K", "keep the K likeliest tokens; 0: all"),
    Flag(("--typical",), "typical_p", float, "P", "locally typical sampling; 1: off"),
    Flag(
        ("--top-p",),
        "top_p",
        float,
        "P",
        "keep the likeliest tokens that together have probability P; 1: all",
    ),
    Flag(("--min-p",), "min_p", float, "P", "keep tokens at least P times as likely as the best"),
    Flag(("--temp",), "temperature", float, "T", "temperature; 0 always takes the likeliest token"),
)


def add_length(text: argparse._ArgumentGroup) -> None:
    """Add the flags of the end of the text."""
    add_flags(text, _LENGTH, SamplingParams)
    text.add_argument(
        "-r",
        "--reverse-prompt",
        dest="stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end when the model writes this text; may be given several times",
    )
    text.add_argument(
        "--ignore-eos",
        action="store_true",
        help="continue where the model would end",
    )


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of sampling, as a group."""
    sampling = parser.add_argument_group("sampling, in the order of its stages")
    add_flags(sampling, _SAMPLING, SamplingParams, of_file=True)
    sampling.add_argument(
        "-s",
        "--seed",
        type=int,
        default=-1,
        metavar="N",
        help="the same seed writes the same text; -1: another one each time (default: -1)",
    )


def params(args: argparse.Namespace, flags: tuple[Flag, ...] = (), **more: Any) -> SamplingParams:
    """The settings of these flags, and of `flags` of the command.

    `with_file` adds those of the model's file when it is open. Raises UsageError that names the
    flag at fault.
    """
    return checked(
        SamplingParams,
        _LENGTH + flags + _SAMPLING,
        args,
        ignore_eos=args.ignore_eos,
        stop=prompt.stop_texts(args),
        seed=None if args.seed == -1 else args.seed,
        **more,
    )


def with_file(
    params: SamplingParams, of_file: FileSampling, args: argparse.Namespace
) -> SamplingParams:
    """`params`, with the sampling that the model's file asks for where no flag is given."""
    return replace(params, **_from_file(of_file, args))


def note(of_file: FileSampling, args: argparse.Namespace) -> str:
    """A line with the settings from the model's file, also unsupported ones; "" without any."""
    names = {flag.field: flag.names[0].lstrip("-") for flag in _SAMPLING}
    taken = ", ".join(f"{names[f]} {v:.6g}" for f, v in _from_file(of_file, args).items())
    ignored = ", ".join(of_file.ignored)
    parts = [taken, f"not supported and ignored: {ignored}" if ignored else ""]
    text = "; ".join(part for part in parts if part)
    return text and f"lariat: sampling of the model's file: {text}"


def _from_file(of_file: FileSampling, args: argparse.Namespace) -> dict[str, Any]:
    return {field: v for field, v in of_file.asked.items() if getattr(args, field) is None}
