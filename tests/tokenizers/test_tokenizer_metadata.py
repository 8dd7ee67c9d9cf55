"""Metadata of vocabularies: BOS and end marks; missing, odd and bad entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lariat.errors import GGUFError, ModelError

from tests.support.vocabularies import (
    BASE,
    BYTE,
    BYTES,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Make,
    maker,
)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path)


def test_bos_and_eos_follow_the_metadata(make: Make) -> None:
    vocab = [*BASE, *BYTES, ("a", 0.0, NORMAL), ("\u2581", 0.0, NORMAL)]
    a = [260, 259]
    assert make(vocab).encode("a") == [1, *a]
    assert make(vocab, add_bos_token=False).encode("a") == a
    assert make(vocab, add_eos_token=True).encode("a") == [1, *a, 2]
    assert make(vocab, add_eos_token=True).encode("a", add_bos=False) == a
    changed = make(vocab, bos_token_id=5, eos_token_id=6, unknown_token_id=7, add_eos_token=True)
    assert changed.encode("a") == [5, *a, 6]
    assert (changed.bos_id, changed.eos_id, changed.unk_id) == (5, 6, 7)
    assert make(vocab, add_space_prefix=False).encode("a") == [1, 259]


def test_end_tokens(make: Make) -> None:
    names = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "other", "x"]
    vocab = [*BASE, *BYTES, *((name, 0.0, USER_DEFINED) for name in names)]
    assert make(vocab).eog_ids == {2, *range(259, 264)}
    assert make(vocab, eot_token_id=264, eom_token_id=265).eog_ids == {2, *range(259, 266)}
    assert make([*BASE, *BYTES]).eog_ids == {2}
    # A token that ends generation is a control token, even if the file gives it another type.
    tokenizer = make(vocab)
    assert tokenizer.decode([259, 264]) == "other"
    assert 260 not in tokenizer.encode("<|im_end|>")
    assert 260 in tokenizer.encode("<|im_end|>", parse_special=True)


def test_fill_in_the_middle_marks(make: Make) -> None:
    vocab = [*BASE, *BYTES, ("<PRE>", 0.0, USER_DEFINED), ("<|file_sep|>", 0.0, USER_DEFINED)]
    vocab += [("<PAD>", 0.0, USER_DEFINED), ("x", 0.0, NORMAL)]
    tokenizer = make(vocab)
    assert tokenizer.eog_ids == {2, 260, 261}
    assert 259 not in tokenizer.encode("<PRE>")
    assert 259 in make(vocab, prefix_token_id=262).encode("<PRE>")
    assert make(vocab, fim_pad_token_id=262).eog_ids == {2, 260, 262}


def test_missing_bytes_become_the_unknown_token(make: Make) -> None:
    vocab = [*BASE, ("\u2581", 0.0, NORMAL), ("a", 0.0, NORMAL)]
    tokenizer = make(vocab)
    assert tokenizer.encode("a") == [1, 3, 4]
    assert tokenizer.encode("aéé漢a\n") == [1, 3, 4, 0, 4, 0]
    assert tokenizer.encode("") == [1]
    some = make([*vocab, ("<0xA9>", 0.0, BYTE)], unknown_token_id=2)
    assert some.encode("éé", add_bos=False) == [3, 2, 5, 2, 5]
    raw = make([*vocab, (b"\xc3", 0.0, NORMAL), (b"\xa9", 0.0, NORMAL)])
    assert raw.encode("é", add_bos=False) == [3, 5, 6]
    assert raw.decode([3, 5, 6]) == "é"


def test_odd_vocabularies(make: Make) -> None:
    odd = [
        ("", 0.0, NORMAL),
        ("dup", 0.0, NORMAL),
        ("dup", -1.0, NORMAL),
        ("du", -2.0, NORMAL),
        ("", 0.0, USER_DEFINED),
        (b"\xff\xfe", 0.0, NORMAL),
        (b"\xff\xfd", 0.0, CONTROL),
        ("\ufffe1", 0.0, NORMAL),
        ("\ufffe", 0.0, NORMAL),
        ("\u2581", 0.0, NORMAL),
        ("<unk>", 0.0, UNKNOWN),
        ("n\0n", 0.0, NORMAL),
    ]
    tokenizer = make([*BASE, *BYTES, *odd, *((c, 0.0, NORMAL) for c in "dupn")])
    first = 259
    assert tokenizer.encode("dup", add_bos=False) == [first + 9, first + 2]
    assert tokenizer.decode([first + 1, first, first + 2]) == "dupdup"
    assert tokenizer.decode([first + 5]) == "\ufffd\ufffd"
    assert tokenizer.encode("\ufffe1", False)[1:] == [first + 7]
    assert tokenizer.encode("<unk>", False, True) == [first + 10]
    assert tokenizer.decode([first + 11]) == "n\0n"  # shown, but never found in text
    for text in ("\ufffe5", "\ufffe", "[EMPTY_259]", "<s>", "n\0n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_scores_and_types_may_be_missing(make: Make) -> None:
    vocab = [*BASE, *BYTES, ("ab", 0.0, NORMAL), ("bc", 0.0, NORMAL), ("a", 0.0, NORMAL)]
    tokenizer = make(vocab, scores=None, add_space_prefix=False)
    assert tokenizer.encode("abc", False) == [259, 3 + ord("c")]  # a tie: leftmost first
    untyped = make(vocab, token_type=None, add_space_prefix=False)
    assert untyped.encode("a\n", False) == [261, 3 + 10]
    assert untyped.decode([3 + 10]) == "<0x0A>"
    whole = make(vocab, scores=[0] * 259 + [1, 2, 0], add_space_prefix=False)
    assert whole.encode("abc", False) == [261, 260]


def test_default_ids_outside_a_tiny_vocabulary(make: Make) -> None:
    tokenizer = make([("<unk>", 0.0, UNKNOWN)], add_bos_token=False)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eog_ids) == (None, None, frozenset())
    assert tokenizer.encode("hello") == [0]
    with pytest.raises(GGUFError, match=r"add_bos_token is true.*no bos token"):
        make([("<unk>", 0.0, UNKNOWN)])


TWO = [("a", 0.0, NORMAL), ("b", 0.0, NORMAL), ("c", 0.0, NORMAL)]


@pytest.mark.parametrize(
    ("vocab", "metadata", "message"),
    [
        (None, {}, "tokenizer.ggml.tokens is missing"),
        (TWO, {"model": None}, "tokenizer.ggml.model is missing"),
        (None, {"tokens": [1, 2, 3]}, "tokens is not an array of strings"),
        (None, {"tokens": "abc"}, "tokens is not an array of strings"),
        (TWO, {"scores": [0.0, 0.0]}, "scores has 2 values.*3 tokens"),
        (TWO, {"scores": [0.0] * 4}, "scores has 4 values.*3 tokens"),
        (TWO, {"scores": ["a", "b", "c"]}, "scores is not an array of numbers"),
        (TWO, {"scores": 7}, "scores is not an array of numbers"),
        (TWO, {"scores": [0.0, float("nan"), 0.0]}, "the score of token 1 is not a number"),
        (TWO, {"token_type": [1, 1]}, "token_type has 2 values.*3 tokens"),
        (TWO, {"token_type": [1, 9, 1]}, "token 1 has type 9, expected 0 to 6"),
        (TWO, {"token_type": [1, 1, -1]}, "token 2 has type -1"),
        (TWO, {"token_type": [1, 6, 1]}, "byte token 1 is 'b'"),
        (TWO, {"bos_token_id": 3}, "bos_token_id is 3, expected 0 to 2"),
        (TWO, {"eos_token_id": 2**32 - 1}, "eos_token_id is 4294967295, expected 0 to 2"),
        (TWO, {"unknown_token_id": 3}, "unknown_token_id is 3"),
        (TWO, {"eot_token_id": 3}, "eot_token_id is 3"),
        (TWO, {"fim_pad_token_id": 3}, "fim_pad_token_id is 3"),
        (TWO, {"bos_token_id": "1"}, "bos_token_id is '1'"),
        (TWO, {"add_bos_token": 1}, "add_bos_token is 1, expected true or false"),
    ],
)
def test_bad_metadata(make: Make, vocab: Any, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(GGUFError, match=message) as caught:
        make(vocab, **metadata)
    assert "v.gguf: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["bert", "GPT2", "Llama", "llama\n\x1b[2J"])
def test_other_tokenizer_models(make: Make, model: str) -> None:
    with pytest.raises(ModelError, match=r"v\.gguf: tokenizer .* is not supported") as caught:
        make(TWO, model)
    assert repr(model) in str(caught.value)
