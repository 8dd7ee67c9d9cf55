"""Log-probabilities of tokens: of those that a request wrote, and of those of its prompt.

They are what the model says: log_softmax of the logits as they come, before biases, penalties,
temperature and all other stages. A rank of 1 means that greedy decoding takes the token. None is
less than `FLOOR`, so that JSON can hold each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt
from lariat.runtime import sampler

FLOOR = -9999.0
_AT_ONCE = 8 << 20  # bytes of rows whose log_softmax is in memory at once

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability, and the likeliest tokens of its place.

    rank  how likely it is among all tokens; 1 is the likeliest
    top   the likeliest tokens and their log-probabilities, the likeliest first
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class PromptLogprobs(Sequence[TokenLogprob | None]):
    """Log-probabilities of the tokens of a prompt, in arrays; None for tokens that have none.

    n_done        how many of the first tokens are done: they have theirs, or get none

    token_ids     int32 [n]
    logprobs      float32 [n]
    ranks         int32 [n], 0 for tokens that have none
    top_ids       int32 [n, n_top], the likeliest first
    top_logprobs  float32 [n, n_top]
    """

    def __init__(self, token_ids: Sequence[int], n_top: int, first: int = 1) -> None:
        """`first`: the first token that gets one."""
        n = len(token_ids)
        self.n_done = max(1, first)
        self.token_ids: Ids = np.array(token_ids, np.int32)
        self.logprobs: Floats = np.zeros(n, np.float32)
        self.ranks: Ids = np.zeros(n, np.int32)
        self.top_ids: Ids = np.zeros((n, n_top), np.int32)
        self.top_logprobs: Floats = np.zeros((n, n_top), np.float32)

    def __len__(self) -> int:
        return len(self.token_ids)

    @overload
    def __getitem__(self, index: int) -> TokenLogprob | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenLogprob | None]: ...
    def __getitem__(self, index: int | slice) -> TokenLogprob | list[TokenLogprob | None] | None:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not self.ranks[index]:
            return None
        top = zip(self.top_ids[index].tolist(), self.top_logprobs[index].tolist(), strict=True)
        return TokenLogprob(
            int(self.token_ids[index]),
            float(self.logprobs[index]),
            int(self.ranks[index]),
            tuple(top),
        )

    def __iter__(self) -> Iterator[TokenLogprob | None]:
        return (self[i] for i in range(len(self)))

    @property
    def n_missing(self) -> int:
        """Tokens that still get one."""
        return len(self) - self.n_done

    def take(self, logits: Floats) -> None:
        """Take the logits before the next tokens, float32 [n, n_vocab]. LariatError if they are not
        finite."""
        n_at_once = max(1, _AT_ONCE // (4 * logits.shape[1]))
        for at in range(0, len(logits), n_at_once):
            self._take(logits[at : at + n_at_once])

    def _take(self, logits: Floats) -> None:
        sampler.check_finite(logits)
        top, normalizer = sampler.normalizers(logits)
        rows, n_top = np.arange(len(logits))[:, None], self.top_ids.shape[1]
        places = slice(self.n_done, self.n_done + len(logits))
        tokens = self.token_ids[places]
        self.logprobs[places] = _floored(logits[rows, tokens[:, None]] - top - normalizer)[:, 0]
        self.ranks[places] = [rank(*pair) for pair in zip(logits, tokens.tolist(), strict=True)]
        if n_top:
            best = np.array([sampler.top_k(row, n_top) for row in logits], np.int32)
            self.top_ids[places] = best
            self.top_logprobs[places] = _floored(logits[rows, best] - top - normalizer)
        self.n_done += len(logits)


class Prediction:
    """Log-probabilities of one row of logits, float32 [n_vocab], which the next pass overwrites."""

    def __init__(self, logits: Floats, n_top: int) -> None:
        self._logits = logits.copy()
        top, normalizer = sampler.normalizers(logits[None])
        self._top, self._normalizer = top[0, 0], normalizer[0, 0]
        best = sampler.top_k(logits, n_top) if n_top else np.zeros(0, np.intp)
        self._best = tuple(zip(best.tolist(), self._log_probs(best), strict=True))

    def of(self, token: int) -> TokenLogprob:
        """Log-probability of a token."""
        (logprob,) = self._log_probs(np.array([token]))
        return TokenLogprob(token, logprob, rank(self._logits, token), self._best)

    def _log_probs(self, tokens: npt.NDArray[np.intp]) -> list[float]:
        return _floored(self._logits[tokens] - self._top - self._normalizer).tolist()


def check_n_top(name: str, n_top: int | None, n_vocab: int) -> None:
    """Raise ValueError for more top tokens than the vocabulary has."""
    if n_top is not None and n_top > n_vocab:
        raise ValueError(f"{name} is {n_top}, and the vocabulary has {n_vocab} tokens")


def rank(logits: Floats, token: int) -> int:
    """Rank of a token by its logit, of [n_vocab]; where several are equal the lower id is first."""
    own = logits[token]
    n_before = np.count_nonzero(logits > own) + np.count_nonzero(logits[:token] == own)
    return 1 + int(n_before)


def _floored(log_probs: Floats) -> Floats:
    return np.maximum(log_probs, np.float32(FLOOR))
