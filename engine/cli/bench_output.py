"""How `lariat bench` writes its results: llama-bench's formats and fields, and tables of our own.

`FIELDS` has the fields; docs/benchmarks.md explains them. A field of llama-bench that makes no
sense here has the value that says so, so that programs for llama-bench's files can read ours.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from lariat.cli import console
from lariat.measure.disturbance import MAX_SHARE

if TYPE_CHECKING:
    from lariat.config import RopeConfig
    from lariat.measure.cases import Case, Result


@dataclass(frozen=True)
class Setting:
    """Facts that are known before anything is measured."""

    cases: Sequence[Case]
    pinned: bool
    n_processors: int  # processors that this process may use


@cache
def version() -> str:
    """Version of the installed package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"lariat-{version('lariat')}"
    except PackageNotFoundError:
        return "lariat"


@cache
def _cpu_info() -> str:
    from lariat import processor

    return processor.name()


def _given(rope: RopeConfig) -> str:
    """Settings of RoPE that flags gave, "" where all come from the file."""
    return " ".join(f"{name}={value}" for name, value in vars(rope).items() if value is not None)


# Name: type in SQL, and value. The order is llama-bench's; our own fields come last.
FIELDS: dict[str, tuple[str, Callable[[Result], Any]]] = {
    "build_commit": ("TEXT", lambda r: version()),
    "build_number": ("INTEGER", lambda r: 0),
    "cpu_info": ("TEXT", lambda r: _cpu_info()),
    "gpu_info": ("TEXT", lambda r: ""),
    "backends": ("TEXT", lambda r: "CPU"),
    "model_filename": ("TEXT", lambda r: r.model.path),
    "model_type": ("TEXT", lambda r: r.model.type),
    "model_size": ("INTEGER", lambda r: r.model.n_bytes),
    "model_n_params": ("INTEGER", lambda r: r.model.n_params),
    "n_batch": ("INTEGER", lambda r: r.case.n_batch),
    "n_ubatch": ("INTEGER", lambda r: r.case.n_ubatch),
    "n_threads": ("INTEGER", lambda r: r.case.n_threads),
    "cpu_mask": ("TEXT", lambda r: "0x0"),
    "cpu_strict": ("INTEGER", lambda r: r.pinned),
    "poll": ("INTEGER", lambda r: 0),
    "type_k": ("TEXT", lambda r: r.case.type_k),
    "type_v": ("TEXT", lambda r: r.case.type_v),
    "n_gpu_layers": ("INTEGER", lambda r: 0),
    "n_cpu_moe": ("INTEGER", lambda r: 0),
    "split_mode": ("TEXT", lambda r: "none"),
    "main_gpu": ("INTEGER", lambda r: 0),
    "no_kv_offload": ("INTEGER", lambda r: False),
    "flash_attn": ("INTEGER", lambda r: True),
    "devices": ("TEXT", lambda r: "none"),
    "tensor_split": ("TEXT", lambda r: "0.00"),
    "tensor_buft_overrides": ("TEXT", lambda r: "none"),
    "use_mmap": ("INTEGER", lambda r: r.model.use_mmap),
    "use_direct_io": ("INTEGER", lambda r: False),
    "embeddings": ("INTEGER", lambda r: False),
    "no_op_offload": ("INTEGER", lambda r: 0),
    "no_host": ("INTEGER", lambda r: False),
    "n_prompt": ("INTEGER", lambda r: r.case.n_prompt),
    "n_gen": ("INTEGER", lambda r: r.case.n_gen),
    "n_depth": ("INTEGER", lambda r: r.case.n_depth),
    "test_time": ("TEXT", lambda r: r.test_time),
    "avg_ns": ("INTEGER", lambda r: round(r.avg_ns)),
    "stddev_ns": ("INTEGER", lambda r: round(r.stddev_ns)),
    "avg_ts": ("REAL", lambda r: r.avg_ts),
    "stddev_ts": ("REAL", lambda r: r.stddev_ts),
    "test": ("TEXT", lambda r: r.case.name),
    "n_threads_batch": ("INTEGER", lambda r: r.case.n_threads_batch),
    "n_sequences": ("INTEGER", lambda r: r.case.n_sequences),
    "cache": ("TEXT", lambda r: r.case.cache),
    "spec": ("TEXT", lambda r: str(r.case.spec or "")),
    "rope": ("TEXT", lambda r: _given(r.case.rope)),
    "isa": ("TEXT", lambda r: r.isa),
    "peak_memory": ("INTEGER", lambda r: r.peak_memory),
    "bytes_per_token": ("REAL", lambda r: r.bytes_per_token),
    "read_bandwidth": ("REAL", lambda r: r.read_bandwidth),
    "share_of_bandwidth": ("REAL", lambda r: r.share_of_bandwidth),
    "int8_peak": ("REAL", lambda r: r.int8_peak),
    "share_of_int8_peak": ("REAL", lambda r: r.share_of_int8_peak),
    "load_average": ("REAL", lambda r: r.load_average),
    "steal": ("REAL", lambda r: r.usage and r.usage.share_of_steal),
    "foreign_load": ("REAL", lambda r: r.usage and r.usage.share_of_foreign),
    "disturbed": ("INTEGER", lambda r: r.usage and r.usage.is_disturbed),
}


def record(result: Result) -> dict[str, Any]:
    """Return all fields of a result but the samples, in the order in which they are written."""
    return {name: value(result) for name, (_, value) in FIELDS.items()}


def with_samples(result: Result) -> dict[str, Any]:
    """Return all fields of a result; time, speed and load of each repetition, each probe, and the
    tiles that were in use."""
    samples = {"samples_ns": result.samples_ns, "samples_ts": result.samples_ts}
    probes = {"read_bandwidths": result.bandwidths, "int8_peaks": result.int8_peaks}
    loads = {"load_averages": result.load_averages}
    return record(result) | samples | probes | loads | {"tiles": result.tiles}


class Printer:
    """Writes a beginning, the results of one model after the other, and an end."""

    def __init__(self, setting: Setting, write: Callable[[str], None]) -> None:
        self.setting = setting
        self.write = write

    def start(self) -> None:
        """Write the beginning, before all results."""

    def model(self, results: Sequence[Result]) -> None:
        """Write the results of a model."""

    def end(self) -> None:
        """Write the end, after all results."""


class Json(Printer):
    """An array of objects."""

    _n_written = 0

    def start(self) -> None:
        """Open the array."""
        self.write("[\n")

    def model(self, results: Sequence[Result]) -> None:
        """Write an object each."""
        for as_object in self.objects(results):
            text = json.dumps(as_object, indent=2)
            text = "\n".join(f"  {line}" for line in text.splitlines())
            self.write((",\n" if self._n_written else "") + text)
            self._n_written += 1

    def objects(self, results: Sequence[Result]) -> list[dict[str, Any]]:
        """What is written of each result of a model."""
        return [with_samples(result) for result in results]

    def end(self) -> None:
        """Close the array."""
        self.write("\n]\n" if self._n_written else "]\n")


class JsonLines(Printer):
    """An object a line."""

    def model(self, results: Sequence[Result]) -> None:
        """Write a line each."""
        for result in results:
            self.write(json.dumps(with_samples(result)) + "\n")


class Csv(Printer):
    """Comma-separated, with a line of names first."""

    def start(self) -> None:
        """Write the names, which need no result."""
        self._line(list(FIELDS))

    def model(self, results: Sequence[Result]) -> None:
        """Write a line each."""
        for result in results:
            values = record(result).values()
            self._line([int(v) if isinstance(v, bool) else v for v in values])

    def _line(self, values: Sequence[object]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(values)
        self.write(text.getvalue())


class Sql(Printer):
    """Statements for SQLite: a table, and a row each."""

    def start(self) -> None:
        """Create the table."""
        columns = ",\n".join(f"  {name} {sql_type}" for name, (sql_type, _) in FIELDS.items())
        self.write(f"CREATE TABLE IF NOT EXISTS llama_bench (\n{columns}\n);\n\n")

    def model(self, results: Sequence[Result]) -> None:
        """Insert a row each."""
        for result in results:
            row = record(result)
            values = ", ".join(_sql_value(value) for value in row.values())
            self.write(f"INSERT INTO llama_bench ({', '.join(row)}) VALUES ({values});\n")


def _sql_value(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, (bool, int)):
        return str(int(value))
    if isinstance(value, float):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"


@dataclass(frozen=True)
class Column:
    """A column of a Markdown table. A negative width is aligned to the left."""

    name: str
    width: int
    text: Callable[[Any], str]  # gets the item that a row is made of

    def cell(self, text: str) -> str:
        """The text, filled up to the width."""
        return text.ljust(-self.width) if self.width < 0 else text.rjust(self.width)

    def rule(self) -> str:
        """The dashes below the name."""
        dashes = "-" * (abs(self.width) - 1)
        return dashes + ("-" if self.width < 0 else ":")


class Table(Printer):
    """A Markdown table with a row for each result."""

    columns: Sequence[Column]

    def start(self) -> None:
        """Write the names of the columns."""
        for cells in ([c.cell(c.name) for c in self.columns], [c.rule() for c in self.columns]):
            self.write("| " + " | ".join(cells) + " |\n")

    def model(self, results: Sequence[Result]) -> None:
        """Write the rows."""
        self.rows(results)

    def rows(self, items: Sequence[Any]) -> None:
        """Write a row for each item."""
        for item in items:
            cells = [column.cell(column.text(item)) for column in self.columns]
            self.write("| " + " | ".join(cells) + " |\n")


class Markdown(Table):
    """llama-bench's table with our columns. A value that is the default has no column."""

    def __init__(self, setting: Setting, write: Callable[[str], None]) -> None:
        super().__init__(setting, write)
        optional = (
            ("n_threads_batch", "tb", 7),
            ("n_batch", "n_batch", 7),
            ("n_ubatch", "n_ubatch", 8),
            ("type_k", "type_k", -6),
            ("type_v", "type_v", -6),
            ("n_sequences", "seqs", 5),
        )
        self.columns = [
            Column("model", -30, lambda r: console.printable(r.model.type)),
            Column("size", 10, lambda r: _binary(r.model.n_bytes)),
            Column("params", 10, lambda r: _decimal(r.model.n_params)),
            Column("backend", -10, lambda r: "CPU"),
            Column("threads", 7, lambda r: str(r.case.n_threads)),
            *(
                Column(title, width, lambda r, name=name: str(getattr(r.case, name)))  # type: ignore[misc]
                for name, title, width in optional
                if self._is_asked_for(name)
            ),
            Column("cache", -5, lambda r: r.case.cache),
            Column("isa", -6, lambda r: r.isa),
            Column("test", 15, lambda r: r.case.name),
            Column("t/s", 20, _speed),
            Column("of ceiling", 10, _share),
            Column("MB/token", 10, lambda r: f"{r.bytes_per_token / 1e6:.2f}"),
            Column("peak memory", 11, lambda r: _binary(r.peak_memory)),
            Column("others", 6, lambda r: _others([r])),
        ]
        self._machine = _Machine(setting)

    def model(self, results: Sequence[Result]) -> None:
        """Write the rows, and remember the ceilings for the end."""
        super().model(results)
        self._machine.add(results)

    def end(self) -> None:
        """Say what it ran on, and how busy that was."""
        self.write(f"\n{self._machine}")

    def _is_asked_for(self, name: str) -> bool:
        values = {getattr(case, name) for case in self.setting.cases}
        if name == "n_threads_batch":
            return any(case.n_threads != case.n_threads_batch for case in self.setting.cases)
        return values != {_DEFAULTS[name]}


_DEFAULTS = {"n_batch": 2048, "n_ubatch": 512, "type_k": "f16", "type_v": "f16", "n_sequences": 1}


class Scaling(Table):
    """Speed-up and efficiency by threads, beside the fewest threads that were measured."""

    def __init__(self, setting: Setting, write: Callable[[str], None]) -> None:
        super().__init__(setting, write)
        self._fewest: dict[object, Result] = {}
        self._machine = _Machine(setting)
        self._too_many = False
        self.columns = [
            Column("model", -20, lambda r: console.printable(r.model.type)),
            Column("cache", -5, lambda r: r.case.cache),
            Column("test", 15, _label),
            Column("threads", 7, self._threads),
            Column("t/s", 20, _speed),
            Column("speed-up", 8, lambda r: f"{self._speed_up(r):.2f}"),
            Column("efficiency", 10, lambda r: f"{self._efficiency(r):.0%}"),
            Column("of ceiling", 10, _share),
            Column("others", 6, lambda r: _others([r])),
        ]

    def model(self, results: Sequence[Result]) -> None:
        """Write one curve after the other: rows that differ in threads alone stand together."""
        curves: dict[object, list[Result]] = {}
        for result in results:
            curves.setdefault(curve(result), []).append(result)
        for key, points in curves.items():
            points.sort(key=lambda r: r.case.n_threads)
            self._fewest[key] = points[0]
            super().model(points)
        self._machine.add(results)

    def end(self) -> None:
        """Explain the marks and say what it ran on."""
        if self._too_many:
            n = self.setting.n_processors
            self.write(f"\n\\* more threads than the {n} processor{'s' * (n > 1)} available here\n")
        self.write(f"\n{self._machine}")

    def _threads(self, result: Result) -> str:
        if result.case.n_threads <= self.setting.n_processors:
            return str(result.case.n_threads)
        self._too_many = True
        return f"{result.case.n_threads} *"

    def _speed_up(self, result: Result) -> float:
        return result.avg_ts / self._fewest[curve(result)].avg_ts

    def _efficiency(self, result: Result) -> float:
        more = result.case.n_threads / self._fewest[curve(result)].case.n_threads
        return self._speed_up(result) / more


class RopeOnRead(Table):
    """The table of llama.cpp pull request 3234: speed of both caches and their ratio."""

    def __init__(self, setting: Setting, write: Callable[[str], None]) -> None:
        super().__init__(setting, write)
        self.columns = [
            Column("test", -8, lambda pair: pair["roped"].case.name),
            Column("roped t/s", 20, lambda pair: _speed(pair["roped"])),
            Column("raw t/s", 20, lambda pair: _speed(pair["raw"])),
            Column("raw / roped", 11, lambda pair: f"{ratio(pair):.2f}"),
            Column("llama.cpp #3234", 15, lambda pair: _published(pair["roped"].case.name)),
            Column("others", 6, lambda pair: _others(list(pair.values()))),
        ]
        self._machine = _Machine(setting)

    def start(self) -> None:
        """Write nothing, because each model has tables of its own. A closed output fails here."""
        self.write("")

    def model(self, results: Sequence[Result]) -> None:
        """Write a table for each number of threads and types of the cache."""
        tables: dict[str, dict[str, dict[str, Result]]] = {}
        for result in results:
            case = result.case
            title = (
                f"{result.model.type}, {_count(case.n_threads, 'thread')}, "
                f"keys {case.type_k}, values {case.type_v}, {result.isa}"
            )
            tables.setdefault(title, {}).setdefault(case.name, {})[case.cache] = result
        for title, rows in tables.items():
            self.write(f"{console.printable(title)}\n\n")
            super().start()
            # After an interruption a test may have been measured with one cache only.
            self.rows([pair for pair in rows.values() if len(pair) == 2])
            self.write("\n")
        self._machine.add(results)

    def end(self) -> None:
        """Say what it ran on, and how busy that was."""
        self.write(str(self._machine))


def ratio(pair: dict[str, Result]) -> float:
    """Return the speed of the raw cache divided by that of the roped one."""
    return pair["raw"].avg_ts / pair["roped"].avg_ts


def curve(result: Result) -> tuple[object, ...]:
    """Return the properties that all points of a curve over threads share."""
    case = result.case
    same = (case.n_prompt, case.n_gen, case.n_depth, case.n_sequences, case.n_batch, case.n_ubatch)
    return (result.model.path, case.cache, case.type_k, case.type_v, *same)


class _Machine:
    """The lines below a table: the machine, its ceilings, and the load that others put on it."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._read: dict[int, list[float]] = {}
        self._int8: dict[int, list[float]] = {}
        self._loads: list[float] = []
        self._is_disturbed = False

    def add(self, results: Sequence[Result]) -> None:
        for r in results:
            if r.bandwidths:
                self._read.setdefault(r.case.n_threads, []).extend(r.bandwidths)
            if r.int8_peaks:
                self._int8.setdefault(r.case.n_threads_batch, []).extend(r.int8_peaks)
            self._loads.extend(r.load_averages)
            self._is_disturbed |= bool(r.usage and r.usage.is_disturbed)

    def __str__(self) -> str:
        text = f"{_build(self._setting)}\n"
        text += _means("read bandwidth", self._read, "GB/s")
        text += _means("int8 peak", self._int8, "GMAC/s")
        if self._loads:
            text += f"load average: {min(self._loads):.2f} to {max(self._loads):.2f}\n"
        if self._is_disturbed:
            text += f"! others took more than {MAX_SHARE:.0%} of processor time: measure again\n"
        return text


def _means(name: str, values: dict[int, list[float]], unit: str) -> str:
    parts = (
        f"{statistics.fmean(values[n]) / 1e9:.1f} {unit} with {_count(n, 'thread')}"
        for n in sorted(values)
    )
    return f"{name}: {', '.join(parts)}\n" if values else ""


def _others(results: Sequence[Result]) -> str:
    """Share of the processors' time that others took, with a mark where that is too much."""
    usages = [result.usage for result in results]
    shares = [u.share_of_others for u in usages if u is not None]
    if not shares:
        return ""
    is_disturbed = any(u.is_disturbed for u in usages if u is not None)
    return f"{max(shares):.0%}" + " !" * is_disturbed


def _build(setting: Setting) -> str:
    pinned = ", threads pinned" if setting.pinned else ""
    return console.printable(f"build: {version()}, {_cpu_info()}{pinned}")


def _label(result: Result) -> str:
    n = result.case.n_sequences
    return result.case.name + (f" x {n}" if n > 1 else "")


def _speed(result: Result) -> str:
    return f"{result.avg_ts:.2f} ± {result.stddev_ts:.2f}"


def _share(result: Result) -> str:
    if result.share_of_bandwidth is not None:
        return f"{result.share_of_bandwidth:.0%} read"
    if result.share_of_int8_peak is not None:
        return f"{result.share_of_int8_peak:.0%} int8"
    return ""


def _published(name: str) -> str:
    from lariat.measure.cases import PUBLISHED_RATIOS

    return f"{PUBLISHED_RATIOS[name]:.2f}" if name in PUBLISHED_RATIOS else ""


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _binary(n: int) -> str:
    """Bytes as llama-bench writes them."""
    return f"{n / (1 << 20):.2f} MiB" if n < 1 << 30 else f"{n / (1 << 30):.2f} GiB"


def _decimal(n: int) -> str:
    """Parameters as llama-bench writes them."""
    return f"{n / 1e6:.2f} M" if n < 10**9 else f"{n / 1e9:.2f} B"


FORMATS: dict[str, type[Printer]] = {
    "md": Markdown,
    "csv": Csv,
    "json": Json,
    "jsonl": JsonLines,
    "sql": Sql,
}
