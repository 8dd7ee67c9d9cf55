"""Servers for tests: in a thread, at a free port of the loopback, with a model that is loaded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from lariat import LLM
from lariat.protocol.served import Served
from lariat.server.options import ServerOptions
from lariat.server.run import Server, address, listen, serve
from lariat.server.service import Service

# What is said, without more: the demo model goes on with it.
SAID = "{% for message in messages %}{{ message.content }}{% endfor %}"
NAME = "demo"


@dataclass
class Running:
    """A server that listens."""

    url: str
    server: Server
    llm: LLM

    @property
    def service(self) -> Service:
        return self.server.service

    @property
    def base_url(self) -> str:
        """For clients of OpenAI."""
        return f"{self.url}/v1"

    def get(self, path: str, **more: object) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **more)  # type: ignore[arg-type]

    def post(self, path: str, body: object, **more: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **more)  # type: ignore[arg-type]

    def delete(self, path: str) -> httpx.Response:
        return httpx.delete(self.url + path, timeout=30)

    def lines(self, path: str, body: object) -> list[str]:
        """The lines of a stream, without empty ones."""
        with httpx.stream("POST", self.url + path, json=body, timeout=60) as answer:
            assert answer.status_code == 200, answer.read()
            return [line for line in answer.iter_lines() if line]


@contextmanager
def running(
    llm: LLM, template: str | None = SAID, names: tuple[str, ...] = (NAME,), **options: object
) -> Iterator[Running]:
    """A server of a model, until the end of the block."""
    given = ServerOptions(port=0, **options)  # type: ignore[arg-type]
    listener = listen(given)
    where = address(given, listener)
    server = Server(Service(given))
    ready = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(
                serve(
                    server, listener, lambda: Served(llm, names, template=template),
                    lambda _: ready.set(),
                )
            )  # fmt: skip
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(30)
        assert not failed
        yield Running(where, server, llm)
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()
    assert not failed
