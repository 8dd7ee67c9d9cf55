"""The documents: examples run as they stand and print what is shown; commands and links exist."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from lariat.architectures import ARCHITECTURES

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "cache.md"
MEASUREMENTS = ROOT / "docs" / "cache-measurements.md"
README = ROOT / "README.md"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$\n*", re.S | re.M)
_MODEL = "model.gguf"  # stands for a user's own file, so that a program cannot run here


def blocks(path: Path = PAGE) -> list[tuple[int, str, str]]:
    """Line, language and text of the page's fenced blocks."""
    page = path.read_text("utf-8")
    return [(page[: m.start()].count("\n") + 1, m[1], m[2]) for m in _FENCE.finditer(page)]


def programs(path: Path = PAGE) -> list[ParameterSet]:
    """Each Python block, and the block behind it where that is what it prints, or else None."""
    found = itertools.pairwise([*blocks(path), (0, "end", "")])
    return [
        pytest.param(code, None if next_language else shown, id=f"line {line}")
        for (line, language, code), (_, next_language, shown) in found
        if language == "python" and _MODEL not in code
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


def printed_by(code: str, path: Path) -> str:
    """Run a program of a page. Returns its standard output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(path), "exec"), {"__name__": "__main__"})
    return printed.getvalue()


@pytest.mark.parametrize(("code", "shown"), [*programs(), *programs(MEASUREMENTS)])
def test_program(code: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert printed_by(code, PAGE) == shown


@pytest.mark.parametrize(("code", "shown"), programs(README))
def test_program_of_the_readme(code: str, shown: str | None) -> None:
    """A story differs in places from one instruction set to another, so it is not shown."""
    printed = printed_by(code, README)
    assert printed if shown is None else printed == shown


def test_programs_are_found() -> None:
    assert len(programs()) + len(programs(MEASUREMENTS)) == 9
    assert len(sessions()) == 2
    assert [param.values[1] is None for param in programs(README)] == [False, True, True]


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
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)},
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


# ---- commands and links ------------------------------------------------------------------


def texts() -> list[Path]:
    """Files of the repository that name commands."""
    patterns = ("*.md", "docs/*.md", "models/*.md", "Makefile", "results/*.json")
    sources = ("engine/**/*.py", "engine/**/*.pyx", "engine/**/*.h", "bench/**/*.py", "models/*.py")
    found = [path for pattern in (*patterns, *sources) for path in ROOT.glob(pattern)]
    return [path for path in found if path.name != "CHANGELOG.md"]  # it tells of old names


def is_module(name: str) -> bool:
    """Whether `python -m NAME` finds a module of this repository."""
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def missing(pattern: str, exists: Callable[[str], bool]) -> list[str]:
    """Names found by the first group of a pattern that do not exist, with the file of each."""
    return [
        f"{path.relative_to(ROOT)}: {match[1]}"
        for path in texts()
        for match in re.finditer(pattern, path.read_text("utf-8"))
        if not exists(match[1])
    ]


def test_modules_that_are_run_exist() -> None:
    assert not missing(r"python -m\s+((?:bench|models|tests)(?:\.\w+)*)", is_module)
    assert not is_module("bench.depths")


def test_the_readme_names_every_extra() -> None:
    """All but those of people who change or publish the code."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    table = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    names = set(re.findall(r"^(\w+) = \[", table, re.M)) - {"dev", "fuzz", "release"}
    section = README.read_text("utf-8").split("\n## Extras\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == names
    assert len(names) > 5


def test_the_package_is_called_lariat() -> None:
    """Not by the name of its folder, which is all that `engine` is."""
    assert not missing(r"(?:^|[\s>`$\"])((?:from|import|python -m) engine)\b", lambda name: False)


def test_files_that_are_named_exist() -> None:
    pattern = r"(?<![\w/.-])((?:bench|tests|docs|models|results)/[\w./-]*\w\.(?:py|md|json|png))\b"
    assert not missing(pattern, lambda name: (ROOT / name).exists())


def test_links_lead_somewhere() -> None:
    for path in [path for path in texts() if path.suffix == ".md"]:
        page = path.read_text("utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert not missing(r"`make ([\w-]+)", targets.__contains__)


def test_every_architecture_and_type_has_its_proofs() -> None:
    """In the table of docs/models.md."""
    proofs = pytest.importorskip("bench.proofs", reason="runs from the source tree only")
    assert not proofs.missing(proofs.read(), ARCHITECTURES)
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    assert page == proofs.render(page), "run `make results`"
    for name in ARCHITECTURES:
        assert f"| `{name}` |" in page, f"docs/models.md: the first table has no row of {name}"


def way_of_a_token() -> list[tuple[str, str]]:
    """Functions and their files, from the table of docs/design.md."""
    page = (ROOT / "docs" / "design.md").read_text("utf-8")
    section = page.split("## The way of a token")[1].split("\n## ")[0]
    return re.findall(r"^\| `([\w.]+)` \| `([\w/.]+)` \|", section, re.M)


def test_the_way_of_a_token_is_short_and_never_goes_back_into_a_file() -> None:
    way = way_of_a_token()
    assert way[0][0] == "LLM.stream"
    assert 10 < len(way) - 1 <= 13, "hops"
    files = [file for i, (_, file) in enumerate(way) if i == 0 or way[i - 1][1] != file]
    assert len(files) == len(set(files)), files


@pytest.mark.parametrize(
    ("i", "function", "file"), [(i, *hop) for i, hop in enumerate(way_of_a_token())]
)
def test_each_hop_calls_the_next(i: int, function: str, file: str) -> None:
    """By name: a method, a C function, or one that a row of types.def generates."""
    source = (ROOT / file).read_text("utf-8")
    name = function.rpartition(".")[2]
    generated = name.replace("q4_0", "##name##")
    assert re.search(
        rf"\b(def|void|__m256i|static)\b.*\b{name}\(|\({re.escape(generated)},", source
    )
    if i + 1 < len(way_of_a_token()):
        following = way_of_a_token()[i + 1][0].rpartition(".")[2]
        called = {
            "__next__": "Stream(",
            "matmul_task": "do_task",
            "matmul_q4_0_avx2": "matmul_of(&KERNELS",
        }
        assert called.get(following, following) in source
