"""Clients that go: in the queue, while their prompt is read, and while text is written."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from lariat import LLM, SamplingParams
from lariat.protocol.served import Served
from lariat.runtime.engine_thread import N_UNREAD
from lariat.server.app import build_app
from lariat.server.options import ServerOptions
from lariat.server.service import Service

from tests.support.servers import Running, running

ENDLESS = {"prompt": "Once upon a time", "max_tokens": -1, "ignore_eos": True, "temperature": 0}
LONG = {"prompt": [5 + i % 200 for i in range(1000)], "max_tokens": 4, "temperature": 0}


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def is_idle(server: Running) -> bool:
    """Nothing runs, nothing waits, and all blocks are free."""
    admission, runner = server.service.admission, server.llm.runner
    pool = runner.cache.pool
    return (
        admission.n_running == admission.n_waiting == admission.n_queued_tokens == 0
        and runner.scheduler.n_unfinished == 0
        and pool.n_free == pool.n_blocks
    )


def send(server: Running, body: dict[str, object]) -> socket.socket:
    """A request on a connection of its own, whose answer nobody has read."""
    data = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), 30)
    connection.sendall(
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_while_text_is_written(server: Running, stream: bool) -> None:
    connection = send(server, ENDLESS | {"stream": stream})
    wait_for(lambda: server.service.admission.n_running == 1)
    if stream:
        assert b"data: " in connection.recv(1 << 16) + connection.recv(1 << 16)
    else:
        time.sleep(0.1)
    connection.close()
    wait_for(lambda: is_idle(server), 5)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_while_its_prompt_is_read(llm: LLM, stream: bool) -> None:
    with running(llm) as server:
        connection = send(server, LONG | {"stream": stream})
        wait_for(lambda: server.service.admission.n_running == 1)
        connection.close()
        wait_for(lambda: is_idle(server), 5)
        text = server.get("/metrics").text
        assert "lariat_request_cancelled_total 1.0" in text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_while_it_waits(llm: LLM, stream: bool) -> None:
    with running(llm, n_parallel=1) as server:
        first = send(server, ENDLESS | {"stream": True})
        wait_for(lambda: server.service.admission.n_running == 1)
        second = send(server, ENDLESS | {"stream": stream})
        wait_for(lambda: server.service.admission.n_waiting == 1)
        second.close()
        wait_for(lambda: server.service.admission.n_waiting == 0, 5)
        assert server.service.admission.n_running == 1
        first.close()
        wait_for(lambda: is_idle(server), 5)


def test_one_goes_while_another_reads_its_prompt(server: Running, llm: LLM) -> None:
    with ThreadPoolExecutor(1) as pool:
        goes = send(server, ENDLESS | {"stream": True})
        wait_for(lambda: server.service.admission.n_running == 1)
        stays = pool.submit(server.post, "/v1/completions", LONG)
        wait_for(lambda: server.service.admission.n_running == 2)
        goes.close()
        text = stays.result().json()["choices"][0]["text"]
    wait_for(lambda: is_idle(server), 5)
    expected = llm.generate(LONG["prompt"], SamplingParams(temperature=0, max_tokens=4))  # type: ignore[call-overload]
    assert text == expected.text


@pytest.mark.parametrize("n", [2, 20])
def test_streams_side_by_side_are_the_same_as_alone(server: Running, n: int) -> None:
    def ask(seed: int) -> str:
        body = {"prompt": "One day", "seed": seed, "max_tokens": 16, "stream": True}
        lines = server.lines("/v1/completions", body)
        events = [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]
        return "".join(event["choices"][0]["text"] for event in events)

    alone = [ask(seed) for seed in range(n)]
    with ThreadPoolExecutor(n) as pool:
        together = list(pool.map(ask, range(n)))
    assert together == alone
    assert len(set(alone)) > 1
    wait_for(lambda: is_idle(server), 5)


async def ask_for_completion(
    service: Service, body: bytes, send: Callable[[dict[str, object]], Awaitable[None]]
) -> None:
    """As a client of which the server sees nothing but the request, and what `send` takes."""
    requests = [{"type": "http.request", "body": body}]

    async def receive() -> dict[str, object]:
        if not requests:
            await asyncio.sleep(3600)
        return requests.pop()

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "root_path": "",
        "query_string": b"", "headers": headers,
    }  # fmt: skip
    await build_app(service)(scope, receive, send)  # type: ignore[arg-type]


def test_a_client_that_does_not_read_is_given_up(llm: LLM) -> None:
    """Its buffers are full, and nothing tells that it is gone."""
    body = json.dumps(ENDLESS | {"stream": True}).encode()
    sent: list[dict[str, object]] = []

    async def ask() -> Service:
        service = Service(ServerOptions(send_seconds=0.2))
        service.loaded(Served(llm, ["demo"]))

        async def send(message: dict[str, object]) -> None:
            sent.append(message)
            if len(sent) == 3:
                await asyncio.sleep(3600)

        await ask_for_completion(service, body, send)
        return service

    service = asyncio.run(ask())
    assert len(sent) == 3
    assert service.admission.n_running == 0
    wait_for(lambda: llm.runner.scheduler.n_unfinished == 0)


def test_a_client_that_does_not_read_holds_its_stream_up(llm: LLM) -> None:
    """What it has not read is not kept: the engine waits for it, and goes on when it reads."""
    body = json.dumps(ENDLESS | {"stream": True}).encode()
    events: list[bytes] = []
    n_bound = N_UNREAD + 64  # unread deltas, and those on their way to the client
    alone = llm.generate(
        ENDLESS["prompt"], SamplingParams(temperature=0, max_tokens=-1, ignore_eos=True)
    )
    assert len(alone.token_ids) > 2 * n_bound

    async def ask() -> None:
        service = Service(ServerOptions())
        service.loaded(Served(llm, ["demo"]))
        reads_on = asyncio.Event()

        async def send(message: dict[str, object]) -> None:
            events.append(message.get("body", b""))  # type: ignore[arg-type]
            if len(events) == 3:
                await reads_on.wait()

        answer = asyncio.ensure_future(ask_for_completion(service, body, send))
        try:
            n_written, is_over = 0, False
            while not is_over:
                await asyncio.sleep(0.01)
                (request,) = llm.runner.requests or [None]
                if request is None and len(events) < 3:
                    assert not answer.done(), "it ended before it began"
                    continue
                assert request is not None, "the engine has not waited"
                n_written = len(request.completion.token_ids)
                is_over = len(request.deltas) == N_UNREAD
            assert n_written < n_bound
            assert len(events) == 3
        finally:
            reads_on.set()
            await answer
            service.close()

    asyncio.run(ask())
    lines = b"".join(events).decode().split("\n\n")
    told = [json.loads(line[6:]) for line in lines if line and line != "data: [DONE]"]
    assert "".join(event["choices"][0]["text"] for event in told) == alone.text
    wait_for(lambda: llm.runner.scheduler.n_unfinished == 0)


def test_a_server_that_ends_leaves_no_thread(llm: LLM) -> None:
    def theirs() -> set[threading.Thread]:
        own = ("lariat-prompt", "lariat-request", "lariat-load")
        return {thread for thread in threading.enumerate() if thread.name.startswith(own)}

    before = theirs()  # of servers that other tests share
    with running(llm) as server:
        body = {"prompt": "One day", "max_tokens": 4, "n": 4}
        assert server.post("/v1/completions", body).status_code == 200
        assert len({thread.name.rpartition("_")[0] for thread in theirs() - before}) >= 2
    wait_for(lambda: not theirs() - before)
    assert llm.generate("One day", SamplingParams(max_tokens=1)).token_ids  # it is open still


def test_twenty_clients_go_at_once(server: Running) -> None:
    connections = [send(server, ENDLESS | {"stream": True, "seed": i}) for i in range(20)]
    wait_for(lambda: server.service.admission.n_running == 8)
    closers = [threading.Thread(target=connection.close) for connection in connections]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    wait_for(lambda: is_idle(server), 10)
    assert httpx.get(f"{server.url}/health", timeout=10).json()["status"] == "ok"
