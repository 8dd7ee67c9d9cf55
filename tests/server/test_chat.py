"""`/v1/chat/completions`, with OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from lariat import LLM, SamplingParams
from lariat.protocol.served import Served

from tests.support.servers import NAME, SAID, Running, running

SAY = [{"role": "user", "content": "Once upon a time"}]
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def greedy_text(llm: LLM, n: int = 8) -> str:
    return llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=n)).text


def test_an_answer(client: openai.OpenAI, llm: LLM) -> None:
    answer = client.chat.completions.create(model=NAME, messages=SAY, **GREEDY)
    assert answer.choices[0].message.content == greedy_text(llm)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens == len(llm.tokenize("Once upon a time"))
    assert answer.model == NAME


def test_a_stream_is_the_same_text(client: openai.OpenAI, llm: LLM) -> None:
    chunks = list(client.chat.completions.create(model=NAME, messages=SAY, stream=True, **GREEDY))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == greedy_text(llm)
    reasons = [c.choices[0].finish_reason for c in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert len({c.id for c in chunks}) == 1


def test_usage_comes_in_a_last_chunk_without_choices_and_only_if_asked(server: Running) -> None:
    body = {"messages": SAY, "stream": True, **GREEDY}
    lines = server.lines("/v1/chat/completions", body)
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all(chunk["choices"] for chunk in chunks)
    assert not any(chunk["usage"] for chunk in chunks)
    lines = server.lines("/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
    *chunks, last = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all(chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 8


def test_n_answers_with_a_seed_are_different_and_repeatable(client: openai.OpenAI) -> None:
    def ask(n: int, seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model=NAME, messages=SAY, n=n, seed=seed, max_tokens=12, temperature=1.0
        )
        assert [choice.index for choice in answer.choices] == list(range(n))
        return [choice.message.content for choice in answer.choices]

    three = ask(3, 5)
    assert len(set(three)) == 3
    assert ask(3, 5) == three
    assert ask(1, 5)[0] == three[0]


def test_n_answers_in_a_stream(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model=NAME, messages=SAY, n=3, seed=5, max_tokens=6, stream=True
    )
    texts = {0: "", 1: "", 2: ""}
    ends = []
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert sorted(ends) == [0, 1, 2]
    assert all(texts.values())


def test_stop_texts_are_not_part_of_the_answer(client: openai.OpenAI, llm: LLM) -> None:
    word = greedy_text(llm).split()[2]
    answer = client.chat.completions.create(
        model=NAME, messages=SAY, stop=[word], temperature=0, max_tokens=30
    )
    assert answer.choices[0].finish_reason == "stop"
    assert word not in (answer.choices[0].message.content or "")


def test_a_second_turn_finds_the_first_one_in_the_cache(client: openai.OpenAI) -> None:
    first = "There was a dog in the garden, and a cat in the house, and they were friends. " * 4
    messages = [{"role": "user", "content": first}]
    answer = client.chat.completions.create(
        model=NAME, messages=messages, temperature=0, max_tokens=40
    )
    said = answer.choices[0].message.content
    messages += [
        {"role": "assistant", "content": said},
        {"role": "user", "content": " And then they all went home."},
    ]
    again = client.chat.completions.create(model=NAME, messages=messages, max_tokens=2)
    assert again.usage
    assert again.usage.prompt_tokens_details
    cached = again.usage.prompt_tokens_details.cached_tokens or 0
    n_first = len(client_tokens(client, first))
    assert cached >= n_first // 32 * 32 > 32
    extra = again.usage.prompt_tokens_details.model_dump()
    assert extra["computed_tokens"] == again.usage.prompt_tokens - cached
    assert extra["moved_tokens"] == extra["recomputed_tokens"] == 0


def client_tokens(client: openai.OpenAI, text: str) -> list[int]:
    url = str(client.base_url).removesuffix("/v1/") + "/tokenize"
    tokens: list[int] = client.post(url, body={"content": text}, cast_to=dict)["tokens"]
    return tokens


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"stop_token_ids": [5000]}, "stop_token_ids"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"audio": {}}, "audio"),
        ({"messages": []}, "messages"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        (
            {"messages": [*SAY, {"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[1].content[0].type",
        ),
    ],
)
def test_what_would_change_the_answer_is_refused_with_the_name_of_the_field(
    server: Running, change: dict[str, object], field: str
) -> None:
    answer = server.post("/v1/chat/completions", {"messages": SAY, "max_tokens": 1} | change)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == field
    assert 10 < len(error["message"]) < 400


def test_what_does_not_change_the_answer_is_taken(client: openai.OpenAI, llm: LLM) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=SAY, store=False, metadata={"a": "b"}, user="me",
        service_tier="auto", safety_identifier="x", prompt_cache_key="y",
        parallel_tool_calls=True, modalities=["text"], **GREEDY,
    )  # fmt: skip
    assert answer.choices[0].message.content == greedy_text(llm)


def test_a_logit_bias_forbids_a_token(client: openai.OpenAI, llm: LLM) -> None:
    first = llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=1))
    (token,) = first.token_ids
    answer = client.chat.completions.create(
        model=NAME, messages=SAY, logit_bias={str(token): -100}, temperature=0, max_tokens=1
    )
    assert answer.choices[0].message.content != first.text


def test_a_prompt_that_is_too_long_is_refused_with_both_counts(client: openai.OpenAI) -> None:
    text = "Once upon a time " * 400
    n = len(client_tokens(client, text)) + 1
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": text}], max_tokens=4
        )
    assert refused.value.code == "context_length_exceeded"
    assert f" {n} tokens" in str(refused.value)
    assert " 1024 tokens" in str(refused.value)


def test_malformed_arguments_in_the_history_are_told_with_their_message(
    client: openai.OpenAI,
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
    messages = [*SAY, {"role": "assistant", "content": None, "tool_calls": [call]}]
    with pytest.raises(openai.BadRequestError, match=r"messages\[1\].tool_calls\[0\]"):
        client.chat.completions.create(model=NAME, messages=messages)  # type: ignore[arg-type]


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="only demo"):
        client.chat.completions.create(model="gpt-4o", messages=SAY)


def test_characters_of_several_tokens_come_whole(client: openai.OpenAI, llm: LLM) -> None:
    emoji = "🦙"
    ids = llm.tokenize(emoji, add_bos=False)
    assert len(ids) > 2  # bytes
    # Each token in its turn, as the only one that is likely.
    for i, token in enumerate(ids[1:], start=1):
        prompt = llm.tokenize("a") + ids[:i]
        chunks = list(
            client.completions.create(
                model=NAME, prompt=prompt, logit_bias={str(token): 100}, temperature=0,
                max_tokens=1, stream=True,
            )
        )  # fmt: skip
        text = "".join(c.choices[0].text for c in chunks)
        assert text.encode()  # never half a character that cannot be sent


def test_a_stream_never_has_half_a_character(server: Running) -> None:
    pytest.importorskip("llguidance")
    text = "a 🦙🦙 and 👩‍🚀!"
    body = {"messages": SAY, "choices": [text], "max_tokens": 90, "stream": True, "logprobs": True}
    lines = server.lines("/v1/chat/completions", body)
    choices = [json.loads(line[6:])["choices"][0] for line in lines[:-1]]
    parts = [choice["delta"].get("content") or "" for choice in choices]
    assert "".join(parts) == text
    assert "🦙" in "".join(parts[:-1])
    assert not any("\ufffd" in part for part in parts)
    tokens = [one for c in choices if c["logprobs"] for one in c["logprobs"]["content"]]
    assert b"".join(bytes(one["bytes"]) for one in tokens).decode() == text
    assert any(len(one["bytes"]) == 1 and one["bytes"][0] > 127 for one in tokens), "split"


def test_a_model_without_a_template_says_so(llm: LLM) -> None:
    with running(llm, template=None) as server:
        answer = server.post("/v1/chat/completions", {"messages": SAY})
    assert answer.status_code == 400
    assert "no chat template" in answer.json()["error"]["message"]


def test_the_tokens_of_answers_are_kept_for_the_next_turn(llm: LLM) -> None:
    """The same text might be tokenized in another way."""
    served = Served(llm, ["a"], template="chatml")
    rendering = served.rendering()
    prompt = served.prompt(rendering, [{"role": "user", "content": "a"}])
    letters = [llm.tokenize(c, add_bos=False)[-1] for c in "dogs"]
    text = rendering.decoded(letters)
    assert llm.tokenize(text, add_bos=False) != letters
    served.learn(rendering, prompt, text, letters)
    assert letters in [ids[-len(letters) :] for ids in rendering.known.values()]


@pytest.fixture(scope="module")
def thinker(llm: LLM) -> Iterator[Running]:
    """A server whose chat template begins a thought."""
    with running(llm, template=SAID + "<think>") as server:
        yield server


def test_tokens_of_thoughts_are_counted(thinker: Running) -> None:
    client = openai.OpenAI(base_url=thinker.base_url, api_key="none", max_retries=0)
    asked = {"model": NAME, "messages": SAY, "max_tokens": 9, "n": 2, "temperature": 1.0, "seed": 1}
    answer = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    assert all(choice.message.reasoning_content for choice in answer.choices)
    assert answer.usage.completion_tokens == 18
    assert answer.usage.completion_tokens_details.reasoning_tokens == 18
    chunks = client.chat.completions.create(
        stream=True,
        stream_options={"include_usage": True},
        **asked,  # type: ignore[call-overload]
    )
    used = [chunk.usage for chunk in chunks if chunk.usage]
    assert [one.completion_tokens_details.reasoning_tokens for one in used] == [18]
    response = client.responses.create(model=NAME, input="Once", max_output_tokens=5)
    assert response.usage
    assert response.usage.output_tokens_details.reasoning_tokens == 5
    events = client.responses.create(model=NAME, input="Once", max_output_tokens=5, stream=True)
    last = list(events)[-1].response  # type: ignore[union-attr]
    assert last.usage.output_tokens_details.reasoning_tokens == 5


def test_an_answer_behind_a_thought_is_not_counted_as_one(server: Running) -> None:
    pytest.importorskip("llguidance")
    body = {"messages": SAY, "choices": ["<think>hm</think>yes and no"], "max_tokens": 60}
    answer = server.post("/v1/chat/completions", body).json()
    message, used = answer["choices"][0]["message"], answer["usage"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "yes and no")
    n = used["completion_tokens_details"]["reasoning_tokens"]
    assert 3 <= n <= used["completion_tokens"] - 3
