"""Rows of Parquet and CSV files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.batches import FLAGS, run, write_rows
from tests.support.command_line import Run, check_refused, runner

ROWS: list[dict[str, Any]] = [
    {"custom_id": f"id-{i}", "prompt": f"The {word}", "max_tokens": 3 + i, "temperature": -(i == 2)}
    for i, word in enumerate(["cat", "dog", "hat", "sun"])
]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd, "batch", *FLAGS)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_tables_in_and_out(tmp_path: Path, suffix: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import csv, parquet

    lines = [
        json.loads(x) for x in run(write_rows(tmp_path / "in", ROWS), tmp_path / "out").splitlines()
    ]
    table = pyarrow.Table.from_pylist([{**row, "label": 1} for row in ROWS])
    source, output = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    (parquet.write_table if suffix == "parquet" else csv.write_csv)(table, source)
    run(source, output)
    found = (parquet.read_table if suffix == "parquet" else csv.read_csv)(output)
    assert found["custom_id"].to_pylist() == [row["custom_id"] for row in ROWS]
    texts = [text or None for text in found["text"].to_pylist()]
    assert texts == [one.get("text") for one in lines]
    assert found["completion_tokens"].to_pylist() == [3, 4, 0, 6]
    assert "temperature" in found["error"].to_pylist()[2]
    assert [json.loads(x) for x in run(source, tmp_path / "lines").splitlines()] == lines


def test_messages(command: Run, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    said = [{"role": "user", "content": "The cat"}]
    source, other = tmp_path / "in.parquet", tmp_path / "in.csv"
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": said, "max_tokens": 3}]), source)
    other.write_text('messages,max_tokens\n"' + json.dumps(said).replace('"', '""') + '",3\n')
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    found = []
    for path in (source, other):
        output = tmp_path / f"out-of-{path.suffix[1:]}.jsonl"
        assert command(str(path), "-o", str(output), "--chat-template", template) == (0, "", "")
        found.append(output.read_bytes())
    assert found[0] == found[1]
    assert json.loads(found[0])["usage"]["completion_tokens"] == 3


def test_refusals(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    source = tmp_path / "in.parquet"
    source.write_bytes(b"no table")
    check_refused(command(str(source), "-o", str(tmp_path / "o")), 1, "cannot be read as parquet")
    rows = write_rows(tmp_path / "in", ROWS)
    check_refused(command(str(rows), "-o", str(tmp_path / "o.csv")), 1, "needs a table of rows")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    check_refused(command(str(source), "-o", str(tmp_path / "o")), 1, "lariat[data]")
