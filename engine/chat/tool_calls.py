"""Answers taken apart as they are written: thoughts, content, and calls of tools.

Each format of calls is a row of `tool_formats`. Text that may begin a mark is held back, and so is
a call until it is complete: one that cannot be read is content, as the model wrote it.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lariat.chat import thoughts, tool_formats
from lariat.chat.tool_formats import HARMONY, Call, Format
from lariat.structured.grammar import Grammar
from lariat.tokenizers.tokenizer import Tokenizer

_ID_CHARACTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class CallDelta:
    """A call of a tool. `arguments` are JSON. Calls come whole, each in one piece."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Delta:
    """A piece of an answer: one of the three."""

    content: str = ""
    reasoning_content: str = ""
    call: CallDelta | None = None


class ToolParser:
    """Takes one answer apart.

    The text has to show the control tokens of `format.shown`: `Tokenizer.decoder(show=...)` with
    `shown_ids` does that.

    format   how the model writes calls
    begun    marks of a thought that the prompt has begun, see `thoughts.opened`
    n_calls  calls so far; with some the finish reason is "tool_calls"
    """

    def __init__(self, format: Format, begun: thoughts.Marks | None = None) -> None:
        self.format, self.n_calls = format, 0
        self._thoughts = None if format is HARMONY else Thoughts(begun)
        self._reader: _Harmony | _Marked = _Harmony(begun) if format is HARMONY else _Marked(format)

    @property
    def is_thought(self) -> bool | None:
        """Whether what comes next belongs to a thought; None: it may begin one."""
        return self._reader.is_thought if self._thoughts is None else self._thoughts.is_thought

    def feed(self, text: str) -> list[Delta]:
        """Take in a text; returns the parts of the answer that are known with it."""
        if self._thoughts is None:
            return self._deltas(self._reader.feed(text))
        return self._apart(self._thoughts.feed(text))

    def finish(self) -> list[Delta]:
        """The rest, at the end of the answer."""
        deltas = self._apart(self._thoughts.flush()) if self._thoughts else []
        return deltas + self._deltas(self._reader.flush())

    def _apart(self, parts: Sequence[tuple[str, bool]]) -> list[Delta]:
        deltas: list[Delta] = []
        for text, is_thought in parts:
            if not is_thought:
                deltas += self._deltas(self._reader.feed(text))
            elif isinstance(self._reader, _Marked):
                self._reader.drops_blanks = True
                deltas += [Delta(reasoning_content=text)] * bool(text)
        return deltas

    def _deltas(self, parts: Sequence[_Part]) -> list[Delta]:
        deltas = []
        for part in parts:
            if isinstance(part, Call):
                length = self.format.id_length
                prefix = "" if length < 10 else "call_"
                id = prefix + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(length))
                arguments = json.dumps(part.arguments, ensure_ascii=False)
                deltas.append(Delta(call=CallDelta(self.n_calls, id, part.name, arguments)))
                self.n_calls += 1
            elif part[0]:
                deltas.append(Delta(reasoning_content=part[0]) if part[1] else Delta(part[0]))
        return deltas


_Part = Call | tuple[str, bool]
"""A call, or text and whether it is a thought."""


def parser_for(template: str, begun: thoughts.Marks | None = None) -> ToolParser:
    """A parser for the answers of a model with this chat template, given as its Jinja source."""
    return ToolParser(tool_formats.of_template(template), begun)


def shown_ids(tokenizer: Tokenizer, format: Format) -> frozenset[int]:
    """The control tokens that a decoder has to show for a format."""
    ids = (tokenizer.encode(text, add_bos=False, parse_special=True) for text in format.shown)
    return frozenset(one[0] for one in ids if len(one) == 1) - tokenizer.eog_ids


def grammar_for(
    tools: Sequence[Mapping[str, Any]],
    format: Format,
    tokenizer: Tokenizer,
    *,
    name: str | None = None,
    parallel: bool = True,
    begun: thoughts.Marks | None = None,
) -> Grammar:
    """The grammar of an answer that has to call tools, in the form of the model.

    tools     as OpenAI's clients send them; `parameters` are JSON schemas
    name      the one tool that has to be called, once; None: any of them
    parallel  whether there may be several calls
    begun     marks of a thought that the prompt has begun: it is ended first

    Raises ValueError for a tool that is not there, and for a schema that cannot be held to.
    """
    functions = [dict(tool.get("function", tool)) for tool in tools]
    chosen = [one for one in functions if name is None or one.get("name") == name]
    if not chosen:
        raise ValueError(f"there is no tool {name!r}" if name else "there are no tools to call")
    rules, grammars = [], []
    for i, one in enumerate(chosen):
        before = format.before.format(name=json.dumps(one["name"])[1:-1])
        rules.append(
            f"call_{i}: {_spelled(before, format, tokenizer)} @args_{i} "
            f"{_spelled(format.behind, format, tokenizer)}"
        )
        schema = one.get("parameters") or {"type": "object", "properties": {}}
        made = json.loads(Grammar.json_schema({"type": "object", **schema}).text)
        grammars.append({"name": f"args_{i}"} | made["grammars"][0])
    several = parallel and name is None and format.closes == "</tool_call>"
    call = " | ".join(f"call_{i}" for i in range(len(chosen)))
    start = ("thought " if begun else "") + ('call ("\\n" call)*' if several else "call")
    head = [f"start: {start}", f"call: {call}"]
    if begun:
        close = _spelled(begun.close, format, tokenizer)
        if close.startswith('"'):
            head += [f"thought: end BLANKS\nend[lazy]: /(.|\\n)*/ {close}"]
        else:
            head += [f"thought: TEXT {close} BLANKS\nTEXT: /(.|\\n)*/"]
        head += ["BLANKS: /\\n{0,2}/"]
    lark = "%llguidance {}\n" + "\n".join([*head, *rules])
    return Grammar(json.dumps({"grammars": [{"lark_grammar": lark}, *grammars]}))


def _spelled(text: str, format: Format, tokenizer: Tokenizer) -> str:
    """A text in a grammar, in which control tokens are named by their ids."""
    marks = sorted({*format.shown, "</think>", "[/THINK]"}, key=len)[::-1]
    parts = []
    for part in re.split("(" + "|".join(map(re.escape, marks)) + ")", text):
        ids = tokenizer.encode(part, False, parse_special=True) if part in marks else []
        if len(ids) == 1 and not tokenizer.decode_token(ids[0]):
            parts.append(f"<[{ids[0]}]>")
        elif parts and part and parts[-1].startswith('"'):
            parts[-1] = json.dumps(json.loads(parts[-1]) + part, ensure_ascii=False)
        elif part:
            parts.append(json.dumps(part, ensure_ascii=False))
    return " ".join(parts)


class Thoughts:
    """Thoughts without their marks, and the rest of an answer."""

    def __init__(self, begun: thoughts.Marks | None) -> None:
        self._splitter = thoughts.Splitter(begun)
        self._is_open, self._is_new = begun is not None, True

    @property
    def is_thought(self) -> bool | None:
        """Whether what comes next belongs to a thought; None: the text may still begin one."""
        return self._splitter.is_thought

    def feed(self, text: str) -> list[tuple[str, bool]]:
        """Parts of the answer, and whether each is a thought."""
        return self._parts(self._splitter.feed(text))

    def flush(self) -> list[tuple[str, bool]]:
        """The rest, which was held back."""
        return self._parts(self._splitter.flush())

    def _parts(self, given: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
        parts = []
        for text, is_thought in given:
            if is_thought and self._is_new and not self._is_open:
                start = text.lstrip()
                opens = (m.open for m in thoughts.MARKS if m not in thoughts.HARMONY)
                text = next((start.removeprefix(o) for o in opens if start.startswith(o)), text)
            if is_thought:
                closes = (m.close for m in thoughts.MARKS if m not in thoughts.HARMONY)
                text = next((text.removesuffix(c) for c in closes if text.endswith(c)), text)
                self._is_new = False
            parts.append((text, is_thought))
        return parts


class _Marked:
    """Content and calls between marks.

    drops_blanks  whether blanks come behind a call or a thought, and are no content
    is_thought    never: it gets what is none
    """

    is_thought = False

    def __init__(self, format: Format) -> None:
        self.drops_blanks = False
        self._format = format
        self._held = ""  # text that is not known yet
        self._open: str | None = None  # the mark of the call that is being written, "" for none
        self._is_new, self._has_calls = True, False

    def feed(self, text: str) -> list[_Part]:
        """Take in a text; returns what is known with it."""
        self._held += text
        parts: list[_Part] = []
        while True:
            before = (len(self._held), self._open)
            parts += self._content() if self._open is None else self._call()
            if before == (len(self._held), self._open):
                return parts

    def flush(self) -> list[_Part]:
        """The rest: a call without an end, or text that was held back."""
        text, opened = self._held, self._open
        self._held, self._open = "", None
        if opened is None:
            is_over = (self._has_calls or self.drops_blanks) and not text.strip()
            return [] if is_over else [(text, False)]
        calls = self._format.parse(text)
        return [*calls] if calls else [(opened + text, False)]

    def _content(self) -> list[_Part]:
        """Content up to a mark, without the blanks in front of it."""
        start = self._held.lstrip()
        if self.drops_blanks:
            self._held = start
        if not start:
            return []
        if self._is_new and self._format.whole and start[0] == "{":
            self._is_new, self._open = False, ""
            return []
        found = [(self._held.find(mark), mark) for mark in self._format.opens]
        found = [(at, mark) for at, mark in found if at >= 0]
        if found:
            at, mark = min(found, key=lambda one: (one[0], -len(one[1])))
            before, self._held = self._held[:at].rstrip(), self._held[at + len(mark) :]
            self._is_new, self.drops_blanks, self._open = False, False, mark
            return [(before, False)] if before else []
        n_shown = len(self._held) - max(_overlap(self._held, mark) for mark in self._format.opens)
        shown = self._held[:n_shown].rstrip()
        self._held = self._held[len(shown) :]
        if not shown:
            return []
        self._is_new = self.drops_blanks = False
        return [(shown, False)]

    def _call(self) -> list[_Part]:
        """A call, once its end is there."""
        opened = self._open or ""
        close = self._format.closes if opened else ""
        end = close or opened  # without a text that closes it, the next mark does
        at = self._held.find(end) if end else -1
        if at < 0:
            return []
        body, self._held = self._held[:at], self._held[at + len(close) :]
        self._open = None
        calls = self._format.parse(body)
        if not calls:
            return [(opened + body + close, False)]
        self._has_calls = self.drops_blanks = True
        return [*calls]


_HEADER = re.compile(r"(?:<\|start\|>)?(?:assistant)?(.*?)<\|message\|>", re.DOTALL)
_TO = re.compile(r"to=functions\.([^\s<]+)")
_BEGINS = ("<|start|>", "<|channel|>", "to=functions.")
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")


class _Harmony:
    """Messages with a channel each: thoughts, calls, and the answer."""

    def __init__(self, begun: thoughts.Marks | None) -> None:
        self._held = ""
        self._header: str | None = "analysis" if begun else None

    @property
    def is_thought(self) -> bool | None:
        """Whether the message that is open is a thought; None: its header is not known yet."""
        if self._header is None:
            return None
        return _TO.search(self._header) is None and "analysis" in self._header

    def feed(self, text: str) -> list[_Part]:
        """Take in a text; returns what is known with it."""
        self._held += text
        parts: list[_Part] = []
        while True:
            before = (len(self._held), self._header)
            parts += self._step()
            if before == (len(self._held), self._header):
                return parts

    def flush(self) -> list[_Part]:
        """The rest: the last message has no end token in the text."""
        text, self._held = self._held, ""
        return [(text, False)] if self._header is None else self._message(text, True)

    def _step(self) -> list[_Part]:
        if self._header is None:
            start = self._held.lstrip()
            if start and not any(_alike(start, mark) for mark in _BEGINS):
                self._header = "final"  # no header: an answer
                return []
            match = _HEADER.match(start)
            if match:
                self._header, self._held = match[1], start[match.end() :]
            return []
        found = [(at, mark) for mark in _ENDS if (at := self._held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            body = self._held[:at]
            self._held = self._held[at + (0 if mark == "<|start|>" else len(mark)) :]
            parts = self._message(body, True)
            self._header = None
            return parts
        if _TO.search(self._header):
            return []
        keep = max(_overlap(self._held, mark) for mark in _ENDS)
        body, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return self._message(body, False)

    def _message(self, body: str, is_end: bool) -> list[_Part]:
        header = self._header or ""
        to = _TO.search(header)
        if to is None:
            return [(body, "analysis" in header)] if body else []
        if not is_end:
            return []
        call = tool_formats.parse_json(json.dumps({"name": to[1], "arguments": body.strip()}))
        return [*call] if call else [(body, False)]


def _alike(text: str, mark: str) -> bool:
    """Whether a text begins with a mark, or may once it goes on."""
    return text.startswith(mark) or mark.startswith(text)


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of a text that may begin a mark."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((n for n in sizes if text.endswith(mark[:n])), 0)
