"""Reads answers as they arrive: thoughts, content, and calls of tools; and counts thoughts."""

from __future__ import annotations

from collections.abc import Sequence

from lariat.chat import tool_formats
from lariat.chat.thoughts import Marks, Splitter
from lariat.chat.tool_calls import Delta, Thoughts, ToolParser, shown_ids
from lariat.chat.tool_formats import HARMONY, Format
from lariat.runtime.request import Delta as Step
from lariat.runtime.request import StopText
from lariat.tokenizers.tokenizer import Tokenizer


def format_of(template: str, has_tools: bool) -> Format | None:
    """How answers of a chat template are read; None without tools, where nothing is a call."""
    format = tool_formats.of_template(template)
    return format if has_tools or format is HARMONY else None


class Reader:
    """Takes one answer apart."""

    def __init__(
        self,
        format: Format | None,
        begun: Marks | None,
        tokenizer: Tokenizer,
        stops: tuple[str, ...],
    ) -> None:
        """`begun`: the marks of a thought that the prompt has begun; `stops`: texts that end the
        answer."""
        self._parser: _Plain | ToolParser = (
            _Plain(begun) if format is None else ToolParser(format, begun)
        )
        shown = shown_ids(tokenizer, format) if format is not None else None
        # Marks of calls may be control tokens, which the text of a completion does not show.
        self._decoder = tokenizer.decoder(show=shown) if shown else None
        self._stop, self._is_over = StopText(stops), False

    def feed(self, new: Step) -> list[Delta]:
        """Take in the next step; returns what is known with it."""
        if self._decoder is None:
            return self._parser.feed(new.text)
        deltas = []
        for token in new.token_ids:
            if not self._is_over:
                text, stop = self._stop.feed(self._decoder.feed(token))
                self._is_over = bool(stop)
                deltas += self._parser.feed(text)
        return deltas

    def finish(self) -> list[Delta]:
        """The rest, which was held back."""
        deltas = []
        if self._decoder is not None and not self._is_over:
            text, stop = self._stop.feed(self._decoder.flush())
            deltas = self._parser.feed(text + ("" if stop else self._stop.flush()))
        return deltas + self._parser.finish()


class ThoughtTokens:
    """Counts the tokens of an answer's thoughts, marks included: a token belongs to a thought if
    one is open before it, or behind it. It reads the tokens itself, one by one, because the text of
    a step may be that of several, and some of it held back.
    """

    def __init__(self, format: Format | None, begun: Marks | None, tokenizer: Tokenizer) -> None:
        """As for `Reader`."""
        self._parser: Splitter | ToolParser = (
            ToolParser(format, begun) if format is HARMONY else Splitter(begun)
        )
        shown = shown_ids(tokenizer, format) if format is not None else frozenset()
        self._decoder = tokenizer.decoder(show=shown)
        self._has_one_thought = format is not HARMONY  # in front of the answer
        self._n_open = 0  # tokens that may turn out to begin a thought
        self.n = 0

    def feed(self, token_ids: Sequence[int]) -> None:
        """Take in the next tokens."""
        for token in token_ids:
            before = self._parser.is_thought
            if self._has_one_thought and before is False:
                return
            self._parser.feed(self._decoder.feed(token))
            after = self._parser.is_thought
            if before or after:
                self.n += 1 + self._n_open
            is_open = before is None and after is None
            self._n_open = self._n_open + 1 if is_open else 0


class _Plain:
    """Thoughts and content, without calls."""

    def __init__(self, begun: Marks | None) -> None:
        self._thoughts = Thoughts(begun)

    def feed(self, text: str) -> list[Delta]:
        return _deltas(self._thoughts.feed(text))

    def finish(self) -> list[Delta]:
        return _deltas(self._thoughts.flush())


def _deltas(parts: list[tuple[str, bool]]) -> list[Delta]:
    return [
        Delta(reasoning_content=text) if is_thought else Delta(text)
        for text, is_thought in parts
        if text
    ]
