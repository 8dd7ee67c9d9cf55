"""Answers that follow a form, with OpenAI's own client."""

from __future__ import annotations

import json
import re

import jsonschema
import openai
import pytest

from tests.support.servers import NAME, Running

pytest.importorskip("llguidance")

SAY = [{"role": "user", "content": "Once upon a time"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["sad", "glad"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_is_followed(client: openai.OpenAI, stream: bool) -> None:
    asked = {
        "model": NAME, "messages": SAY, "max_tokens": 120, "seed": 1,
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA},
        },
    }  # fmt: skip
    if stream:
        chunks = list(client.chat.completions.create(stream=True, **asked))  # type: ignore[call-overload]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        answer = client.chat.completions.create(**asked)  # type: ignore[call-overload]
        text = answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(text), SCHEMA)


def test_responses_follow_a_schema_too(client: openai.OpenAI) -> None:
    form = {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA}}
    answer = client.responses.create(  # type: ignore[call-overload]
        model=NAME, input="Once upon a time", max_output_tokens=120, temperature=0, text=form
    )
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": "[0-9]{3}-[a-c]+!"}, r"\d{3}-[a-c]+!"),
        ({"choices": ["left", "right"]}, "left|right"),
        ({"grammar": 'start: "yes" | "no"'}, "yes|no"),
        ({"grammar": 'root ::= "ja" | "nein"'}, "ja|nein"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 7}}, "[567]"),
        ({"choices": ["🦙🦙"]}, "🦙🦙"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_other_forms(server: Running, form: dict[str, object], pattern: str, stream: bool) -> None:
    """Also characters of several tokens, of which no half is sent."""
    body = {"prompt": "a", "max_tokens": 40, "stream": stream, "seed": 3} | form
    if stream:
        lines = server.lines("/v1/completions", body)
        parts = [json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1]]
        assert "\ufffd" not in "".join(parts)
    else:
        parts = [server.post("/v1/completions", body).json()["choices"][0]["text"]]
    assert re.fullmatch(pattern, "".join(parts))


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            "response_format",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"json_schema": {"type": "string", "not": {"const": "a"}}}, "json_schema"),
        ({"grammar": "start: ("}, "grammar"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"regex": "("}, "regex"),
        ({"choices": []}, "choices"),
        ({"choices": ["a"], "regex": "a"}, "choices"),
    ],
)
def test_a_form_that_cannot_be_followed_is_refused(
    server: Running, form: dict[str, object], field: str
) -> None:
    """And the server goes on."""
    for stream in (False, True):
        body = {"messages": SAY, "max_tokens": 4, "stream": stream} | form
        answer = server.post("/v1/chat/completions", body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field
    assert server.get("/health").status_code == 200
