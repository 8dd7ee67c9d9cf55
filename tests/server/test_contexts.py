"""`/v1/contexts`: edits in the middle over HTTP, held against a context in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from lariat import DEMO_MODEL, LLM, SamplingParams
from lariat.protocol.contexts import TextSegment
from lariat.protocol.errors import ApiError

from tests.support.servers import Running, running

ONE, TWO, THREE = "Once upon a time there was a king.", " He had a red horse.", " It ran away."
OTHER = " He had two old dogs."


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(DEMO_MODEL, n_ctx=1024, n_threads=1, cache="raw") as llm:
        yield llm


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folders")
    (path / "contexts").mkdir()
    return path


@pytest.fixture(scope="module")
def server(llm: LLM, folders: Path) -> Iterator[Running]:
    library, contexts = str(folders / "library"), str(folders / "contexts")
    with running(llm, library=library, context_dir=contexts) as server:
        yield server


def text(content: str, label: str | None = None) -> dict[str, object]:
    return {"type": "text", "text": content, "label": label}


@pytest.fixture
def made(server: Running) -> Iterator[dict]:
    """A context of three segments."""
    answer = server.post("/v1/contexts", {"segments": [text(ONE, "one"), text(TWO), text(THREE)]})
    assert answer.status_code == 200, answer.text
    yield answer.json()
    server.delete(f"/v1/contexts/{answer.json()['id']}")


def tokens_of(server: Running, id: str) -> list[int]:
    return server.service.contexts[id].context.tokens


def check_segments(server: Running, answer: dict) -> None:
    """Segments stand one behind the other, and are all of the context."""
    ends = [0, *(one["stop"] for one in answer["segments"])]
    assert [one["start"] for one in answer["segments"]] == ends[:-1]
    assert ends[-1] == answer["n_tokens"] == len(tokens_of(server, answer["id"]))


def test_a_context_of_texts_is_exact(server: Running, llm: LLM, made: dict) -> None:
    assert tokens_of(server, made["id"]) == llm.tokenize(ONE + TWO + THREE)
    assert (made["exact"], made["exact_tokens"]) == (True, made["n_tokens"])
    assert [one["label"] for one in made["segments"]] == ["one", None, None]
    assert made["usage"]["computed_tokens"] >= made["n_tokens"]
    check_segments(server, made)
    assert server.get(f"/v1/contexts/{made['id']}").json()["segments"] == made["segments"]
    assert made["id"] in [one["id"] for one in server.get("/v1/contexts").json()["data"]]


def test_an_edit_in_the_middle_computes_only_what_is_new(
    server: Running, llm: LLM, made: dict
) -> None:
    middle = made["segments"][1]
    body = {"segment": middle["id"], "text": OTHER}
    edited = server.post(f"/v1/contexts/{made['id']}/edit", body).json()
    check_segments(server, edited)
    with llm.context() as same:
        same.append(ONE + TWO + THREE)
        same.delete(middle["start"], middle["stop"])
        same.insert(middle["start"], OTHER)
        assert tokens_of(server, made["id"]) == same.tokens
        held = server.service.contexts[made["id"]].context
        assert np.array_equal(held.logits(" The"), same.logits(" The"))
    assert edited["usage"]["computed_tokens"] <= len(llm.tokenize(OTHER)) + 2
    assert (
        edited["usage"]["moved_tokens"]
        == edited["segments"][2]["stop"] - edited["segments"][2]["start"]
    )
    assert not edited["exact"]
    assert edited["exact_tokens"] == edited["segments"][1]["stop"]
    # Computing anew makes it what it would be from the beginning.
    exact = server.post(f"/v1/contexts/{made['id']}/recompute", {}).json()
    assert exact["exact"]
    assert exact["usage"]["recomputed_tokens"] == edited["n_tokens"] - edited["exact_tokens"]
    with llm.context() as anew:
        anew.append(tokens_of(server, made["id"]))
        held = server.service.contexts[made["id"]].context
        assert np.allclose(held.logits(" The"), anew.logits(" The"), atol=2e-2)


def test_a_part_of_a_segment_goes(server: Running, made: dict) -> None:
    before = tokens_of(server, made["id"])
    one = made["segments"][1]
    body = {"segment": one["id"], "start": 1, "stop": 3, "text": ""}
    edited = server.post(f"/v1/contexts/{made['id']}/edit", body).json()
    check_segments(server, edited)
    assert tokens_of(server, made["id"]) == before[: one["start"] + 1] + before[one["start"] + 3 :]
    gone = server.post(f"/v1/contexts/{made['id']}/edit", {"segment": one["id"], "text": ""}).json()
    assert len(gone["segments"]) == 2
    check_segments(server, gone)


def test_segments_move_and_nothing_is_computed(server: Running, made: dict) -> None:
    before = tokens_of(server, made["id"])
    last = made["segments"][2]
    body = {"segment": last["id"], "to": 1}
    moved = server.post(f"/v1/contexts/{made['id']}/move", body).json()
    check_segments(server, moved)
    assert [one["id"] for one in moved["segments"]] == [
        made["segments"][i]["id"] for i in (0, 2, 1)
    ]
    start = made["segments"][1]["start"]
    assert tokens_of(server, made["id"]) == (
        before[:start] + before[last["start"] :] + before[start : last["start"]]
    )
    assert moved["usage"]["computed_tokens"] == 0
    assert moved["exact_tokens"] == start
    repaired = server.post(f"/v1/contexts/{made['id']}/repair", {"share": 0.5}).json()
    assert repaired["usage"]["recomputed_tokens"] <= moved["n_tokens"] // 2


def test_segments_come_in_the_middle(server: Running, llm: LLM, made: dict) -> None:
    ids = llm.tokenize(" It was blue.", add_bos=False)
    body = {"at": 1, "segments": [{"type": "tokens", "token_ids": ids, "label": "ids"}]}
    longer = server.post(f"/v1/contexts/{made['id']}/append", body).json()
    assert [one["label"] for one in longer["segments"]] == ["one", "ids", None, None]
    check_segments(server, longer)
    assert longer["usage"]["computed_tokens"] == len(ids)


def test_a_fork_is_a_context_of_its_own(server: Running, made: dict) -> None:
    fork = server.post(f"/v1/contexts/{made['id']}/fork", {}).json()
    assert fork["id"] != made["id"]
    assert tokens_of(server, fork["id"]) == tokens_of(server, made["id"])
    server.post(f"/v1/contexts/{fork['id']}/append", {"segments": [text(" The end.")]})
    assert len(tokens_of(server, fork["id"])) > len(tokens_of(server, made["id"]))
    assert server.delete(f"/v1/contexts/{fork['id']}").json()["deleted"]
    assert server.get(f"/v1/contexts/{fork['id']}").status_code == 404


def test_a_context_is_saved_and_taken_up_again(server: Running, folders: Path, made: dict) -> None:
    assert server.post(f"/v1/contexts/{made['id']}/save", {"name": "story"}).status_code == 200
    assert (folders / "contexts" / "story").is_file()
    again = server.post("/v1/contexts", {"saved": "story", "segments": [text(" The end.")]}).json()
    assert tokens_of(server, again["id"])[: made["n_tokens"]] == tokens_of(server, made["id"])
    assert [one["type"] for one in again["segments"]] == ["saved", "text"]
    check_segments(server, again)
    server.delete(f"/v1/contexts/{again['id']}")
    for name in ("../x", "a/b", ".hidden", ""):
        assert server.post(f"/v1/contexts/{made['id']}/save", {"name": name}).status_code == 400
    assert server.post("/v1/contexts", {"saved": "other"}).status_code == 404
    for name in ("/etc/passwd", "../contexts/story", "..", ".story"):
        assert server.post("/v1/contexts", {"saved": name}).status_code == 400


def test_documents_are_kept_and_placed(server: Running, llm: LLM) -> None:
    tale = "The fox ran into the wood and found a hen. " * 4
    kept = server.post("/v1/documents", {"id": "fox", "text": tale}).json()
    assert kept["n_tokens"] == len(llm.tokenize(tale, add_bos=False))
    assert server.get("/v1/documents/fox").json()["text"].strip() == tale.strip()
    assert [one["id"] for one in server.get("/v1/documents").json()["data"]] == ["fox"]
    body = {"segments": [{"type": "document", "id": "fox"}, text("The fox was")]}
    first = server.post("/v1/contexts", body).json()
    assert first["exact"]  # at the beginning it stands where it was computed
    body = {"segments": [text(ONE), {"type": "document", "id": "fox", "recompute": "none"}]}
    second = server.post("/v1/contexts", body).json()
    assert not second["exact"]
    assert second["segments"][1]["label"] == "fox"
    for one in (first, second):
        check_segments(server, one)
        server.delete(f"/v1/contexts/{one['id']}")
    assert server.delete("/v1/documents/fox").json() == {"id": "fox", "deleted": True}
    assert server.delete("/v1/documents/fox").status_code == 404
    body = {"segments": [{"type": "document", "id": "fox"}]}
    assert server.post("/v1/contexts", body).status_code == 404
    assert server.get("/v1/contexts").json()["data"] == []  # a context that failed is gone


@pytest.mark.parametrize(
    ("route", "body", "status", "says"),
    [
        ("edit", {"segment": "seg_x", "text": ""}, 404, "no segment 'seg_x'"),
        ("edit", {"segment": "SEGMENT", "text": "", "start": 3, "stop": 2}, 400, "3 to 2 are none"),
        ("edit", {"segment": "SEGMENT", "text": "", "stop": 9999}, 400, "to 9999 are none"),
        ("move", {"segment": "SEGMENT", "to": 3}, 400, "there are 3 segments"),
        ("append", {"segments": [], "at": 0}, 400, "segments"),
        ("append", {"segments": [{"type": "text", "text": "a"}], "at": 9}, 400, "3 segments"),
        ("append", {"segments": [{"type": "picture"}]}, 400, "picture"),
        ("append", {"segments": [{"type": "tokens", "token_ids": [10**6]}]}, 400, "out of range"),
        ("append", {"segments": [{"type": "text", "text": "a " * 3000}]}, 400, "the context of"),
        ("repair", {"share": 2}, 400, "share"),
    ],
)
def test_bad_edits_change_nothing(
    server: Running, made: dict, route: str, body: dict, status: int, says: str
) -> None:
    before = tokens_of(server, made["id"])
    if body.get("segment") == "SEGMENT":
        body = body | {"segment": made["segments"][1]["id"]}
    answer = server.post(f"/v1/contexts/{made['id']}/{route}", body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]
    assert tokens_of(server, made["id"]) == before
    check_segments(server, server.get(f"/v1/contexts/{made['id']}").json())


def test_a_context_that_is_used_is_busy(server: Running, made: dict) -> None:
    with server.service.contexts[made["id"]].editing():
        answer = server.post(f"/v1/contexts/{made['id']}/repair", {})
        assert server.delete(f"/v1/contexts/{made['id']}").status_code == 409
    assert answer.status_code == 409


def test_a_look_during_an_edit_sees_what_was_before(server: Running, made: dict) -> None:
    path = f"/v1/contexts/{made['id']}"
    held = server.service.contexts[made["id"]]
    with held.editing() as usage:
        held.put_in([TextSegment(text=" The end.")], None, usage)
        for seen in (server.get(path).json(), *server.get("/v1/contexts").json()["data"]):
            assert seen["segments"] == made["segments"]
            assert seen["n_tokens"] == made["n_tokens"]
        assert server.post(f"{path}/fork", {}).status_code == 409
    after = server.get(path).json()
    assert len(after["segments"]) == 4
    check_segments(server, after)
    held.close()
    with pytest.raises(ApiError, match="there is no context"), held.editing():
        pass
    assert held.look().n_tokens == after["n_tokens"]


def test_looks_get_in_the_way_of_no_edit(server: Running, made: dict) -> None:
    held = server.service.contexts[made["id"]]
    is_over = threading.Event()

    def look() -> int:
        n = 0
        while not is_over.is_set():
            seen = held.look()
            assert [one.stop for one in seen.segments][-1] == seen.n_tokens
            assert [one.start for one in seen.segments[1:]] == [
                one.stop for one in seen.segments[:-1]
            ]
            n += 1
        return n

    with ThreadPoolExecutor(2) as pool:
        looks = [pool.submit(look) for _ in range(2)]
        try:
            for _ in range(40):
                with held.editing() as usage:
                    held.put_in([TextSegment(text=" It ran.")], 1, usage)
                    held.edit(held.described().segments[1].id, None, None, "", False, usage)
        finally:
            is_over.set()
        assert all(one.result() for one in looks)


def test_an_edit_that_cannot_begin_leaves_the_context_free(
    server: Running, made: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = server.service.contexts[made["id"]]

    def refuse() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(held.context, "fork", refuse)
        assert server.post(f"/v1/contexts/{made['id']}/repair", {}).status_code == 503
    assert server.post(f"/v1/contexts/{made['id']}/repair", {}).status_code == 200


def test_a_context_that_is_given_up_closes_when_its_edit_ends(server: Running, llm: LLM) -> None:
    made = server.post("/v1/contexts", {"segments": [text(ONE)]}).json()
    held = server.service.contexts[made["id"]]
    with held.editing():
        server.service.contexts.give_up(made["id"])
        assert len(held.context.logits(" a"))  # still open
    with pytest.raises(ValueError, match="closed"):
        held.context.logits(" a")
    assert server.get(f"/v1/contexts/{made['id']}").status_code == 404


def test_a_server_without_folders_says_so(llm: LLM) -> None:
    with running(llm) as server:
        assert "--library" in server.get("/v1/documents").json()["error"]["message"]
        made = server.post("/v1/contexts", {}).json()
        answer = server.post(f"/v1/contexts/{made['id']}/save", {"name": "a"})
        assert "--context-dir" in answer.json()["error"]["message"]


def test_all_blocks_come_back(llm: LLM) -> None:
    free = llm.runner.cache.pool.n_free
    with running(llm) as server:
        for _ in range(3):
            server.post("/v1/contexts", {"segments": [text(ONE)]})
        assert llm.runner.cache.pool.n_free < free
    llm.logits([5])  # sweeps
    assert llm.runner.cache.pool.n_free == free


def test_a_context_goes_on(server: Running, llm: LLM, made: dict) -> None:
    body = {"prompt": " Then he said", "max_tokens": 6, "temperature": 0}
    path = f"/v1/contexts/{made['id']}"
    told = server.post(f"{path}/completions", body).json()
    with llm.context() as same:
        same.append(ONE + TWO + THREE)
        params = SamplingParams(temperature=0, max_tokens=6)
        assert (
            llm.generate(" Then he said", params, context=same).text == told["choices"][0]["text"]
        )
        assert tokens_of(server, made["id"]) == same.tokens
    after = server.get(path).json()
    assert after["segments"][-1]["type"] == "completion"
    assert after["exact"]
    check_segments(server, after)
    # As a stream, with nothing new to read.
    lines = server.lines(f"{path}/completions", body | {"prompt": "", "stream": True})
    assert lines[-1] == "data: [DONE]"
    check_segments(server, server.get(path).json())
    for wrong in ({"prompt": ["a", "b"]}, {"n": 2}, {"echo": True}, {"prompt": "a " * 3000}):
        refused = server.post(f"{path}/completions", body | wrong)
        assert refused.status_code == 400
        if "n" in wrong:
            assert "fork it" in refused.json()["error"]["message"]
    with server.service.contexts[made["id"]].editing():
        assert server.post(f"{path}/completions", body).status_code == 409


def test_a_client_that_goes_leaves_a_context_that_can_be_edited(
    server: Running, made: dict
) -> None:
    path = f"/v1/contexts/{made['id']}"
    body = {"prompt": "", "max_tokens": 900, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}{path}/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        for _ in range(8):
            next(lines)
    for _ in range(100):
        edited = server.post(f"{path}/append", {"segments": [text(" The end.")]})
        if edited.status_code != 409:
            break
        time.sleep(0.05)
    assert edited.status_code == 200, edited.text
    check_segments(server, edited.json())
    assert [one["type"] for one in edited.json()["segments"][-2:]] == ["completion", "text"]
