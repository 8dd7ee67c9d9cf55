"""`lariat serve` as people start it: a process of its own, which signals stop."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.command_line import LARIAT, Run, check_refused, runner, start

BODY = {"prompt": "Once upon a time", "temperature": 0, "ignore_eos": True}


@contextmanager
def started(*flags: str, **environment: str) -> Iterator[tuple[subprocess.Popen[Any], str]]:
    """The process, and its address once it is ready."""
    process = start("serve", "--port", "0", "-q", *flags, text=True, env=os.environ | environment)
    try:
        assert process.stderr
        line = process.stderr.readline()
        ready = re.fullmatch(r"lariat serve: (.+) ready at (https?://127\.0\.0\.1:\d+)\n", line)
        assert ready, line + process.stderr.read()
        yield process, ready[2]
    finally:
        process.kill()
        process.communicate(timeout=20)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd, "serve", "-q")


def test_it_answers_and_sigterm_ends_it_when_running_requests_are_finished() -> None:
    with started() as (process, url):
        assert [m["id"] for m in httpx.get(f"{url}/v1/models").json()["data"]] == ["lariat-demo"]
        said = [{"role": "user", "content": "Once upon a time"}]
        chat = httpx.post(
            f"{url}/v1/chat/completions", json={"messages": said, "max_tokens": 4}, timeout=30
        )
        assert chat.json()["choices"][0]["message"]["content"]
        answers: list[httpx.Response] = []

        def ask() -> None:
            body = BODY | {"max_tokens": 300}
            answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=60))

        asking = threading.Thread(target=ask)
        asking.start()
        while not httpx.get(f"{url}/health").json()["requests_running"]:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        asking.join(60)
        assert answers[0].status_code == 200
        assert answers[0].json()["usage"]["completion_tokens"] == 300
        assert process.wait(20) == 0
        out, err = process.communicate()
        assert (out, err) == ("", "")


def test_requests_that_take_too_long_are_ended_with_the_server() -> None:
    body = BODY | {"max_tokens": 90000, "stream": True}
    with started("--stop-timeout", "1", "-c", "100000") as (process, url):
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.TransportError):
                list(lines)
        assert process.wait(20) == 0


def test_ctrl_c_ends_it() -> None:
    with started() as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\ntwo\n")
    with started("--api-key-file", str(file), LARIAT_API_KEY="three") as (_, url):
        statuses = [
            httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code
            for key in ("one", "two", "three", "four")
        ]
    assert statuses == [200, 200, 200, 401]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "99999"], "--port: port is 99999"),
        (["--parallel", "0"], "-np/--parallel: n_parallel is 0"),
        (["--ssl-cert-file", "a.pem"], "--ssl-cert-file and --ssl-key-file belong together"),
        (["--api-key", ""], "an API key is empty"),
        (["--chat-template-kwargs", "1"], "--chat-template-kwargs"),
        (["--timeout", "nan"], "request_seconds"),
    ],
)
def test_wrong_usage_is_one_sentence(run: Run, flags: list[str], message: str) -> None:
    check_refused(run(*flags), 2, message)


def test_a_port_that_is_taken(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check_refused(run("--port", str(port)), 1, f"127.0.0.1: cannot listen at port {port}: ")


def test_a_model_that_cannot_be_loaded(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    check_refused(run("--port", "0", "-m", str(file)), 1, "model.gguf")
    check_refused(run("--port", "0", "-m", str(tmp_path / "none.gguf")), 1, "No such file")


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "starlette").mkdir()
    (tmp_path / "starlette" / "__init__.py").write_text(
        "raise ModuleNotFoundError('there is none', name='starlette')"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [*LARIAT, "serve"], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    check_refused((done.returncode, done.stdout, done.stderr), 1, "pip install 'lariat[server]'")
