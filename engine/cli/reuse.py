"""Reuse of computed tokens before a prompt: the flags of --prompt-cache and of --library."""

from __future__ import annotations

import argparse
import re
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from lariat.cli import console
from lariat.cli.usage import UsageError
from lariat.config import EngineConfig
from lariat.errors import ContextError

if TYPE_CHECKING:
    from lariat.llm import LLM, Completion, Context

_RECOMPUTE = "auto"  # docs/cache-measurements.md has the measurement


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    group = parser.add_argument_group("prompt cache")
    group.add_argument(
        "--prompt-cache",
        metavar="FILE",
        help="keep keys and values of the prompt in a file, and reuse those at the beginning of a "
        "later prompt that are equal",
    )
    either = group.add_mutually_exclusive_group()
    either.add_argument("--prompt-cache-all", action="store_true", help="keep the model's text too")
    either.add_argument(
        "--prompt-cache-ro", action="store_true", help="read the file, never write it"
    )
    group.add_argument(
        "--cache-reuse",
        type=int,
        default=0,
        metavar="N",
        help="with --cache raw, also reuse later runs of at least N equal tokens; 0: off (default: "
        "0)",
    )
    group = parser.add_argument_group("chunk library, see lariat chunk --help")
    group.add_argument(
        "--library", metavar="DIR", help="the folder of the library; implies --cache raw"
    )
    parser.set_defaults(cache=None)  # so that --library knows whether it was given
    group.add_argument(
        "--chunk",
        action="append",
        default=[],
        metavar="NAME",
        help="a chunk to put before the prompt; may be given several times",
    )
    group.add_argument(
        "--recompute",
        metavar="auto|none|all|N",
        default=_RECOMPUTE,
        help="tokens of each chunk but the first one to compute again, so that they see the tokens "
        "before them: its first ones and the passages that the prompt is about (auto), none, all, "
        f"or its first N (default: {_RECOMPUTE})",
    )


def check(args: argparse.Namespace) -> None:
    """Settle the cache's strategy. Raises UsageError if the flags do not fit together."""
    if args.cache is None:
        args.cache = "raw" if args.library is not None else EngineConfig.cache
    if args.prompt_cache is None:
        for name in ("prompt_cache_all", "prompt_cache_ro", "cache_reuse"):
            if getattr(args, name):
                raise UsageError(f"argument --{name.replace('_', '-')}: needs --prompt-cache")
    if args.cache_reuse < 0:
        raise UsageError(f"argument --cache-reuse: {args.cache_reuse} is negative")
    if args.cache_reuse and args.cache != "raw":
        raise UsageError("argument --cache-reuse: needs --cache raw, whose keys have no position")
    if bool(args.chunk) != (args.library is not None):
        raise UsageError("arguments --library and --chunk: one needs the other")
    if args.chunk and args.prompt_cache is not None:
        raise UsageError("argument --chunk: not allowed with argument --prompt-cache")
    if args.chunk and args.cache != "raw":
        raise UsageError("argument --chunk: needs --cache raw, whose keys have no position")
    recompute(args)


def check_files(args: argparse.Namespace) -> None:
    """Find out before the model is loaded that files or their folders are missing.

    Raises ContextError, or OSError for a prompt cache that is only to be read.
    """
    if args.chunk:
        from lariat.reuse.library import ChunkLibrary

        library = ChunkLibrary(args.library)
        for name in args.chunk:
            library.entry(name)
    if args.prompt_cache is None:
        return
    path = Path(args.prompt_cache)
    if args.prompt_cache_ro:
        path.stat()
    elif not path.parent.is_dir():
        raise ContextError(f"{path}: {path.parent} is not a folder that can be written")


def recompute(args: argparse.Namespace) -> str | int:
    """The value of --recompute. Raises UsageError if it is neither a word nor a number."""
    if args.recompute in ("auto", "none", "all"):
        return str(args.recompute)
    if not re.fullmatch(r"\d{1,9}", args.recompute):
        raise UsageError(
            f"argument --recompute: {args.recompute!r} is neither a number nor 'auto', 'none' or "
            "'all'"
        )
    return int(args.recompute)


class Start:
    """The start of a generation: here from an empty context, so the whole prompt is computed."""

    context: Context | None = None

    def __init__(self, llm: LLM, text: str) -> None:
        self.prompt: str | list[int] = text  # the rest of it, which is not computed yet

    def prompt_read(self, completion: Completion) -> None:
        """Called when the prompt is in the cache, before the first token is shown."""

    def close(self, completion: Completion) -> None:
        """Called at the end, if the prompt was read."""


class PromptCache(Start):
    """A context that begins with the tokens in the file of --prompt-cache."""

    def __init__(self, llm: LLM, text: str, args: argparse.Namespace) -> None:
        from lariat.formats.atomic import check_writable
        from lariat.reuse import prompt_reuse

        self._path, self._all = Path(args.prompt_cache), args.prompt_cache_all
        self._ids = llm.tokenizer.encode_part(text, parse_special=args.parse_special)
        self.context = context = llm.context()
        is_empty = self._path.is_file() and not self._path.stat().st_size
        if args.prompt_cache_ro or (self._path.exists() and not is_empty):
            context.load(self._path)
        is_new = context.tokens[: len(self._ids)] != self._ids
        self._write = is_new and not args.prompt_cache_ro
        if self._write or self._all:
            check_writable(self._path, ContextError)
        start = time.perf_counter()
        n_exact = prompt_reuse.common_prefix(context.tokens, self._ids)
        n_reused = prompt_reuse.fit(context, self._ids, args.cache_reuse)
        self._n_computed = len(context) - n_reused
        self._seconds = time.perf_counter() - start
        # The last token is computed in any case, for its logits.
        self._n_reused = min(n_reused, len(self._ids) - 1)
        self._n_moved = max(0, self._n_reused - n_exact)
        self.prompt = self._ids[len(context) :]

    def prompt_read(self, completion: Completion) -> None:
        """Write the file, unless it has the prompt already."""
        timings = completion.timings
        timings.n_reused, timings.n_moved = self._n_reused, self._n_moved
        timings.n_prompt += self._n_computed
        timings.prompt_s += self._seconds
        if self._write:
            assert self.context
            with self.context.fork() as prompt_alone:
                prompt_alone.truncate(len(self._ids))
                prompt_alone.save(self._path)

    def close(self, completion: Completion) -> None:
        """Write the file again, with the model's text behind the prompt."""
        if self._all and completion.token_ids:
            assert self.context
            self.context.save(self._path)


class Library(Start):
    """A context that begins with the chunks of --chunk."""

    def __init__(self, llm: LLM, text: str, args: argparse.Namespace) -> None:
        from lariat.reuse.library import ChunkLibrary, ReuseWarning

        library = ChunkLibrary(args.library)
        chunks = [library[name] for name in args.chunk]
        start = time.perf_counter()
        self.context = context = llm.context()
        self._n_computed = self._n_exact = 0
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", ReuseWarning)
            for i, chunk in enumerate(chunks):
                n = context.append(chunk, recompute=recompute(args))
                self._n_computed += n
                if i == 0 and chunk.is_exact:
                    self._n_exact = len(context) - n
        for warning in said if not args.quiet else ():
            console.note(f"lariat: warning: {console.brief(str(warning.message))}")
        self._n_tokens = len(context)
        self._seconds = time.perf_counter() - start
        self.prompt = text

    def prompt_read(self, completion: Completion) -> None:
        """Count the tokens of the chunks too."""
        timings = completion.timings
        # The prompt chooses tokens that placing computed, too: the first ones of each chunk.
        timings.n_recomputed = timings.n_recomputed or self._n_computed
        timings.n_reused = self._n_tokens - timings.n_recomputed
        timings.n_moved = timings.n_reused - self._n_exact
        timings.n_prompt += self._n_computed
        timings.prompt_s += self._seconds


def start(llm: LLM, text: str, args: argparse.Namespace) -> Start:
    """The start that the flags ask for. Raises LariatError or OSError for files that do not fit."""
    if args.chunk:
        return Library(llm, text, args)
    return Start(llm, text) if args.prompt_cache is None else PromptCache(llm, text, args)
