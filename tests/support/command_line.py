"""Runs `lariat` in this process or in its own, and checks how it refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lariat.cli.main import main

ROOT = Path(__file__).parents[2]
LARIAT = [sys.executable, "-m", "lariat"]

Run = Callable[..., tuple[int, str, str]]


def runner(capfd: pytest.CaptureFixture[str], *before: str) -> Run:
    """Runs command lines in this process: exit code, stdout, stderr. Each begins with `before`."""

    def run(*argv: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([*before, *argv])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def start(*argv: str, **options: object) -> subprocess.Popen[bytes]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [*LARIAT, *argv],
        cwd=ROOT,
        # A background job starts with SIGINT ignored, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def check_refused(result: tuple[int, str, str], code: int, *expected: str) -> None:
    """Nothing on stdout, and one sentence on stderr that contains the expected parts."""
    assert result[:2] == (code, "")
    assert result[2].startswith("lariat: error: ")
    assert result[2].count("\n") == 1
    assert result[2].endswith("\n")
    for part in expected:
        assert part in result[2]
