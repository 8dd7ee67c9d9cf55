"""Opening a file, reading its vocabulary, loading the model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from lariat import LLM, GGUFFile, Tokenizer

from bench import synthetic
from bench.micro.conftest import N_THREADS, Record
from tests.reference import Reference, relative_error
from tests.support import vocabularies
from tests.support.vocabularies import BYTE_CHARACTERS

N_TOKENS = {
    "sentencepiece": synthetic.N_VOCAB,
    "sentencepiece of Gemma 3's size": 262_144,
    "BPE": 128_256,
    "BPE of Gemma 4's size": 262_144,
}
N_MERGES = {"BPE": 280_147, "BPE of Gemma 4's size": 514_906}  # the first are Llama 3's
LETTERS = "etaoinshrdlu"
TEXT = "one two three"
OPENING = "load: how long to open a file of 32,000 to 262,144 tokens, and to encode?"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The 15m shape, 18 MB of which most is vocabulary, and vocabularies as large as Gemma 3's and
    Llama 3's."""
    folder = tmp_path_factory.mktemp("vocabulary")
    largest = "sentencepiece of Gemma 3's size"
    beginning = [*vocabularies.BASE, *vocabularies.BYTES]
    pieces = [("\u2581", -1.0, vocabularies.NORMAL)]
    pieces += [
        (word, -float(rank), vocabularies.NORMAL)
        for rank, word in enumerate(_words(N_TOKENS[largest] - len(beginning) - 1, "\u2581"))
    ]
    vocabularies.write(folder / "pieces.gguf", beginning + pieces)
    words = _words(N_TOKENS["BPE"] - len(BYTE_CHARACTERS), "Ġ")
    vocabularies.write(
        folder / "bpe.gguf",
        [(token, 0.0, vocabularies.NORMAL) for token in BYTE_CHARACTERS + words],
        "gpt2",
        pre="llama-bpe",
        add_bos_token=False,
        merges=_merges(words, N_MERGES["BPE"]),
    )
    spaced = "BPE of Gemma 4's size"
    beginning += [(letter, 0.0, vocabularies.NORMAL) for letter in "\u2581" + LETTERS]
    words = _words(N_TOKENS[spaced] - len(beginning), "\u2581")
    vocabularies.write(
        folder / "spaced.gguf",
        beginning + [(word, 0.0, vocabularies.NORMAL) for word in words],
        "gemma4",
        add_bos_token=False,
        merges=_merges(words, N_MERGES[spaced]),
    )
    return {
        "sentencepiece": synthetic.model_path("15m"),
        largest: folder / "pieces.gguf",
        "BPE": folder / "bpe.gguf",
        spaced: folder / "spaced.gguf",
    }


def _words(n: int, blank: str) -> list[str]:
    """All words of two letters, of three, and so on, until they are `n`."""
    words: list[str] = []
    for length in itertools.count(2):
        words += map("".join, itertools.product(blank + LETTERS, repeat=length))
        if len(words) >= n:
            break
    return words[:n]


def _merges(words: list[str], n: int) -> list[str]:
    """All words of a length come before longer ones, so both halves of any split are tokens."""
    splits = (f"{word[:at]} {word[at:]}" for at in range(1, 6) for word in words if at < len(word))
    return list(itertools.islice(splits, n))


@pytest.mark.benchmark(group=OPENING)
@pytest.mark.parametrize("vocabulary", N_TOKENS)
def bench_open(benchmark: Any, record: Record, files: dict[str, Path], vocabulary: str) -> None:
    def open_and_close() -> int:
        with GGUFFile(files[vocabulary]) as gguf:
            return len(gguf.metadata["tokenizer.ggml.tokens"])

    n_tokens = benchmark.pedantic(open_and_close, rounds=7, warmup_rounds=1)
    record(correct=n_tokens == N_TOKENS[vocabulary])


@pytest.mark.benchmark(group=OPENING)
@pytest.mark.parametrize("vocabulary", N_TOKENS)
def bench_first_encode(
    benchmark: Any, record: Record, files: dict[str, Path], vocabulary: str
) -> None:
    kept: list[Tokenizer] = []  # so that freeing one is not measured

    def encode() -> str:
        with GGUFFile(files[vocabulary]) as gguf:
            kept.append(Tokenizer.from_gguf(gguf))
            return kept[-1].decode(kept[-1].encode(TEXT))

    text = benchmark.pedantic(encode, rounds=9, warmup_rounds=1)
    record(correct=text == TEXT)


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
