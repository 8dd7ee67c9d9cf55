"""The flags that every command has which runs a model: context, batch, cache, threads."""

from __future__ import annotations

import argparse

from engine.cli.usage import Flag, UsageError, add_flags, checked
from engine.config import CACHE_STRATEGIES, CACHE_TYPES, EngineConfig

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
_THREADS = (
    (("-t", "--threads"), "n_threads", "threads that write (default: the physical cores)"),
    (("-tb", "--threads-batch"), "n_threads_batch", "threads that read prompts (default: -t)"),
)


def add(parser: argparse.ArgumentParser, **defaults: int | str) -> None:
    """Add them; `defaults` go before those of `EngineConfig`."""
    group = parser.add_argument_group("engine")
    for names, dest, what in _THREADS:
        group.add_argument(*names, dest=dest, type=int, metavar="N", help=what)
    add_flags(group, _FLAGS, EngineConfig, **defaults)


def config(args: argparse.Namespace) -> EngineConfig:
    """What they say. UsageError names the flag at fault."""
    from engine import threads

    values = checked(
        EngineConfig, _FLAGS, args, n_threads=args.n_threads, n_threads_batch=args.n_threads_batch
    )
    for names, dest, _ in _THREADS:
        try:
            threads.resolve(getattr(args, dest), "the number of threads")
        except ValueError as error:
            raise UsageError(f"argument {'/'.join(names)}: {error}") from None
    return values
