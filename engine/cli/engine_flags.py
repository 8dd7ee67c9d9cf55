"""The flags of every command that runs a model: context, batch, cache, threads, RoPE."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lariat.cli import console, interrupts, model_file
from lariat.cli.usage import Flag, UsageError, add_flags, checked
from lariat.config import (
    CACHE_STRATEGIES,
    CACHE_TYPES,
    ROPE_SCALINGS,
    SPECULATIVE,
    EngineConfig,
    RopeConfig,
)  # fmt: skip
from lariat.demo import DEMO_MODEL

if TYPE_CHECKING:
    from lariat.llm import LLM

_FLAGS = (
    Flag(("-c", "--ctx-size"), "n_ctx", int, "N", "tokens of the context; 0: as trained"),
    Flag(
        ("-b", "--batch-size"), "n_batch", int, "N", "maximum of tokens in a step of the scheduler"
    ),
    Flag(("-ub", "--ubatch-size"), "n_ubatch", int, "N", "maximum of tokens in a forward pass"),
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
    Flag(("--rope-scale",), "scale", float, "X", "factor by which the context becomes longer"),
    Flag(("--rope-freq-base",), "freq_base", float, "X", "base of the frequencies"),
    Flag(("--yarn-orig-ctx",), "yarn_orig_ctx", int, "N", "context length of the training"),
    Flag(("--yarn-ext-factor",), "yarn_ext_factor", float, "X", "share of the extrapolation"),
    Flag(("--yarn-attn-factor",), "yarn_attn_factor", float, "X", "factor for queries and keys"),
    Flag(
        ("--yarn-beta-fast",),
        "yarn_beta_fast",
        float,
        "X",
        "rotations above which no pair is scaled",
    ),
    Flag(
        ("--yarn-beta-slow",),
        "yarn_beta_slow",
        float,
        "X",
        "rotations below which a pair is scaled fully",
    ),
    Flag(
        ("-gan", "--grp-attn-n"),
        "grp_attn_n",
        int,
        "N",
        "Self-Extend: far positions are divided by N (raw cache only)",
    ),
    Flag(("-gaw", "--grp-attn-w"), "grp_attn_w", int, "N", "positions that are near, and exact"),
)
_FREQ_SCALE = "--rope-freq-scale"
_THREADS = (
    (
        ("-t", "--threads"),
        "n_threads",
        "threads for writing (default: the physical cores, or what `bench --tune` found)",
    ),
    (("-tb", "--threads-batch"), "n_threads_batch", "threads for reading prompts (default: -t)"),
)


def add(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add the flags; `defaults` take precedence over those of `EngineConfig`."""
    group = parser.add_argument_group("engine")
    for names, dest, what in _THREADS:
        group.add_argument(*names, dest=dest, type=int, metavar="N", help=what)
    add_flags(group, _FLAGS, EngineConfig, **defaults)
    group.add_argument(
        "--check-tensors", action="store_true", help="look for NaN and Inf in all weights first"
    )
    group.add_argument(
        "--no-prepared",
        dest="prepared",
        action="store_false",
        help="build the weights anew, even where `lariat prepare` has written them",
    )
    group.add_argument(
        "--swa-window-only",
        action="store_true",
        help="layers with an attention window keep only the keys in it: less memory, fewer edits",
    )
    group.add_argument(
        "--spec",
        dest="speculative",
        choices=("off", *SPECULATIVE),
        help="guess tokens, and check them together; the text stays the same: ngram guesses what "
        "repeats earlier text, auto pauses where it is wrong, draft asks the model of -md "
        "(default: off; draft with -md)",
    )
    group.add_argument(
        *("-md", "--model-draft"),
        dest="draft_model",
        metavar="FILE",
        help="a small model of the same vocabulary that guesses (default: the demo model has one)",
    )
    group.add_argument(
        *("--draft-max", "--draft", "--draft-n"),
        dest="n_draft",
        type=int,
        default=EngineConfig.n_draft,
        metavar="N",
        help=f"guesses at a time, up to 31 (default: {EngineConfig.n_draft})",
    )
    add_rope(parser)


def add_rope(parser: argparse.ArgumentParser) -> None:
    """Add only the flags of positions."""
    group = parser.add_argument_group("positions (default: as the file says)")
    add_flags(group, _ROPE, RopeConfig)
    group.add_argument(_FREQ_SCALE, type=float, metavar="X", help="1 / X is --rope-scale")


def rope(args: argparse.Namespace) -> RopeConfig:
    """The settings of the flags of positions. Raises UsageError that names the flag at fault."""
    if args.rope_freq_scale is not None:
        if args.scale is not None:
            raise UsageError(f"--rope-scale and {_FREQ_SCALE} mean the same: give one of them")
        if not args.rope_freq_scale > 0:
            raise UsageError(f"argument {_FREQ_SCALE}: {args.rope_freq_scale}, expected above 0")
        args.scale = 1 / args.rope_freq_scale
    return checked(RopeConfig, _ROPE, args)


def config(args: argparse.Namespace) -> EngineConfig:
    """The settings of all flags. Raises UsageError that names the flag at fault."""
    from lariat.runtime import threads

    values = checked(
        EngineConfig, _FLAGS, args, n_threads=args.n_threads, n_threads_batch=args.n_threads_batch,
        rope=rope(args), check_tensors=args.check_tensors,
        swa_window_only=args.swa_window_only,
        speculative=_speculative(args), n_draft=args.n_draft,
    )  # fmt: skip
    for names, dest, _ in _THREADS:
        try:
            threads.resolve(getattr(args, dest), "the number of threads")
        except ValueError as error:
            raise UsageError(f"argument {'/'.join(names)}: {error}") from None
    return values


def _speculative(args: argparse.Namespace) -> str | None:
    """Who guesses. Raises UsageError where the flags contradict each other."""
    if args.draft_model is None:
        if args.speculative == "draft" and (args.model != DEMO_MODEL or args.hf_repo):
            raise UsageError("argument --spec: draft needs a model that guesses: -md FILE")
    elif args.speculative in (None, "draft"):
        return "draft"
    else:
        raise UsageError(f"argument -md/--model-draft: not allowed with --spec {args.speculative}")
    return None if args.speculative == "off" else args.speculative


def load(
    args: argparse.Namespace,
    config: EngineConfig,
    overrides: Mapping[str, str | int | float | bool],
) -> LLM:
    """Load the model of -m, with a bar and a warning unless -q is given. Raises what `LLM` raises.

    The warning is about a context that is longer than the model was trained for.
    """
    from lariat.llm import LLM

    path = model_file.find(args)
    interrupts.begin_work()
    with console.Bar("loading", enabled=not args.quiet) as bar:
        llm = LLM(
            path,
            **vars(config),
            progress=bar,
            overrides=overrides,
            use_mmap=args.use_mmap,
            prepared=args.prepared,
            draft_model=args.draft_model,
        )
    for reason in llm.prepared_refused if not args.quiet else ():
        console.note(f"lariat: warning: prepared weights are not used: {console.brief(reason)}")
    n_trained = llm.config.n_ctx_train
    is_scaled = config.rope != RopeConfig() or getattr(args, "rope_read", None) is not None
    if llm.n_ctx > n_trained and not is_scaled and not args.quiet:
        console.note(
            f"lariat: warning: a context of {llm.n_ctx} is longer than the {n_trained} tokens that "
            "the model was trained for; its text gets worse there unless positions are scaled "
            "(--rope-scaling, or -gan or --rope-read with --cache raw)"
        )
    return llm
