"""Text behind text in contexts with byte-level BPE: the last word may become another one.

`tests/tokenizers/test_tokenizer_parts.py` has the rule for ids; here its tokens are replaced in the
cache.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lariat import LLM, ChunkLibrary, Context, ContextError, SamplingParams

from tests.support.contexts import CACHES, load, n_free
from tests.support.model_files import write_llama
from tests.support.real_models import SMOLLM2, needs_smollm2

JUDGED = json.loads((Path(__file__).parents[1] / "data" / "bpe_llama_cpp.json").read_text())
READ = SamplingParams(max_tokens=0)
ONE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
# Its last words change whenever text follows.
ENDINGS = ("Tom had  ", "so \n", "The\r\n", "12345", "it'", "end", "a!", "x\t")
STORY = "Tom had  12345 hens, it's so!\n \n\n  The end\t\n don't   12 \r\n\r\n "


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": JUDGED["tokens"],
        "token_type": JUDGED["types"],
        "merges": JUDGED["merges"],
        "bos_token_id": JUDGED["bos"],
        "eos_token_id": JUDGED["eos"],
        "scores": None,
        "unknown_token_id": None,
    }
    return write_llama(
        tmp_path_factory.mktemp("words") / "m.gguf",
        n_ctx=512,
        head_dim=32,
        n_vocab=len(JUDGED["tokens"]),
        metadata={f"tokenizer.ggml.{key}": value for key, value in metadata.items()},
    )


@pytest.fixture(scope="module", params=CACHES)
def llm(path: Path, request: pytest.FixtureRequest) -> Iterator[LLM]:
    with load(path, request.param, n_threads=1) as llm:
        yield llm


def put(llm: LLM, context: Context, piece: str, way: int) -> None:
    if way == 0:
        llm.generate(piece, READ, context=context)
    elif way == 1:
        n = len(context)
        kept, ids = llm.tokenizer.encode_behind(context.tokens, piece)
        assert len(context.logits(piece)) == len(ids)
        llm.generate(piece, ONE, context=context)
        assert len(context) == kept + len(ids) + 1
        context.truncate(kept + len(ids))  # without the answer
        assert n >= kept
    else:
        context.append(piece)


def check_pieces(llm: LLM, text: str, rng: random.Random, tolerance: float = 2e-3) -> int:
    """Append a text in pieces that end where its tokens end; returns how often tokens went.

    tolerance: of logits, as a part of the largest.
    """
    whole = llm.tokenize(text)
    data, at, ends = text.encode(), 0, []
    for i in whole:
        at += len(llm.tokenizer.decode_token(i))
        if at == len(data) or (at and data[at] & 0xC0 != 0x80):
            ends.append(at)
    cuts = sorted({0, *rng.sample(ends, rng.randint(0, len(ends))), len(data)})
    n_replaced = 0
    with llm.context() as context:
        for start, stop in itertools.pairwise(cuts):
            before = context.tokens
            put(llm, context, data[start:stop].decode(), rng.randrange(4))
            n_replaced += context.tokens[: len(before)] != before
        assert context.tokens == whole, (text, cuts)
        with llm.context() as at_once:
            at_once.append(text)
            expected = at_once.logits("!?")[-1]
        assert (
            np.abs(context.logits("!?")[-1] - expected).max() < tolerance * np.abs(expected).max()
        )
    return n_replaced


def test_appended_pieces_are_the_whole(llm: LLM) -> None:
    rng = random.Random(3)
    free = n_free(llm)
    n_replaced = 0
    for _ in range(25):
        text = STORY[rng.randrange(30) :] + rng.choice(ENDINGS) + rng.choice(ENDINGS)
        n_replaced += check_pieces(llm, text, rng)
    assert n_replaced > 20
    assert n_free(llm) == free


@needs_smollm2
@settings(max_examples=15, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_appended_pieces_are_the_whole_with_smollm2(
    smollm2: LLM, data: st.DataObject, seed: int
) -> None:
    pieces = [
        " the",
        "Tom",
        "ll",
        "12",
        "345",
        "'",
        "'s",
        " ",
        "  ",
        "\n",
        "\r\n",
        "é",
        "日本",
        "!",
    ]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), min_size=1, max_size=14)))
    assume(smollm2.detokenize(smollm2.tokenize(text)) == text)
    check_pieces(smollm2, text, random.Random(seed), 5e-2)  # activations of 8 bits


@pytest.fixture(scope="module")
def smollm2() -> Iterator[LLM]:
    with LLM(SMOLLM2, n_ctx=128, cache="raw") as llm:
        yield llm


@pytest.mark.parametrize("ending", ENDINGS)
def test_only_the_tokens_that_text_changes_are_computed(llm: LLM, ending: str) -> None:
    """If the tokens before are a beginning of the whole's, none of them is computed again."""
    with llm.context() as context:
        context.append(f"One day {ending}")
        before = context.tokens
        whole = llm.tokenize(f"One day {ending}3s")
        pairs = enumerate(zip(before, [*whole, -1], strict=False))
        n_same = next((n for n, (a, b) in pairs if a != b), len(before))
        assert context.append("3s") == len(whole) - n_same
        assert context.tokens == whole


def test_inserted_text_looks_at_its_left_alone(llm: LLM) -> None:
    with llm.context() as context:
        context.append("Tom had  ")
        n = len(context)
        behind = llm.tokenize("hens", add_bos=False)
        context.append(behind)
        n_computed = context.insert(n, "two")
        expected = llm.tokenize("Tom had  two")
        assert context.tokens == [*expected, *behind]
        assert n_computed == len(expected) - n + 1, "the second blank is replaced"


def test_ids_are_put_in_as_they_are(llm: LLM) -> None:
    with llm.context() as context:
        context.append("Tom had  ")
        before, ids = context.tokens, llm.tokenize("two", add_bos=False)
        assert context.append(ids) == len(ids)
        assert context.tokens == before + ids
        assert llm.generate(ids, READ, context=context).prompt_ids == ids
        assert context.tokens == before + ids + ids


def test_a_fork_replaces_tokens_of_its_own(llm: LLM) -> None:
    with llm.context() as context:
        context.append("Tom had  ")
        before, expected = context.tokens, context.logits("!")
        with context.fork() as fork:
            fork.append("two hens")
            assert fork.tokens == llm.tokenize("Tom had  two hens")
            done = llm.generate(" and", ONE, context=fork)
            assert fork.tokens[:-1] == llm.tokenize("Tom had  two hens and")
            assert done.prompt_ids == llm.tokenize(" and", add_bos=False)
        assert context.tokens == before
        assert np.array_equal(context.logits("!"), expected)


def test_a_stream_replaces_tokens_and_the_completion_names_them(llm: LLM) -> None:
    whole = llm.tokenize("Tom had  two hens")
    with llm.context() as context:
        context.append("Tom had  ")
        done = llm.generate("two hens", ONE, context=context)
        assert context.tokens == [*whole, *done.token_ids]
        assert done.prompt_ids == whole[-len(done.prompt_ids) :]
        assert done.timings.n_prompt == len(done.prompt_ids)
        assert done.token_ids == llm.generate("Tom had  two hens", ONE).token_ids


def test_what_does_not_fit_leaves_the_context_as_it_was(llm: LLM) -> None:
    too_long: list[tuple[str, Any]] = [
        ("append", lambda c: c.append("x!" * 600)),
        ("generate", lambda c: llm.generate("x!" * 600, ONE, context=c)),
        ("read", lambda c: llm.generate("x!" * 600, READ, context=c)),
        ("logits", lambda c: c.logits("x!" * 600)),
    ]
    with llm.context() as context:
        context.append("Tom had  ")
        before, expected = context.tokens, context.logits("!")
        for name, call in too_long:
            with pytest.raises(ContextError):
                call(context)
            assert context.tokens == before, name
            assert np.array_equal(context.logits("!"), expected), name


def test_a_context_that_changes_meanwhile_is_an_error(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may edit it between tokenizing and computing."""
    encode_behind = llm.tokenizer.encode_behind
    for params in (ONE, READ):
        with llm.context() as context:
            context.append("Tom had  ")

            def slow(*args: Any, context: Context = context, **options: Any) -> Any:
                found = encode_behind(*args, **options)
                context.truncate(2)
                return found

            with monkeypatch.context() as patch:
                patch.setattr(llm.tokenizer, "encode_behind", slow)
                with pytest.raises(ContextError, match="was changed"):
                    llm.generate("two", params, context=context)
            assert len(context) == 2


def test_a_chunk_keeps_its_ids_and_gives_its_last_word_to_text(path: Path, tmp_path: Path) -> None:
    with load(path, n_threads=1) as llm, llm.context() as context:
        library = ChunkLibrary(tmp_path)
        library.add(llm, "a", "two  ")
        own = llm.tokenize("two  ", add_bos=False)
        context.append("Tom had  ")
        before = context.tokens
        context.append(library["a"])
        assert context.tokens == before + own, "ids of a file stay"
        context.append("hens")
        assert context.tokens == before + llm.tokenize("two  hens", add_bos=False)
