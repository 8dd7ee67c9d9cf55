"""-hf in every command that takes a model, and `lariat list`."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lariat import LLM, HubError

from tests.support.command_line import LARIAT, ROOT, Run, check_refused, runner
from tests.support.hub_server import HubServer, serving, use_hub
from tests.support.model_files import write_llama

REPO = "someone/tiny-GGUF"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("models")
    good = write_llama(folder / "good.gguf").read_bytes()
    bad = write_llama(folder / "bad.gguf", arch="gptj").read_bytes()
    return {
        "tiny-Q4_K_M.gguf": good,
        "tiny-F16.gguf": bad,
        "mmproj-tiny-f16.gguf": b"not looked at",
        "notes.txt": b"",
    }


@pytest.fixture
def hub(
    models: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    with serving() as server:
        use_hub(server, tmp_path / "cache", monkeypatch)
        server.files[REPO] = dict(models)
        yield server


def name_of(path: str) -> str:
    return path.rpartition("/")[2]


@pytest.mark.parametrize(
    "argv",
    [
        ("generate", "-p", "a", "-n", "1"),
        ("tokenize", "-p", "a"),
        ("info",),
        ("perplexity", "-f", "text", "-c", "8"),
        ("chunk", "add", "name", "-p", "a", "--library", "shelf"),
        ("chat", "-p", "a", "-st", "-n", "1", "--chat-template", "chatml"),
    ],
    ids=lambda argv: argv[0],
)
def test_every_command_fetches_a_model_and_asks_once(
    run: Run, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("word " * 100)
    code, out, err = run(*argv, "-hf", REPO)
    assert code == 0, err
    assert out or argv[0] == "chat"
    assert [name_of(one.path) for one in hub.of("GET", "resolve")] == ["tiny-Q4_K_M.gguf"]
    assert len(hub.of("GET", "/api/models")) == 1
    assert "downloading" not in err  # a pipe
    assert str(tmp_path) not in err  # but repository and file
    if argv[0] == "generate":
        assert f"lariat: {REPO}/tiny-Q4_K_M.gguf, context" in err


def test_a_model_is_chosen_by_type_or_file(run: Run, hub: HubServer) -> None:
    for flags in (
        ("-hf", f"{REPO}:f16"),
        ("--hf-repo", REPO, "--hf-file", "tiny-F16.gguf"),
        ("-hfr", REPO, "-hff", "*-f16.gguf"),
    ):
        code, out, _ = run("info", *flags)
        assert code == 0
        assert "  runs     no: architecture 'gptj' is not supported" in out


def test_a_token_on_the_command_line(run: Run, hub: HubServer) -> None:
    hub.token = "hf_of_flag"
    assert run("tokenize", "-p", "a", "-hf", REPO, "-hft", "hf_of_flag")[0] == 0
    check_refused(run("tokenize", "-p", "a", "-hf", REPO, "--hf-file", "x"), 1, "HTTP 401")
    assert "hf_of_flag" not in run("generate", "-hf", REPO, "-hft", "hf_of_flag", "-p", "a")[2]


def test_errors_are_one_sentence_with_the_right_code(run: Run, hub: HubServer) -> None:
    info = ("info", "-hf")
    check_refused(run(*info, "someone/else"), 1, "has no someone/else")
    check_refused(run(*info, f"{REPO}:Q2_K"), 1, "no model of type Q2_K; it has tiny-F16.gguf")
    check_refused(run(*info, "nonsense"), 2, "-hf/-hfr/--hf-repo: 'nonsense' is not of the form")
    check_refused(run(*info, REPO, "-m", "x.gguf"), 2, "not allowed with argument")
    check_refused(run("info", "-hff", "x.gguf"), 2, "-hff/--hf-file: needs a repository")
    check_refused(run("bench", "-hff", "x.gguf"), 2, "-hff/--hf-file: needs a repository")
    check_refused(run(*info, REPO, "--offline"), 1, "is not in the cache", "may not be asked")
    hub.damaged = True
    check_refused(run(*info, REPO), 1, "tiny-Q4_K_M.gguf arrived damaged")
    hub.damaged, hub.status = False, 502
    check_refused(run(*info, REPO), 1, "answers with HTTP status 502")


def test_the_copy_in_the_cache_is_used_with_a_warning(
    run: Run, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("info", "-hf", REPO)[0] == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, out, err = run("info", "-hf", REPO)
    assert code == 0
    assert out
    assert err.startswith("lariat: warning: cannot reach http://127.0.0.1:9 (")
    assert err.endswith("; the copy in the cache is used\n")
    assert run("generate", "-hf", REPO, "-p", "a", "-n", "1", "-q")[2] == ""
    assert run("info", "-hf", REPO, "--offline")[2] == ""


def test_bench_takes_several(run: Run, hub: HubServer, tmp_path: Path) -> None:
    """All are there before anything is measured."""
    argv = ("bench", "-hf", REPO, "-hf", f"{REPO}:F16", "-m", str(tmp_path / "missing.gguf"))
    check_refused(run(*argv), 1, "missing.gguf", "No such file")
    assert len(hub.of("GET", "resolve")) == 2


def test_without_hf_nobody_is_asked(run: Run, hub: HubServer) -> None:
    assert run("tokenize", "-p", "a")[0] == 0
    assert run("list")[0] == 0
    assert hub.asked == []


def test_list_shows_what_is_there_and_what_runs(run: Run, hub: HubServer, tmp_path: Path) -> None:
    code, out, err = run("list")
    assert (code, out) == (0, "")
    assert err == f"lariat: there is no model in {tmp_path / 'cache'}\n"
    for type_name in ("Q4_K_M", "F16"):
        assert run("info", "-hf", f"{REPO}:{type_name}")[0] == 0
    code, out, err = run("list")
    assert (code, err) == (0, "")
    sizes = [len(hub.files[REPO][f"tiny-{name}.gguf"]) for name in ("F16", "Q4_K_M")]
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[:2] for line in lines] == [
        [f"{REPO}:F16", str(sizes[0])],
        [f"{REPO}:Q4_K_M", str(sizes[1])],
    ]
    assert lines[0][2].startswith("no: architecture 'gptj' is not supported")
    assert lines[1][2] == "runs"


def test_a_bar_on_a_terminal_and_a_ctrl_c(hub: HubServer, tmp_path: Path) -> None:
    """Ctrl-C while a file comes: code 130, nothing more said, and the next run goes on."""
    data = b"GGUF" + bytes(32 << 20)
    hub.files[REPO] = {"large-Q4_K_M.gguf": data}
    hub.slow = True
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*LARIAT, "info", "-hf", REPO], cwd=ROOT, stdout=subprocess.PIPE, stderr=child,
        env=os.environ | {"TERM": "xterm"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    os.close(child)
    seen = b""
    while b"downloading large-Q4_K_M.gguf" not in seen:
        seen += os.read(parent, 1 << 16)
    process.send_signal(signal.SIGINT)
    hub.slow = False
    assert process.wait(30) == 130
    with contextlib.suppress(OSError):  # the end of a terminal
        while more := os.read(parent, 1 << 16):
            seen += more
    assert b"Traceback" not in seen
    assert b"lariat: error" not in seen
    (partial,) = (tmp_path / "cache").rglob("*.incomplete")
    assert 0 < partial.stat().st_size < len(data)


def test_from_pretrained_loads_like_llama_cpp_python(hub: HubServer, tmp_path: Path) -> None:
    with LLM.from_pretrained(repo_id=REPO, filename="*q4_k_m.gguf", n_ctx=32) as llm:
        assert llm.n_ctx == 32
    with LLM.from_pretrained(f"{REPO}:Q4_K_M", local_files_only=True) as llm:
        assert llm.gguf.path.is_relative_to(tmp_path / "cache")
    other = tmp_path / "other"
    seen: list[float] = []
    options = {"cache_dir": other, "download_progress": lambda share, file: seen.append(share)}
    with LLM.from_pretrained(REPO, **options) as llm:
        assert llm.gguf.path.is_relative_to(other)
    assert seen[-1] == 1
    with pytest.raises(HubError, match="is not in the cache"):
        LLM.from_pretrained("some/other", local_files_only=True)
    for arguments, words in (
        (("nonsense",), "is not of the form OWNER/REPO"),
        ((REPO, 5), "filename is of type int"),
        ((5,), "repo_id is of type int"),
    ):
        with pytest.raises(ValueError, match=words):
            LLM.from_pretrained(*arguments)
