"""Conversations about documents: tokens that are computed and reused, and what answers tell."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from lariat import DEMO_MODEL, LLM

from tests.support.servers import NAME, Running, running

FOX = "The fox ran into the wood and found a little hen. " * 4
HEN = "A red hen had nine eggs in her house, and she was glad. " * 4
ASK = {"role": "user", "content": "What did the fox find?"}
LATER = [
    ASK,
    {"role": "assistant", "content": " A hen."},
    {"role": "user", "content": " And then?"},
]
FEW = {"temperature": 0, "max_tokens": 4, "return_segments": True}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(DEMO_MODEL, n_ctx=2048, n_threads=1, cache="raw") as llm:
        yield llm


@pytest.fixture
def server(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(llm, library=str(tmp_path_factory.mktemp("library"))) as server:
        for name, text in (("fox", FOX), ("hen", HEN)):
            assert server.post("/v1/documents", {"id": name, "text": text}).status_code == 200
        yield server


def chat(server: Running, messages: list[dict], *names: str, **more: object) -> dict:
    documents = {"documents": [{"id": name} for name in names]} if names else {}
    answer = server.post("/v1/chat/completions", {"messages": messages, **FEW, **documents, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_documents_are_the_text_in_front_of_the_question(server: Running) -> None:
    content = "\n\n".join([FOX, HEN, ASK["content"]])
    plain = chat(server, [{"role": "user", "content": content}])
    assert "lariat" not in plain
    exact = chat(server, [ASK], "fox", "hen", reuse="exact")
    assert exact["choices"][0]["message"] == plain["choices"][0]["message"]
    assert exact["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    assert exact["lariat"]["exact"]


def test_documents_are_not_computed_again(server: Running, llm: LLM) -> None:
    n_documents = sum(len(llm.tokenize(text, add_bos=False)) for text in (FOX, HEN))
    told = chat(server, [ASK], "fox", "hen", reuse="placed")
    plan, usage = told["lariat"], told["usage"]
    assert plan["n_computed"] < plan["n_tokens"] - n_documents + 6
    assert not plan["exact"]
    assert plan["reuse"] == "placed"
    assert usage["prompt_tokens"] == plan["n_tokens"]
    details = usage["prompt_tokens_details"]
    assert details["cached_tokens"] == plan["n_tokens"] - plan["n_computed"]
    assert details["moved_tokens"] == plan["n_moved"] > 0
    # "repaired" is what documents get where nothing is said, and it computes some of them anew.
    other = chat(server, [ASK], "fox", "hen")["lariat"]
    assert other["reuse"] == "repaired"


def test_the_next_turn_computes_only_itself(server: Running) -> None:
    first = chat(server, [ASK], "fox", "hen", reuse="repaired")
    answer = first["choices"][0]["message"]
    messages = [ASK, answer, {"role": "user", "content": " And then?"}]
    second = chat(server, messages, "fox", "hen", reuse="repaired")["lariat"]
    assert second["n_computed"] <= second["n_tokens"] - first["lariat"]["n_tokens"]


def test_an_edited_message_keeps_the_cache_of_everything_else(server: Running) -> None:
    long = [
        {"role": "user", "content": FOX + "Tell me more."},
        {"role": "assistant", "content": HEN},
        {"role": "user", "content": " And then?"},
    ]
    chat(server, long, reuse="exact")
    edited = [{"role": "user", "content": FOX + "Say it again."}, *long[1:]]
    exact = chat(server, edited, reuse="exact", keep_context=False)["lariat"]
    placed = chat(server, edited, reuse="placed", keep_context=False)["lariat"]
    assert exact["n_moved"] == 0
    assert exact["n_computed"] > placed["n_computed"]
    assert placed["n_computed"] < 24  # the new words, and what is too short to be moved
    assert placed["n_moved"] > 60


def test_segments_are_all_of_the_prompt(server: Running) -> None:
    told = chat(server, LATER, "fox", "hen", reuse="placed")["lariat"]
    segments = told["segments"]
    for name in ("n_tokens", "n_computed", "n_moved"):
        assert sum(one[name] for one in segments) == told[name]
    assert [one["id"] for one in segments if one["kind"] == "document"] == ["fox", "hen"]
    assert [one["role"] for one in segments if one["kind"] == "message"][-2:] == [
        "assistant", "user",
    ]  # fmt: skip


def test_a_plan_tells_what_an_answer_would_compute(server: Running) -> None:
    body = {"messages": [ASK], "documents": [{"id": "hen"}, {"id": "fox"}], "reuse": "placed"}
    planned = server.post("/v1/chat/plan", body).json()
    done = chat(server, [ASK], "hen", "fox", reuse="placed")["lariat"]
    for name in ("n_tokens", "n_computed", "n_moved", "segments", "exact"):
        assert planned[name] == done[name]
    again = server.post("/v1/chat/plan", body).json()
    assert again["n_computed"] == 1  # all but the last token is there now


def test_contexts_that_are_not_to_be_kept_are_closed(server: Running, llm: LLM) -> None:
    free = llm.runner.cache.pool.n_free
    chat(server, [ASK], "fox", reuse="placed", keep_context=False)
    llm.logits([5])  # sweeps
    assert llm.runner.cache.pool.n_free == free


def test_streams_tell_it_in_the_chunk_of_the_usage(server: Running) -> None:
    body = {"messages": [ASK], "documents": [{"id": "fox"}], "stream": True, **FEW}
    lines = server.lines("/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
    *chunks, last = [json.loads(line[6:]) for line in lines[:-1]]
    assert not any("lariat" in chunk for chunk in chunks)
    assert last["choices"] == []
    assert last["lariat"]["segments"]


def test_openais_client_passes_documents_on(server: Running) -> None:
    client = openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
    answer = client.chat.completions.create(
        model=NAME, messages=[ASK], max_tokens=4, extra_body={"documents": [{"id": "fox"}]}
    )
    assert answer.model_extra
    assert answer.model_extra["lariat"]["reuse"] == "repaired"
    with pytest.raises(openai.NotFoundError, match="no document 'wolf'"):
        client.chat.completions.create(
            model=NAME, messages=[ASK], extra_body={"documents": [{"id": "wolf"}]}
        )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"messages": [ASK], "reuse": "moved"}, "reuse"),
        ({"messages": [ASK], "documents": [{"id": "fox"}], "n": 2}, "ask once for each"),
        ({"messages": [{"role": "system", "content": "a"}], "documents": [{"id": "fox"}]}, "user"),
        ({"messages": [ASK], "documents": [{"id": ""}]}, "documents"),
        ({"messages": [ASK], "documents": [{"id": "fox"}] * 40}, "the context of"),
    ],
)
def test_bad_requests_are_told_why(server: Running, body: dict, says: str) -> None:
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]


def test_a_roped_cache_reuses_only_what_is_exact(tmp_path) -> None:
    with LLM(DEMO_MODEL, n_ctx=512, n_threads=1) as llm, running(llm) as server:
        assert chat(server, [ASK], reuse="exact")["lariat"]["exact"]
        answer = server.post("/v1/chat/completions", {"messages": [ASK], "reuse": "placed"})
        assert answer.status_code == 400
        assert "--cache raw" in answer.json()["error"]["message"]


def test_kept_contexts_give_way_to_other_requests(server: Running, llm: LLM) -> None:
    for n in range(6):
        chat(server, [{"role": "user", "content": f"{n} " + FOX * 3}], reuse="exact")
    assert len(server.service.kept) > 0
    prompt = "The cat and the dog. " * 300
    answer = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 2})
    assert answer.status_code == 200, answer.text
