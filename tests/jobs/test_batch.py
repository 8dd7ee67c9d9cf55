"""Rows in, lines out: the bytes of a row are its own, whatever is computed beside it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from lariat import DEMO_MODEL, LLM
from lariat.jobs import rows
from lariat.jobs.answers import Answers
from lariat.jobs.batch import Batch
from lariat.protocol.served import Served

from tests.support.batches import line, mixed_rows
from tests.support.real_models import SMOLLM2, needs_smollm2

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}{{ strftime_now('%Y-%m-%d') }}"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with LLM(DEMO_MODEL, n_ctx=1024, n_threads=1) as llm:
        yield Served(llm, ["demo"], template=TEMPLATE, now=1735732800.0)


def answered(
    served: Served, given: list[dict[str, Any]], n_parallel: int = 8, seed: int = 0
) -> dict[str, bytes]:
    """Lines by custom_id."""
    batch = Batch(Answers(served, seed, 16, b"settings"), n_parallel)
    asked = [rows.of_line(json.dumps(row).encode() + b"\n", i) for i, row in enumerate(given, 1)]
    found = [(row.custom_id, out) for row, out in batch.lines(asked)]
    lines = {str(id): out for id, out in found}
    assert len(lines) == len(found) == len(given)
    assert batch.progress.n_rows == len(given)
    return lines


def test_a_row_is_the_same_alone_and_among_others(served: Served) -> None:
    said = [{"role": "user", "content": "Once upon a time there was a cat"}]
    given = [*mixed_rows(30), {"custom_id": "chat", "messages": said, "max_tokens": 8}]
    all_at_once = answered(served, given, 32)
    shuffled = given[:]
    random.Random(1).shuffle(shuffled)
    assert answered(served, shuffled, 5) == all_at_once
    for row in given[::4]:
        id = row["custom_id"]
        assert answered(served, [row]) == {id: all_at_once[id]}


def test_threads_do_not_matter_nor_does_a_cache_that_is_too_small_for_all(served: Served) -> None:
    given = mixed_rows(16)
    expected = answered(served, given)
    with LLM(DEMO_MODEL, n_ctx=96, n_threads=2) as llm:
        small = Served(llm, ["demo"], template=TEMPLATE, now=served.now)
        assert answered(small, given) == expected


def test_seeds_follow_from_custom_ids(served: Served) -> None:
    row = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 1.5, "top_k": 0}
    first = answered(served, [{"custom_id": "a", **row}, {"custom_id": "b", **row}])
    texts = {id: json.loads(out)["text"] for id, out in first.items()}
    assert texts["a"] != texts["b"]
    other = json.loads(answered(served, [{"custom_id": "a", **row}], seed=1)["a"])["text"]
    assert other != texts["a"]
    fixed = answered(served, [{"custom_id": i, **row, "seed": 7} for i in ("a", "b")])
    assert len({json.loads(out)["text"] for out in fixed.values()}) == 1


def test_lines_of_openai_have_its_shape(served: Served) -> None:
    chat = {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 4}
    given = [
        line("c", "/v1/chat/completions", chat),
        line("e", "/v1/embeddings", {"input": ["a", "b"]}),
        line("m", "/v1/completions", {"prompt": "a", "model": "gpt-5"}),
    ]
    found = {id: json.loads(out) for id, out in answered(served, given).items()}
    assert all(set(one) == {"id", "custom_id", "response", "error"} for one in found.values())
    body = found["c"]["response"]["body"]
    assert found["c"]["response"]["status_code"] == 200
    assert (body["object"], body["created"], body["model"]) == ("chat.completion", 0, "demo")
    assert body["usage"]["completion_tokens"] == 4
    assert len(found["e"]["response"]["body"]["data"]) == 2
    assert found["m"]["response"]["status_code"] == 404
    assert "gpt-5" in found["m"]["response"]["body"]["error"]["message"]
    assert len({one["id"] for one in found.values()}) == 3


def test_templates_are_told_one_day(served: Served) -> None:
    row = {"custom_id": "c", "messages": [{"role": "user", "content": "On"}], "max_tokens": 0}
    out = json.loads(answered(served, [row])["c"])
    n_expected = len(served.llm.tokenize("On 2025-01-01"))
    assert out["usage"]["prompt_tokens"] == n_expected


def test_a_conversation_that_the_template_refuses_fails_alone(served: Served) -> None:
    source = "{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}"
    source += "{% for m in messages %}{{ m.content }}{% endfor %}"
    strict = Served(served.llm, ["demo"], template=source)
    given = [
        {"custom_id": str(i), "messages": [{"role": "user", "content": text}], "max_tokens": 3}
        for i, text in enumerate(["a", "no", "b"])
    ]
    found = {id: json.loads(out) for id, out in answered(strict, given).items()}
    assert "not this" in found["1"]["error"]["message"]
    assert found["0"]["error"] is None
    assert found["0"]["message"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"prompt": "a', "line 3 is cut off: it ends within its JSON"),
        (b'{"prompt": "a\n', "line 3 is not JSON"),
        (b'{"prompt": "\xff"}\n', "line 3 is not valid UTF-8 at byte 12"),
        (b"[1]\n", "row 3 is no object"),
        (b'{"custom_id": "a"}\n', "row 3 needs a prompt, or messages, or url and body"),
        (b'{"prompt": "a", "custom_id": ""}\n', "custom_id is no text of 1 to 512 characters"),
        (b'{"custom_id": "a", "url": "/v1/audio", "body": {}}\n', "the url '/v1/audio' is not one"),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": 1}\n', "the body is no object"),
        (b'{"url": "/v1/embeddings", "body": {}}\n', "row 3 has no custom_id"),
        (b'{"prompt": "a", "temprature": 1}\n', "the field temprature is unknown here"),
        (b'{"prompt": ["a", "b"]}\n', "its prompt is not one text, nor token ids"),
        (b'{"prompt": 1}\n', "its prompt is not one text, nor token ids"),
        (b'{"prompt": []}\n', "prompt is empty"),
        (b'{"prompt": "a", "max_tokens": -2}\n', "max_tokens is -2"),
        (b'{"prompt": [99999]}\n', "token id 99999 is out of range"),
        (b'{"prompt": "' + b"a " * 2000 + b'"}\n', "the context of 1024 tokens"),
        (b'{"prompt": "' + b"a" * (10 << 20) + b'"}\n', "line 3 has more than 10 MiB"),
        (b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", "line 3 is not JSON"),
    ],
)  # fmt: skip
def test_bad_rows_say_it_in_their_line(served: Served, text: bytes, said: str) -> None:
    batch = Batch(Answers(served, 0, 8, b""))
    ((_, out),) = batch.lines([rows.of_line(text, 3)])
    assert said in msgspec.json.decode(out)["error"]["message"]
    assert batch.progress.n_failed == 1


def test_lines_that_are_too_long_are_skipped_and_not_kept(tmp_path: Any) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"a\n" + b"b" * (rows.MAX_LINE + 2_000_000) + b"\nc\n" + b"d" * 12_000_000)
    with open(path, "rb") as file:
        found = list(rows.lines(file))
    assert [one[:1] for one in found] == [b"a", b"b", b"c", b"d"]
    assert max(map(len, found)) == rows.MAX_LINE + 1


@needs_smollm2
def test_rows_of_a_real_model_are_the_same_alone_and_among_others() -> None:
    texts = ["Name a colour.", "What is 2 + 2?", "Write a word that rhymes with cat.", "Say hello."]
    given = [
        line(f"chat-{i}", "/v1/chat/completions", {
            "messages": [{"role": "user", "content": texts[i % 4]}], "max_tokens": 4 + 3 * i,
            "logprobs": True, "top_logprobs": 2,
        })
        for i in range(8)
    ]  # fmt: skip
    with LLM(SMOLLM2, n_ctx=1024) as llm:
        real = Served(llm, ["smol"], now=1735732800.0)
        together = answered(real, given)
        for row in given[:3]:
            assert answered(real, [row]) == {row["custom_id"]: together[row["custom_id"]]}
    with LLM(SMOLLM2, n_ctx=1024, n_threads=1, prefix_sharing=False) as llm:
        other = Served(llm, ["smol"], now=1735732800.0)
        assert answered(other, given[::-1], 3) == together
