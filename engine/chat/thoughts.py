"""Thoughts: the part of an answer that a model writes between marks before the answer itself.

In the harmony format of gpt-oss an answer is several messages, each with a channel: thoughts
(analysis), remarks on calls (commentary), and the answer (final).

Source of harmony: https://developers.openai.com/cookbook/articles/openai-harmony.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Marks(NamedTuple):
    """The texts around a thought."""

    open: str
    close: str


HARMONY_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
_FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
HARMONY = (
    Marks("<|channel|>analysis<|message|>", _FINAL),
    Marks("<|channel|>commentary<|message|>", _FINAL),
    Marks("<|channel|>final", "<|message|>"),  # an answer without a thought
)
_BETWEEN = re.compile(r"<\|end\|><\|start\|>assistant<\|channel\|>\w+<\|message\|>")

MARKS = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<mm:think>", "</mm:think>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
    Marks("<|channel>thought", "<channel|>"),
    *HARMONY,
)


def opened(prompt: str) -> Marks | None:
    """The marks of the thought that a prompt begins for the model, None if it begins none."""
    end = prompt.rstrip()
    return next((marks for marks in MARKS if end.endswith(marks.open)), None)


def split(answer: str, begun: Marks | None = None) -> tuple[str | None, str]:
    """The thought in front of an answer, None without one, and the answer itself.

    begun: the marks of a thought that the prompt has begun, see `opened`. Blanks and newlines
    around the thought and in front of the answer are dropped. A thought that does not end belongs
    to the answer, but for harmony, whose template takes none in an answer.
    """
    text = answer.lstrip()
    for marks in MARKS:
        is_open = text.startswith(marks.open)
        if is_open or marks == begun:
            thought, mark, rest = text.removeprefix(marks.open).partition(marks.close)
            if marks in HARMONY:
                thought = _BETWEEN.sub("\n\n", thought)
            if mark or marks in HARMONY:
                return thought.strip(), rest.lstrip("\n")
    return None, answer


class Splitter:
    """Tells thought and answer apart while the pieces of an answer arrive.

    begun: as in `split`. All results together are the whole text, marks included; these belong to
    the thought.
    """

    def __init__(self, begun: Marks | None = None) -> None:
        self._marks = begun
        self._held = ""  # text that may be the beginning of a mark
        self._is_over = False  # whether the rest is the answer

    @property
    def is_thought(self) -> bool | None:
        """Whether what comes next belongs to a thought; None: the text may still begin one."""
        if self._is_over:
            return False
        return None if self._marks is None else True

    def feed(self, piece: str) -> list[tuple[str, bool]]:
        """The text that is known to be a thought (True) or the answer (False)."""
        text, self._held = self._held + piece, ""
        if self._is_over:
            return [(text, False)] if text else []
        if self._marks is None:
            start = text.lstrip()
            self._marks = next((marks for marks in MARKS if start.startswith(marks.open)), None)
            if self._marks is None:
                if any(marks.open.startswith(start) for marks in MARKS):
                    self._held = text
                    return []
                self._is_over = True
                return [(text, False)]
        close = self._marks.close
        thought, mark, answer = text.partition(close)
        if mark:
            self._is_over = True
            return [
                (part, flag) for part, flag in ((thought + mark, True), (answer, False)) if part
            ]
        n_held = next((n for n in range(len(close) - 1, 0, -1) if text.endswith(close[:n])), 0)
        n_known = len(text) - n_held
        self._held = text[n_known:]
        return [(text[:n_known], True)] if n_known else []

    def flush(self) -> list[tuple[str, bool]]:
        """The text that was held back, at the end of the answer."""
        text, self._held = self._held, ""
        return [(text, self._marks is not None and not self._is_over)] if text else []
