"""Time to choose a token from its logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lariat import SamplingParams
from lariat.runtime.sampler import sample

from bench.micro.conftest import Record

CHAINS = {
    "greedy": SamplingParams(temperature=0),
    "default": SamplingParams(),
    "penalties": SamplingParams(repeat_penalty=1.1, frequency_penalty=0.1, presence_penalty=0.1),
    "no top-k": SamplingParams(top_k=0, typical_p=0.9),
}


def is_possible(token: int, logits: np.ndarray, params: SamplingParams) -> bool:
    """Return whether a chain may choose a token that is not penalized."""
    if params.temperature == 0:
        return token == int(np.argmax(logits))
    rank = int((logits > logits[token]).sum())
    likely = logits[token] - logits.max() >= np.log(params.min_p)
    return bool((not params.top_k or rank < params.top_k) and likely)


@pytest.mark.benchmark(group="sampler: what does choosing a token cost, by vocabulary and chain?")
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("n_vocab", [32_000, 128_000])
def bench_sample(
    benchmark: Any, record: Record, rng: np.random.Generator, n_vocab: int, chain: str
) -> None:
    logits = (3 * rng.standard_normal(n_vocab)).astype(np.float32)
    # Penalties concern tokens that no chain would choose, so that the possible ones stay known.
    previous = np.argsort(logits)[:64].tolist()
    draws = np.random.default_rng(1)
    tokens: list[int] = []
    benchmark.pedantic(
        lambda: tokens.append(sample(logits, CHAINS[chain], previous, draws)),
        rounds=60,
        warmup_rounds=3,
    )
    correct = all(is_possible(token, logits, CHAINS[chain]) for token in tokens)
    record(correct=correct, n_tokens=1)
