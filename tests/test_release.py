"""Tools that build and check wheels; what they make is checked by `make test-wheels`."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from release import check, toolchain, wheels
from release.pythons import Environment
from release.toolchain import TARGETS

X86 = TARGETS["x86_64"]
TEXT = "Once upon a time there was a lariat that ran on any processor at all."


def write_command(path: Path) -> None:
    """A command that prints its name and arguments."""
    path.write_text('#!/bin/sh\necho "${0##*/}" "$@"\n')
    path.chmod(0o755)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("gcc", "zig"):
        write_command(tmp_path / name)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(toolchain, "zig", lambda: tmp_path / "zig")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: name if name == "gcc" else None)
    return toolchain.write_compiler(X86, tmp_path / "cc", ["-L/some where", "-lgomp"])


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("-fopenmp -c a.c -o a.o", "gcc -fopenmp -c a.c -o a.o"),
        ("-E -", "gcc -E -"),
        (
            "-shared a.o -fopenmp -o a.so",
            "zig cc -target x86_64-linux-gnu.2.17 -shared a.o -o a.so -L/some where -lgomp "
            "gcc -print-libgcc-file-name",
        ),
    ],
)
def test_gcc_compiles_and_zig_links(compiler: Path, arguments: str, command: str) -> None:
    result = subprocess.run(
        [compiler, *arguments.split()], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == command


def test_a_model_does_not_count_as_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "MOST_BYTES", 10_000)
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("lariat/data/demo.gguf", bytes(20_000))
    wheels.check_size(wheel)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("lariat/_kernels.so", bytes(10_001))
    with pytest.raises(SystemExit, match="without the model, 10000 at most"):
        wheels.check_size(wheel)


@dataclasses.dataclass(frozen=True)
class Canned(Environment):
    """Prints what it is told, in the order in which `check` asks."""

    outputs: Iterator[str] = dataclasses.field(default_factory=lambda: iter(()))

    def run(self, *_: str | Path) -> str:
        return next(self.outputs)


def canned(
    error: float = 0.005, isa: str = "avx2", text: str = TEXT, bench: str = "avx2"
) -> Canned:
    found = {"isa": isa, "isas": ["scalar", "avx2"], "error": error}
    rows = [{"isa": bench, "avg_ts": 5.0}]
    return Canned("3.11", X86, (), {}, "Haswell", map(json.dumps, (found, {"text": text}, rows)))


def test_a_wheel_that_runs_passes() -> None:
    assert check.check(canned(), Path("judge.npz"), "avx2").startswith("x86_64 3.11 Haswell: avx2")
    check.check(canned(), Path("judge.npz"), None)


@pytest.mark.parametrize(
    ("environment", "isa", "message"),
    [
        (canned(error=0.5), "avx2", "logits are off by 0.5"),
        (canned(error=float("nan")), "avx2", "logits are off by nan"),
        (canned(isa="scalar", bench="scalar"), None, "expected avx2"),
        (canned(), "avx512", "expected avx512"),
        (canned(text="Once"), "avx2", "generate wrote 'Once'"),
        (canned(bench="scalar"), "avx2", "bench printed"),
    ],
)
def test_a_wheel_that_does_not_run_right_is_refused(
    environment: Canned, isa: str | None, message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        check.check(environment, Path("judge.npz"), isa)
