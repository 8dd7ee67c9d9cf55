"""The flags that every command has which runs a model: context, batch, cache, threads, RoPE."""

from __future__ import annotations

import argparse
from typing import Any

from lariat.cli.usage import Flag, UsageError, add_flags, checked
from lariat.config import (
    CACHE_STRATEGIES,
    CACHE_TYPES,
    ROPE_SCALINGS,
    EngineConfig,
    RopeConfig,
)  # fmt: skip

_FLAGS = (
    Flag(("-c", "--ctx-size"), "n_ctx", int, "N", "length of the context; 0: as trained"),
    Flag(("-b", "--batch-size"), "n_batch", int, "N", "tokens in a step at most"),
    Flag(("-ub", "--ubatch-size"), "n_ubatch", int, "N", "tokens of a prompt computed at once"),
    Flag(
        ("--cache",),
        "cache",
        str,
        "|".join(CACHE_STRATEGIES),
        "keys are rotated when they are written (roped) or when they are read (raw)",
    ),
    Flag(("-ctk", "--cache-type-k"), "type_k", str, "|".join(CACHE_TYPES), "type of cached keys"),
    Flag(("-ctv", "--cache-type-v"), "type_v", str, "|".join(CACHE_TYPES), "type of cached values"),
)
_ROPE = (
    Flag(
        ("--rope-scaling",),
        "scaling",
        str,
        "|".join(ROPE_SCALINGS),
        "how positions are scaled (dynamic: raw cache only)",
    ),
    Flag(("--rope-scale",), "scale", float, "X", "how many times as long the context becomes"),
    Flag(("--rope-freq-base",), "freq_base", float, "X", "base of the frequencies"),
    Flag(("--yarn-orig-ctx",), "yarn_orig_ctx", int, "N", "the length of the training"),
    Flag(("--yarn-ext-factor",), "yarn_ext_factor", float, "X", "share of extrapolation"),
    Flag(("--yarn-attn-factor",), "yarn_attn_factor", float, "X", "factor of queries and keys"),
    Flag(
        ("--yarn-beta-fast",), "yarn_beta_fast", float, "X", "turns above which no pair is scaled"
    ),
    Flag(("--yarn-beta-slow",), "yarn_beta_slow", float, "X", "turns below which all of it is"),
    Flag(
        ("-gan", "--grp-attn-n"),
        "grp_attn_n",
        int,
        "N",
        "Self-Extend: far positions are divided by N (raw cache only)",
    ),
    Flag(("-gaw", "--grp-attn-w"), "grp_attn_w", int, "N", "positions that are near, exact"),
)
_FREQ_SCALE = "--rope-freq-scale"
_THREADS = (
    (("-t", "--threads"), "n_threads", "threads that write (default: the physical cores)"),
    (("-tb", "--threads-batch"), "n_threads_batch", "threads that read prompts (default: -t)"),
)


def add(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add them; `defaults` go before those of `EngineConfig`."""
    group = parser.add_argument_group("engine")
    for names, dest, what in _THREADS:
        group.add_argument(*names, dest=dest, type=int, metavar="N", help=what)
    add_flags(group, _FLAGS, EngineConfig, **defaults)
    group.add_argument(
        "--check-tensors", action="store_true", help="first look for NaN and Inf in all weights"
    )
    add_rope(parser)


def add_rope(parser: argparse.ArgumentParser) -> None:
    """Add those of positions alone."""
    group = parser.add_argument_group("positions (where nothing is given: as the file says)")
    add_flags(group, _ROPE, RopeConfig)
    group.add_argument(_FREQ_SCALE, type=float, metavar="X", help="1 / X is --rope-scale")


def rope(args: argparse.Namespace) -> RopeConfig:
    """What the flags of positions say. UsageError names the flag at fault."""
    if args.rope_freq_scale is not None:
        if args.scale is not None:
            raise UsageError(f"--rope-scale and {_FREQ_SCALE} say the same: give one of them")
        if not args.rope_freq_scale > 0:
            raise UsageError(f"argument {_FREQ_SCALE}: {args.rope_freq_scale}, expected above 0")
        args.scale = 1 / args.rope_freq_scale
    return checked(RopeConfig, _ROPE, args)


def config(args: argparse.Namespace) -> EngineConfig:
    """What they say. UsageError names the flag at fault."""
    from lariat.runtime import threads

    values = checked(
        EngineConfig, _FLAGS, args, n_threads=args.n_threads, n_threads_batch=args.n_threads_batch,
        rope=rope(args), check_tensors=args.check_tensors,
    )  # fmt: skip
    for names, dest, _ in _THREADS:
        try:
            threads.resolve(getattr(args, dest), "the number of threads")
        except ValueError as error:
            raise UsageError(f"argument {'/'.join(names)}: {error}") from None
    return values
