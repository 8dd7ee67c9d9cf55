"""Calls of tools, with OpenAI's and Anthropic's own clients."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import jsonschema
import openai
import pytest
from lariat import LLM
from lariat.chat.thoughts import MARKS
from lariat.protocol.reading import Reader, format_of
from lariat.runtime.request import Delta

from tests.support.servers import NAME, SAID, Running

pytest.importorskip("llguidance")

SAY: list[Any] = [{"role": "user", "content": "Once upon a time"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "sleep", "parameters": {"type": "object",
                                                                      "properties": {}}}},
]  # fmt: skip
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def test_a_call_that_has_to_come(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=SAY, tools=TOOLS, tool_choice=NAMED, max_tokens=150, seed=1
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert call.id
    assert call.function.name == "weather"
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)
    # The conversation goes on with what the call has given.
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    messages = [*SAY, choice.message.model_dump(), result]
    after = client.chat.completions.create(model=NAME, messages=messages, tools=TOOLS, max_tokens=1)
    assert after.usage
    assert answer.usage
    assert after.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_call_in_a_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=NAME, messages=SAY, tools=TOOLS, tool_choice="required", max_tokens=150, seed=1,
            parallel_tool_calls=False, stream=True,
        )
    )  # fmt: skip
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or ()]
    assert len({call.index for call in calls}) == 1
    assert calls[0].function
    assert calls[0].function.name in ("weather", "sleep")
    json.loads("".join(call.function.arguments or "" for call in calls if call.function))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_without_a_call_the_reason_is_another(client: openai.OpenAI) -> None:
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(
            model=NAME, messages=SAY, tools=TOOLS, tool_choice=choice, max_tokens=6,  # type: ignore[call-overload]
        )  # fmt: skip
        assert answer.choices[0].finish_reason == "length"
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].message.content


def test_a_call_that_is_cut_off_is_none(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=SAY, tools=TOOLS, tool_choice=NAMED, max_tokens=5
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls is None


def test_responses_and_messages_have_calls_too(server: Running, client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS}
    asked: Any = {
        "model": NAME,
        "input": "Once",
        "tools": [tool],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
    }
    (item,) = client.responses.create(**asked, max_output_tokens=150).output
    assert item.type == "function_call"
    jsonschema.validate(json.loads(item.arguments), PARAMETERS)
    names = [e.type for e in client.responses.create(**asked, max_output_tokens=150, stream=True)]
    assert "response.function_call_arguments.done" in names
    other = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    own: Any = {
        "model": NAME, "messages": SAY, "max_tokens": 150,
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "tools": [{"name": "weather", "input_schema": PARAMETERS}],
        "extra_body": {"temperature": 0},
    }  # fmt: skip
    answer = other.messages.create(**own)
    assert answer.stop_reason == "tool_use"
    (block,) = answer.content
    assert block.type == "tool_use"
    jsonschema.validate(block.input, PARAMETERS)
    with other.messages.stream(**own) as stream:
        (block,) = stream.get_final_message().content
    assert block.type == "tool_use"
    jsonschema.validate(block.input, PARAMETERS)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"tools": TOOLS[:1] * 2}, "tools[1].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ],
)
def test_what_cannot_be_held_to_is_refused(
    server: Running, change: dict[str, Any], field: str
) -> None:
    body = {"messages": SAY, "max_tokens": 2, "tools": TOOLS} | change
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


def test_thoughts_are_told_apart_and_calls_are_content_without_tools(llm: LLM) -> None:
    text = 'I <think>ponder</think>\n\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    reader = Reader(format_of(SAID, False), None, llm.tokenizer, ())
    deltas = [d for c in text for d in reader.feed(Delta(c))] + reader.finish()
    assert "".join(d.content for d in deltas) == text
    thought = Reader(format_of(SAID, False), MARKS[0], llm.tokenizer, ())
    deltas = [d for c in "hm</think>yes" for d in thought.feed(Delta(c))] + thought.finish()
    assert "".join(d.reasoning_content for d in deltas) == "hm"
    assert "".join(d.content for d in deltas) == "yes"
