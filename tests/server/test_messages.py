"""`/v1/messages`, with Anthropic's own client."""

from __future__ import annotations

import anthropic
import pytest
from lariat import LLM, SamplingParams

from tests.support.servers import NAME, Running

SAY = [{"role": "user", "content": "Once upon a time"}]
GREEDY = {"extra_body": {"temperature": 0}, "max_tokens": 8}


@pytest.fixture(scope="module")
def client(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def greedy_text(llm: LLM, **more: object) -> str:
    params = SamplingParams(temperature=0, max_tokens=8, **more)  # type: ignore[arg-type]
    return llm.generate("Once upon a time", params).text


def test_an_answer(client: anthropic.Anthropic, llm: LLM) -> None:
    answer = client.messages.create(model=NAME, messages=SAY, **GREEDY)  # type: ignore[call-overload]
    assert [block.type for block in answer.content] == ["text"]
    assert answer.content[0].text == greedy_text(llm)
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 8
    n_prompt = len(llm.tokenize("Once upon a time"))
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == n_prompt
    assert answer.id.startswith("msg_")


def test_a_stream_has_the_events_of_anthropic(client: anthropic.Anthropic, llm: LLM) -> None:
    with client.messages.stream(model=NAME, messages=SAY, **GREEDY) as stream:  # type: ignore[arg-type]
        names = [event.type for event in stream]
        whole = stream.get_final_message()
    assert names[0] == "message_start"
    assert names[1] == "content_block_start"
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert whole.content[0].text == greedy_text(llm)  # type: ignore[union-attr]
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == 8


def test_a_stop_sequence_is_named(client: anthropic.Anthropic, llm: LLM) -> None:
    word = greedy_text(llm).split()[2]
    answer = client.messages.create(
        model=NAME,
        messages=SAY,
        stop_sequences=["nowhere", word],
        max_tokens=20,
        extra_body={"temperature": 0},
    )
    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence == word


def test_system_blocks_calls_and_results_reach_the_template(client: anthropic.Anthropic) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control":
                                      {"type": "ephemeral"}}]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]  # fmt: skip
    system = [{"type": "text", "text": "Be brief. "}]
    n = client.messages.count_tokens(model=NAME, messages=messages, system=system).input_tokens  # type: ignore[arg-type]
    fewer = client.messages.count_tokens(model=NAME, messages=messages)  # type: ignore[arg-type]
    assert n > fewer.input_tokens > 2


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 0},
        {"messages": [*SAY, {"role": "assistant", "content": "I"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f",
                                                     "input": {}}]}]},
        {"temperature": -1},
        {"unheard_of": 1},
        {"messages": []},
        {"tool_choice": {"type": "tool"}},
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused(
    server: Running, change: dict[str, object]
) -> None:
    answer = server.post("/v1/messages", {"messages": SAY, "max_tokens": 4} | change)
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_another_model_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude", messages=SAY, max_tokens=1)  # type: ignore[arg-type]
