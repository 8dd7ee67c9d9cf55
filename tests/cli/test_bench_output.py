"""Output of `lariat bench`: every format, the table of the published ratios, and the scaling.

No test looks at how fast anything is.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import sqlite3
from typing import Any

import pytest
from lariat.cli import bench
from lariat.cli.bench_output import FIELDS
from lariat.measure.cases import Case, Result
from lariat.measure.disturbance import Usage

from tests.support.bench_runs import (
    SMALL,
    fake_results,
    parsed,
    quick_runner,
    scaling_results,
    table_results,
    write_small,
)
from tests.support.command_line import Run
from tests.support.model_files import write_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return quick_runner(capfd, monkeypatch)


# ---- formats -----------------------------------------------------------------------------


LLAMA_BENCH_FIELDS = """
build_commit build_number cpu_info gpu_info backends model_filename model_type model_size
model_n_params n_batch n_ubatch n_threads cpu_mask cpu_strict poll type_k type_v n_gpu_layers
n_cpu_moe split_mode main_gpu no_kv_offload flash_attn devices tensor_split tensor_buft_overrides
use_mmap use_direct_io embeddings no_op_offload no_host n_prompt n_gen n_depth test_time avg_ns
stddev_ns avg_ts stddev_ts
"""


SAMPLES = ("samples_ns", "samples_ts", "read_bandwidths", "int8_peaks", "load_averages", "tiles")


def test_json_has_every_combination(run, model):
    axes: dict[str, tuple[str, list[Any]]] = {
        "n_depth": ("-d", [0, 40]),
        "n_threads": ("-t", [1, 2]),
        "n_batch": ("-b", [4, 2048]),
        "n_ubatch": ("-ub", [4]),
        "type_k": ("-ctk", ["f16", "f32"]),
        "type_v": ("-ctv", ["f32"]),
        "cache": ("--cache", ["roped", "raw"]),
        "n_sequences": ("--sequences", [1, 3]),
    }
    flags = [x for flag, values in axes.values() for x in (flag, ",".join(map(str, values)))]
    code, out, err = run(
        "-m", model, *flags, "-p", "6", "-n", "3", "-pg", "5,2", "-r", "1", "-o", "json"
    )
    assert (code, err) == (0, "")
    entries = json.loads(out)
    shapes = [(6, 0), (0, 3), (5, 2)]
    expected = set(itertools.product(shapes, *(values for _, values in axes.values())))
    found = [((e["n_prompt"], e["n_gen"]), *(e[name] for name in axes)) for e in entries]
    assert set(found) == expected
    assert len(found) == len(expected)
    for e in entries:
        assert list(e) == [*FIELDS, *SAMPLES]
        assert e["n_threads_batch"] == e["n_threads"]


def test_fields_begin_with_those_of_llama_bench(run, model):
    known = LLAMA_BENCH_FIELDS.split()
    assert list(FIELDS)[: len(known)] == known
    _, out, _ = run(
        "-m", model, "-p", "0", "-n", "4", "-r", "3", "-t", "1", "-o", "json", "-d", "9"
    )
    (entry,) = json.loads(out)
    assert entry["backends"] == "CPU"
    assert entry["model_filename"] == model
    assert entry["test"] == "tg4 @ d9"
    assert len(entry["samples_ns"]) == 3
    assert entry["samples_ts"] == [4e9 / ns for ns in entry["samples_ns"]]
    assert entry["avg_ts"] == pytest.approx(sum(entry["samples_ts"]) / 3)
    assert entry["avg_ns"] == pytest.approx(sum(entry["samples_ns"]) / 3, abs=1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry["test_time"])
    assert entry["share_of_bandwidth"] == pytest.approx(
        entry["avg_ts"] * entry["bytes_per_token"] / entry["read_bandwidth"]
    )
    assert entry["share_of_int8_peak"] is None
    assert entry["peak_memory"] > 0
    assert entry["load_average"] is None or entry["load_average"] >= 0
    for name in ("steal", "foreign_load"):
        assert entry[name] is None or 0 <= entry[name] <= 1
    assert entry["disturbed"] in (True, False, None)


def test_jsonl_csv_and_sql_say_the_same(run, model):
    flags = ("-m", model, *SMALL, "--cache", "roped,raw")
    code, lines, err = run(*flags, "-o", "jsonl", "-oe", "csv")
    assert code == 0
    entries = [json.loads(line) for line in lines.splitlines()]
    rows = list(csv.DictReader(io.StringIO(err)))
    assert list(rows[0]) == list(FIELDS)
    for entry, row in zip(entries, rows, strict=True):
        for name in FIELDS:
            value = entry[name]
            text = "" if value is None else str(int(value) if isinstance(value, bool) else value)
            assert row[name] == text
    _, script, _ = run(*flags, "-o", "sql")
    base = sqlite3.connect(":memory:")
    base.executescript(script)
    found = base.execute(
        "SELECT test, cache, model_filename, int8_peak FROM llama_bench"
    ).fetchall()
    assert [row[:3] for row in found] == [(e["test"], e["cache"], model) for e in entries]
    assert [row[3] is None for row in found] == [False, False, True, True]


def columns(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_markdown_is_llama_benchs_table_with_our_columns(run, model):
    code, out, err = run("-m", model, *SMALL, "-t", "2")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    head = columns(lines[0])
    assert " ".join(head[:9]) == "model size params backend threads cache isa test t/s"
    assert head[9:] == ["of ceiling", "MB/token", "peak memory", "others"]
    assert all(re.fullmatch(r"-+:?", cell) for cell in columns(lines[1]))
    rows = [dict(zip(head, columns(line), strict=True)) for line in lines[2:6]]
    assert [(row["threads"], row["test"]) for row in rows] == [
        ("1", "pp6"), ("1", "tg3"), ("2", "pp6"), ("2", "tg3"),
    ]  # fmt: skip
    assert len({len(line) for line in lines[:6]}) == 1
    for row in rows:
        assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", row["t/s"])
        assert row["backend"] == "CPU"
        assert re.fullmatch(r"\d+% read" if row["test"] == "tg3" else "", row["of ceiling"])
        assert re.fullmatch(r"(\d+%( !)?)?", row["others"])
    assert re.search(r"^build: lariat", out, re.M)
    assert re.search(
        r"^read bandwidth: [\d.]+ GB/s with 1 thread, [\d.]+ GB/s with 2 th", out, re.M
    )


def test_markdown_has_columns_for_what_was_asked(run, model):
    flags = ("-tb", "2", "-b", "8", "-ub", "4", "-ctk", "f32", "-ctv", "f32", "--sequences", "2")
    _, out, _ = run("-m", model, *SMALL, *flags)
    head = columns(out.splitlines()[0])
    assert head[5:11] == ["tb", "n_batch", "n_ubatch", "type_k", "type_v", "seqs"]
    assert columns(out.splitlines()[2])[5:11] == ["2", "8", "4", "f32", "f32", "2"]


def test_several_models_and_a_second_output(run, model, tmp_path):
    other = str(write_llama(tmp_path / "other.gguf", dim=128, weight_type="Q8_0"))
    code, out, err = run("-m", model, "-m", other, *SMALL, "-oe", "json")
    assert code == 0
    assert out.count("| llama ") == 4
    assert [e["model_filename"] for e in json.loads(err)] == [model, model, other, other]


# ---- the load of others ------------------------------------------------------------------


def with_load(steal: float, foreign: float) -> Result:
    """A result during which others took these seconds of 20."""
    (result,) = fake_results([Case(n_gen=8)], lambda case: 10.0)
    result.usages, result.load_averages = [Usage(20.0, steal, foreign)], [1.25]
    return result


def test_rows_that_others_disturbed_are_marked():
    quiet, disturbed, unknown = with_load(0.1, 0.1), with_load(0.5, 7.5), with_load(0, 0)
    unknown.usages, unknown.load_averages = [], []
    results = [quiet, disturbed, unknown]
    assert [row[-1] for row in printed(results, "-n", "8")] == ["1%", "40% !", ""]
    lines = written(results, "-n", "8")
    assert "load average: 1.25 to 1.25" in lines
    assert "! others took more than 5% of processor time: measure again" in lines
    assert not [line for line in written([quiet], "-n", "8") if line.startswith("!")]
    assert not [line for line in written([unknown], "-n", "8") if line.startswith("load")]
    entries = json.loads("\n".join(written(results, "-n", "8", name="json")))
    assert [[e[name] for name in LOAD] for e in entries] == [
        [1.25, 0.005, 0.005, False],
        [1.25, 0.025, 0.375, True],
        [None] * 4,
    ]
    rows = list(csv.DictReader(written(results, "-n", "8", name="csv")))
    assert [[row[name] for name in LOAD] for row in rows] == [
        ["1.25", "0.005", "0.005", "0"],
        ["1.25", "0.025", "0.375", "1"],
        [""] * 4,
    ]


LOAD = ("load_average", "steal", "foreign_load", "disturbed")


def test_the_other_tables_mark_them_too():
    results = table_results()
    results[1].usages = [Usage(10.0, 2.0, 0.0)]
    rows = printed(results, "--table", "rope-on-read")
    assert [row[-1] for row in rows] == ["20% !"] + [""] * 7
    curve = scaling_results("-t", "1,2", "-p", "0", "-n", "8", "--cache", "raw")
    curve[1].usages = [Usage(10.0, 0.0, 0.3)]
    assert [row[-1] for row in printed(curve, "--scaling")] == ["", "3%"]


# ---- the table and the scaling -----------------------------------------------------------


def test_rope_on_read_table(run, model):
    flags = ("--table", "rope-on-read", "-t", "1,2", "-p", "16", "-n", "8,16")
    code, out, err = run("-m", model, *flags)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert sum(", keys f16, values f16, " in line for line in lines) == 2
    tables = [line for line in lines if line.startswith("|")]
    assert columns(tables[0]) == [
        "test", "roped t/s", "raw t/s", "raw / roped", "llama.cpp #3234", "others",
    ]  # fmt: skip
    for at in (2, 7):
        assert [columns(line)[0] for line in tables[at : at + 3]] == ["pp16", "tg8", "tg16"]
        for line in tables[at : at + 3]:
            cells = columns(line)
            roped, raw = (float(cell.split()[0]) for cell in cells[1:3])
            assert float(cells[3]) == pytest.approx(raw / roped, abs=0.011)
            assert cells[4] == ""


def written(
    results: list[Result], *flags: str, name: str = "md", n_processors: int = 2
) -> list[str]:
    """Lines of the format `name` that these flags make of these results."""
    text: list[str] = []
    args = parsed(*flags)
    cases = [r.case for r in results]
    setting = bench.bench_output.Setting(cases, False, n_processors)
    printer = bench._printer(args, name, setting, text.append)
    printer.start()
    printer.model(results)
    printer.end()
    return "".join(text).splitlines()


def printed(results: list[Result], *flags: str, n_processors: int = 2) -> list[list[str]]:
    """Rows of the Markdown tables that these flags make of these results; with --scaling, of the
    first, which has the speeds."""
    lines = written(results, *flags, n_processors=n_processors)
    if "--scaling" in flags:
        lines = lines[: lines.index("")]
    return [columns(line) for line in lines if line.startswith("|")][2:]


def test_published_column_stands_beside_ours():
    rows = printed(table_results(), "--table", "rope-on-read")
    names = ["pp512", *(f"tg{128 << i}" for i in range(7))]
    published = ["1.06", "0.97", "0.95", "0.89", "0.76", "0.58", "0.42", "0.31"]
    assert [row[0] for row in rows] == names
    assert [row[4] for row in rows] == published
    assert {row[3] for row in rows} == {"0.98"}


def test_interrupted_table_leaves_out_half_pairs():
    results = table_results()
    rows = printed([r for r in results if r is not results[1]], "--table", "rope-on-read")
    assert [row[0] for row in rows] == [f"tg{128 << i}" for i in range(7)]


def test_scaling_prints_speed_up_and_efficiency():
    rows = printed(scaling_results("-t", "1-4", "-p", "0", "-n", "8"), "--scaling")
    assert [row[1] for row in rows] == ["roped"] * 4 + ["raw"] * 4
    assert [row[3] for row in rows[:4]] == ["1", "2", "3 *", "4 *"]
    assert [row[5] for row in rows[:4]] == ["1.00", "1.41", "1.73", "2.00"]
    assert [row[6] for row in rows[:4]] == ["100%", "71%", "58%", "50%"]


def test_scaling_from_more_than_one_thread_counts_from_there():
    rows = printed(scaling_results("-t", "4,2", "-p", "8", "-n", "0"), "--scaling", n_processors=8)
    assert [(row[3], row[5], row[6]) for row in rows[:2]] == [
        ("2", "1.00", "100%"),
        ("4", "1.41", "71%"),
    ]


def test_scaling_runs(run, model):
    code, out, err = run("-m", model, *SMALL[:-2], "--scaling", "-t", "1-3", "--pin")
    assert (code, err) == (0, "")
    speeds, fits = out.split("\n\n")[:2]
    assert speeds.count("| roped |") == speeds.count("| raw   |") == 6
    assert fits.count("| roped |") == fits.count("| raw   |") == 2
    code, out, err = run("-m", model, *SMALL[:-2], "--scaling", "-t", "1,2", "-o", "json")
    assert len(json.loads(out)) == 8
