"""The examples of docs/cache.md: each runs as it stands, and prints what the page says it does."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "cache.md"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$\n*", re.S | re.M)


def blocks() -> list[tuple[int, str, str]]:
    """Line, language and text of the page's fenced blocks."""
    page = PAGE.read_text("utf-8")
    return [(page[: m.start()].count("\n") + 1, m[1], m[2]) for m in _FENCE.finditer(page)]


def programs() -> list[ParameterSet]:
    """Each Python block with the block behind it, which is what it prints."""
    return [
        pytest.param(code, shown, id=f"line {line}")
        for (line, language, code), (_, _, shown) in itertools.pairwise(blocks())
        if language == "python"
    ]


def sessions() -> list[ParameterSet]:
    """Each block of commands that begin with "$ " and what they print."""
    return [
        pytest.param(text, id=f"line {line}")
        for line, language, text in blocks()
        if not language and text.startswith("$ ")
    ]


def timeless(text: str) -> str:
    """Without what a clock says."""
    return re.sub(r"\d+\.\d+", "#", text)


@pytest.mark.parametrize(("code", "shown"), programs())
def test_program(code: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), {"__name__": "__main__"})
    assert printed.getvalue() == shown


@pytest.mark.parametrize("text", sessions())
def test_session(text: str, tmp_path: Path) -> None:
    script, shown, continued = ['lariat() { "$PYTHON" -m lariat "$@"; }'], [], False
    for line in text.splitlines():
        is_command = continued or line.startswith("$ ")
        (script if is_command else shown).append(line.removeprefix("$ "))
        continued = is_command and line.endswith(("|", "\\"))
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], check=False, cwd=tmp_path, capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert timeless(done.stdout).splitlines() == timeless("\n".join(shown)).splitlines(), (
        done.stderr
    )
    assert done.stderr == ""


def test_every_capability_says_when_it_is_not_the_thing_to_use() -> None:
    """A section of the page is one capability."""
    page = PAGE.read_text("utf-8")
    for title in (
        "Editing", "Shared prefixes", "Files", "Prompt cache", "Chunk library",
        "Endless generation", "Stretched contexts", "Quantized keys and values",
    ):  # fmt: skip
        section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
        assert "When not to use it" in section, title
        assert "```" in section, title
