"""Rows of Parquet and CSV files, and answers as such files, through pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from lariat.errors import LariatError
from lariat.jobs import frames

SUFFIXES = (".parquet", ".csv")
_AT_ONCE = 1024  # rows in memory


def is_table(path: Path) -> bool:
    """Whether a path names a table."""
    return path.suffix.lower() in SUFFIXES


def check(path: Path) -> None:
    """Raise LariatError where pyarrow is missing."""
    _arrow(path)


def lines(path: Path) -> Iterator[bytes]:
    """Plain rows as lines of JSON. Raises LariatError for a file that is no table."""
    arrow = _arrow(path)
    try:
        for batch in _batches(path):
            columns = frames.columns(arrow.Table.from_batches([batch]))
            rows = frames.rows_of(columns) or [{} for _ in range(batch.num_rows)]
            for row in rows:
                if isinstance(row.get("messages"), str):
                    row["messages"] = _decoded(row["messages"])
                yield msgspec.json.encode(row) + b"\n"
    except arrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise LariatError(f"{path}: cannot be read as {path.suffix[1:]}: {reason}") from None


def write(path: Path, file: Path, answers: Iterable[bytes]) -> None:
    """Write answers to plain rows to a file, in the form that the name of `path` asks for."""
    arrow = _arrow(path)
    texts = ("custom_id", "text", "finish_reason", "error")
    names = ("custom_id", *frames.ANSWERS)
    schema = arrow.schema(
        [(name, arrow.string() if name in texts else arrow.int64()) for name in names]
    )
    coming = iter(answers)
    with open(file, "wb") as sink, _writer(path, sink, schema) as writer:
        while some := [msgspec.json.decode(line) for line in islice(coming, _AT_ONCE)]:
            columns = {"custom_id": [one.get("custom_id") for one in some]}
            columns |= frames.answer_columns(some)
            writer.write_table(arrow.table(columns, schema=schema))


def _arrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise LariatError(
            f"{path}: tables need pyarrow, which is missing: pip install 'lariat[data]'"
        ) from None
    return pyarrow


def _batches(path: Path) -> Iterable[Any]:
    if path.suffix.lower() == ".csv":
        from pyarrow import csv

        return csv.open_csv(path)
    from pyarrow import parquet

    return parquet.ParquetFile(path).iter_batches(_AT_ONCE)


def _writer(path: Path, sink: Any, schema: Any) -> Any:
    if path.suffix.lower() == ".csv":
        from pyarrow import csv

        return csv.CSVWriter(sink, schema)
    from pyarrow import parquet

    return parquet.ParquetWriter(sink, schema)


def _decoded(text: str) -> Any:
    """A value of CSV that is JSON; the text itself where it is not, which the row then says."""
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return text
