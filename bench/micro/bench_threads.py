"""Cost of threads that work together, and of threads that have nothing to do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import LLM, SamplingParams
from lariat._kernels import rms_norm
from lariat._program import Program

from bench.micro.conftest import N_THREADS, Record

N_PHASES = 1000
COUNTS = sorted({1, N_THREADS, 2 * N_THREADS, 8 * N_THREADS})


def _phases(n_threads: int) -> tuple[Program, np.ndarray, np.ndarray]:
    """A thousand phases, in each of which every thread has a task of a few nanoseconds."""
    x = np.arange(8 * n_threads, dtype=np.float32).reshape(n_threads, 1, 8)
    out, weight = np.zeros_like(x), np.ones(8, np.float32)
    program = Program()
    for _ in range(N_PHASES):
        program.then(*[rms_norm(x[i], weight, 1e-5, out[i]) for i in range(n_threads)])
    return program, x, out


@pytest.mark.benchmark(group="threads: what does it cost to go on together, a thousand times?")
@pytest.mark.parametrize("n_threads", COUNTS)
def bench_phases(benchmark: Any, record: Record, n_threads: int) -> None:
    program, x, out = _phases(n_threads)
    benchmark.pedantic(lambda: program.run(n_threads), rounds=20, warmup_rounds=2)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    record(correct=np.allclose(out, expected, rtol=1e-5), n_threads=n_threads)
    seconds = benchmark.stats.stats.median / N_PHASES
    benchmark.extra_info["us/phase"] = round(seconds * 1e6, 3)


@pytest.mark.benchmark(group="threads: what is left of speed with more than processors?")
@pytest.mark.parametrize("n_threads", COUNTS)
def bench_decode(benchmark: Any, record: Record, model: Path, n_threads: int) -> None:
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    prompt = [300, 301, 302]
    with LLM(model, n_threads=1) as alone:
        expected = alone.generate(prompt, params).token_ids
    with LLM(model, n_threads=n_threads) as llm:
        written = benchmark.pedantic(
            lambda: llm.generate(prompt, params).token_ids, rounds=7, warmup_rounds=1
        )
        started, used = time.perf_counter(), time.process_time()
        time.sleep(1.0)
        idle = (time.process_time() - used) / (time.perf_counter() - started)
    record(correct=written == expected, n_threads=n_threads, n_tokens=16)
    benchmark.extra_info["idle processors"] = round(idle, 4)
