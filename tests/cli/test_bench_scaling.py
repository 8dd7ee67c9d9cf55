"""`lariat bench --scaling`: sweeps of -t and -tb, fits, labels of cores, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from lariat import _kernels
from lariat.cli import bench, bench_output
from lariat.measure.cases import Case
from lariat.runtime import topology
from lariat.runtime.topology import Processor

from tests.support.bench_runs import SMALL, fake_results, parsed, quick_runner, write_small


@pytest.fixture
def hybrid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two performance cores, one of them with two threads, and an efficiency core."""
    some = [
        Processor(0, 0, 0, 0, "performance"),
        Processor(2, 2, 0, 0, "performance"),
        Processor(3, 3, 0, 0, "efficiency"),
        Processor(1, 0, 1, 0, "performance"),
    ]
    monkeypatch.setattr(topology, "read", lambda: some)


def written(*flags: str, seconds: Callable[[Case], float], pinned: bool = False) -> str:
    args = parsed("--scaling", "--cache", "roped", *flags)
    cases = bench._cases(args)
    text: list[str] = []
    setting = bench_output.Setting(cases, pinned, 4)
    printer = bench._printer(args, args.output, setting, text.append)
    printer.start()
    printer.model(fake_results(cases, seconds))
    printer.end()
    return "".join(text)


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line]


def test_prompts_are_swept_with_tb_and_writing_with_t():
    cases = bench._cases(parsed("--scaling", "--cache", "roped", "-t", "1,2", "-tb", "1-3"))
    assert [(c.name, c.n_threads, c.n_threads_batch) for c in cases] == [
        ("pp512", 1, 1), ("pp512", 2, 2), ("pp512", 3, 3), ("tg128", 1, 1), ("tg128", 2, 2),
    ]  # fmt: skip
    same = bench._cases(parsed("--scaling", "--cache", "roped", "-t", "1,2", "-pg", "8,4"))
    assert [(c.name, c.n_threads) for c in same] == [
        ("pp512", 1), ("pp512", 2), ("tg128", 1), ("pp8+tg4", 1), ("tg128", 2), ("pp8+tg4", 2),
    ]  # fmt: skip


def test_the_fits_and_the_recommendation(hybrid):
    text = written(
        *("-t", "1-4", "-tb", "1-4"),
        seconds=lambda c: 1 / min(c.n_threads, 2) if c.n_gen else 0.1 + 0.9 / c.n_threads,
    )
    fits = {row[2]: row for row in rows(text) if len(row) == 8}
    assert fits["pp512"][3:5] == ["10.0%", "0%"]
    assert fits["pp512"][7] == "4"
    assert fits["tg128"][7] == "2"
    assert "recommended for llama 7B Q4_0: -t 2 (tg128) -tb 4 (pp512)" in text
    assert "processors: 2 performance + 1 efficiency + 1 SMT\n" in text
    assert "| on " not in text


def test_pinned_threads_have_labels(hybrid):
    text = written("-t", "1-4", "-p", "0", seconds=lambda c: 1.0, pinned=True)
    assert [row[8] for row in rows(text) if row[2:3] == ["tg128"] and len(row) == 10] == [
        "1 performance",
        "2 performance",
        "2 performance + 1 efficiency",
        "2 performance + 1 efficiency + 1 SMT",
    ]


def test_json_has_the_provenance(hybrid):
    text = written("-t", "1-4", "-p", "0", "-o", "json", seconds=lambda c: 1 / c.n_threads)
    found = json.loads(text)
    assert [row["n_threads"] for row in found] == [1, 2, 3, 4]
    for row in found:
        assert row["scaling"]["enough"] == 4
        assert row["scaling"]["amdahl"]["serial_share"] == pytest.approx(0, abs=1e-6)
        assert [one["label"] for one in row["processors"]][2:] == [
            "node 0, efficiency core",
            "node 0, SMT sibling of 0",
        ]
        assert {"quota", "isa", "tiles", "load_averages", "read_bandwidths"} <= set(row)


def test_a_run(tmp_path, capfd, monkeypatch):
    run = quick_runner(capfd, monkeypatch)
    model = write_small(tmp_path)
    flags = ("-m", model, *SMALL[:-2], "--scaling", "-t", "1,2", "-tb", "2", "--cache", "raw")
    code, out, err = run(*flags, "-o", "json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [(row["test"], row["n_threads"]) for row in found] == [
        ("pp6", 2), ("tg3", 1), ("tg3", 2),
    ]  # fmt: skip
    cores = {core for isa, core in _kernels.variants() if isa == _kernels.isa()}
    for row in found:
        assert set(row["tiles"]) == {"F32 few", "F32 many"}
        assert set(row["tiles"].values()) <= cores
        assert len(row["load_averages"]) == len(row["samples_ns"]) == 2
    assert len(found[1]["read_bandwidths"]) == len(found[2]["read_bandwidths"]) == 2
    assert len(found[0]["int8_peaks"]) == 2
    code, out, err = run(*flags, "--pin")
    assert (code, err) == (0, "")
    assert "recommended for" in out
