"""Grammars: what can be one, and what is refused with a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from lariat import Grammar, LariatError
from lariat.structured.library import MAX_RULES, MAX_TEXT

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json_object(),
        Grammar.json_schema(OBJECT),
        Grammar.json_schema(json.dumps(OBJECT)),
        Grammar.json_schema({}),
        Grammar.regex(r"[a-z/]+\"x"),
        Grammar.choices(["yes", 'n"o', "a\nb", "ä/\\"]),
        Grammar.choices(iter(["yes"])),
        Grammar.lark('start: "a" x*\nx: /b+/'),
        Grammar.gbnf('root ::= "a" [b-d]+ item?\nitem ::= "x" | "y"'),
        Grammar('{"grammars": [{"json_schema": {"type": "null"}}]}'),
        Grammar('start: "a"'),
        Grammar.parse('root ::= "a"'),
        Grammar.parse('start: "a"'),
        Grammar.parse('{"grammars": [{"lark_grammar": "start: /a+/"}]}'),
    ],
)
def test_grammars(grammar):
    assert grammar == Grammar(grammar.text)
    assert hash(grammar) == hash(Grammar(grammar.text))


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (Grammar, "", "the grammar is empty"),
        (Grammar, " \n", "the grammar is empty"),
        (Grammar, 3, "a grammar is of type int, expected str"),
        (Grammar, "{}", "cannot be used"),
        (Grammar, '{"grammars": 3}', "cannot be used"),
        (Grammar, "start: x", 'unknown name: "x"'),
        (Grammar, 'start: "a\ud800"', "lone surrogate"),
        (Grammar, 'start: "a\0"', "cannot be used"),
        (Grammar.lark, b"start: x", "a grammar is of type bytes"),
        (Grammar.lark, "start: ((", "cannot be used"),
        (Grammar.gbnf, 'rot ::= "a"', "No 'root' rule"),
        (Grammar.gbnf, "root ::= other", "'other' not found"),
        (Grammar.gbnf, 'root ::= "a', "cannot be used"),
        (Grammar.gbnf, 4, "a grammar is of type int"),
        (Grammar.regex, "[a-", "unclosed character class"),
        (Grammar.regex, "(?!a)b", "look-around"),
        (Grammar.regex, None, "a regular expression is of type NoneType"),
        (Grammar.choices, [], "at least one"),
        (Grammar.choices, ["a", ""], "not empty"),
        (Grammar.choices, [1], "choices are texts"),
        (Grammar.json_schema, "{", "no JSON"),
        (Grammar.json_schema, "[" * 100_000, "no JSON"),
        (Grammar.json_schema, [], "of type list, expected an object"),
        (Grammar.json_schema, True, "of type bool, expected an object"),
        (Grammar.json_schema, {"type": "foo"}, "Invalid type: foo"),
        (Grammar.json_schema, {"not": {}}, 'Unimplemented keys: ["not"]'),
        (Grammar.json_schema, {"type": "string", "format": "moon"}, "Unknown format: moon"),
        (Grammar.json_schema, {"$ref": "http://example.org/x"}, "cannot be used"),
        (Grammar.json_schema, {"$ref": "#/$defs/none"}, "cannot be used"),
        (Grammar.json_schema, {"const": {1, 2}}, "cannot be written as JSON"),
        (Grammar.json_schema, {"minimum": float("nan")}, "cannot be written as JSON"),
        (Grammar.json_schema, {"const": "\ud800"}, "lone surrogate"),
        (Grammar.json_schema, {"x-guidance": 3}, "x-guidance"),
        (Grammar.json_schema, {"enum": []}, "cannot be used"),
    ],
)
def test_what_is_refused(make, given, message):
    with pytest.raises(ValueError, match=None) as caught:
        make(given)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert len(text) < 500


def test_limits_of_length():
    rule = '\nb: "' + "x" * 50 + '"'
    Grammar("start: b" + rule)
    with pytest.raises(ValueError, match=f"more than {MAX_RULES}"):
        Grammar('start: "' + "x" * MAX_RULES + '"')
    with pytest.raises(ValueError, match=f"more than {MAX_RULES}"):
        Grammar(json.dumps({"grammars": [{"lark_grammar": "start: /a/" + " " * MAX_RULES}]}))
    wide = {"enum": ["x" * 100 + str(i) for i in range(MAX_TEXT // 110)]}
    Grammar.json_schema(wide)
    with pytest.raises(ValueError, match=f"more than {MAX_TEXT}"):
        Grammar.json_schema({"enum": [*wide["enum"], "x" * 4000]})


def test_annotations_do_not_count():
    Grammar.json_schema(OBJECT | {"description": "x" * (2 * MAX_TEXT)})


def test_errors_do_not_repeat_a_long_text():
    with pytest.raises(ValueError) as caught:
        Grammar.json_schema({"type": "string", "format": "y" * 10_000})
    assert len(str(caught.value)) < 400


# The library reads these by recursion, which ended the process with the stack of a thread.
NESTED = """
import sys, threading
from lariat import Grammar
names = [f"{i:x}" for i in range(9000)]
def chain(link, last, n):
    return "".join(link.format(names[i], names[i + 1]) for i in range(n)) + last.format(names[n])
texts = {
    "rules": "start: r0\\n" + chain("r{}:r{}\\n", 'r{}:"x"\\n', 700),
    "brackets": "start: r0\\n"
        + chain("r{}:" + "(" * 20 + "r{}" + ")" * 20 + "\\n", 'r{}:"x"', 130),
    "terminals": "start: R0\\n" + chain("R{}:R{}\\n", 'R{}:"x"\\n', 600).upper(),
    "schemas": '{{"grammars":[{{"json_schema":{{"$ref":"#/a/0","a":{{{}}}}}}}]}}'.format(
        chain('"{}":{{"items":{{"$ref":"#/a/{}"}}}},', '"{}":{{}}', 900)),
    "allOf": '{{"grammars":[{{"json_schema":{{"$ref":"#/a/0","a":{{{}}}}}}}]}}'.format(
        chain('"{}":' + '{{"allOf":[' * 50 + '{{"$ref":"#/a/{}"}}' + ']}}' * 50 + ",",
              '"{}":{{}}', 50)),
}
def read():
    for name, text in texts.items():
        try:
            Grammar(text)
            print(name, "read", len(text))
        except ValueError as error:
            print(name, "refused", str(error)[:80])
threading.stack_size(256 << 10)
thread = threading.Thread(target=read)
thread.start()
thread.join()
"""


def test_grammars_of_strangers_do_not_end_the_process():
    done = subprocess.run(
        [sys.executable, "-c", NESTED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5, done.stdout
    assert done.stdout.count("read") >= 4, done.stdout


def test_a_sentence_where_the_library_is_missing(monkeypatch: Any):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for make in (Grammar.json_object, lambda: Grammar.regex("a"), lambda: Grammar.choices(["a"])):
        with pytest.raises(LariatError, match=r"pip install 'lariat\[schema\]'"):
            make()


def test_the_library_is_not_imported_without_a_grammar():
    code = "import sys; from lariat import LLM, Grammar; print('llguidance' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
