"""Rules that a text must follow: a JSON schema, an expression, choices, or a grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lariat.checks import check_type
from lariat.structured import library, schemas

# Between the tokens of JSON: nothing, a blank, or a new line with an indent. Where any number of
# blanks may stand, small models write blanks for ever. llama.cpp has the same bounds.
_BLANKS = r"( |\n[ \t]{0,20})"


@dataclass(frozen=True)
class Grammar:
    """Rules that the text of a request must follow, for `SamplingParams(grammar=...)`.

    Made by `json_schema`, `json_object`, `regex`, `choices`, `lark` or `gbnf`; `Grammar(text)` is
    in the form of llguidance itself, JSON `{"grammars": [...]}` or Lark. A grammar belongs to no
    model. ValueError, with the reason, for one that cannot be read, would not be followed in all it
    says, or is too long (32,768 characters of JSON without annotations, 8,192 of rules);
    LariatError if llguidance is not installed.

    The text ends where the grammar allows nothing more, with the finish reason "stop". With
    "length" or "context" it is cut off, and need not follow the grammar to its end.

    text  the grammar in the form of llguidance
    """

    text: str

    def __post_init__(self) -> None:
        check_type("a grammar", self.text, str)
        if not self.text.strip():
            raise ValueError("the grammar is empty")
        _check_unicode(self.text)
        library.check_length(self.text)
        matcher = library.load().LLMatcher
        fails, messages = library.deeply(
            lambda: matcher.validate_grammar_with_warnings(self.text, limits=library.limits())
        )
        if fails:
            raise ValueError(f"the grammar cannot be used: {library.sentence(messages[0])}")

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """JSON that a schema describes, given as a dictionary or as JSON.

        Properties come in the order of the schema. Between the tokens of JSON there is nothing, a
        blank, or a new line with an indent. Keywords that cannot be held to, such as `not` and
        `if`, are a ValueError.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"the JSON schema is no JSON: {error}") from None
        if not isinstance(schema, Mapping):
            raise ValueError(
                f"a JSON schema is of type {type(schema).__name__}, expected an object"
            )
        try:
            described = schemas.prepared(schema)
        except RecursionError:
            raise ValueError("the JSON schema is nested too deeply") from None
        own = described.get("x-guidance", {})
        if not isinstance(own, Mapping):
            raise ValueError("x-guidance of the JSON schema is not an object")
        described["x-guidance"] = {"whitespace_pattern": _BLANKS, **own}
        return cls(_json({"grammars": [{"json_schema": described}]}, "the JSON schema"))

    @classmethod
    def regex(cls, expression: str) -> Grammar:
        """A text that a regular expression matches as a whole, in the syntax of Rust's `regex`."""
        check_type("a regular expression", expression, str)
        _check_unicode(expression)
        return cls(library.load().LLMatcher.grammar_from_regex(expression))

    @classmethod
    def choices(cls, texts: Iterable[str]) -> Grammar:
        """One of several texts."""
        given = [texts] if isinstance(texts, str) else list(texts)
        if not given or not all(isinstance(text, str) and text for text in given):
            raise ValueError("choices are texts that are not empty, at least one")
        for text in given:
            _check_unicode(text)
        literals = " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(given))
        return cls(f"start: CHOICE\nCHOICE: {literals}")

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A grammar in llguidance's form of Lark, whose first rule is `start`."""
        check_type("a grammar", text, str)
        return cls(text)

    @classmethod
    def gbnf(cls, text: str) -> Grammar:
        """A grammar in the form of llama.cpp, whose first rule is `root`."""
        check_type("a grammar", text, str)
        _check_unicode(text)
        library.load()
        from llguidance.gbnf_to_lark import gbnf_to_lark

        try:
            return cls(gbnf_to_lark(text))
        except ValueError:
            raise
        except Exception as error:  # its parser has exceptions of its own
            raise ValueError(
                f"the grammar cannot be used: {library.sentence(str(error))}"
            ) from None

    @classmethod
    def parse(cls, text: str) -> Grammar:
        """A grammar in any of the three forms: JSON of llguidance, GBNF (`::=`), or else Lark."""
        check_type("a grammar", text, str)
        if re.search(r"^[\w-]+\s*::=", text, re.MULTILINE):
            return cls.gbnf(text)
        return cls(text)


def _json(value: Any, what: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} cannot be written as JSON: {error}") from None
    _check_unicode(text)
    return text


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the grammar is not valid Unicode: it has a lone surrogate") from None
