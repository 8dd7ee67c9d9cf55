"""Texts whose special tokens count, with marked words in which they must not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lariat.formats.gguf import GGUFFile
from lariat.tokenizers.tokenizer import Tokenizer

from tests.support.model_files import chat_metadata, write_gguf


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "v.gguf"
    with GGUFFile(write_gguf(path, chat_metadata(300))) as gguf:
        return Tokenizer.from_gguf(gguf)


def test_marked_text_has_no_special_tokens(tmp_path: Path) -> None:
    metadata = chat_metadata(300)
    # One token within another, one of a single character, and one that overlaps itself.
    for i, text in enumerate(("im_end", "~", "abab")):
        metadata["tokenizer.ggml.tokens"][-3 - i] = text
        metadata["tokenizer.ggml.token_type"][-3 - i] = 3
    with GGUFFile(write_gguf(tmp_path / "v.gguf", metadata)) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf)
    start, end, inner, single, twice = 298, 299, 297, 296, 295
    for text in ("<|im_end|>", "a<|im_end|>b", "im_end", "~", "~~", "ababab", "<s></s>", "é~日"):
        assert set(tokenizer.encode_marked(text)) & {1, 2, end, inner, single, twice}
        marked = tokenizer.mark(text)
        ids = tokenizer.encode_marked(marked)
        assert not set(ids) & {1, 2, end, inner, single, twice}
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode_marked(tokenizer.mark("a<|im_start|>")).count(start) == 1
    assert start not in tokenizer.encode_marked(tokenizer.mark("a<|im_start|>", {start}))
    both = "<s>" + tokenizer.mark("the</s>") + "</s>"
    assert tokenizer.encode_marked(both) == [1, *tokenizer.encode("the</s>", add_bos=False), 2]


def test_the_marks_themselves_are_no_text(chat_tokenizer: Tokenizer) -> None:
    tokenizer = chat_tokenizer
    assert tokenizer.mark("a\ufdd03c\ufdd1") == "a\ufffd3c\ufffd"
    for code in ("d800", "110000", "ffffff"):  # tokens that a template may write itself
        ids = tokenizer.encode_marked(f"\ufdd0{code}\ufdd1")
        assert tokenizer.decode(ids) == "\ufffd"
    for call in (tokenizer.mark, tokenizer.encode_marked):
        with pytest.raises(ValueError, match="lone surrogate"):
            call("a\udc80")


def test_known_text_between_special_tokens(chat_tokenizer: Tokenizer) -> None:
    tokenizer = chat_tokenizer
    known = {"the": [7, 8, 9]}
    assert tokenizer.encode_marked("<s>the</s>", known) == [1, 7, 8, 9, 2]
    assert tokenizer.encode_marked("<s>the man</s>", known) == [
        1, *tokenizer.encode("the man", add_bos=False), 2
    ]  # fmt: skip
    assert tokenizer.ordinary_end("<s>the</s> a\nb") == " a\nb"
    assert tokenizer.ordinary_end("<s>the</s>") == tokenizer.ordinary_end("") == ""
    assert tokenizer.ordinary_end("the") == "the"


PARTS = [
    "<|im_end|>",
    "<|im_start|>",
    "<s>",
    "</s>",
    "<",
    "|>",
    "a",
    "é",
    "日",
    "\ufdd0",
    "\ufdd13c",
]


@given(st.lists(st.sampled_from([*PARTS, " ", "\n"])))
@settings(max_examples=200, deadline=None)
def test_marked_text_is_tokenized_as_text_is(chat_tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    plain = text.replace("\ufdd0", "\ufffd").replace("\ufdd1", "\ufffd")
    ids = chat_tokenizer.encode_marked(chat_tokenizer.mark(text))
    assert ids == chat_tokenizer.encode(plain, add_bos=False)
