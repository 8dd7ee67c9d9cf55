"""Prompt and generation through the public API, with both cache strategies.

Run with `make bench`. The result is checked: the greedy tokens are those of the other strategy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import LLM, SamplingParams

N_PROMPT, N_WRITTEN = 256, 32
GREEDY = SamplingParams(temperature=0, max_tokens=N_WRITTEN, ignore_eos=True)


def prompt_ids(llm: LLM, n: int) -> list[int]:
    return [(31 * i) % (llm.n_vocab - 300) + 300 for i in range(n)]


def expected_ids(model: Path, cache: str, n_prompt: int) -> list[int]:
    """Greedy tokens of the strategy that is not timed."""
    with LLM(model, cache={"roped": "raw", "raw": "roped"}[cache], type_k="f32") as llm:
        return llm.generate(prompt_ids(llm, n_prompt), GREEDY).token_ids


@pytest.mark.benchmark(group="prompt of 256 tokens: roped or raw?")
@pytest.mark.parametrize("cache", ["roped", "raw"])
def bench_prompt(benchmark: Any, record: Any, model: Path, cache: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    with LLM(model, cache=cache, type_k="f32") as llm:
        ids = prompt_ids(llm, N_PROMPT)
        written = benchmark.pedantic(
            lambda: llm.generate(ids, params).token_ids, rounds=7, warmup_rounds=1
        )
        record(llm, N_PROMPT, written == expected_ids(model, cache, N_PROMPT)[:1])


@pytest.mark.benchmark(group="32 tokens from an empty context: roped or raw?")
@pytest.mark.parametrize("cache", ["roped", "raw"])
def bench_generate(benchmark: Any, record: Any, model: Path, cache: str) -> None:
    with LLM(model, cache=cache, type_k="f32") as llm:
        ids = prompt_ids(llm, 1)
        written = benchmark.pedantic(
            lambda: llm.generate(ids, GREEDY).token_ids, rounds=7, warmup_rounds=1
        )
        record(llm, N_WRITTEN, written == expected_ids(model, cache, 1))
