"""Lines about a run: the settings of the engine, and its speed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lariat.cli import console, model_file, sampling_flags

if TYPE_CHECKING:
    from lariat.llm import LLM
    from lariat.runtime.timings import Timings


def headline(llm: LLM, args: argparse.Namespace) -> str:
    """A line with the model and the settings, and another with the sampling of its file, if any."""
    from lariat import _kernels

    line = (
        f"lariat: {console.brief(model_file.shown(args.model))}, context {llm.n_ctx}, "
        f"{args.cache} cache (keys {args.type_k}, values {args.type_v}), "
        f"{_kernels.isa()}, threads {llm.n_threads} (prompt {llm.n_threads_batch})"
    )
    return "\n".join(filter(None, (line, sampling_flags.note(llm.sampling, args))))


def reused(timings: Timings) -> str:
    """How many tokens of the prompt were not computed, and how many of these are not exact."""
    text = f"{timings.n_reused} tokens"
    if timings.n_moved:
        text += f", {timings.n_moved} of them behind other text"
    if timings.n_recomputed:
        text += f"; {timings.n_recomputed} were computed again"
    return text


def guessed(timings: Timings) -> str:
    """How many tokens were guessed, how many of them came, and what a pass gave."""
    share = 100 * timings.n_accepted / max(timings.n_drafted, 1)
    return (
        f"{timings.n_drafted} tokens, of which {timings.n_accepted} came ({share:.0f} %), "
        f"{timings.decode_per_pass:.2f} tokens per pass"
    )


def rate(n_tokens: int, seconds: float) -> str:
    """Tokens, time, time per token, and tokens per second."""
    text = f"{n_tokens} tokens in {seconds * 1000:.1f} ms"
    if n_tokens and seconds > 0:
        text += (
            f", {seconds * 1000 / n_tokens:.2f} ms per token, "
            f"{n_tokens / seconds:.2f} tokens per second"
        )
    return text
