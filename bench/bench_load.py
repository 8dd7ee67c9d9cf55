"""From a file to a model that can run: opening it, reading the vocabulary, loading all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import synthetic
from bench.conftest import N_THREADS, Record
from engine import LLM, GGUFFile, Tokenizer
from tests.reference import Reference, relative_error

N_VOCAB = 32000


@pytest.fixture(scope="module")
def large_vocabulary() -> Path:
    """The 15m shape: 18 MB, of which most is vocabulary."""
    return synthetic.model_path("15m")


@pytest.mark.benchmark(group="load: how long to open a file of 32,000 tokens, and to encode?")
def bench_open(benchmark: Any, record: Record, large_vocabulary: Path) -> None:
    def open_and_close() -> int:
        with GGUFFile(large_vocabulary) as gguf:
            return len(gguf.metadata["tokenizer.ggml.tokens"])

    n_tokens = benchmark.pedantic(open_and_close, rounds=7, warmup_rounds=1)
    record(correct=n_tokens == N_VOCAB)


@pytest.mark.benchmark(group="load: how long to open a file of 32,000 tokens, and to encode?")
def bench_first_encode(benchmark: Any, record: Record, large_vocabulary: Path) -> None:
    def encode() -> str:
        with GGUFFile(large_vocabulary) as gguf:
            tokenizer = Tokenizer.from_gguf(gguf)
            return tokenizer.decode(tokenizer.encode("one two three"))

    text = benchmark.pedantic(encode, rounds=5, warmup_rounds=1)
    record(correct=text == "one two three")


@pytest.mark.benchmark(group="load: how fast is a model interleaved, 22M in Q4_0?")
@pytest.mark.parametrize("n_threads", sorted({1, N_THREADS}))
def bench_load(benchmark: Any, record: Record, model: Path, n_threads: int) -> None:
    def load() -> LLM:
        return LLM(model, n_threads=n_threads, n_ctx=64, n_ubatch=8)

    opened: list[LLM] = []
    benchmark.pedantic(lambda: opened.append(load()), rounds=5, warmup_rounds=1)
    ids = [1, 300, 4000, 77]
    logits = opened[-1].logits(ids)
    for llm in opened:
        llm.close()
    # Rounding activations to 8 bits makes 2 % of noise out of the smallest difference.
    correct = relative_error(logits, Reference(model, activations="q8_f16").logits(ids)) < 0.05
    record(correct=correct, n_threads=n_threads, n_bytes=model.stat().st_size)
