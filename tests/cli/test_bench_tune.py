"""`lariat bench --tune`: what it prints, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lariat import LLM
from lariat.runtime import tuned

from tests.support.bench_runs import quick_runner, write_small
from tests.support.command_line import Run, check_refused


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A machine of two cores; the cache folder is this test's own."""
    monkeypatch.setenv("LARIAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuned, "most", lambda: 2)
    return quick_runner(capfd, monkeypatch)


def test_the_choice_is_printed_and_taken_by_later_starts(
    run: Run, model: str, tmp_path: Path
) -> None:
    code, out, err = run("--tune", "-m", model)
    assert (code, err) == (0, "")
    table, sentence = out.strip().split("\n\n")
    assert [row.split("|")[1].strip() for row in table.splitlines()[2:]] == ["1", "2"]
    assert out.count(" * ") == 2, "the best of decode and of the prompt"
    (noted,) = json.loads((tmp_path / "cache" / tuned.FILE).read_text()).values()
    assert f": -t {noted['n_threads']} -tb {noted['n_threads_batch']}," in sentence
    with LLM(model) as llm:
        assert [llm.n_threads, llm.n_threads_batch] == list(noted.values())


def test_json_has_all_speeds(run: Run, model: str) -> None:
    code, out, _ = run("--tune", "-m", model, "-m", model, "-o", "json")
    assert code == 0
    for row in json.loads(out):
        assert row["model_filename"] == model
        for name, best in (("decode", "n_threads"), ("prompt of 64", "n_threads_batch")):
            speeds = row["tokens_per_second"][name]
            assert list(speeds) == ["1", "2"]
            assert str(row[best]) in speeds


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-t", "2"], "-t cannot be given"),
        (["-p", "16"], "-p cannot be given"),
        (["--scaling"], "--scaling cannot be given"),
        (["-o", "csv"], "--tune prints md or json"),
    ],
)
def test_what_would_be_ignored_is_refused(
    run: Run, model: str, flags: list[str], said: str
) -> None:
    check_refused(run("--tune", "-m", model, *flags), 2, said)


def test_what_cannot_be_kept_is_told(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    code, out, _ = run("--tune", "-m", model)
    assert code == 0
    assert "could not be kept" in out


def test_a_bad_model_is_one_sentence(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF")
    check_refused(run("--tune", "-m", str(path)), 1, "bad.gguf")
