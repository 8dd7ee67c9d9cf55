"""How an answer ended, and how many tokens it took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from lariat.runtime.request import Completion

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


def finish_reason(reason: str | None) -> FinishReason:
    """OpenAI's word for how a `Completion` ended: a full context cuts it, as a limit does."""
    return "stop" if reason == "stop" else "length"


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How a stream is sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # without effect: there is none


class PromptDetails(msgspec.Struct, kw_only=True):
    """Where the keys and values of prompts came from.

    cached_tokens      were in the cache already
    computed_tokens    were computed, for all answers of the request together
    moved_tokens       of the cached ones, those that other text stands before now
    recomputed_tokens  of the computed ones, those that were in the cache too
    """

    cached_tokens: int = 0
    computed_tokens: int = 0
    moved_tokens: int = 0
    recomputed_tokens: int = 0


class CompletionDetails(msgspec.Struct, kw_only=True):
    """How the tokens of answers came about.

    reasoning_tokens            are those of thoughts
    accepted_prediction_tokens  were guessed by speculation
    rejected_prediction_tokens  were guessed and did not come; they are in no other count
    """

    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of a request: each prompt counts once, and all of its answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def of(prompts: Iterable[Sequence[Completion]], n_reasoning: int = 0) -> Usage:
    """The usage of the answers to each prompt. There may be prompts without an answer yet."""
    details, written = PromptDetails(), CompletionDetails(reasoning_tokens=n_reasoning)
    n_prompt = n_written = 0
    for answers in prompts:
        for number, done in enumerate(answers):
            timings = done.timings
            details.computed_tokens += timings.n_prompt
            n_written += len(done.token_ids)
            written.accepted_prediction_tokens += timings.n_accepted
            written.rejected_prediction_tokens += timings.n_drafted - timings.n_accepted
            if number == 0:
                n_prompt += len(done.prompt_ids)
                details.cached_tokens += timings.n_reused
                details.moved_tokens += timings.n_moved
                details.recomputed_tokens += timings.n_recomputed
    return Usage(
        prompt_tokens=n_prompt,
        completion_tokens=n_written,
        total_tokens=n_prompt + n_written,
        prompt_tokens_details=details,
        completion_tokens_details=written,
    )
