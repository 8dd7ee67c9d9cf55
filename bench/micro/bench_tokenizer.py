"""Text to tokens and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import GGUFFile, Tokenizer

from bench.micro.conftest import Record

N_CHARACTERS = 100_000


@pytest.fixture
def tokenizer(model: Path) -> Iterator[Tokenizer]:
    with GGUFFile(model) as gguf:
        yield Tokenizer.from_gguf(gguf)


def random_text(script: str, rng: np.random.Generator) -> str:
    if script == "one word":
        return "".join(rng.choice(list("abcdefgh"), N_CHARACTERS))
    if script == "other scripts":
        return "".join(chr(i) for i in rng.integers(0x3B1, 0x3C9, N_CHARACTERS // 2))
    words = ["".join(rng.choice(list("theandmw"), rng.integers(1, 9))) for _ in range(500)]
    return " ".join(rng.choice(words, N_CHARACTERS // 6))


@pytest.mark.benchmark(group="tokenizer: how fast is a long text encoded?")
@pytest.mark.parametrize("script", ["words", "one word", "other scripts"])
def bench_encode(
    benchmark: Any, record: Record, rng: np.random.Generator, tokenizer: Tokenizer, script: str
) -> None:
    text = random_text(script, rng)
    ids = benchmark.pedantic(tokenizer.encode, args=(text,), rounds=5, warmup_rounds=1)
    n_bytes = len(text.encode())
    record(correct=tokenizer.decode(ids) == text, n_bytes=n_bytes, n_tokens=len(ids))


@pytest.mark.benchmark(group="tokenizer: how fast is text made of tokens, at once or one by one?")
@pytest.mark.parametrize("how", ["at once", "streaming"])
def bench_decode(
    benchmark: Any, record: Record, rng: np.random.Generator, tokenizer: Tokenizer, how: str
) -> None:
    text = random_text("words", rng)
    ids = tokenizer.encode(text)

    def stream() -> str:
        decoder = tokenizer.decoder()
        return "".join([decoder.feed(i) for i in ids]) + decoder.flush()

    work = stream if how == "streaming" else lambda: tokenizer.decode(ids)
    got = benchmark.pedantic(work, rounds=5, warmup_rounds=1)
    record(correct=got.lstrip(" ") == text, n_bytes=len(text.encode()), n_tokens=len(ids))
