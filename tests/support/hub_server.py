"""A Hub on loopback: repositories with files, a store on another host, and faults on request."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

_sleep = time.sleep  # tests take the other one away
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Asked:
    """A request that came."""

    method: str
    path: str
    token: str | None
    range: str | None


@dataclass
class HubServer:
    """What the server has and does; tests change it as they like."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by repository and path
    token: str | None = None  # without it nobody may read
    gated: bool = False
    status: int = 200  # of every answer, if it is not 200
    break_after: list[int] = field(default_factory=list)  # bytes of the next answers with a file
    ignores_ranges: bool = False
    slow: bool = False  # a file does not end until this is False again
    damaged: bool = False  # bytes are others than those of the checksum
    store: str = ""  # URL of another host that files are on; "": this one
    store_for_get: str = ""  # the same, told only to those who fetch
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    commit: str = COMMIT

    def of(self, method: str, part: str = "") -> list[Asked]:
        """Requests with a method, for paths with a part."""
        return [one for one in self.asked if one.method == method and part in one.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        hub, path = self.server.hub, self.path.partition("?")[0]
        token = self.headers.get("Authorization")
        hub.asked.append(Asked(self.command, self.path, token, self.headers.get("Range")))
        if hub.status != 200:
            self._send(hub.status, b"{}", with_body)
        elif path.startswith("/api/models/"):
            self._describe(hub, path.removeprefix("/api/models/"), token, with_body)
        elif path.startswith("/store/"):
            self._give(hub, *_split(path.removeprefix("/store/")), with_body, {})
        elif "/resolve/" in path:
            self._resolve(hub, path.lstrip("/"), token, with_body)
        else:
            self._send(404, b"", with_body)

    def _refused(self, hub: HubServer, repo: str, token: str | None, with_body: bool) -> bool:
        if hub.gated:
            self._send(403, b"{}", with_body, {"X-Error-Code": "GatedRepo"})
        elif hub.token is not None and token != f"Bearer {hub.token}":
            self._send(401, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
        elif repo not in hub.files:
            self._send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
        else:
            return False
        return True

    def _describe(self, hub: HubServer, repo: str, token: str | None, with_body: bool) -> None:
        if self._refused(hub, repo, token, with_body):
            return
        siblings = [
            {"rfilename": path, "size": len(data)} for path, data in hub.files[repo].items()
        ]
        about = {"id": repo, "modelId": repo, "sha": hub.commit, "siblings": siblings, "tags": []}
        self._send(200, json.dumps(about).encode(), with_body, {"Content-Type": "application/json"})

    def _resolve(self, hub: HubServer, path: str, token: str | None, with_body: bool) -> None:
        repo, _, rest = path.partition("/resolve/")
        file = rest.partition("/")[2]
        if self._refused(hub, repo, token, with_body):
            return
        if file not in hub.files[repo]:
            self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})
            return
        data = hub.files[repo][file]
        headers = {
            "X-Repo-Commit": hub.commit,
            "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Linked-Size": str(len(data)),
        }
        store = hub.store or (hub.store_for_get if with_body else "")
        if store:
            headers["Location"] = f"{store}/store/{repo}/{file}"
            self._send(302, b"", with_body, headers)
        else:
            self._give(hub, repo, file, with_body, headers)

    def _give(
        self, hub: HubServer, repo: str, file: str, with_body: bool, headers: dict[str, str]
    ) -> None:
        data = hub.files[repo][file]
        headers["ETag"] = headers.get("X-Linked-Etag", '"store"')
        if hub.damaged:
            data = bytes(len(data) - 1) + b"?"
        wanted = self.headers.get("Range")
        status, first = 200, 0
        if wanted and not hub.ignores_ranges:
            status, first = 206, int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        cut = hub.break_after.pop(0) if with_body and hub.break_after else None
        self._send(status, data[first:], with_body, headers, cut)

    def _send(
        self,
        status: int,
        body: bytes,
        with_body: bool,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            half = len(body) // 2
            self.wfile.write(body[:cut][:half])
            while self.server.hub.slow and half > 1 << 20:
                _sleep(0.01)
            self.wfile.write(body[:cut][half:])
        if cut is not None:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is no fault."""


def _split(path: str) -> tuple[str, str]:
    owner, name, file = path.split("/", 2)
    return f"{owner}/{name}", file


@contextlib.contextmanager
def serving(host: str = "127.0.0.1", of: HubServer | None = None) -> Iterator[HubServer]:
    """A server that runs meanwhile, with a new `HubServer`, or with the files of another."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = HubServer(url=f"http://{host}:{server.server_address[1]}")
    if of is not None:
        server.hub.files = of.files
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a server the Hub, and a folder its cache. Nobody waits before a second try."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 256)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
