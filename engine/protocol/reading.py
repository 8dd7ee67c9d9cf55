"""Reads answers as they arrive: what is a thought, and what is the answer itself."""

from __future__ import annotations

from typing import NamedTuple

from lariat.chat.thoughts import Marks, Splitter


class Piece(NamedTuple):
    """Some text of an answer."""

    text: str
    is_thought: bool


class Reader:
    """Thoughts and answer apart, without the marks between them."""

    def __init__(self, begun: Marks | None) -> None:
        """`begun`: the marks of a thought that the prompt has begun."""
        self._splitter = Splitter(begun)

    def feed(self, text: str) -> list[Piece]:
        """What is known with this text."""
        return [Piece(*part) for part in self._splitter.feed(text)]

    def flush(self) -> list[Piece]:
        """What was held back."""
        return [Piece(*part) for part in self._splitter.flush()]
