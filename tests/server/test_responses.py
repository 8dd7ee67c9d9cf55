"""`/v1/responses`, with OpenAI's own client."""

from __future__ import annotations

import openai
import pytest
from lariat import LLM, SamplingParams

from tests.support.servers import NAME, Running

GREEDY = {"temperature": 0, "max_output_tokens": 8}
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def greedy_text(llm: LLM) -> str:
    return llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=8)).text


@pytest.mark.parametrize(
    "given",
    [
        PROMPT,
        [{"role": "user", "content": PROMPT}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": PROMPT}]}],
    ],
    ids=["text", "message", "parts"],
)
def test_an_answer(client: openai.OpenAI, llm: LLM, given: object) -> None:
    answer = client.responses.create(model=NAME, input=given, store=False, **GREEDY)  # type: ignore[call-overload]
    assert answer.output_text == greedy_text(llm)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 8
    assert answer.usage.input_tokens == len(llm.tokenize(PROMPT))


def test_a_stream_has_the_events_of_openai(client: openai.OpenAI, llm: LLM) -> None:
    events = list(client.responses.create(model=NAME, input=PROMPT, stream=True, **GREEDY))  # type: ignore[call-overload]
    names = [event.type for event in events]
    assert names[:4] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added",
    ]  # fmt: skip
    assert names[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == greedy_text(llm) == events[-1].response.output_text


def test_the_client_puts_a_stream_together(client: openai.OpenAI, llm: LLM) -> None:
    with client.responses.stream(model=NAME, input=PROMPT, **GREEDY) as stream:  # type: ignore[arg-type]
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(texts) == greedy_text(llm)


@pytest.mark.parametrize(
    "change",
    [
        {"previous_response_id": "resp_1"},
        {"background": True},
        {"conversation": "x"},
        {"truncation": "auto"},
        {"tools": [{"type": "web_search"}]},
        {"input": [{"type": "message", "content": "a"}]},
        {"input": [{"type": "function_call", "name": "f", "arguments": "{"}]},
        {"input": []},
        {"max_output_tokens": -7},
    ],
)
def test_what_would_change_the_answer_is_refused(
    server: Running, change: dict[str, object]
) -> None:
    answer = server.post("/v1/responses", {"input": "a", "max_output_tokens": 2} | change)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
