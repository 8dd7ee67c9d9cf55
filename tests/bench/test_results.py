"""Figures in results/: the form of a file, adding rows, and whether the page is up to date."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bench.results", reason="runs from the source tree only")
from bench import results
from bench.results import ResultsError


@pytest.fixture
def machine() -> dict[str, Any]:
    return {
        "name": "A machine", "cpu": "two cores", "isa": "avx2", "bandwidth": "20 GB/s",
        "int8_peak": "", "date": "2026-01-02", "commit": "abc1234", "rows": [],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results with one machine, `mine`, without rows."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "_commit", lambda: "abc1234")
    results.write(tmp_path / "mine.json", machine)
    return tmp_path


def row(what: str = "decode", **fields: Any) -> dict[str, Any]:
    values = {"what": what, "unit": "ratio", "values": {"": 1.5}, "command": "`lariat bench`"}
    return values | fields


def entry(test: str, **fields: Any) -> dict[str, Any]:
    """An entry of `lariat bench -o json`, as far as it is looked at."""
    quiet = {"steal": 0.0, "foreign_load": 0.01, "disturbed": False}
    base = {"test": test, "n_threads": 2, "cache": "raw", "avg_ts": 123.456, **quiet}
    return base | {"share_of_bandwidth": 0.8765, "share_of_int8_peak": None} | fields


# ---- the repository's own ----


def test_page_is_what_make_results_renders() -> None:
    page = results.PAGE.read_text("utf-8")
    assert results.render(page) == page


def test_every_machine_has_at_most_fifteen_rows() -> None:
    paths = results.paths()
    assert len(paths) >= 5
    for path in paths:
        machine = results.read(path)
        whats = [row["what"] for row in machine["rows"]]
        assert 0 < len(whats) == len(set(whats)) <= 15
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", machine["date"])
        assert re.fullmatch(r"[0-9a-f]{7,}", machine["commit"])


def test_files_are_written_as_this_tool_writes_them(tmp_path: Path) -> None:
    for path in results.paths():
        results.write(tmp_path / path.name, results.read(path))
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


# ---- what a file must hold ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "x"}, "fields are"),
        ({"rows": [row(str(i)) for i in range(16)]}, "16 rows, at most 15"),
        ({"rows": [row(values={})]}, "lacks a field"),
        ({"rows": [row(command="")]}, "lacks a field"),
        ({"rows": [row(colour="red")]}, "has others"),
        ({"rows": [row(values={"a": [3, 2]})]}, "no number and no range"),
        ({"rows": [row(values={"a": {"b": [1, 2, 3]}})]}, "no number and no range"),
    ],
)
def test_bad_files_are_refused(folder, machine, change, message) -> None:
    results.write(folder / "mine.json", machine | change)
    with pytest.raises(ResultsError, match=message):
        results.read(folder / "mine.json")


def test_digests_are_no_machine(folder) -> None:
    (folder / "digests.json").write_text("{}")
    assert [path.stem for path in results.paths()] == ["mine"]


# ---- rendering ----


def test_table_has_the_machine_and_its_rows(machine) -> None:
    machine["rows"] = [
        row("`7b` decode", values={"prompt": 2.4, "decode": [1.1, 1.25]}),
        row("memory", unit="GB", values={"": 3.96}, command="`a | b`"),
        row("error", unit="", values={"x": {"F32": 1e-6, "F16": [1, 2]}}, date="d", commit="c"),
    ]
    assert results.table(machine).splitlines() == [
        "## A machine",
        "two cores; avx2; read bandwidth 20 GB/s.",
        "Measured 2026-01-02 at commit abc1234.",
        "",
        "| figure | value | command |",
        "| --- | --- | --- |",
        "| `7b` decode | prompt: 2.40; decode: 1.10 to 1.25 | `lariat bench` |",
        "| memory | 3.96 GB | `a \\| b` |",
        "| error (d, commit c) | x (F32: 1e-06, F16: 1 to 2) | `lariat bench` |",
    ]


def test_page_keeps_what_stands_around_the_tables(folder) -> None:
    page = f"before\n{results._BEGIN}\nold\n{results._END}\nafter\n"
    rendered = results.render(page)
    assert rendered.startswith(f"before\n{results._BEGIN}\n\n## A machine\n")
    assert rendered.endswith(f"{results._END}\nafter\n")
    assert "old" not in rendered
    assert results.render(rendered) == rendered
    with pytest.raises(ResultsError, match="lacks the lines"):
        results.render("no marks")


# ---- adding ----


def test_values_of_lariat_bench() -> None:
    entries = [entry("pp512"), entry("tg128", avg_ts=20.0)]
    assert results.values_of(entries, "avg_ts") == {"pp512": 123.5, "tg128": 20.0}
    entries = [entry("tg8", n_threads=1), entry("tg8", cache="roped")]
    assert results.values_of(entries, "share_of_bandwidth") == {
        "tg8, 1 thread, raw": 87.65,
        "tg8, 2 threads, roped": 87.65,
    }


def test_values_of_peers_are_ratios() -> None:
    rows = [{"test": "pp512", "n_threads": 2, "ratio": 2.3456}]
    assert results.values_of({"rows": rows}, "avg_ts") == {"pp512": 2.346}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([entry("tg8", disturbed=True, steal=0.1, foreign_load=0.2)], "others took 30%"),
        ([entry("tg8", share_of_bandwidth=None)], "was not measured"),
        ([], "no results"),
        ({}, "no results"),
        ("x", "no results"),
    ],
)
def test_what_is_no_figure_is_refused(data, message) -> None:
    with pytest.raises(ResultsError, match=message):
        results.values_of(data, "share_of_bandwidth")


def test_add_through_the_command(folder, monkeypatch, capsys) -> None:
    def run(*flags: str, **fields: Any) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps([entry("tg128", **fields)])))
        return results.main(["add", "--machine", "mine", "--command", "lariat bench", *flags])

    assert run("--what", "decode", "--unit", "t/s") == 0
    assert run("--what", "decode", "--unit", "t/s", avg_ts=30.0) == 0  # replaces the row
    (found,) = results.read(folder / "mine.json")["rows"]
    assert found["values"] == {"tg128": 30.0}
    assert found["command"] == "`lariat bench`"
    assert found["commit"] == "abc1234"
    for i in range(14):
        assert run("--what", str(i)) == 0
    assert run("--what", "one too many") == 1
    assert "15 rows already" in capsys.readouterr().err
    assert run("--what", "decode", disturbed=True) == 1
    assert results.main(["add", "--machine", "x", "--what", "y", "--command", "z"]) == 1


def test_picture(folder, machine, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    values = {"2 threads": {"128": 1.0, "8192": [0.9, 1.0]}}
    machine["rows"] = [row("raw / roped decode of `7b4l`, in pairs", values=values)]
    assert results._ratios_by_depth(machine) == [(128, 1.0), (8192, 0.95)]
    results.write(folder / "mine.json", machine)
    monkeypatch.setattr(results, "PICTURE", folder / "x.png")
    assert results.main(["draw"]) == 0
    assert (folder / "x.png").read_bytes().startswith(b"\x89PNG")
