"""The stages of one request between its penalties and top-k, which see what it wrote before.

    processors -> grammar -> ends that are held back

Processors are functions of the caller. A grammar (`lariat.config.TokenGrammar`) comes behind them,
so that nothing allows what it forbids. `ignore_eos` and `min_tokens` hold tokens back that would
end the text; where a grammar allows nothing else, the text ends all the same.

Errors of processors and grammars are `LariatError`: they end this request, and no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from lariat.config import SamplingParams, TokenGrammar
from lariat.errors import LariatError

Floats = npt.NDArray[np.floating]


class Stages:
    """The stages of one request, and the state of its grammar.

    eog_ids  tokens with which a model ends its text
    end_ids  tokens that end the text of this request
    """

    def __init__(self, params: SamplingParams, eog_ids: frozenset[int]) -> None:
        self._processors = params.logits_processors
        grammar = cast("TokenGrammar | None", params.grammar)
        self._matcher = None if grammar is None else grammar.start()
        self._min_tokens = params.min_tokens
        self._n_accepted = 0
        is_endable = not params.ignore_eos or self._matcher is not None
        self.end_ids = frozenset(params.stop_token_ids) | (eog_ids if is_endable else frozenset())
        self._never = np.array(sorted(eog_ids if params.ignore_eos else ()), np.intp)
        self._not_yet = np.array(sorted(eog_ids.union(params.stop_token_ids)), np.intp)

    @property
    def are_needed(self) -> bool:
        """Whether `change` does anything to the next token."""
        return bool(
            self._processors or self._matcher is not None or self._never.size or self.holds_ends
        )

    @property
    def holds_ends(self) -> bool:
        """Whether `min_tokens` still asks for more text."""
        return self._n_accepted < self._min_tokens

    def held(self, n_more: int = 0) -> npt.NDArray[np.intp]:
        """Tokens that would end the text, and must not come behind `n_more` more tokens."""
        is_too_short = self._n_accepted + n_more < self._min_tokens
        return self._not_yet if is_too_short else self._never

    @property
    def is_done(self) -> bool:
        """Whether the grammar allows no more text."""
        return self._matcher is not None and bool(self._matcher.is_done)

    def change(self, logits: Floats, ids: Sequence[int]) -> Floats:
        """Logits [n_vocab] for the token behind all `ids`. `logits` may be changed in place."""
        for processor in self._processors:
            logits = _processed(processor, logits, ids)
        if self._matcher is not None:
            try:
                self._matcher.mask(logits)
            except Exception as error:
                raise LariatError(f"the grammar failed: {error}") from error
        held = self.held()
        if held.size:
            kept = logits[held]
            logits[held] = -np.inf
            if self._matcher is not None and logits.max() == -np.inf:
                logits[held] = kept
        return logits

    def accept(self, token: int) -> None:
        """Take a token of the text; not one that ends it."""
        self._n_accepted += 1
        if self._matcher is not None:
            try:
                self._matcher.accept(token)
            except Exception as error:
                raise LariatError(f"the grammar failed: {error}") from error

    def forced(self) -> list[int]:
        """Tokens that the grammar leaves no choice about, and that come next; often none."""
        if self._matcher is None or self.is_done:
            return []
        try:
            return list(self._matcher.forced())
        except Exception as error:
            raise LariatError(f"the grammar failed: {error}") from error


def _processed(processor: Any, logits: Floats, ids: Sequence[int]) -> Floats:
    """Have a processor change logits. It gets copies, which it may change and keep."""
    name = getattr(processor, "__name__", type(processor).__name__)
    try:
        made = np.array(processor(list(ids), logits.astype(np.float32)), np.float32)
    except Exception as error:
        raise LariatError(
            f"the logits processor {name} raised {type(error).__name__}: {error}"
        ) from error
    if made.shape != logits.shape:
        raise LariatError(
            f"the logits processor {name} returned shape {made.shape}, expected {logits.shape}"
        )
    return made
