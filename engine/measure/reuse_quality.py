"""How good reused keys and values are: scores of answers, beside full prefill and no documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lariat.runtime.context import Context


@dataclass(frozen=True)
class Reference:
    """Predictions that others are compared with.

    log_probs  float32 [n_answer, n_vocab]: of each token of the answer, given those before it
    """

    log_probs: np.ndarray

    @property
    def top1(self) -> np.ndarray:
        """The likeliest tokens, int [n_answer]."""
        return self.log_probs.argmax(axis=1)


@dataclass(frozen=True)
class Score:
    """One answer.

    exact      whether greedy generation gives the answer, token by token
    nll        of the answer's tokens, nats a token
    kl         Kullback-Leibler divergence from full prefill, nats a token, over the answer
    top1       share of the answer's tokens whose likeliest token is full prefill's
    n_computed tokens of the documents that were computed, and tokens computed to choose them
    n_documents  tokens of the documents
    seconds    to the first token of the answer
    """

    exact: bool
    nll: float
    kl: float
    top1: float
    n_computed: int
    n_documents: int
    seconds: float


def predict(context: Context, question: Sequence[int], answer: Sequence[int]) -> np.ndarray:
    """Log probabilities of each token of `answer` behind `context` and `question`, float32
    [n_answer, n_vocab]."""
    rows = context.logits([*question, *answer[:-1]])[len(question) - 1 :]
    rows = rows - rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def score(
    log_probs: np.ndarray,
    full: np.ndarray,
    answer: Sequence[int],
    *,
    n_computed: int,
    n_documents: int,
    seconds: float = 0.0,
) -> Score:
    """Compare predictions with the answer, and with those of full prefill (`predict`)."""
    ids = np.asarray(answer)
    top1 = log_probs.argmax(axis=1)
    p = np.exp(full)
    return Score(
        exact=bool((top1 == ids).all()),
        nll=float(-log_probs[np.arange(len(ids)), ids].mean()),
        kl=float((p * (full - log_probs)).sum(axis=1).mean()),
        top1=float((top1 == full.argmax(axis=1)).mean()),
        n_computed=n_computed,
        n_documents=n_documents,
        seconds=seconds,
    )


def pgr(got: np.ndarray, full: np.ndarray, without: np.ndarray) -> float:
    """Performance gap recovered: 1 is full prefill, 0 no documents. Of scores, float [n] each; with
    NLL for scores too, which is better when it is less. NaN where the two do not differ."""
    gap = float(np.mean(full) - np.mean(without))
    return float(np.mean(got) - np.mean(without)) / gap if gap else float("nan")


def bootstrap(
    got: np.ndarray, full: np.ndarray, without: np.ndarray, n: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of `pgr`: questions are drawn anew with their three scores (paired)."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(got), (n, len(got)))
    found = np.array([pgr(got[d], full[d], without[d]) for d in draws])
    found = found[np.isfinite(found)]
    if not len(found):
        return float("nan"), float("nan")
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))
