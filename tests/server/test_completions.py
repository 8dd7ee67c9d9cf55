"""`/v1/completions`, with OpenAI's own client."""

from __future__ import annotations

import json

import openai
import pytest
from lariat import LLM, SamplingParams

from tests.support.servers import NAME, Running

GREEDY = {"temperature": 0, "max_tokens": 6}
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def test_texts_and_token_ids_one_or_many(client: openai.OpenAI, llm: LLM) -> None:
    ids = llm.tokenize(PROMPT)
    params = SamplingParams(temperature=0, max_tokens=6)
    text = llm.generate(PROMPT, params).text
    other = llm.generate("One day", params).text
    for prompt, expected in [
        (PROMPT, [text]),
        ([PROMPT, "One day"], [text, other]),
        (ids, [text]),
        ([ids, llm.tokenize("One day")], [text, other]),
    ]:
        answer = client.completions.create(model=NAME, prompt=prompt, **GREEDY)  # type: ignore[call-overload]
        assert [choice.text for choice in answer.choices] == expected
        assert [choice.index for choice in answer.choices] == list(range(len(expected)))


def test_sixteen_tokens_are_written_unless_more_are_asked_for(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt=PROMPT)
    assert answer.usage
    assert answer.usage.completion_tokens == 16


def test_a_stream_is_the_same_text(client: openai.OpenAI, llm: LLM) -> None:
    chunks = list(
        client.completions.create(model=NAME, prompt=PROMPT, stream=True, echo=True, **GREEDY)
    )
    expected = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=6)).text
    assert "".join(chunk.choices[0].text for chunk in chunks) == PROMPT + expected
    assert chunks[-1].choices[0].finish_reason == "length"


def test_usage_counts_prompts_once_and_all_answers(client: openai.OpenAI, llm: LLM) -> None:
    prompts = [PROMPT, "One day"]
    answer = client.completions.create(model=NAME, prompt=prompts, n=3, max_tokens=4)
    assert answer.usage
    assert len(answer.choices) == 6
    assert answer.usage.prompt_tokens == sum(len(llm.tokenize(p)) for p in prompts)
    assert answer.usage.completion_tokens == 24


def test_echo_gives_logprobs_of_the_prompt_and_one_token(client: openai.OpenAI, llm: LLM) -> None:
    """As lm-eval asks for them."""
    ids = llm.tokenize("Once upon a time there was a dog.")
    answer = client.completions.create(
        model=NAME, prompt=ids, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    )
    given = answer.choices[0].logprobs
    assert given
    assert given.token_logprobs
    assert given.tokens
    assert given.top_logprobs
    assert given.text_offset
    assert len(given.token_logprobs) == len(ids) + 1
    assert given.token_logprobs[0] is None
    assert given.top_logprobs[0] is None
    assert all(value is not None and value <= 0 for value in given.token_logprobs[1:])
    assert len(given.tokens) == len(given.text_offset) == len(ids) + 1
    own = llm.generate(ids, SamplingParams(max_tokens=0, prompt_logprobs=1)).prompt_logprobs
    assert own
    expected = [one.logprob for one in own if one]
    assert given.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
    for token, top, one in zip(given.tokens[1:], given.top_logprobs[1:], own[1:], strict=False):
        assert one
        assert (max(top, key=top.__getitem__) == token) == (one.rank == 1)


def test_echo_without_a_token_more(client: openai.OpenAI, llm: LLM) -> None:
    answer = client.completions.create(
        model=NAME, prompt=PROMPT, echo=True, logprobs=0, max_tokens=0
    )
    assert answer.choices[0].text == PROMPT
    assert answer.choices[0].logprobs
    assert len(answer.choices[0].logprobs.token_logprobs or ()) == len(llm.tokenize(PROMPT))


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_engine(server: Running, llm: LLM, stream: bool) -> None:
    body = {"prompt": PROMPT, "logprobs": 2, "echo": True, "stream": stream, **GREEDY}
    if stream:
        lines = server.lines("/v1/completions", body)
        parts = [json.loads(line[6:])["choices"][0] for line in lines[:-1]]
    else:
        parts = server.post("/v1/completions", body).json()["choices"]
    given: dict[str, list[object]] = {"tokens": [], "token_logprobs": [], "text_offset": []}
    for part in parts:
        for name in given:
            given[name] += (part["logprobs"] or {}).get(name, [])
    done = llm.generate(
        PROMPT, SamplingParams(temperature=0, max_tokens=6, logprobs=2, prompt_logprobs=2)
    )
    assert done.logprobs
    assert done.prompt_logprobs
    expected = [one and one.logprob for one in [*done.prompt_logprobs, *done.logprobs]]
    assert given["token_logprobs"] == pytest.approx(expected, abs=1e-4)
    text = "".join(part["text"] for part in parts)
    assert text == PROMPT + done.text
    tokens, offsets = given["tokens"][1:], given["text_offset"][1:]  # <s> is invisible
    assert "".join(map(str, tokens)).strip() == text.strip()
    assert offsets == sorted(offsets)  # type: ignore[type-var]


def test_logprobs_of_a_chat(client: openai.OpenAI, llm: LLM) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    more = {"logprobs": True, "top_logprobs": 3, **GREEDY}
    answer = client.chat.completions.create(model=NAME, messages=messages, **more)
    given = answer.choices[0].logprobs
    assert given
    assert given.content
    assert len(given.content) == 6
    for token in given.content:
        assert token.token == token.top_logprobs[0].token  # greedy
        assert token.logprob == token.top_logprobs[0].logprob
        assert len(token.top_logprobs) == 3
    data = b"".join(bytes(token.bytes or ()) for token in given.content)
    assert data.decode() == answer.choices[0].message.content
    chunks = client.chat.completions.create(model=NAME, messages=messages, stream=True, **more)
    streamed = [
        token.logprob
        for chunk in chunks
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or ()
    ]
    assert streamed == pytest.approx([token.logprob for token in given.content], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1, 999999]}, "prompt[0]"),
        ({"prompt": ["a", [-1]]}, "prompt[1]"),
        ({"suffix": "b"}, "suffix"),
        ({"logprobs": 500}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"min_tokens": 99}, None),
    ],
)
def test_what_would_change_the_answer_is_refused(
    server: Running, change: dict[str, object], field: str | None
) -> None:
    answer = server.post("/v1/completions", {"prompt": "a"} | change)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


def test_a_forbidden_token_has_a_finite_logprob(server: Running) -> None:
    """JSON has no infinity."""
    body = {"prompt": "a", "logprobs": 1, "logit_bias": {"5": -1e38}, "max_tokens": 2}
    answer = server.post("/v1/completions", body)
    assert all(value > -1e5 for value in answer.json()["choices"][0]["logprobs"]["token_logprobs"])


def test_special_tokens_in_a_prompt_count_unless_they_must_not(server: Running) -> None:
    body = {"prompt": "</s>", "max_tokens": 1}
    as_token = server.post("/v1/completions", body).json()["usage"]["prompt_tokens"]
    body |= {"parse_special": False}
    assert server.post("/v1/completions", body).json()["usage"]["prompt_tokens"] > as_token
