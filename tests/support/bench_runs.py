"""Short runs of `lariat bench`, and made-up results of longer ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lariat.cli import bench
from lariat.cli.usage import Parser
from lariat.measure import machine
from lariat.measure.cases import Case, ModelFacts, Result

from tests.support.command_line import Run, runner
from tests.support.model_files import write_llama

SMALL = ("-p", "6", "-n", "3", "-r", "2", "-t", "1")


def write_small(folder: Path) -> str:
    """A model of 96 positions, with a name that SQL has to quote."""
    return str(write_llama(folder / "it's.gguf", n_ctx=96))


def quick_runner(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `lariat bench` in this process with a small probe: exit code, stdout, stderr."""
    monkeypatch.setattr(machine, "_READ_BYTES", 1 << 16)
    monkeypatch.setattr(machine, "_MIN_READ_BYTES", 1 << 16)
    monkeypatch.setattr(machine, "_PASS_SECONDS", 1e-5)
    return runner(capfd, "bench")


def parsed(*flags: str) -> Any:
    parser = Parser()
    bench.register(parser.add_subparsers(parser_class=Parser))
    return parser.parse_args(["bench", "-m", "x", *flags])


def fake_results(cases: list[Case], seconds: Callable[[Case], float]) -> list[Result]:
    facts = ModelFacts("model.gguf", "llama 7B Q4_0", 4 << 30, 7 * 10**9)
    results = []
    for case in cases:
        result = Result(case, facts, "avx512", False, 4e9, 7e9)
        for factor in (1.0, 1.02):
            result.add(int(seconds(case) * factor * 1e9))
        results.append(result)
    return results


def table_results() -> list[Result]:
    args = parsed("--table", "rope-on-read")
    return fake_results(
        bench._cases(args), lambda c: c.n_tokens * (0.01 if c.cache == "roped" else 0.0102)
    )


def scaling_results(*flags: str) -> list[Result]:
    cases = bench._cases(parsed("--scaling", *flags))
    return fake_results(cases, lambda c: 8 / c.n_threads**0.5)
