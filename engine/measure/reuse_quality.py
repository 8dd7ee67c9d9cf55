"""How good reused keys and values are: scores of answers, beside full prefill and no documents."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from lariat.runtime.context import Context
from lariat.runtime.sampler import log_softmax


@dataclass(frozen=True)
class Score:
    """One answer.

    exact  whether greedy generation gives the answer, token by token
    nll    of the answer's tokens, nats a token
    kl     Kullback-Leibler divergence from full prefill, nats a token, over the answer
    top1   share of the answer's tokens whose likeliest token is full prefill's
    """

    exact: bool
    nll: float
    kl: float
    top1: float


def predict(context: Context, question: Sequence[int], answer: Sequence[int]) -> np.ndarray:
    """Log probabilities of each token of `answer` behind `context` and `question`, float32
    [n_answer, n_vocab]."""
    return log_softmax(context.logits([*question, *answer[:-1]])[len(question) - 1 :])


def score(log_probs: np.ndarray, full: np.ndarray, answer: Sequence[int]) -> Score:
    """Compare predictions (`predict`) with the answer, and with those of full prefill."""
    ids, top1 = np.asarray(answer), log_probs.argmax(axis=1)
    return Score(
        exact=bool((top1 == ids).all()),
        nll=float(-log_probs[np.arange(len(ids)), ids].mean()),
        kl=float((np.exp(full) * (full - log_probs)).sum(axis=1).mean()),
        top1=float((top1 == full.argmax(axis=1)).mean()),
    )


def pgr(got: np.ndarray, full: np.ndarray, without: np.ndarray) -> float:
    """Performance gap recovered: 1 is full prefill, 0 no documents. Of scores, float [n] each; with
    NLL for scores too, which is better when it is less. NaN where the two do not differ."""
    gap = float(np.mean(full) - np.mean(without))
    return float(np.mean(got) - np.mean(without)) / gap if gap else float("nan")


def bootstrap(
    got: np.ndarray,
    full: np.ndarray,
    without: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    n: int = 2000,
) -> tuple[float, float]:
    """The 95 % interval of `pgr`, NaN where there is none.

    Questions are drawn anew, each with its three scores (paired). Questions of one group, such as
    those about the same documents, are drawn together.
    """
    names = list(range(len(got)) if groups is None else groups)
    members = [np.flatnonzero([name == one for name in names]) for one in dict.fromkeys(names)]
    sums = np.array([[a[i].sum() for a in (got, full, without)] for i in members], float)
    draws = np.random.default_rng(0).integers(0, len(members), (n, len(members)))
    some, best, least = sums[draws].sum(axis=1).T
    has_gap = best != least
    found = (some - least)[has_gap] / (best - least)[has_gap]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)
