"""Requests to a server without sockets: whatever a client sends, the server answers and goes on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from lariat.llm import LLM
from lariat.protocol.served import Served
from lariat.server.app import build_app
from lariat.server.options import ServerOptions
from lariat.server.routes import ENDPOINTS
from lariat.server.service import Service

_SAY = [{"role": "user", "content": "the rain"}]
_FEW = {"max_tokens": 3, "temperature": 0}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": _SAY, **_FEW},
        {"messages": _SAY, "stream": True, "stream_options": {"include_usage": True}, **_FEW},
        {"messages": _SAY, "documents": [{"id": "d"}], "reuse": "placed", **_FEW},
        {"messages": _SAY, "logprobs": True, "top_logprobs": 2, "n": 2, "seed": 1, **_FEW},
        {"messages": _SAY, "tools": [_TOOL], "tool_choice": "required", **_FEW},
        {"messages": _SAY, "response_format": {"type": "json_object"}, **_FEW},
    ],
    "/v1/chat/plan": [{"messages": _SAY, "documents": [{"id": "d"}]}],
    "/v1/completions": [
        {"prompt": "the sea", "echo": True, "logprobs": 1, **_FEW},
        {"prompt": [[3, 4, 5], [6]], "stop": ["a", "b"], "logit_bias": {"5": 1.5}, **_FEW},
    ],
    "/v1/embeddings": [{"input": ["a", "the"], "encoding_format": "base64"}],
    "/v1/responses": [{"input": "the rain", "max_output_tokens": 3}],
    "/v1/messages": [{"messages": _SAY, "max_tokens": 3}],
    "/v1/messages/count_tokens": [{"messages": _SAY}],
    "/v1/contexts": [
        {"segments": [{"type": "text", "text": "a"}, {"type": "document", "id": "d"}]},
        {"segments": [{"type": "tokens", "token_ids": [3, 4]}], "saved": "x"},
    ],
    "/v1/contexts/{id}/append": [{"segments": [{"type": "text", "text": "a"}], "at": 1}],
    "/v1/contexts/{id}/completions": [{"prompt": " on a tree", "stream": True, **_FEW}],
    "/v1/contexts/{id}/edit": [{"segment": "SEGMENT", "start": 1, "stop": 3, "text": "the"}],
    "/v1/contexts/{id}/move": [{"segment": "SEGMENT", "to": 1}],
    "/v1/contexts/{id}/repair": [{"share": 0.5}],
    "/v1/contexts/{id}/recompute": [{}],
    "/v1/contexts/{id}/fork": [{}],
    "/v1/contexts/{id}/save": [{"name": "x"}],
    "/v1/documents": [{"id": "e", "text": "on a tree"}],
    "/tokenize": [{"content": "a <s> b", "parse_special": True}],
    "/detokenize": [{"tokens": [3, 4, 5]}],
    "/apply-template": [{"messages": _SAY}],
    "/ui/markdown": [{"text": "# a\n\n|b|c|\n|-|-|\n|*d*|[e](javascript:f)|\n<g onclick=h>"}],
}
_MAX_SECONDS = 0.7  # of an answer; `targets` limits the processor time
PATHS = sorted({e.path for e in ENDPOINTS if e.method == "POST"})


def seeds() -> dict[str, bytes]:
    """Names and inputs: the number of a path, and a body."""
    return {
        f"{path.strip('/').replace('/', '-')}-{i}": bytes([PATHS.index(path)])
        + json.dumps(body).encode()
        for path, bodies in _BODIES.items()
        if path in PATHS
        for i, body in enumerate(bodies)
    }


class Requests:
    """A server of a small model, to be asked one thing after the other."""

    def __init__(self, judge: Path, folder: Path) -> None:
        """`folder` is for a library and for contexts."""
        (folder / "contexts").mkdir(parents=True, exist_ok=True)
        self._llm = LLM(judge, n_ctx=256, n_threads=1, cache="raw")
        self._loop = asyncio.new_event_loop()
        # Many prompts with long answers are no fault: such requests end by the limit of time.
        self._service = Service(
            ServerOptions(
                library=str(folder / "library"),
                context_dir=str(folder / "contexts"),
                request_seconds=_MAX_SECONDS,
            )
        )
        self._app = build_app(self._service)
        self._loop.run_until_complete(self._load())
        library = self._service.library
        assert library is not None
        library.add(self._llm, "d", list(range(3, 39)))

    async def _load(self) -> None:
        self._service.loaded(Served(self._llm, ("m",), template="chatml"))

    def __call__(self, data: bytes) -> int:
        """Send a request, and return the status. AssertionError for an answer that no server
        gives, and for blocks that are lost."""
        path, body = PATHS[data[0] % len(PATHS)] if data else PATHS[0], data[1:]
        if "{id}" in path:
            segments = [{"type": "text", "text": text} for text in ("the rain", " in the sea")]
            made = {"segments": segments}
            _, content = self._ask("/v1/contexts", json.dumps(made).encode())
            answer = json.loads(content)
            path = path.replace("{id}", answer["id"])
            body = body.replace(b"SEGMENT", answer["segments"][0]["id"].encode())
        status, content = self._ask(path, body)
        assert 200 <= status < 500 or status == 503, f"status {status}: {content[:300]!r}"
        assert b"Traceback" not in content
        if status != 200:
            assert json.loads(content)
        assert self._service.kept is not None
        self._service.kept.clear()
        self._service.contexts.close_all()
        pool = self._llm.runner.cache.pool
        with self._llm.runner.exclusive:
            self._llm.runner.sweep()
        assert pool.n_free == pool.n_blocks, f"{pool.n_blocks - pool.n_free} blocks are lost"
        return status

    def _ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        return self._loop.run_until_complete(self._answer(path, body))

    async def _answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        sent: list[dict[str, Any]] = []
        has_body = False

        async def receive() -> dict[str, Any]:
            nonlocal has_body
            if has_body:
                await asyncio.Event().wait()  # the client stays until it has the answer
            has_body = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "server": ("a", 1),
        }  # fmt: skip
        await asyncio.wait_for(self._app(scope, receive, send), 60)
        content = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], content
