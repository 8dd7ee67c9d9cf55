"""Speculation: which requests of a step compute guesses beside their last token, and how many.

Drafts only fill what a step has left: they never take tokens or blocks from other requests.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol, cast

from lariat.config import EngineConfig
from lariat.runtime.request import Request
from lariat.runtime.scheduler import Step
from lariat.speculative.drafter import DRAFTERS, Drafter


class Guesser(Protocol):
    """Guesses for several requests at once: `lariat.runtime.draft_model`."""

    def guess(self, wanted: Sequence[tuple[Request, int]]) -> list[list[int]]:
        """Guess at most so many next tokens of each request."""

    def close(self) -> None:
        """Give back what it holds."""


class Drafting:
    """Adds guesses to the steps of one engine.

    settings  say who guesses, and how much
    n_ctx     no text grows beyond it
    guesser   guesses if `settings.speculative` is "draft"
    """

    def __init__(self, settings: EngineConfig, n_ctx: int, guesser: Guesser | None = None) -> None:
        self._settings, self._n_ctx, self._guesser = settings, n_ctx, guesser

    def close(self) -> None:
        """Close the guesser."""
        if self._guesser is not None:
            self._guesser.close()

    def add(self, step: Step, n_tokens: int, n_free: int) -> None:
        """Let requests that decode guess their next tokens, `Request.drafts`.

        At most `n_tokens` tokens are computed in the whole step, and at most `n_free` blocks taken.
        Steps that compute parts of prompts with all their logits, or try RoPE settings, have no
        drafts.
        """
        for request, _ in step.compute:
            request.drafts = []  # of a step that ended early
        if not self._settings.speculative or self._settings.swa_window_only:
            return
        requests = [request for request, _ in step.compute]
        if any(request.n_to_score or request.is_choosing for request in requests):
            return
        left = min(step.n_tokens_left, n_tokens - sum(n for _, n in step.compute))
        wanted: list[tuple[Request, int]] = []
        for request in requests:
            k = min(self._settings.n_draft, left, _n_guessable(request, self._n_ctx))
            while k > 0 and _n_more_blocks(request, k) + step.n_promised > n_free:
                k -= 1
            if k <= 0:
                continue
            if self._guesser is None:
                k = self._propose(request, k)
            else:
                wanted.append((request, k))
            left -= k
            step.n_promised += _n_more_blocks(request, k)
        if self._guesser is not None and wanted:
            self._guess(self._guesser, wanted)

    def _propose(self, request: Request, k: int) -> int:
        """Have a request's own drafter guess. Returns how many tokens it did."""
        if request.drafter is None:
            request.drafter = DRAFTERS[self._settings.speculative or ""]()
        try:
            drafter = cast(Drafter, request.drafter)
            request.drafts = drafter.propose(request.ids, k)[:k]
        except Exception as error:
            _switch_off([request], error)
        return len(request.drafts)

    def _guess(self, guesser: Guesser, wanted: list[tuple[Request, int]]) -> None:
        """Have all guess together."""
        try:
            guesses = guesser.guess(wanted)
        except Exception as error:
            _switch_off([request for request, _ in wanted], error)
            return
        for (request, _), drafts in zip(wanted, guesses, strict=True):
            request.drafts = drafts


def _switch_off(requests: Sequence[Request], error: Exception) -> None:
    for request in requests:
        request.guesses = False
    warnings.warn(f"speculation is switched off: {error}", RuntimeWarning, stacklevel=2)


def _n_more_blocks(request: Request, k: int) -> int:
    """Blocks that `k` guesses take beside those of the request's next token."""
    return request.n_new_blocks(1 + k) - request.n_new_blocks(1)


def _n_guessable(request: Request, n_ctx: int) -> int:
    """How many tokens behind its last one may be guessed and computed with it."""
    params = request.params
    if request.in_prompt or request.closed or not request.guesses:
        return 0
    if params.context_shift or request.read is not None:
        return 0
    n = n_ctx - len(request.ids)
    n_more = params.max_tokens - len(request.completion.token_ids) - 1
    return n if params.max_tokens < 0 else min(n, n_more)
