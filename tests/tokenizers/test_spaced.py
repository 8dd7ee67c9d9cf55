"""Vocabularies of Gemma 4 and its kin: against ids that llama.cpp gave.

`data/spaced_llama_cpp.json` holds a made-up vocabulary, texts and their ids by llama-cpp-python.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lariat.errors import GGUFError
from lariat.formats.gguf import GGUFFile
from lariat.tokenizers.tokenizer import Tokenizer

from tests.support.model_files import write_gguf

JUDGED = json.loads((Path(__file__).parents[1] / "data" / "spaced_llama_cpp.json").read_text())
KEYS = {
    "gemma4": {"model": "gemma4"},
    "granite-embed-multi-311m": {"model": "gpt2", "pre": "granite-embed-multi-311m"},
    "sarvam-moe": {"model": "gpt2", "pre": "sarvam-moe"},
}

Make = Callable[..., Tokenizer]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(**keys: Any) -> Tokenizer:
        vocabulary = {**JUDGED["vocabulary"], **keys}
        path = tmp_path / "v.gguf"
        write_gguf(path, {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()})
        with GGUFFile(path) as file:
            return Tokenizer.from_gguf(file)

    return make


@pytest.mark.parametrize("name", KEYS)
def test_ids_are_those_of_llama_cpp(make: Make, name: str) -> None:
    tokenizer = make(**KEYS[name])
    for text, expected in zip(JUDGED["texts"], JUDGED["ids"][name], strict=True):
        assert tokenizer.encode(text, parse_special=True) == expected, text
        if "<" not in text and "\u2581" not in text:
            assert tokenizer.decode(expected) == text


def test_newlines_that_are_a_token_are_not_merged_with_gemma_4(make: Make) -> None:
    gemma4, sarvam = make(**KEYS["gemma4"]), make(**KEYS["sarvam-moe"])
    four = JUDGED["vocabulary"]["tokens"].index("\n\n\n\n")
    assert gemma4.encode("\n\n\n\n", add_bos=False) == [four]
    assert four not in sarvam.encode("\n\n\n\n", add_bos=False)
    assert four not in gemma4.encode("\n\n\n\n\n", add_bos=False)


@pytest.mark.parametrize("name", KEYS)
def test_texts_in_pieces_have_the_ids_of_the_whole(make: Make, name: str) -> None:
    tokenizer, rng = make(**KEYS[name]), random.Random(name)
    n_replaced = 0
    for text in JUDGED["texts"]:
        whole = tokenizer.encode(text)
        if tokenizer.decode(whole) != text or "<" in text or "\u2581" in text:
            continue
        ids, piece = tokenizer.encode_part(""), b""
        for i in whole[1:]:
            piece += tokenizer.decode_token(i)
            try:
                told = piece.decode()
            except UnicodeDecodeError:
                continue
            if rng.random() < 0.7:
                kept, more = tokenizer.encode_behind(ids, told)
                n_replaced += kept < len(ids)
                ids, piece = ids[:kept] + more, b""
        kept, more = tokenizer.encode_behind(ids, piece.decode())
        assert ids[:kept] + more == whole, text
    assert (n_replaced > 0) is (name != "sarvam-moe"), "runs of newlines become other tokens"


def test_characters_without_bytes_are_left_out(make: Make) -> None:
    """As in llama.cpp; those that have some of their bytes keep these."""
    full = make(**KEYS["gemma4"])
    tokens = list(JUDGED["vocabulary"]["tokens"])
    gone = tokens.index("<0xBC>")
    tokens[gone] = "nothing"
    types = list(JUDGED["vocabulary"]["token_type"])
    types[gone] = 1
    partly = make(**KEYS["gemma4"], tokens=tokens, token_type=types)
    ids = full.encode("ü")
    assert gone in ids
    assert partly.encode("ü") == [i for i in ids if i != gone]


def test_the_form_of_byte_tokens_is_checked(make: Make) -> None:
    tokens = [t if t != "<0x41>" else "<41>" for t in JUDGED["vocabulary"]["tokens"]]
    with pytest.raises(GGUFError, match="expected the form '<0x0A>'"):
        make(**KEYS["gemma4"], tokens=tokens)
