"""Short texts have the ids that the tables of `tokenizers` give, which are not built for them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lariat.formats.gguf import GGUFFile
from lariat.tokenizers import bpe, short_texts
from lariat.tokenizers.tokenizer import Tokenizer

from tests.support.model_files import write_gguf
from tests.support.real_models import SMOLLM2, needs_smollm2
from tests.support.together import run_together
from tests.support.vocabularies import characters

JUDGED = json.loads((Path(__file__).parents[1] / "data" / "bpe_llama_cpp.json").read_text())
NORMAL, CONTROL = 1, 3
PAIR = tuple[Tokenizer, Tokenizer]


def both(path: Path, pre: str | None = None) -> PAIR:
    """A tokenizer that merges short texts by itself, and one that never does."""
    overrides = {} if pre is None else {"tokenizer.ggml.pre": pre}
    made = []
    for max_text in (short_texts.MAX_TEXT, -1):
        with pytest.MonkeyPatch.context() as patch, GGUFFile(path, overrides) as file:
            patch.setattr(short_texts, "MAX_TEXT", max_text)
            patch.setattr(short_texts, "_MAX_TOTAL", 1 << 30)
            tokenizer = Tokenizer.from_gguf(file)
            tokenizer.encode("a")  # builds the tables now, if it builds them
            made.append(tokenizer)
    return made[0], made[1]


def write(path: Path, tokens: list[str], merges: list[str], types: list[int]) -> Path:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": False,
    }
    return write_gguf(path, metadata)


@pytest.fixture
def n_built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often tables were built."""
    count, real = [0], bpe.Pipeline

    def build(*args: object) -> object:
        count[0] += 1
        return real(*args)

    monkeypatch.setattr(bpe, "Pipeline", build)
    return count


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judged") / "v.gguf"
    return write(path, JUDGED["tokens"], JUDGED["merges"], JUDGED["types"])


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "deepseek-llm", "llama-bpe"])
def test_texts_of_many_scripts(judged, pre):
    short, whole = both(judged, pre)
    for text in JUDGED["texts"]:
        assert short.encode(text) == whole.encode(text), text


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(max_size=60))
def test_any_text(pair, text):
    short, whole = pair
    assert short.encode(text) == whole.encode(text)


@pytest.fixture(scope="module")
def pair(judged) -> PAIR:
    return both(judged)


@pytest.mark.parametrize("seed", range(20))
def test_random_vocabularies(tmp_path, seed):
    """Merges pass through texts that are no tokens, or control tokens; bytes have no token."""
    rng = random.Random(seed)
    letters = "abcdé"
    tokens = [one for one in characters() if one not in "bd" or rng.random() < 0.5]
    known, merges = list(letters), []
    for _ in range(60):
        left, right = rng.choice(known), rng.choice(known)
        merges.append(f"{left} {right}")
        if len(left + right) < 9:
            known.append(left + right)
    merges += [*rng.sample(merges, 5), "", " ", "a", "a  b", " a b"]
    for text in dict.fromkeys("".join(merge.split()) for merge in merges):
        if text and rng.random() < 0.6:
            tokens += [text] * rng.choice([1, 1, 2])
    types = [CONTROL if rng.random() < 0.1 else NORMAL for _ in tokens]
    short, whole = both(write(tmp_path / "v.gguf", tokens, merges, types))
    for _ in range(60):
        text = "".join(rng.choices(letters + " ", k=rng.choice([1, 2, 7, 30])))
        assert short.encode(text) == whole.encode(text), text
        before = whole.encode(text)
        assert short.encode_behind(before, "ab") == whole.encode_behind(before, "ab")


@needs_smollm2
def test_a_real_vocabulary():
    short, whole = both(SMOLLM2)
    text = (Path(__file__).parents[2] / "README.md").read_text()
    for line in [*text.splitlines()[:60], *JUDGED["texts"]]:
        assert short.encode(line) == whole.encode(line), line


def test_tables_are_built_for_long_texts_and_then_serve_all(judged, n_built):
    with GGUFFile(judged) as file:
        tokenizer = Tokenizer.from_gguf(file)
    tokenizer.encode("a few words")
    tokenizer.encode("a" * short_texts.MAX_TEXT + " ")
    assert n_built == [1], "a text that is too long"
    tokenizer.encode("a few words")
    tokenizer.encode("a " * short_texts.MAX_TEXT)
    assert n_built == [1]


def test_tables_are_built_for_long_words_and_for_many_texts(judged, n_built):
    with GGUFFile(judged) as file:
        tokenizer = Tokenizer.from_gguf(file)
        tokenizer.encode("a " * 20)
        assert n_built == [0]
        tokenizer.encode("a" * 100)
        assert n_built == [1]
        tokenizer = Tokenizer.from_gguf(file)
    for _ in range(10):
        tokenizer.encode("a " * 400)
    assert n_built == [2]


def test_threads_that_need_the_tables_build_them_once(judged, n_built):
    with GGUFFile(judged) as file:
        tokenizer = Tokenizer.from_gguf(file)
    text, found = "some words " * 400, []
    run_together(lambda _: found.append(tokenizer.encode(text)))
    assert n_built == [1]
    assert all(ids == found[0] for ids in found)


def test_words_that_are_tokens_need_the_tables(judged, n_built):
    """Where the file says that they are not merged."""
    with GGUFFile(judged, {"tokenizer.ggml.pre": "llama-bpe"}) as file:
        Tokenizer.from_gguf(file).encode("a")
    assert n_built == [1]
