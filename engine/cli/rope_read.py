"""The flag --rope-read: with which RoPE the question and the answer are read."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lariat.cli.usage import UsageError
from lariat.config import RopeConfig

if TYPE_CHECKING:
    from lariat.chat.chat import Reply
    from lariat.llm import Completion

_FLAG = "--rope-read"
_FORMS = "plain, yarn:SCALE, linear:SCALE, base:X, extend:N:W, joined by + where they go together"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flag."""
    group = parser.add_argument_group("positions when keys are read (raw cache only)")
    group.add_argument(
        _FLAG,
        metavar="auto|SETTING[,...]",
        help="read the end of the prompt with a few settings, and go on with the one under which "
        f"it is likeliest; or choose from these settings: {_FORMS} (default: as computed)",
    )


def asked(args: argparse.Namespace) -> list[RopeConfig] | str | None:
    """`rope_read` of `LLM.stream`. Raises UsageError if the flag is wrong, or the cache roped."""
    given = args.rope_read
    if given is None:
        return None
    if args.cache != "raw":
        raise UsageError(f"argument {_FLAG}: needs --cache raw, whose keys have no angle yet")
    return "auto" if given == "auto" else [_parsed(one) for one in given.split(",")]


def statistics(completion: Completion | Reply, of_file: RopeConfig) -> str:
    """The setting that was taken, and what finding it cost; "" if nothing was asked for."""
    if completion.rope is None:
        return ""
    n = completion.timings.n_tried
    return words(completion.rope, of_file) + (f", {n} tokens computed to choose it" if n else "")


def words(rope: RopeConfig, of_file: RopeConfig) -> str:
    """Complete settings in the form of the flag, as far as they differ from those of the file."""
    parts = []
    if rope.freq_base != of_file.freq_base:
        parts.append(f"base:{rope.freq_base:g}")
    if (rope.scaling, rope.scale) != (of_file.scaling, of_file.scale):
        parts.append(f"{rope.scaling}:{rope.scale:g}")
    if rope.group_n > 1:
        parts.append(f"extend:{rope.group_n}:{rope.group_window}")
    return "+".join(parts) or "plain"


def _parsed(text: str) -> RopeConfig:
    """One setting. Raises UsageError."""
    fields: dict[str, Any] = {}
    try:
        for part in text.split("+"):
            name, *values = part.split(":")
            if name in ("yarn", "linear"):
                fields["scaling"], (fields["scale"],) = name, map(float, values)
            elif name == "base":
                (fields["freq_base"],) = map(float, values)
            elif name == "extend":
                fields["grp_attn_n"], fields["grp_attn_w"] = map(int, values)
            elif part != "plain":
                raise ValueError
    except ValueError:
        raise UsageError(f"argument {_FLAG}: {text!r} is no setting, expected {_FORMS}") from None
    try:
        return RopeConfig(**fields)
    except ValueError as error:
        raise UsageError(f"argument {_FLAG}: {error}") from None
