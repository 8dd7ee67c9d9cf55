"""Fixtures of the benchmarks: models, instruction sets, and figures beside each time.

`make bench` runs them. The name of a group is the question that it answers. Each entry says whether
its result was right, in the same run, and how much it read or multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import _kernels
from lariat.runtime import threads

from tests.support.model_files import write_llama

N_THREADS = threads.available()
ISAS = _kernels.supported_isas()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 22M random weights in Q4_0: times do not depend on their values."""
    return write_llama(
        tmp_path_factory.mktemp("bench") / "synthetic-22m-q4_0.gguf",
        dim=512,
        n_layers=6,
        n_heads=8,
        n_kv_heads=4,
        n_ff=1408,
        n_vocab=4096,
        n_ctx=2048,
        weight_type="Q4_0",
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """An instruction set, by indirect parameter; kernels run with it during the benchmark."""
    before = _kernels.isa()
    _kernels.use_isa(request.param)
    yield request.param
    _kernels.use_isa(before)


Record = Callable[..., None]


@pytest.fixture
def record(benchmark: Any) -> Record:
    """Returns a function to call after the timing, with the work of one round.

    `correct` says whether the result was right, `peak` is the measured limit of products a second.
    """

    def record(
        *,
        correct: bool,
        n_threads: int = 1,
        n_bytes: float | None = None,
        n_macs: float | None = None,
        peak: float | None = None,
        n_tokens: int | None = None,
    ) -> None:
        seconds = benchmark.stats.stats.median
        info: dict[str, Any] = {
            "correct": bool(correct),
            "isa": _kernels.isa(),
            "n_threads": n_threads,
        }
        if n_bytes is not None:
            info |= {"bytes": round(n_bytes), "GB/s": round(n_bytes / seconds / 1e9, 3)}
        if n_macs is not None:
            info |= {"macs": round(n_macs), "GMAC/s": round(n_macs / seconds / 1e9, 3)}
            if peak is not None:
                info |= {"% of peak": round(100 * n_macs / seconds / peak, 1)}
        if n_tokens is not None:
            info["tokens/s"] = round(n_tokens / seconds, 1)
        benchmark.extra_info.update(info)
        assert correct

    return record


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print a second table: correctness, instruction set, rates."""
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, list[Any]] = {}
    for entry in session.benchmarks if session else ():
        if entry.extra_info and not entry.has_error:
            groups.setdefault(entry.group or "", []).append(entry)
    for question, entries in groups.items():
        terminalreporter.write_line("")
        terminalreporter.write_line(question, bold=True)
        for entry in entries:
            info = entry.extra_info
            rates = (f"  {info[name]:>12,.2f} {name}" for name in _RATES if name in info)
            terminalreporter.write_line(
                f"  {entry.name:<40} {entry.stats.median * 1e3:>10.3f} ms  {info['isa']:<6} "
                f"{info['n_threads']:>2} threads  {'right' if info['correct'] else 'WRONG'}"
                + "".join(rates)
            )


_RATES = ("GB/s", "GMAC/s", "% of peak", "tokens/s", "us/phase", "idle processors")
