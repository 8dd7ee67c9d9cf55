"""Vocabularies of real models, against ids that llama.cpp gave (`data/gemma3_llama_cpp.json`)."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import pytest
from lariat.formats.gguf import GGUFFile
from lariat.tokenizers.tokenizer import Tokenizer

from tests.support.real_models import GEMMA3, needs_gemma3

JUDGED = json.loads((Path(__file__).parents[1] / "data" / "gemma3_llama_cpp.json").read_text())


@pytest.fixture(scope="module")
def gemma3() -> Tokenizer:
    with GGUFFile(GEMMA3) as file:
        return Tokenizer.from_gguf(file)


@needs_gemma3
def test_ids_of_gemma_3_are_those_of_llama_cpp(gemma3: Tokenizer) -> None:
    """Many scripts, bytes that no token spells, runs of newlines, blanks in front."""
    assert gemma3.n_vocab == 262_144
    judged = zip(JUDGED["texts"], JUDGED["plain"], JUDGED["special"], strict=True)
    for text, plain, special in judged:
        assert gemma3.encode(text, add_bos=False) == plain, text
        assert gemma3.encode(text) == [2, *plain], text
        expected = [2, *plain] if special is None else special
        assert gemma3.encode(text, parse_special=True) == expected, text
        if "\u2581" not in text:
            assert gemma3.decode(plain) == text
    pieces = {gemma3.piece(i) for ids in JUDGED["plain"] for i in ids}
    assert "\n\n\n\n" in pieces
    assert any(piece.startswith("<0x") for piece in pieces)


@needs_gemma3
def test_texts_in_pieces_have_the_ids_of_the_whole(gemma3: Tokenizer) -> None:
    rng = random.Random(0)
    for text, ids in zip(JUDGED["texts"], JUDGED["plain"], strict=True):
        if "\u2581" in text:
            continue
        context, piece = gemma3.encode_part(""), b""
        for n, i in enumerate(ids, start=1):
            piece += gemma3.decode_token(i)
            if rng.random() < 0.6 or n == len(ids):
                with contextlib.suppress(UnicodeDecodeError):  # no end of a character
                    kept, more = gemma3.encode_behind(context, piece.decode())
                    assert kept == len(context)
                    context, piece = context + more, b""
        assert context == [2, *ids], text
