"""`lariat bench`: what the flags mean, every format, every kind of bad input, and the pictures.

Nothing here looks at how fast anything is.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import DEMO_MODEL, machine, plots
from engine.benchmark import Benchmark
from engine.cases import Case, ModelFacts, Result
from engine.cli import bench
from engine.cli.bench_output import FIELDS
from engine.cli.main import main
from engine.cli.usage import Parser, UsageError
from tests.model_files import write_llama

ROOT = Path(__file__).parent.parent

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("model") / "it's.gguf", n_ctx=96))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `lariat bench` in this process with a small probe: exit code, stdout, stderr."""
    monkeypatch.setattr(machine, "_READ_BYTES", 1 << 16)
    monkeypatch.setattr(machine, "_LEAST_BYTES", 1 << 16)
    monkeypatch.setattr(machine, "_PASS_SECONDS", 1e-5)

    def run(*argv: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["bench", *argv])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def check_refused(result: tuple[int, str, str], code: int, *expected: str) -> None:
    """Nothing on stdout, and one sentence on stderr that contains the expected parts."""
    assert result[:2] == (code, "")
    assert result[2].startswith("lariat: error: ")
    assert result[2].count("\n") == 1
    for part in expected:
        assert part in result[2]


SMALL = ("-p", "6", "-n", "3", "-r", "2", "-t", "1")


def test_positions(run, model):
    """Dynamic scaling, groups, and more positions than the model has, on depth and prompt."""
    deep = (*SMALL, "-m", model, "--cache", "raw", "-d", "100", "-o", "json")
    for flags, given in (
        (("--rope-scaling", "dynamic"), "scaling=dynamic"),
        (("-gan", "4", "-gaw", "32"), "grp_attn_n=4 grp_attn_w=32"),
        (("--rope-freq-scale", "0.5"), "scale=2.0"),
    ):
        code, out, _ = run(*deep, *flags)
        assert code == 0
        assert {row["rope"] for row in json.loads(out)} == {given}
    check_refused(run(*deep), 1, "needs 106 positions at depth 100")
    both = (*SMALL, "-m", model, "--cache", "raw,roped")
    check_refused(run(*both, "-gan", "4"), 2, "--cache: group attention turns keys again")
    check_refused(run(*both, "--rope-scale", "0"), 2, "--rope-scale")


# ---- lists and ranges --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["5"], [5]),
        (["0"], [0]),
        (["1,2"], [1, 2]),
        (["4,1,4"], [4, 1]),
        (["1", "2,3"], [1, 2, 3]),
        (["1-4"], [1, 2, 3, 4]),
        (["3-3"], [3]),
        (["1-8+3"], [1, 4, 7]),
        (["1-7+3"], [1, 4, 7]),
        (["1-16*2"], [1, 2, 4, 8, 16]),
        (["3-20*3"], [3, 9]),
        (["1-2, 8-10+2,512"], [1, 2, 8, 10, 512]),
        (None, [77]),
    ],
)
def test_lists_and_ranges(texts, expected):
    assert bench._numbers("-p", texts, [77]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "''"),
        ("1,", "''"),
        ("x", "'x'"),
        ("-1", "'-1'"),
        ("1.5", "'1.5'"),
        ("1-", "'1-'"),
        ("1-2-3", "'1-2-3'"),
        ("1-8+", "'1-8+'"),
        ("1+2", "'1+2'"),
        ("8-1", "ends before"),
        ("1-8+0", "never reaches"),
        ("1-8*1", "never reaches"),
        ("1-8*0", "never reaches"),
        ("0-8*2", "never reaches"),
        ("0-5000", "more than 1000"),
        ("9" * 40, "not within"),
        ("9" * 4000, "not a number"),
    ],
)
def test_bad_lists_are_refused(text, expected):
    with pytest.raises(UsageError, match=r"^argument -p: ") as error:
        bench._numbers("-p", [text], [])
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("-p", "1-"), "-p/--n-prompt"),
        (("-n", "a"), "-n/--n-gen"),
        (("-pg", "512"), "-pg"),
        (("-pg", "0,0"), "-pg"),
        (("-d", "1;2"), "-d/--n-depth"),
        (("-t", "0"), "-t/--threads"),
        (("-t", "513"), "1 to 512"),
        (("-tb", "0"), "-tb/--threads-batch"),
        (("-b", "0"), "-b/--batch-size"),
        (("-ub", "70000"), "-ub/--ubatch-size"),
        (("-ctk", "q8"), "-ctk/--cache-type-k"),
        (("-ctv", "f16,F32"), "'F32'"),
        (("--cache", "roped,rope"), "'rope' is not one of roped, raw"),
        (("--sequences", "0"), "--sequences"),
        (("-r", "0"), "-r/--repetitions"),
        (("-r", "1,2"), "-r/--repetitions"),
        (("--delay", "-1"), "--delay"),
        (("--delay", "nan"), "--delay"),
        (("-o", "xml"), "-o/--output"),
        (("-oe", "xml"), "-oe/--output-err"),
        (("-p", "0", "-n", "0"), "nothing to measure"),
        (("--table", "rope"), "--table"),
        (("--table", "rope-on-read", "--scaling"), "--scaling"),
        (("--table", "rope-on-read", "--cache", "raw"), "--cache"),
        (("--table", "rope-on-read", "-d", "0"), "-d"),
        (("--table", "rope-on-read", "-pg", "1,1"), "-pg"),
        (("--table", "rope-on-read", "--sequences", "2"), "--sequences"),
        (("--scaling", "-tb", "2"), "-tb"),
        (("--plot", "x.png", "-t", "1"), "nothing to draw"),
    ],
)
def test_bad_flags_are_refused(run, flags, expected):
    # The model is missing too, but the flags are looked at first.
    check_refused(run("-m", "missing.gguf", *flags), 2, expected)


# ---- bad input ---------------------------------------------------------------------------


def test_without_a_model_it_is_the_demo_model(run):
    code, out, _ = run("-p", "4", "-n", "0", "-r", "1", "-t", "1", "-o", "json")
    assert code == 0
    assert json.loads(out)[0]["model_filename"] == DEMO_MODEL


def test_missing_and_bad_models_are_found_before_any_is_measured(run, model, tmp_path):
    missing = str(tmp_path / "missing.gguf")
    check_refused(run("-m", model, "-m", missing, *SMALL), 1, missing, "No such file")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GIF89a" * 100)
    check_refused(run("-m", model, "-m", str(bad), *SMALL), 1, str(bad), "GGUF")


def test_model_that_cannot_be_loaded_leaves_whole_json(run, model, tmp_path):
    path = write_llama(tmp_path / "model.gguf", drop_tensors=["output_norm.weight"])
    check_refused(run("-m", str(path), *SMALL, "-o", "json"), 1, "output_norm.weight")
    code, out, err = run("-m", model, "-m", str(path), *SMALL, "-o", "json")
    assert code == 1
    assert "output_norm.weight" in err
    assert [entry["test"] for entry in json.loads(out)] == ["pp6", "tg3"]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("-d", "0,91"), ("pp6 @ d91", "depth 91", "96")),
        (("-p", "97"), ("pp97", "97 positions", "96")),
        (("-pg", "90,10"), ("pp90+tg10", "100 positions", "96")),
        (("--table", "rope-on-read", "-p", "6", "-n", "3,128"), ("tg128", "128", "96")),
    ],
)
def test_what_is_beyond_the_context_names_both(run, model, flags, parts):
    check_refused(run("-m", model, *SMALL, *flags), 1, model, *parts)


def test_plot_without_matplotlib_names_the_extra(run, model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("-m", model, *SMALL, "-d", "0,8", "--plot", str(tmp_path / "x.png"))
    check_refused(result, 1, "matplotlib", "lariat[plot]")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("name", "part"),
    [("missing/x.png", "No such file"), ("x.bmp", ".png, .pdf, .svg"), ("d.png", "Is a directory")],
)
def test_plot_that_cannot_be_written_is_refused_before_the_run(run, model, tmp_path, name, part):
    pytest.importorskip("matplotlib")
    (tmp_path / "d.png").mkdir()
    path = str(tmp_path / name)
    check_refused(run("-m", model, *SMALL, "-d", "0,8", "--plot", path), 1, path, part)


def test_pins_that_the_system_cannot_set(run, model, monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    check_refused(run("-m", model, *SMALL, "--pin"), 1, "processors")


# ---- formats -----------------------------------------------------------------------------


LLAMA_BENCH_FIELDS = """
build_commit build_number cpu_info gpu_info backends model_filename model_type model_size
model_n_params n_batch n_ubatch n_threads cpu_mask cpu_strict poll type_k type_v n_gpu_layers
n_cpu_moe split_mode main_gpu no_kv_offload flash_attn devices tensor_split tensor_buft_overrides
use_mmap use_direct_io embeddings no_op_offload no_host n_prompt n_gen n_depth test_time avg_ns
stddev_ns avg_ts stddev_ts
"""


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
        "-m", model, *flags, "-p", "6", "-n", "3", "-pg", "5,2", "-r", "1", "-ojson"
    )
    assert (code, err) == (0, "")
    entries = json.loads(out)
    shapes = [(6, 0), (0, 3), (5, 2)]
    expected = set(itertools.product(shapes, *(values for _, values in axes.values())))
    found = [((e["n_prompt"], e["n_gen"]), *(e[name] for name in axes)) for e in entries]
    assert set(found) == expected
    assert len(found) == len(expected)
    for e in entries:
        assert list(e) == [*FIELDS, "samples_ns", "samples_ts"]
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
    assert head[9:] == ["of ceiling", "MB/token", "peak memory"]
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


def test_default_is_512_and_128(run, model, monkeypatch):
    seen: list[Case] = []
    monkeypatch.setattr(bench, "_check_models", lambda paths, cases, _: seen.extend(cases) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["bench", "-m", model])
    assert [(c.name, c.cache, c.n_batch, c.n_ubatch, c.type_k) for c in seen] == [
        ("pp512", "roped", 2048, 512, "f16"),
        ("tg128", "roped", 2048, 512, "f16"),
    ]


def test_repetitions_warm_up_and_delay_are_passed_on(run, model, monkeypatch):
    seen: list[Any] = []
    original = Benchmark.run

    def spy(self: Benchmark, repetitions: int, **options: Any) -> None:
        seen.append((repetitions, options["warm_up"], options["delay"]))
        original(self, 1)

    monkeypatch.setattr(Benchmark, "run", spy)
    run("-m", model, "-p", "1", "-n", "0")
    run("-m", model, "-p", "1", "-n", "0", "-r", "7", "--no-warmup", "--delay", "0.5")
    assert seen == [(5, True, 0.0), (7, False, 0.5)]


# ---- the table and the scaling -----------------------------------------------------------


def test_rope_on_read_table(run, model):
    flags = ("--table", "rope-on-read", "-t", "1,2", "-p", "16", "-n", "8,16")
    code, out, err = run("-m", model, *flags)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert sum(", keys f16, values f16, " in line for line in lines) == 2
    tables = [line for line in lines if line.startswith("|")]
    assert columns(tables[0]) == ["test", "roped t/s", "raw t/s", "raw / roped", "llama.cpp #3234"]
    for at in (2, 7):
        assert [columns(line)[0] for line in tables[at : at + 3]] == ["pp16", "tg8", "tg16"]
        for line in tables[at : at + 3]:
            cells = columns(line)
            roped, raw = (float(cell.split()[0]) for cell in cells[1:3])
            assert float(cells[3]) == pytest.approx(raw / roped, abs=0.011)
            assert cells[4] == ""


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


def parsed(*flags: str) -> Any:
    parser = Parser()
    bench.register(parser.add_subparsers(parser_class=Parser))
    return parser.parse_args(["bench", "-m", "x", *flags])


def printed(results: list[Result], *flags: str, n_processors: int = 2) -> list[list[str]]:
    """Rows of the Markdown table that these flags make of these results."""
    text: list[str] = []
    args = parsed(*flags)
    cases = [r.case for r in results]
    setting = bench.bench_output.Setting(cases, False, n_processors)
    printer = bench._printer(args, "md", setting, text.append)
    printer.start()
    printer.model(results)
    printer.end()
    return [columns(line) for line in "".join(text).splitlines() if line.startswith("|")][2:]


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


def scaling_results(*flags: str) -> list[Result]:
    cases = bench._cases(parsed("--scaling", *flags))
    return fake_results(cases, lambda c: 8 / c.n_threads**0.5)


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
    assert out.count("| roped |") == out.count("| raw   |") == 6
    code, out, err = run("-m", model, *SMALL[:-2], "--scaling", "-t", "1,2", "-o", "json")
    assert len(json.loads(out)) == 8


# ---- pictures ----------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    saved: list[Any] = []
    original = Figure.savefig

    def savefig(self: Any, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def legend(panel: Any) -> list[str]:
    return [text.get_text() for text in panel.get_legend().get_texts()]


def test_plot_of_scaling_has_axes_units_legend_and_the_ideal_line(figures, tmp_path):
    results = scaling_results("-t", "1-4", "-p", "512", "-n", "128", "-d", "0,4096")
    with plots.Picture(tmp_path / "x.pdf") as picture:
        picture.draw_curves(results, 2)
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    panels = figures[0].axes
    assert [p.get_title() for p in panels] == [
        "Reading a prompt (pp512)",
        "Writing (tg128)",
        "Reading a prompt (pp512), 2 threads",
        "Writing (tg128), 2 threads",
    ]
    assert [p.get_xlabel() for p in panels[1:3]] == [
        "threads",
        "depth: tokens in the context before",
    ]
    assert {p.get_ylabel() for p in panels} == {"tokens per second"}
    assert set(legend(panels[0])) == {
        "roped, depth 0",
        "raw, depth 0",
        "roped, depth 4096",
        "raw, depth 4096",
        "ideal",
        "more than the 2 processors",
    }
    assert legend(panels[2]) == ["roped", "raw"]
    ideal = next(line for line in panels[0].get_lines() if line.get_label() == "ideal")
    x, y = ideal.get_data()
    assert list(x) == [1, 2]
    assert y[1] == 2 * y[0]
    assert y[0] == max(r.avg_ts for r in results if r.case.n_threads == 1 and r.case.n_prompt)
    assert list(panels[0].get_xticks()) == [1, 2, 3, 4]
    assert panels[0].get_ylim()[0] == 0


def test_plot_of_the_table(figures, tmp_path):
    with plots.Picture(tmp_path / "x.svg") as picture:
        picture.draw_table(table_results())
    left, right = figures[0].axes
    assert legend(left) == ["Lariat", "llama.cpp, pull request 3234"]
    assert legend(right) == ["roped", "raw"]
    assert [t.get_text() for t in left.get_xticklabels()][:2] == ["pp512", "tg128"]
    lines = {line.get_label(): line.get_ydata() for line in left.get_lines()}
    assert list(lines["llama.cpp, pull request 3234"]) == [0.97, 0.95, 0.89, 0.76, 0.58, 0.42, 0.31]
    assert lines["Lariat"] == pytest.approx([0.98] * 7, abs=0.01)


def test_plot_through_the_command(run, model, tmp_path, figures):
    path = tmp_path / "x.png"
    assert run("-m", model, *SMALL[:-2], "--scaling", "-t", "1,2", "--plot", str(path))[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    flags = ("--table", "rope-on-read", "-p", "8", "-n", "4,8", "-t", "1", "-r", "1")
    assert run("-m", model, *flags, "--plot", str(path))[0] == 0
    assert len(figures) == 2


def test_picture_that_was_not_drawn_is_not_left(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "x.png"
    with plots.Picture(path):
        assert path.exists()
    assert not path.exists()
    path.write_bytes(b"mine")
    with plots.Picture(path):
        pass
    assert path.read_bytes() == b"mine"


# ---- help, signals, terminals ------------------------------------------------------------


def test_every_flag_is_explained(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    flags = "-m -p -n -pg -d -t -tb -b -ub -ctk -ctv --cache --sequences -r --delay --no-warmup -o "
    flags += "-oe --table --scaling --pin --plot"
    for flag in flags.split():
        assert re.search(rf"(^  |, ){flag}\b", out, re.M), flag


def interrupt_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Benchmark._time
    calls = itertools.count(1)

    def time_or_stop(self: Benchmark, case: Case) -> int:
        if next(calls) > n:
            raise KeyboardInterrupt
        return original(self, case)

    monkeypatch.setattr(Benchmark, "_time", time_or_stop)


def test_interrupt_prints_what_there_is(run, model, monkeypatch):
    interrupt_after(3, monkeypatch)
    flags = ("-m", model, "-m", model, *SMALL, "--no-warmup", "-o", "json")
    code, out, err = run(*flags)
    assert code == 130
    assert [len(entry["samples_ns"]) for entry in json.loads(out)] == [2, 1]
    assert "interrupted" in err
    assert "Traceback" not in err


def test_interrupt_before_the_first_result(run, model, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    interrupt_after(0, monkeypatch)
    path = tmp_path / "x.png"
    code, out, _ = run("-m", model, *SMALL, "-d", "0,8", "-o", "json", "--plot", str(path))
    assert code == 130
    assert json.loads(out) == []
    assert not path.exists()


def start(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(
        [sys.executable, "-m", "engine", "bench", *argv],
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def test_control_c(model):
    process = start("-m", model, *SMALL[:-4], "-r", "1000000", "-t", "1")
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"| model")  # it is measuring
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.count(b"| llama ") <= 2  # on a busy machine none may have been measured
    assert b"build: " in out
    assert err.count(b"\n") == 1
    assert b"interrupted" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk_is_found_before_the_run(model):
    with open("/dev/full", "wb") as full:
        process = start("-m", model, *SMALL[:-4], "-r", "1000000", stdout=full)
        _, err = process.communicate(timeout=60)
    check_refused((process.returncode, "", err.decode()), 1, "No space left on device")


def test_bar_shows_on_a_terminal_only(model):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = start("-m", model, *SMALL, "-r", "20", stderr=theirs)
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and select.select([ours], [], [], 60)[0]:
        try:
            data = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not data:
            break
        seen += data
    process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert b"\rmeasuring" in seen
