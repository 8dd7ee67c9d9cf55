"""Answers taken apart: each format, whole and in pieces of any size."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from lariat.chat import message_checks, tool_formats
from lariat.chat.thoughts import HARMONY as HARMONY_MARKS
from lariat.chat.thoughts import MARKS, Marks
from lariat.chat.tool_calls import ToolParser, grammar_for, parser_for, shown_ids
from lariat.chat.tool_formats import HARMONY, Format
from lariat.errors import ChatError
from lariat.formats.gguf import GGUFFile
from lariat.structured.matcher import Grammars
from lariat.tokenizers.tokenizer import Tokenizer

from tests.support.model_files import write_gguf
from tests.support.vocabularies import BYTE_CHARACTERS

FORMATS = {one.name: one for one in (*tool_formats.FORMATS, HARMONY)}
THINK = MARKS[0]
ARGS = {"city": "Zürich 🏔️", "days": 3, "nested": {"a": [1, None, True]}}
JSON = json.dumps(ARGS, ensure_ascii=False)
CALL = '{"name": "weather", "arguments": ' + JSON + "}"
PARAMETERS = CALL.replace("arguments", "parameters")
XML = """<tool_call>
<function=weather>
<parameter=city>
Zürich 🏔️
</parameter>
<parameter=days>
3
</parameter>
</function>
</tool_call>"""
ANALYSIS = "<|channel|>analysis<|message|>ponder<|end|>"
TO = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
WEATHER = ("weather", ARGS)
FEW = ("weather", {"city": "Zürich 🏔️", "days": 3})


def read(
    format: Format, text: str, size: int, begun: Marks | None = None
) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    """Thought, content and calls of an answer that comes in pieces of some size."""
    parser = ToolParser(format, begun)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()
    calls = [delta.call for delta in deltas if delta.call]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls) == parser.n_calls
    for delta in deltas:
        assert bool(delta.content) + bool(delta.reasoning_content) + bool(delta.call) == 1
    return (
        "".join(delta.reasoning_content for delta in deltas),
        "".join(delta.content for delta in deltas),
        [(call.name, json.loads(call.arguments)) for call in calls],
    )


CASES: list[tuple[str, str, Marks | None, tuple[str, str, list[Any]]]] = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", None, ("", "", [WEATHER])),
    (
        "hermes",
        f"Let me see.\n\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>\n",
        None,
        ("", "Let me see.", [WEATHER, WEATHER]),
    ),
    ("hermes", XML, None, ("", "", [FEW])),
    (
        "hermes",
        f"<think>\nponder\n</think>\n\nSo.\n<tool_call>{CALL}</tool_call>",
        None,
        ("\nponder\n", "So.", [WEATHER]),
    ),
    ("hermes", f"ponder</think>\n<tool_call>{CALL}</tool_call>", THINK, ("ponder", "", [WEATHER])),
    ("hermes", "a <tool> b <tool_cal", None, ("", "a <tool> b <tool_cal", [])),
    ("hermes", "plain  \n", None, ("", "plain  \n", [])),
    ("hermes", "", None, ("", "", [])),
    (
        "hermes",
        '<tool_call>{"name": </tool_call> x',
        None,
        ("", '<tool_call>{"name": </tool_call> x', []),
    ),
    ("hermes", "<tool_call>[1]</tool_call>", None, ("", "<tool_call>[1]</tool_call>", [])),
    ("hermes", f"<tool_call>\n{CALL}", None, ("", "", [WEATHER])),
    ("hermes", "<tool_call>\n{", None, ("", "<tool_call>\n{", [])),
    ("hermes", f"<tool_call>{CALL}</tool_call>\nbehind", None, ("", "behind", [WEATHER])),
    ("llama3", PARAMETERS, None, ("", "", [WEATHER])),
    ("llama3", f"{PARAMETERS}; {PARAMETERS}", None, ("", "", [WEATHER, WEATHER])),
    ("llama3", f"<|python_tag|>{PARAMETERS}", None, ("", "", [WEATHER])),
    ("llama3", '{"answer": 42}', None, ("", '{"answer": 42}', [])),
    ("llama3", '{"name": "Ada"}', None, ("", '{"name": "Ada"}', [])),
    ("llama3", "The {braces} stay", None, ("", "The {braces} stay", [])),
    ("mistral", f"[TOOL_CALLS]weather[ARGS]{JSON}", None, ("", "", [WEATHER])),
    (
        "mistral",
        f"Yes.[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{JSON}[TOOL_CALLS]weather[ARGS]{JSON}",
        None,
        ("", "Yes.", [WEATHER, WEATHER]),
    ),
    (
        "mistral",
        f"[THINK]ponder[/THINK][TOOL_CALLS]weather[ARGS]{JSON}",
        None,
        ("ponder", "", [WEATHER]),
    ),
    ("mistral", "[TOOL_CALLS]weather[ARGS]{", None, ("", "[TOOL_CALLS]weather[ARGS]{", [])),
    ("mistral list", f"[TOOL_CALLS] [{CALL}, {CALL}]", None, ("", "", [WEATHER, WEATHER])),
    ("mistral list", f"[TOOL_CALLS] [{CALL}", None, ("", f"[TOOL_CALLS] [{CALL}", [])),
    ("gemma", f"```json\n{CALL}\n```", None, ("", "", [WEATHER])),
    ("gemma", CALL, None, ("", "", [WEATHER])),
    (
        "gemma",
        "```tool_code\nprint(weather(city='Zürich 🏔️', days=3))\n```",
        None,
        ("", "", [FEW]),
    ),
    ("gemma", '```json\n{"a": 1}\n```', None, ("", '```json\n{"a": 1}\n```', [])),
    (
        "gemma",
        "```tool_code\nimport os\n```",
        None,
        ("", "```tool_code\nimport os\n```", []),
    ),
    ("harmony", f"{ANALYSIS}<|start|>assistant{TO}{JSON}", None, ("ponder", "", [WEATHER])),
    ("harmony", f"{ANALYSIS}<|start|>assistant{TO}{JSON}<|call|>", None, ("ponder", "", [WEATHER])),
    (
        "harmony",
        f" to=functions.weather<|channel|>commentary json<|message|>{JSON}<|call|>",
        None,
        ("", "", [WEATHER]),
    ),
    ("harmony", f"{ANALYSIS}{FINAL}it is <b>", None, ("ponder", "it is <b>", [])),
    ("harmony", "<|channel|>final<|message|>at once<|return|>", None, ("", "at once", [])),
    ("harmony", "no header", None, ("", "no header", [])),
    ("harmony", f"{TO}{{", None, ("", "{", [])),
    ("harmony", f"ponder<|end|>{FINAL}so", HARMONY_MARKS[0], ("ponder", "so", [])),
    (
        "harmony",
        f"<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{TO}{JSON}",
        None,
        ("", "I look.", [WEATHER]),
    ),
]


@pytest.mark.parametrize(("name", "text", "begun", "expected"), CASES)
def test_whole_and_in_pieces(name, text, begun, expected):
    for size in (1000, 1, 2, 3, 4, 5, 7, 11, 17):
        assert read(FORMATS[name], text, size, begun) == expected, size


@pytest.mark.parametrize(("name", "text", "begun", "expected"), CASES)
def test_cut_in_two_at_every_position(name, text, begun, expected):
    for at in range(len(text) + 1):
        parser = ToolParser(FORMATS[name], begun)
        deltas = parser.feed(text[:at]) + parser.feed(text[at:]) + parser.finish()
        assert "".join(delta.content for delta in deltas) == expected[1]
        assert "".join(delta.reasoning_content for delta in deltas) == expected[0]
        assert parser.n_calls == len(expected[2])


@pytest.mark.parametrize("name", FORMATS)
def test_no_text_is_an_exception(name):
    marks = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "{", "}", '"', "```json\n"]
    marks += [
        "```",
        "<|channel|>",
        "<|message|>",
        "<|end|>",
        "to=functions.",
        "<think>",
        "</think>",
    ]
    marks += ["[" * 5000, "\\ud800", "f(a=", ")", "<function=", ">", "\0", "name", ":", " "]
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(rng.choice(marks, rng.integers(1, 9)))
        once, twice = read(FORMATS[name], text, 10_000), read(FORMATS[name], text, 3)
        assert once == twice, text


def test_content_is_not_held_back_for_long():
    parser = parser_for("<tool_call>")
    assert "".join(delta.content for delta in parser.feed("It is < 3 and so on")) == (
        "It is < 3 and so on"
    )
    assert parser.feed(" <tool_c") == []
    assert "".join(delta.content for delta in parser.feed("at>")) == " <tool_cat>"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("{{ '[TOOL_CALLS]' }}", "mistral list"),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", "mistral"),
        ("{{ '<|python_tag|>' }}<|start_header_id|>", "llama3"),
        ("<start_of_turn>", "gemma"),
        ("<|start|><|channel|>analysis<|message|>", "harmony"),
        ("{{ messages }}", "hermes"),
    ],
)
def test_the_format_is_found_in_the_template(source, name):
    assert parser_for(source).format.name == name


CONTROL = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|im_end|>"]
CONTROL += ["<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "<|call|>", "</think>"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {field: {"enum": ["a", "é"]}},
                "required": [field],
                "additionalProperties": False,
            },
        },
    }
    for name, field in (("first", "x"), ("second", "y"))
]


@pytest.fixture(scope="module", params=[3, 4], ids=["control", "user-defined"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A byte-level vocabulary in which marks are control or user-defined tokens."""
    n = len(BYTE_CHARACTERS)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*BYTE_CHARACTERS, *CONTROL],
        "tokenizer.ggml.token_type": [1] * n + [request.param] * len(CONTROL),
        "tokenizer.ggml.merges": ["q x"],
        "tokenizer.ggml.eos_token_id": n + CONTROL.index("<|im_end|>"),
    }
    with GGUFFile(write_gguf(tmp_path_factory.mktemp("v") / "v.gguf", metadata)) as file:
        yield Tokenizer.from_gguf(file)


@pytest.mark.parametrize("begun", [None, THINK])
@pytest.mark.parametrize("name", FORMATS)
def test_what_the_grammar_of_calls_allows_is_read_as_calls(tokenizer, name, begun):
    format = FORMATS[name]
    if begun and format is HARMONY:
        begun = None
    grammars = Grammars(tokenizer)
    for only in (None, "second"):
        grammar = grammars.of(grammar_for(TOOLS, format, tokenizer, name=only, begun=begun))
        for seed in range(6):
            rng = np.random.default_rng(seed)
            matcher, ids = grammar.start(), []
            while not matcher.is_done and len(ids) < 600:
                logits = rng.standard_normal(tokenizer.n_vocab).astype(np.float32)
                logits[sorted(tokenizer.eog_ids)] = 9.0
                logits[tokenizer.encode("</think>", False, True)[0]] += 4.0
                matcher.mask(logits)
                if int(logits.argmax()) in tokenizer.eog_ids:
                    break
                ids.append(int(logits.argmax()))
                matcher.accept(ids[-1])
            decoder = tokenizer.decoder(show=shown_ids(tokenizer, format) | _thinking(tokenizer))
            text = "".join(map(decoder.feed, ids))
            _, content, calls = read(format, text, 5, begun)
            assert content == "", text
            assert calls, text
            for called, given in calls:
                assert called == only or (only is None and called in ("first", "second"))
                tool = next(t["function"] for t in TOOLS if t["function"]["name"] == called)
                jsonschema.validate(given, tool["parameters"])


def _thinking(tokenizer: Tokenizer) -> set[int]:
    return set(tokenizer.encode("</think>", False, True))


def test_a_decoder_shows_control_tokens_that_are_asked_for(tokenizer):
    ids = tokenizer.encode("a<tool_call>🏔️</tool_call><|im_end|>", False, True)
    shown = shown_ids(tokenizer, FORMATS["hermes"])
    decoder = tokenizer.decoder(show=shown)
    assert "".join(map(decoder.feed, ids)) == "a<tool_call>🏔️</tool_call>"
    assert len(shown) == 2


def test_arguments_in_the_history_are_read_or_refused_by_number():
    def message(arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    user = {"role": "user", "content": "x"}
    for given in ('{"a": 1}', {"a": 1}):
        made = message_checks.checked([user, message(given)])[1]
        assert made["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    for bad in ('{"a": ', "[1]", "", "[" * 100_000):
        with pytest.raises(ChatError, match="message 2: the arguments of a call"):
            message_checks.checked([user, message(bad)])


def test_tools_that_cannot_be_called(tokenizer):
    with pytest.raises(ValueError, match="no tool 'third'"):
        grammar_for(TOOLS, HARMONY, tokenizer, name="third")
    with pytest.raises(ValueError, match="no tools"):
        grammar_for([], HARMONY, tokenizer)
    bad = [{"function": {"name": "f", "parameters": {"not": {}}}}]
    with pytest.raises(ValueError, match="Unimplemented"):
        grammar_for(bad, HARMONY, tokenizer)
