"""`lariat perplexity`: the output, and every type of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lariat import LLM
from lariat.tools.perplexity import cut, measure

from tests.support.command_line import Run, check_refused, runner
from tests.support.model_files import write_llama

TEXT = "the man and the hat " * 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_ctx=96))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], model: str) -> Run:
    return runner(capfd, "perplexity", "-m", model)


@pytest.mark.parametrize("cache", ["roped", "raw"])
def test_the_last_line_is_the_estimate(run: Run, model: str, text: str, cache: str) -> None:
    code, out, err = run("-f", text, "-c", "40", "--cache", cache, "-ctk", "f32", "--chunks", "4")
    with LLM(model, n_ctx=40, cache=cache, type_k="f32") as llm:
        found = measure(llm, cut(llm, TEXT.rstrip("\n"), 40, 4))
    assert (code, out) == (0, f"Final estimate: PPL = {found.value:.4f} +/- {found.error:.5f}\n")
    assert err.startswith("lariat: ")
    assert "4 windows of 40" in err
    assert f"{cache} cache (keys f32, values f16)" in err
    assert run("-f", text, "-c", "40", "--cache", cache, "-ctk", "f32", "--chunks", "4", "-q") == (
        0,
        out,
        "",
    )


def test_json(run: Run, text: str) -> None:
    code, out, err = run("-f", text, "-c", "40", "-o", "json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert len(found["running"]) == found["n_windows"]
    assert found["running"][-1] == found["ppl"]
    assert found["n_tokens"] == 19 * found["n_windows"]
    assert found["n_ctx"] == 40


@pytest.mark.parametrize("flag", ["--kl-base", "--kl-divergence-base"])
def test_save_and_compare(run: Run, text: str, tmp_path: Path, flag: str) -> None:
    base = str(tmp_path / "base.kl")
    code, out, _ = run("-f", text, "-c", "40", flag, base)
    assert (code, out.startswith("Final estimate")) == (0, True)
    code, out, _ = run(flag, base, "--kl-divergence", "-o", "json")
    found = json.loads(out)
    assert code == 0
    assert abs(found["kl"]) < 1e-4
    assert found["ppl_ratio"] == pytest.approx(1, abs=1e-4)
    assert list(found["kl_percentiles"]) == ["99.9", "99", "95", "90", "50", "10"]
    code, out, _ = run(flag, base, "--kl-divergence", "-f", text, "--cache", "raw")
    assert code == 0
    for name in ("PPL ratio:", "mean KLD:", "median KLD:", "99.9 % KLD:", "same top token:"):
        assert name in out


def test_bad_input(run: Run, text: str, tmp_path: Path) -> None:
    check_refused(run("-p", "the man"), 1, "tokens", "at least 1024")
    check_refused(run(), 2, "-p/--prompt", "-f/--file")
    check_refused(run("-f", str(tmp_path / "none.txt")), 1, "none.txt: No such file")
    (tmp_path / "empty.txt").write_text("")
    check_refused(run("-f", str(tmp_path / "empty.txt")), 1, "is empty")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 50)
    check_refused(run("-f", str(tmp_path / "latin.txt")), 1, "not valid UTF-8")
    check_refused(run("-f", text, "--chunks", "0"), 2, "--chunks")
    check_refused(run("-f", text, "-c", "2"), 2, "-c/--ctx-size")
    check_refused(run("-f", text, "-ctk", "q3"), 2, "-ctk")
    check_refused(run("-f", text, "--kl-divergence"), 2, "--kl-base")


def test_bad_base(run: Run, text: str, tmp_path: Path) -> None:
    base = str(tmp_path / "base.kl")
    check_refused(run("--kl-base", base, "--kl-divergence"), 1, "base.kl: No such file")
    (tmp_path / "base.kl").write_bytes(b"x" * 100)
    check_refused(run("--kl-base", base, "--kl-divergence"), 1, "is damaged")
    assert run("-f", text, "-c", "40", "--kl-base", base, "--chunks", "2")[0] == 0
    check_refused(run("-f", text, "--kl-base", base, "--kl-divergence"), 1, "another text")


def test_where_no_file_can_be_written_is_known_before_the_run(
    run: Run, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lariat.llm.LLM.__init__", lambda *_, **__: pytest.fail("it was loaded"))
    check_refused(run("-f", text, "--kl-base", str(tmp_path)), 1, "is a folder")
    check_refused(run("-f", text, "--kl-base", str(tmp_path / "no" / "b")), 1, "does not exist")
