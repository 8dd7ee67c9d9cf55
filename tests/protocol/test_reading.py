"""Tokens of thoughts are counted one by one, however many come in a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from lariat import DEMO_MODEL, LLM
from lariat.chat.thoughts import MARKS, Marks
from lariat.chat.tool_formats import HARMONY, Format, of_template
from lariat.protocol.reading import ThoughtTokens

from tests.support.chats import N_VOCAB
from tests.support.model_files import chat_metadata, write_llama

MARKS_OF_HARMONY = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"]
MARKS_OF_HARMONY += ["<|return|>", "<|call|>"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(DEMO_MODEL, n_ctx=64, n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def harmony(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model whose marks are control tokens."""
    metadata = chat_metadata(N_VOCAB, "")
    n = len(MARKS_OF_HARMONY)
    metadata["tokenizer.ggml.tokens"][-n:] = MARKS_OF_HARMONY
    metadata["tokenizer.ggml.token_type"][-n:] = [3] * n
    path: Path = tmp_path_factory.mktemp("harmony") / "model.gguf"
    write_llama(path, n_vocab=N_VOCAB, metadata=metadata)
    with LLM(path, n_ctx=64, n_threads=1) as llm:
        yield llm


def count(
    llm: LLM, pieces: Sequence[str], format: Format | None, begun: Marks | None, n_step: int
) -> tuple[int, list[int]]:
    """Tokens of thoughts, of all pieces in a row, and how many tokens each piece has."""
    each = [llm.tokenizer.encode(piece, False, parse_special=True) for piece in pieces]
    ids = [id for some in each for id in some]
    counter = ThoughtTokens(format, begun, llm.tokenizer)
    for start in range(0, len(ids), n_step):
        counter.feed(ids[start : start + n_step])
    return counter.n, [len(some) for some in each]


@pytest.mark.parametrize("n_step", [1, 3, 1000])
@pytest.mark.parametrize("format", [None, of_template("<tool_call>")])
def test_a_thought_in_front_of_an_answer(llm: LLM, format: Format | None, n_step: int) -> None:
    pieces = ("<think>One day the fox was sad.</think>", "\nHe ran. <think>Not a thought.</think>")
    n, sizes = count(llm, pieces, format, None, n_step)
    assert n == sizes[0] > 8
    pieces = ("He was sad.</think>", "He ran.")
    n, sizes = count(llm, pieces, format, MARKS[0], n_step)
    assert n == sizes[0]
    assert count(llm, ("He was sad",), format, MARKS[0], n_step) == (n_all(llm, "He was sad"), [
        n_all(llm, "He was sad")
    ])  # fmt: skip
    for text in ("He ran.", "<thin", "He ran. <think>Not a thought.</think>", ""):
        assert count(llm, (text,), format, None, n_step)[0] == 0


def n_all(llm: LLM, text: str) -> int:
    return len(llm.tokenizer.encode(text, False))


@pytest.mark.parametrize("n_step", [1, 3, 1000])
def test_harmony_has_several_messages(harmony: LLM, n_step: int) -> None:
    head = "<|start|>assistant<|channel|>"
    pieces = (
        "<|channel|>analysis<|message|>the rain<|end|>",
        f"{head}commentary<|message|>the sea<|end|>",
        f"{head}analysis<|message|>on a tree<|end|>",
        f"{head}final<|message|>the rain",
    )
    n, sizes = count(harmony, pieces, HARMONY, None, n_step)
    assert n == sizes[0] + sizes[2]
