"""How models write calls of tools: one row a format.

Sources: the chat templates that the makers publish with Hermes 2 Pro, Qwen 2.5, Qwen3-Coder, Llama
3.1, Mistral 7B v0.3, Mistral Small 3.2 and Gemma 3; harmony:
https://developers.openai.com/cookbook/articles/openai-harmony.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Call(NamedTuple):
    """A call that a model has written."""

    name: str
    arguments: dict[str, Any]


Calls = list[Call] | None
"""The calls in a text, None if it is no text of calls."""


@dataclass(frozen=True)
class Format:
    """The form in which a model writes calls.

    marks       with what a template or a message of it names the format
    opens       texts that begin calls, the longest first
    closes      texts that end them, "" if they go on to the next mark or the end
    parse       reads what stands between
    before      what the grammar of a call writes in front of the arguments; {name} is the tool's
    behind      and behind them
    whole       calls may begin without a mark, where an answer is JSON from its beginning on
    shown       control tokens that have to be visible, so that they are found
    id_length   characters of an identifier
    """

    name: str
    marks: tuple[str, ...]
    opens: tuple[str, ...]
    closes: str
    parse: Callable[[str], Calls]
    before: str
    behind: str
    whole: bool = False
    shown: tuple[str, ...] = ()
    id_length: int = 24


def _objects(text: str) -> list[Any] | None:
    """The values of JSON in a text, with blanks, commas or semicolons between them."""
    decoder, at = json.JSONDecoder(), 0
    values: list[Any] = []
    while True:
        while at < len(text) and text[at] in " \t\r\n;,":
            at += 1
        if at == len(text):
            return values
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        values.append(value)


def _call(value: Any) -> Call | None:
    """A call of an object with a name and arguments, which may be JSON within a text."""
    if not isinstance(value, dict):
        return None
    value = value.get("function", value) if isinstance(value.get("function"), dict) else value
    name = value.get("name")
    given = value.get("arguments", value.get("parameters", {}))
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not name or not isinstance(given, dict):
        return None
    return Call(name, given)


def parse_json(text: str) -> Calls:
    """One or several objects, or a list of them."""
    values = _objects(text)
    if values and len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    calls = [_call(value) for value in values or ()]
    return None if not calls or None in calls else [call for call in calls if call]


def parse_named_json(text: str) -> Calls:
    """Only objects that have a name and say what is given to it: other JSON is an answer."""
    values = _objects(text) or [None]
    is_call = all(
        isinstance(value, dict) and "name" in value and {"parameters", "arguments"} & value.keys()
        for value in values
    )
    return parse_json(text) if is_call else None


_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>\s*(.*?)</function>\s*", re.DOTALL)


def parse_hermes(text: str) -> Calls:
    """JSON, or the form of Qwen3-Coder, `<function=name><parameter=key>value</parameter>`."""
    match = _FUNCTION.fullmatch(text)
    if match is None:
        return parse_json(text)
    given: dict[str, Any] = {}
    at, body = 0, match[2]
    for one in _PARAMETER.finditer(body):
        if one.start() != at:
            return None
        at, given[one[1].strip()] = one.end(), _value(one[2])
    return [Call(match[1].strip(), given)] if at == len(body) else None


def _value(text: str) -> Any:
    """JSON, or the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


_MISTRAL = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?\[ARGS\](.*)", re.DOTALL)


def parse_mistral(text: str) -> Calls:
    """A list as JSON, or `name[ARGS]{...}`."""
    match = _MISTRAL.fullmatch(text)
    if match is None:
        return parse_json(text) if text.lstrip()[:1] in ("[", "{") else None
    values = _objects(match[2])
    call = (
        _call({"name": match[1], "arguments": values[0]}) if values and len(values) == 1 else None
    )
    return [call] if call else None


def parse_python(text: str) -> Calls:
    """Calls as in Python, with constants by their names: `f(a=1, b="x")`; or JSON."""
    if text.lstrip()[:1] in ("{", "["):
        return parse_named_json(text.strip())
    try:
        body = ast.parse(text.strip()).body
        calls = []
        for statement in body:
            node = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and node.args:
                node = node.args[0]
            if not isinstance(node, ast.Call) or node.args:
                return None
            given = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            json.dumps(given)
            calls.append(Call(ast.unparse(node.func), given))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return calls or None


_OBJECT = '{{"name": "{name}", "arguments": '
FORMATS = (
    Format(
        "hermes", ("<tool_call>",), ("<tool_call>",), "</tool_call>", parse_hermes,
        before="<tool_call>\n" + _OBJECT, behind="}\n</tool_call>",
        shown=("<tool_call>", "</tool_call>"),
    ),
    Format(
        "mistral", ("[TOOL_CALLS]", "[ARGS]"), ("[TOOL_CALLS]",), "", parse_mistral,
        before="[TOOL_CALLS]{name}[ARGS]", behind="",
        shown=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), id_length=9,
    ),
    Format(
        "mistral list", ("[TOOL_CALLS]",), ("[TOOL_CALLS]",), "", parse_mistral,
        before="[TOOL_CALLS] [" + _OBJECT, behind="}]",
        shown=("[TOOL_CALLS]",), id_length=9,
    ),
    Format(
        "llama3", ("<|python_tag|>",), ("<|python_tag|>",), "", parse_named_json,
        before='{{"name": "{name}", "parameters": ', behind="}", whole=True,
        shown=("<|python_tag|>",),
    ),
    Format(
        "gemma", ("<start_of_turn>",), ("```tool_code\n", "```tool_call\n", "```json\n"), "```",
        parse_python, before="```json\n" + _OBJECT, behind="}\n```", whole=True,
    ),
)  # fmt: skip
HARMONY = Format(
    "harmony", ("<|channel|>", "<|message|>"), (), "", parse_json,
    before="<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>", behind="",
    shown=("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"),
)  # fmt: skip


def of_template(source: str) -> Format:
    """The format of a model with this chat template; the most common one where it names none."""
    for one in (HARMONY, *FORMATS):
        if all(mark in source for mark in one.marks):
            return one
    return FORMATS[0]
