"""`lariat prepare`: where it writes, what it says and refuses; and the commands that use it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from lariat.architectures import prepared
from lariat.demo import DEMO_MODEL

from tests.support.command_line import LARIAT, ROOT, Run, check_refused, runner
from tests.support.model_files import write_llama

GENERATE = ("generate", "-p", "ab", "-n", "4", "--temp", "0", "-c", "64", "-m")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "m.gguf", weight_type="Q8_0")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("own") / "cache"
    monkeypatch.setenv("LARIAT_CACHE", str(folder))
    return folder


def test_it_writes_beside_the_model_and_prints_where(run, model):
    code, out, err = run("prepare", str(model))
    assert (code, out) == (0, f"{model}.prepared\n")
    assert "GB written in" in err
    before = os.stat(f"{model}.prepared")
    assert run("prepare", "-m", str(model)) == (0, f"{model}.prepared\n", "")
    assert os.stat(f"{model}.prepared").st_ino == before.st_ino, "it was there, and fits"
    run("prepare", str(model), "-f", "-q")
    assert os.stat(f"{model}.prepared").st_ino != before.st_ino


def test_a_stale_file_is_written_anew(run, model):
    run("prepare", str(model))
    os.utime(model, ns=(1, 1))
    code, _, err = run("prepare", str(model))
    assert (code, "written" in err) == (0, True)
    assert run("prepare", str(model), "--check", "-q")[0] == 0


def test_commands_use_it_unless_they_are_told_not_to(run, model):
    """The same text; and a warning about a file that does not fit, but with -q."""
    expected = run(*GENERATE, str(model), "-q")
    run("prepare", str(model))
    assert run(*GENERATE, str(model), "-q") == expected
    assert run(*GENERATE, str(model), "-q", "--no-prepared") == expected
    os.utime(model, ns=(1, 1))
    assert run(*GENERATE, str(model), "-q") == expected
    code, out, err = run(*GENERATE, str(model))
    assert (code, out) == expected[:2]
    assert "lariat: warning: prepared weights are not used: " in err
    assert "was made before the model's file was changed" in err
    assert "warning" not in run(*GENERATE, str(model), "--no-prepared")[2]


def test_info_tells(run, model):
    assert "  prepared no\n" in run("info", "-m", str(model))[1]
    run("prepare", str(model))
    assert f"  prepared {model}.prepared\n" in run("info", "-m", str(model))[1]
    os.utime(model, ns=(1, 1))
    assert "  prepared no: " in run("info", "-m", str(model))[1]


def test_check(run, model):
    check_refused(run("prepare", str(model), "--check"), 1, "is not prepared")
    run("prepare", str(model))
    assert run("prepare", str(model), "--check") == (0, f"{model}.prepared\n", "")
    with open(f"{model}.prepared", "r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(b"\xaa")
    check_refused(run("prepare", str(model), "--check"), 1, "do not give their checksum")


def test_remove(run, model):
    assert run("prepare", str(model), "--remove") == (0, "", "")
    run("prepare", str(model))
    assert run("prepare", str(model), "--remove") == (0, f"{model}.prepared\n", "")
    assert os.listdir(model.parent) == [model.name]


def test_a_folder_of_ones_own(run, model, tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b"
    code, out, _ = run("prepare", str(model), "--cache-dir", str(folder))
    assert (code, Path(out.strip())) == (0, prepared.in_folder(model, folder))
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("LARIAT_CACHE", str(folder))
    assert out.strip() in run("info", "-m", str(model))[1]
    monkeypatch.delenv("LARIAT_CACHE")
    assert run("prepare", str(model), "--cache-dir", str(folder), "--check")[0] == 0
    assert run("prepare", str(model), "--cache-dir", str(folder), "--remove")[1] == out


def test_a_folder_that_cannot_be_written_sends_it_to_the_cache(run, model, cache, monkeypatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != model.parent and real(p, mode))
    code, out, _ = run("prepare", str(model))
    assert (code, Path(out.strip())) == (0, prepared.in_folder(model, cache))
    assert os.listdir(model.parent) == [model.name]
    assert out.strip() in run("info", "-m", str(model))[1]


def test_the_demo_model_goes_to_the_cache(run, cache):
    """Its own folder is that of the package."""
    code, out, _ = run("prepare")
    assert (code, Path(out.strip()).parent) == (0, cache)
    assert f"  prepared {out}" in run("info")[1]
    assert not prepared.beside(Path(DEMO_MODEL)).exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("a.gguf", "-m", "b.gguf"), "argument MODEL: not allowed with -m or -hf"),
        (("a.gguf", "-t", "0"), "argument -t/--threads"),
        (("a.gguf", "--check", "--remove"), "not allowed with"),
        (("a.gguf", "--check", "-f"), "not allowed with"),
    ],
)
def test_wrong_usage(run, flags, expected):
    check_refused(run("prepare", *flags), 2, expected)


def test_models_that_do_not_run(run, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    check_refused(run("prepare", str(tmp_path / "m.gguf")), 1, "m.gguf")
    check_refused(run("prepare", str(tmp_path / "none.gguf")), 1, "none.gguf")
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_cache_folder_that_cannot_be_made(run, model):
    check_refused(run("prepare", str(model), "--cache-dir", f"{model}/x"), 1, "m.gguf/x")


def test_two_processes_at_once(model):
    """Each writes a file of its own; the last one keeps the name."""
    started = [
        subprocess.Popen([*LARIAT, "prepare", str(model), "-f", "-q"], cwd=ROOT) for _ in range(2)
    ]
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    assert sorted(os.listdir(model.parent)) == ["m.gguf", "m.gguf.prepared"]
    done = subprocess.run([*LARIAT, "prepare", str(model), "--check", "-q"], cwd=ROOT, check=False)
    assert done.returncode == 0
