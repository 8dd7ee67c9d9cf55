"""Refusing a file takes no more memory than SECURITY.md promises.

Time is not tested here: `python -m bench.refusals` prints both.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.costly_files import costly_files, models

MAX_BYTES = 300e6
FILES = costly_files()

# One process for all files is faster. It resets its peak memory for each file.
CHILD = """
import contextlib, io, json, sys
from lariat.cli.main import main
from lariat.measure.machine import peak_memory, reset_peak_memory
for line in sys.stdin:
    reset_peak_memory()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(["generate", "-m", line.rstrip(), "-p", "a", "-n", "1", "-q", *sys.argv[1:]])
    print(json.dumps([code, said.getvalue(), peak_memory()]), flush=True)
"""
# The most interesting of the files that take a second to write.
LARGE = ("many experts", "a tensor is missing", "the last score is NaN", "BPE: a tensor is missing")
NAMES = [name for name in FILES if name not in models() or name in LARGE]


class Refuser:
    """A process that opens files with the flags of a command line."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-c", CHILD, *flags]
        root = Path(__file__).parents[2]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
        )

    def __call__(self, path: Path) -> tuple[int, str, int]:
        """Exit code, output, and peak memory in bytes."""
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(f"{path}\n")
        self._child.stdin.flush()
        code, said, peak = json.loads(self._child.stdout.readline())
        return code, said, peak

    def close(self) -> None:
        self._child.communicate(timeout=30)


@pytest.fixture(scope="module")
def refusers() -> Iterator[list[Refuser]]:
    both = [Refuser(), Refuser("--no-mmap")]
    yield both
    for one in both:
        one.close()


@pytest.mark.parametrize("name", NAMES)
def test_refusing_takes_little_memory(refusers: list[Refuser], tmp_path: Path, name: str) -> None:
    """Mapped, and read."""
    path = tmp_path / "costly.gguf"
    message = FILES[name](path)
    for refuse in refusers:
        code, said, peak = refuse(path)
        assert code == 1
        assert message in said
        assert said.count("\n") == 1
        assert len(said) < 400 + len(str(path))
        assert peak < MAX_BYTES
    path.unlink()
