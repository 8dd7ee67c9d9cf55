"""Thoughts and answers told apart, in a whole text and in pieces."""

from __future__ import annotations

import pytest
from lariat.chat.thoughts import MARKS, Marks, Splitter, opened, split

THINK = MARKS[0]
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "begun", "expected"),
    [
        ("<think>\na\n\nb\n</think>\n\n c", None, ("a\n\nb", " c")),
        ("\n<think></think>c", None, ("", "c")),
        ("[THINK]a[/THINK]c", None, ("a", "c")),
        ("a\n</think>\n\nc", THINK, ("a", "c")),
        ("<think>a</think>c", THINK, ("a", "c")),
        ("a <think>b</think> c", None, (None, "a <think>b</think> c")),
        ("a</think>c", None, (None, "a</think>c")),
        ("<think>it goes on", None, (None, "<think>it goes on")),
        (f"{ANALYSIS}a<|end|>{FINAL}c", None, ("a", "c")),
        (f"{ANALYSIS}a<|end|><|start|>assistant{ANALYSIS}b<|end|>{FINAL}c", None, ("a\n\nb", "c")),
        ("<|channel|>final<|message|>c", None, ("", "c")),
        (f"{ANALYSIS}it goes on", None, ("it goes on", "")),
        ("plain ", None, (None, "plain ")),
        ("", THINK, (None, "")),
    ],
)
def test_split(text: str, begun: Marks | None, expected: tuple[str | None, str]) -> None:
    assert split(text, begun) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a<think>", THINK), ("a[THINK]\n", MARKS[1]), ("<think>\n\n</think>\n\n", None), ("a", None)],
)
def test_a_thought_that_the_prompt_begins(prompt: str, expected: Marks | None) -> None:
    assert opened(prompt) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("begun", "thought", "answer"),
    [
        (None, " \n<think>\na < b </thin </think>", "\n\nc </think> d"),
        (None, "[THINK]a</think>[/THINK]", ""),
        (None, "", "a <think>b</think>"),
        (None, "", "<thin"),
        (None, "", "<thinker>"),
        (None, "<think>never ends </th", ""),
        (None, f"{ANALYSIS}a<|end|><|start|>assistant<|end|>{FINAL}", "c<|end|>"),
        (None, "<|channel|>final<|message|>", "c"),
        (None, "", "<|channel|>other"),
        (THINK, "a\n</think>", "b"),
        (THINK, "a", ""),
        (None, "", ""),
    ],
)
def test_pieces_of_any_size(begun: Marks | None, thought: str, answer: str, size: int) -> None:
    splitter, text = Splitter(begun), thought + answer
    parts = [p for i in range(0, len(text), size) for p in splitter.feed(text[i : i + size])]
    parts += splitter.flush()
    assert "".join(part for part, is_thought in parts if is_thought) == thought
    assert "".join(part for part, is_thought in parts if not is_thought) == answer
    assert all(part for part, _ in parts)
