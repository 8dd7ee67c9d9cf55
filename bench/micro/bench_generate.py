"""Prompt and generation through the public API, with both cache strategies.

The result is checked: the other strategy finds the same tokens likeliest, and sequences write the
same together as alone.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import LLM, GGUFFile, SamplingParams

from bench.micro.conftest import N_THREADS, Record

N_PROMPT, N_WRITTEN = 256, 32
GREEDY = SamplingParams(temperature=0, max_tokens=N_WRITTEN, ignore_eos=True)
OTHER = {"roped": "raw", "raw": "roped"}


def prompt_ids(llm: LLM, n: int, first: int = 0) -> list[int]:
    return [(31 * (i + first)) % (llm.n_vocab - 300) + 300 for i in range(n)]


@cache
def weight_bytes(model: Path) -> int:
    """Bytes of all tensors but the embedding: read once a pass."""
    with GGUFFile(model) as gguf:
        embedding = gguf.tensors["token_embd.weight"].n_bytes
        return sum(info.n_bytes for info in gguf.tensors.values()) - embedding


def are_likeliest(model: Path, strategy: str, ids: list[int], written: list[int]) -> bool:
    """Whether the other strategy would have written these tokens too, but for near ties: rounding
    activations to 8 bits makes 2 % of noise out of the smallest difference."""
    with LLM(model, cache=OTHER[strategy], type_k="f32") as llm:
        logits = llm.logits([*ids, *written[:-1]])[len(ids) - 1 :]
    missing = logits.max(axis=1) - logits[np.arange(len(written)), written]
    return bool((missing < 0.2 * logits.std()).all())


@pytest.mark.benchmark(group="generate: a prompt of 256 tokens, roped or raw?")
@pytest.mark.parametrize("strategy", OTHER)
def bench_prompt(benchmark: Any, record: Record, model: Path, strategy: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    with LLM(model, cache=strategy, type_k="f32", prefix_sharing=False) as llm:  # all of it, again
        ids = prompt_ids(llm, N_PROMPT)
        written = benchmark.pedantic(
            lambda: llm.generate(ids, params).token_ids, rounds=7, warmup_rounds=1
        )
    record(
        correct=are_likeliest(model, strategy, ids, written),
        n_threads=N_THREADS,
        n_tokens=N_PROMPT,
    )


@pytest.mark.benchmark(group="generate: 32 tokens from an empty context, roped or raw?")
@pytest.mark.parametrize("n_threads", sorted({1, N_THREADS}))
@pytest.mark.parametrize("strategy", OTHER)
def bench_write(benchmark: Any, record: Record, model: Path, strategy: str, n_threads: int) -> None:
    with LLM(model, cache=strategy, type_k="f32", n_threads=n_threads) as llm:
        ids = prompt_ids(llm, 1)
        written = benchmark.pedantic(
            lambda: llm.generate(ids, GREEDY).token_ids, rounds=7, warmup_rounds=1
        )
    record(
        correct=are_likeliest(model, strategy, ids, written),
        n_threads=n_threads,
        n_bytes=N_WRITTEN * weight_bytes(model),
        n_tokens=N_WRITTEN,
    )


@pytest.mark.benchmark(group="generate: what do several sequences at once bring?")
@pytest.mark.parametrize("n_sequences", [1, 2, 4, 8])
def bench_batch(benchmark: Any, record: Record, model: Path, n_sequences: int) -> None:
    with LLM(model, type_k="f32") as llm:
        prompts = [prompt_ids(llm, 8, 100 * i) for i in range(n_sequences)]
        alone = [llm.generate(prompt, GREEDY).token_ids for prompt in prompts]
        done = benchmark.pedantic(lambda: llm.generate(prompts, GREEDY), rounds=5, warmup_rounds=1)
    record(
        correct=[completion.token_ids for completion in done] == alone,
        n_threads=N_THREADS,
        n_bytes=N_WRITTEN * weight_bytes(model),
        n_tokens=N_WRITTEN * n_sequences,
    )
