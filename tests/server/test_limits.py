"""Limits: of the queue, of bodies, of time; and how the server does."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest
from lariat import LLM

from tests.server.test_disconnects import ENDLESS, LONG, is_idle, send, wait_for
from tests.support.servers import Running, running


def test_a_full_queue_is_told_with_a_time_to_try_again(llm: LLM) -> None:
    with running(llm, n_parallel=1, max_queue=1) as server:
        connections = [send(server, ENDLESS | {"stream": True})]
        wait_for(lambda: server.service.admission.n_running == 1)
        connections.append(send(server, ENDLESS))
        wait_for(lambda: server.service.admission.n_waiting == 1)
        answer = server.post("/v1/completions", ENDLESS)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert server.get("/health").json()["requests_waiting"] == 1
        for connection in connections:
            connection.close()
        wait_for(lambda: is_idle(server))


def test_a_queue_with_too_many_tokens_is_full(llm: LLM) -> None:
    with running(llm, n_parallel=1, max_queued_tokens=1500) as server:
        connections = [send(server, ENDLESS)]
        wait_for(lambda: server.service.admission.n_running == 1)
        connections.append(send(server, LONG))
        wait_for(lambda: server.service.admission.n_queued_tokens == 1000)
        assert server.post("/v1/completions", LONG).status_code == 429
        for connection in connections:
            connection.close()
        wait_for(lambda: is_idle(server))


def test_more_prompts_than_places_wait_for_each_other(llm: LLM) -> None:
    with running(llm, n_parallel=2, max_queue=1) as server:
        body = {"prompt": ["One day"] * 9, "max_tokens": 3, "temperature": 0}
        choices = server.post("/v1/completions", body).json()["choices"]
        assert [choice["index"] for choice in choices] == list(range(9))
        assert len({choice["text"] for choice in choices}) == 1
        assert is_idle(server)


def test_a_body_that_is_too_large(llm: LLM) -> None:
    with running(llm, max_body=2000) as server:
        assert server.post("/tokenize", {"content": "a" * 3000}).status_code == 413
        chunks = (b" " * 500 for _ in range(10))  # its length is not told
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(f"{server.url}/tokenize", content=chunks, headers=headers)
        assert answer.status_code == 413
        assert server.post("/tokenize", {"content": "a"}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"a"', b'{"content": 1}', b'{"content": "\xff"}',
        b'{"content": "\\ud800"}', b"[" * 100_000, b'{"content": ' * 100 + b"1" + b"}" * 100,
        b'{"content": "a", "x": 1}', b'{"content": NaN}', b'{"content": "a"} b', b"{}",
        b'\xef\xbb\xbf{"content": "a"}', b"\x00", b'{"content": "a", "add_special": 1}',
    ],
    ids=lambda body: repr(body[:30]),
)  # fmt: skip
def test_a_body_that_is_wrong_is_one_sentence(server: Running, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/tokenize", content=body, headers=headers)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert 10 < len(message) < 300
    assert "Traceback" not in message


def test_a_body_that_comes_too_slowly(llm: LLM) -> None:
    with running(llm, body_seconds=0.3) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(
                b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
            )
            assert b" 408 " in connection.recv(1 << 16)


def test_an_answer_that_takes_too_long(llm: LLM) -> None:
    with running(llm, request_seconds=0.3) as server:
        answer = server.post("/v1/completions", ENDLESS | {"n": 8})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "timeout"
        last = server.lines("/v1/completions", ENDLESS | {"n": 8, "stream": True})[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        wait_for(lambda: is_idle(server))


def test_a_silent_stream_gets_comments(llm: LLM) -> None:
    with running(llm, ping_seconds=0.05, n_parallel=1) as server:
        first = send(server, ENDLESS)
        wait_for(lambda: server.service.admission.n_running == 1)
        body = {"prompt": "a", "max_tokens": 1, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": still working"
            first.close()
            assert any(line == "data: [DONE]" for line in lines)


def test_health_says_that_no_step_ends(llm: LLM) -> None:
    with running(llm, stall_seconds=0.3) as server:
        assert server.get("/health").json()["status"] == "ok"
        with llm.runner.exclusive:  # nobody can step
            connection = send(server, LONG)
            wait_for(lambda: server.service.admission.n_running == 1)
            time.sleep(0.5)
            answer = server.get("/health")
            assert answer.status_code == 503
            assert answer.json()["status"] == "stalled"
            assert answer.json()["seconds_of_step"] > 0.3
        connection.close()
        wait_for(lambda: server.get("/health").status_code == 200)
