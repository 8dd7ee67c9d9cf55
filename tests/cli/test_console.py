"""Output: all of it or an error, to every type of stream; messages of a length for people."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest
from lariat.cli import console

from tests.support.command_line import LARIAT, ROOT, Run, check_refused, runner
from tests.support.model_files import write_llama

TEXT = "the man and the hat " * 1500
BUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_layers=1, n_ctx=96))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


def environment(unbuffered: str) -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": unbuffered}


@pytest.fixture(scope="module")
def tokens(model: str) -> bytes:
    argv = [*LARIAT, "tokenize", "-m", model, "-p", TEXT]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, check=True).stdout


# ---- a disk or a limit that cuts the output off ----


@BUFFERED
@pytest.mark.parametrize("command", ["tokenize", "help", "info"])
def test_a_file_size_limit_is_an_error(
    model: str, tmp_path: Path, unbuffered: str, command: str
) -> None:
    argv = {
        "tokenize": f"tokenize -m {model} -p '{TEXT}'",
        "help": "generate --help",
        "info": f"info -m {model}",
    }[command]
    out = tmp_path / "out"
    out.write_bytes(bytes(512))  # the limit is in blocks of 512 bytes
    limited = f"ulimit -f 2; exec {' '.join(LARIAT)} {argv} >>{out}"
    done = subprocess.run(
        ["sh", "-c", limited], cwd=ROOT, env=environment(unbuffered), stderr=subprocess.PIPE,
        text=True, timeout=60,
    )  # fmt: skip
    check_refused((done.returncode, "", done.stderr), 1, "standard output: File too large")
    assert out.stat().st_size <= 2048


@BUFFERED
def test_a_full_disk_is_an_error(model: str, unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*LARIAT, "tokenize", "-m", model, "-p", "the"], cwd=ROOT, env=environment(unbuffered),
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    check_refused((done.returncode, "", done.stderr), 1, "No space left on device")


# ---- a pipe that is not ready ----


def small_pipe() -> tuple[int, int]:
    """Reading and writing end of a pipe that holds a page and does not wait."""
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, 1031, 4096)  # F_SETPIPE_SZ
    os.set_blocking(theirs, False)
    return ours, theirs


@BUFFERED
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_that_is_not_ready_is_waited_for(
    model: str, tokens: bytes, unbuffered: str, stream: str
) -> None:
    argv = [*LARIAT, "tokenize", "-m", model, "-p", TEXT]
    if stream == "stderr":
        script = f"from lariat.cli import console; console.note({TEXT!r})"
        argv, tokens = [sys.executable, "-c", script], TEXT.encode() + b"\n"
    ours, theirs = small_pipe()
    process = subprocess.Popen(argv, cwd=ROOT, env=environment(unbuffered), **{stream: theirs})
    os.close(theirs)
    time.sleep(0.5)
    with open(ours, "rb") as file:
        assert file.read() == tokens
    assert process.wait(60) == 0


@BUFFERED
def test_a_reader_that_goes_away_ends_the_wait(model: str, unbuffered: str) -> None:
    ours, theirs = small_pipe()
    argv = [*LARIAT, "tokenize", "-m", model, "-p", TEXT]
    process = subprocess.Popen(
        argv, cwd=ROOT, env=environment(unbuffered), stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    os.read(ours, 100)
    os.close(ours)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 141


# ---- other streams ----


class Halting(io.RawIOBase):
    """Takes at most three bytes at a time."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: BinaryIO) -> int:
        part = bytes(data)[:3]
        self.taken += part
        return len(part)


@pytest.mark.parametrize("is_buffered", [False, True])
def test_parts_that_a_file_leaves_are_written_too(
    monkeypatch: pytest.MonkeyPatch, is_buffered: bool
) -> None:
    raw = Halting()
    buffer = io.BufferedWriter(raw) if is_buffered else raw
    stream = io.TextIOWrapper(buffer, write_through=True)  # type: ignore[arg-type]
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", stream)
    console.write("äöü€\n")
    console.write("")
    console.note("a\udcff")
    assert raw.taken == "äöü€\na\\udcff\n".encode()


def test_a_stream_without_bytes_gets_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook."""

    class Notebook(io.StringIO):
        encoding = None

    for name, write in (("stdout", console.write), ("stderr", console.write_err)):
        stream = Notebook()
        monkeypatch.setattr(f"sys.{name}", stream)
        write("ä")
        assert stream.getvalue() == "ä"


def test_several_threads_may_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open(tmp_path / "out", "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        lines = [f"{i} " * 2000 + "\n" for i in range(8)]
        writers = [threading.Thread(target=console.write, args=(line,)) for line in lines]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    assert sorted((tmp_path / "out").read_text().splitlines(True)) == sorted(lines)


# ---- messages ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a short one", "a short one"),
        ("line\nbreak", "line\\nbreak"),
        ("x" * 240, "x" * 240),
        ("begin " + "x" * 1000 + " end", "begin " + "x" * 118 + "..." + "x" * 118 + " end"),
        (("ab " * 1000).strip(), "ab " * 199 + "a" + "..." + "b" + " ab" * 199),
    ],
)
def test_brief(text: str, expected: str) -> None:
    if text.startswith("ab"):
        assert len(console.brief(text)) <= 1200
        assert console.brief(text).startswith("ab ab ab")
        assert console.brief(text).endswith("ab ab ab")
    else:
        assert console.brief(text) == expected


@pytest.mark.parametrize("name", ["n" * 3000, "a b " * 700, "folder/" * 500 + "m.gguf", "ü" * 200])
def test_messages_about_long_names_are_a_few_lines(run: Run, name: str) -> None:
    for argv in (
        ("generate", "-p", "x", "-m", name),
        ("info", "-m", name),
        ("tokenize", "-f", name),
        ("quantize", name, "out.gguf", "Q8_0"),
        ("generate", "-p", "x", "-c", name),
        ("generate", "-p", "x", "--override-kv", name),
        ("generate", "-p", "x", f"--{name}"),
        (name,),
    ):
        code, out, err = run(*argv)
        assert code in (1, 2)
        assert out == ""
        assert len(err) < 1300
        assert err.count("\n") == 1
    check_refused(run("info", "-m", name), 1, name[:20])
    assert run("info", "-m", "n" * 3000)[2].endswith("nnn' cannot be opened: File name too long\n")


def test_a_long_path_that_is_there_is_cut_too(run: Run, model: str, tmp_path: Path) -> None:
    folder = tmp_path / ("f" * 200) / ("g" * 200)
    folder.mkdir(parents=True)
    path = folder / "m.gguf"
    path.write_bytes(Path(model).read_bytes())
    code, _, err = run("generate", "-m", str(path), "-p", "the", "-n", "1")
    assert code == 0
    assert max(map(len, err.splitlines())) < 400
    assert "m.gguf, context 96" in err
    assert "g" * 200 not in err
    assert "g" * 200 not in run("info", "-m", str(path))[1]


# ---- a context that is longer than the training ----


@pytest.mark.parametrize(
    ("flags", "is_warned"),
    [
        (("-c", "97"), True),
        (("-c", "4096", "--cache", "raw"), True),
        (("-c", "96"), False),
        (("-c", "0"), False),
        (("-c", "97", "-q"), False),
        (("-c", "192", "--rope-scale", "2"), False),
        (("-c", "192", "--rope-scaling", "yarn", "--rope-scale", "2"), False),
        (("-c", "192", "--rope-freq-base", "20000"), False),
        (("-c", "192", "--cache", "raw", "-gan", "2", "-gaw", "32"), False),
    ],
)
def test_a_context_longer_than_the_training_warns_once(
    run: Run, model: str, flags: tuple[str, ...], is_warned: bool
) -> None:
    code, _, err = run("generate", "-m", model, "-p", "the", "-n", "1", *flags)
    assert code == 0
    assert err.count("longer than the 96 tokens that the model was trained for") == is_warned
