"""Speculation: which requests of a step compute guesses beside their last token, and how many.

Drafts only fill what a step has left: they never take tokens or blocks from other requests.
"""

from __future__ import annotations

import warnings

from lariat.config import EngineConfig
from lariat.runtime.request import Request
from lariat.runtime.scheduler import Step
from lariat.speculative.drafter import DRAFTERS


def add_drafts(step: Step, settings: EngineConfig, n_tokens: int, n_ctx: int, n_free: int) -> None:
    """Let requests that decode guess their next tokens, `Request.drafts`.

    No text grows beyond `n_ctx`. At most `n_tokens` tokens are computed in the whole step, and at
    most `n_free` blocks taken.
    Steps that compute parts of prompts with all their logits, or try RoPE settings, have no drafts.
    """
    for request, _ in step.compute:
        request.drafts = []  # of a step that ended early
    if not settings.speculative or settings.swa_window_only:
        return
    requests = [request for request, _ in step.compute]
    if any(request.n_to_score or request.is_choosing for request in requests):
        return
    left = min(step.n_tokens_left, n_tokens - sum(n for _, n in step.compute))
    for request in requests:
        k = min(settings.n_draft, left, _n_guessable(request, n_ctx))
        while k > 0 and (
            request.n_new_blocks(1 + k) - request.n_new_blocks(1) + step.n_promised > n_free
        ):
            k -= 1
        if k <= 0:
            continue
        if request.drafter is None:
            request.drafter = DRAFTERS[settings.speculative]()
        try:
            request.drafts = request.drafter.propose(request.ids, k)[:k]
        except Exception as error:
            request.guesses = False
            warnings.warn(f"speculation is switched off: {error}", RuntimeWarning, stacklevel=2)
            continue
        n = len(request.drafts)
        left -= n
        step.n_promised += request.n_new_blocks(1 + n) - request.n_new_blocks(1)


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
