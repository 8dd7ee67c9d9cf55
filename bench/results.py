"""Figures as data: a JSON file for each machine in `results/`, rendered into docs/results.md.

`render` also writes the table of docs/models.md, whose figures `bench.proofs` computes.

    lariat bench -m 7b4l.gguf -p 512 -n 0 -o json | python -m bench.results add --machine zen3 \\
        --what 'prompt of `7b4l`' --unit t/s --command 'lariat bench -m 7b4l.gguf -p 512 -n 0'
    python -m bench.results render     (make results)
    python -m bench.results draw       (needs matplotlib)

A file has the machine (name, cpu, isa, bandwidth, int8_peak), the date and the commit of its
measurements, and at most 15 rows. A row has `what`, `unit` ("ratio" is written with two decimals),
`values` and `command` (Markdown). Values are numbers by label, or pairs of the lowest and the
highest of several runs, or groups of them. A row that was added later has a date and a commit of
its own. `add` takes the JSON of `lariat bench` or `bench.peers`, refuses results that others
disturbed, and replaces the row with the same `what`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "results"
PAGE = ROOT / "docs" / "results.md"
MODELS = ROOT / "docs" / "models.md"
_OTHERS = ("digests", "models")  # files in the folder that are no machine's
PICTURE = ROOT / "docs" / "raw-against-roped.png"
MAX_ROWS = 15
ORDER = (
    "correctness",
    "zen5",
    "zen4",
    "sapphire-rapids",
    "emerald-rapids",
    "zen3",
)  # of the page; others follow
_BEGIN, _END = "<!-- begin: make results -->", "<!-- end: make results -->"
_HEAD = {"name", "cpu", "isa", "bandwidth", "int8_peak", "date", "commit", "rows"}
_ROW = {"what", "unit", "values", "command"}


class ResultsError(Exception):
    """A file, a row or the JSON of a benchmark is not as it must be."""


# ---- files -------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """Return a machine's file. Raises ResultsError unless all is as the module's docstring says."""
    machine = json.loads(path.read_text("utf-8"))
    if set(machine) != _HEAD:
        raise ResultsError(f"{path.name}: fields are {sorted(machine)} and must be {sorted(_HEAD)}")
    if len(machine["rows"]) > MAX_ROWS:
        raise ResultsError(f"{path.name}: {len(machine['rows'])} rows, at most {MAX_ROWS}")
    for row in machine["rows"]:
        if set(row) - {"date", "commit"} != _ROW or not row["values"] or not row["command"]:
            raise ResultsError(f"{path.name}: row {row.get('what')!r} lacks a field, or has others")
        for value in _leaves(row["values"]):
            numbers = value if isinstance(value, list) else [value]
            is_range = len(numbers) == 2 and numbers[0] <= numbers[1]
            if not (len(numbers) == 1 or is_range):
                raise ResultsError(f"{path.name}: {row['what']}: {value} is no number and no range")
    return dict(machine)


def _leaves(values: dict[str, Any]) -> Iterator[Any]:
    """Numbers and ranges of a row, those of groups too."""
    for value in values.values():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield value


def write(path: Path, machine: dict[str, Any]) -> None:
    """Write a machine's file."""
    text = json.dumps(machine, indent=2, ensure_ascii=False)
    # A range on one line is easier to read.
    text = re.sub(r"\[\s+(-?[\d.e-]+),\s+(-?[\d.e-]+)\s+\]", r"[\1, \2]", text)
    path.write_text(text + "\n", "utf-8")


def paths() -> list[Path]:
    """Files of all machines, in the order of the page. Files that are no machine's are left out."""
    found = {path.stem: path for path in sorted(FOLDER.glob("*.json")) if path.stem not in _OTHERS}
    names = [name for name in ORDER if name in found]
    return [found[name] for name in dict.fromkeys([*names, *found])]


# ---- adding ------------------------------------------------------------------------------------


def values_of(data: Any, field: str) -> dict[str, float]:
    """Take values from the JSON of `lariat bench` (a list) or `bench.peers` (an object).

    field: of `lariat bench`, the field to take, such as avg_ts or share_of_bandwidth; shares become
    per cent. Of `bench.peers` the ratios are taken. Raises ResultsError where others disturbed it.
    """
    values: dict[str, float] = {}
    if isinstance(data, dict) and "rows" in data:
        for row in data["rows"]:
            values[_label(row["test"], row["n_threads"], data["rows"])] = _short(row["ratio"])
    elif isinstance(data, list):
        caches = {entry["cache"] for entry in data}
        for entry in data:
            if entry["disturbed"]:
                raise ResultsError(
                    f"{entry['test']}: others took {entry['steal'] + entry['foreign_load']:.0%} of "
                    "the processors' time; measure again on a quiet machine"
                )
            if entry[field] is None:
                raise ResultsError(f"{entry['test']}: {field} was not measured")
            cache = f", {entry['cache']}" if len(caches) > 1 else ""
            scale = 100 if field.startswith("share") else 1
            label = _label(entry["test"], entry["n_threads"], data) + cache
            values[label] = _short(scale * entry[field])
    if not values:
        raise ResultsError("standard input has no results of `lariat bench` or `bench.peers`")
    return values


def _label(test: str, n_threads: int, entries: Iterable[dict[str, Any]]) -> str:
    """Name of a test, with the number of threads where there are several."""
    if len({entry["n_threads"] for entry in entries}) == 1:
        return test
    return f"{test}, {n_threads} thread{'s' * (n_threads > 1)}"


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def add(machine: dict[str, Any], row: dict[str, Any]) -> None:
    """Add a row, or replace the one with the same `what`. Raises ResultsError where it is full."""
    rows = machine["rows"]
    for i, old in enumerate(rows):
        if old["what"] == row["what"]:
            rows[i] = row
            return
    if len(rows) == MAX_ROWS:
        raise ResultsError(f"there are {MAX_ROWS} rows already; remove one that no longer holds")
    rows.append(row)


# ---- rendering ---------------------------------------------------------------------------------


def table(machine: dict[str, Any]) -> str:
    """Section of the page for one machine."""
    facts = [machine["cpu"], machine["isa"]]
    facts += [f"read bandwidth {machine['bandwidth']}"] * bool(machine["bandwidth"])
    facts += [f"int8 peak {machine['int8_peak']}"] * bool(machine["int8_peak"])
    lines = [f"## {machine['name']}", "; ".join(filter(None, facts)) + "."]
    lines += [f"Measured {machine['date']} at commit {machine['commit']}.", ""]
    lines += ["| figure | value | command |", "| --- | --- | --- |"]
    for row in machine["rows"]:
        when = f" ({row['date']}, commit {row['commit']})" if "commit" in row else ""
        command = row["command"].replace("|", "\\|")
        lines.append(f"| {row['what']}{when} | {_values(row['values'], row['unit'])} | {command} |")
    return "\n".join(lines) + "\n"


def _values(values: dict[str, Any], unit: str, separator: str = "; ") -> str:
    """ "decode: 1.44; prompt: 2.28 to 2.40". Values of a group stand in brackets."""
    parts = []
    for label, value in values.items():
        if isinstance(value, dict):
            parts.append(f"{label} ({_values(value, unit, ', ')})")
            continue
        numbers = value if isinstance(value, list) else [value]
        text = " to ".join(f"{n:.2f}" if unit == "ratio" else f"{n:g}" for n in numbers)
        text += f" {unit}" if unit not in ("", "ratio") else ""
        parts.append(f"{label}: {text}" if label else text)
    return separator.join(parts)


def render(page: str) -> str:
    """Return the text of the page with the tables of all machines between its marks."""
    return between_marks(page, "\n".join(table(read(path)) for path in paths()))


def between_marks(page: str, text: str) -> str:
    """Return a page with `text` between its marks. Raises ResultsError where it has none."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ResultsError(f"the page lacks the lines {_BEGIN!r} and {_END!r}")
    return f"{before}{_BEGIN}\n\n{text}\n{_END}{after}"


def draw() -> None:
    """Draw decode speed of raw over roped keys by depth, beside llama.cpp's pull request 3234."""
    from lariat.measure.cases import PUBLISHED_RATIOS
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), layout="constrained", dpi=150)
    panel = figure.subplots()
    styles = iter([("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")])
    for path in paths():
        machine = read(path)
        points = _ratios_by_depth(machine)
        if points:
            colour, marker = next(styles)
            label = f"Lariat, {machine['name']}"
            panel.plot(*zip(*points, strict=True), marker=marker, color=colour, label=label)
    published = [(int(name[2:]), r) for name, r in PUBLISHED_RATIOS.items() if name[:2] == "tg"]
    x, y = zip(*published, strict=True)
    panel.plot(x, y, marker="v", color="0.35", linestyle=":", label="llama.cpp, pull request 3234")
    panel.axhline(1, color="0.6", linewidth=0.8, zorder=0)
    panel.set_xscale("log", base=2)
    panel.set_xticks(x, [str(n) for n in x])
    panel.set_ylim(0, 1.2)
    panel.set_xlabel("tokens in the cache")
    panel.set_ylabel("decode speed, raw / roped")
    panel.set_title("Cost of rotating keys when they are read", fontsize=11)
    panel.grid(alpha=0.3)
    panel.legend(loc="lower left", fontsize=8)
    figure.savefig(PICTURE)


def _ratios_by_depth(machine: dict[str, Any]) -> list[tuple[int, float]]:
    """Depth, and raw / roped of `7b4l` with 2 threads; the middle of a range."""
    for row in machine["rows"]:
        if row["what"].startswith("raw / roped decode of `7b4l`"):
            return [
                (int(depth), sum(value) / 2 if isinstance(value, list) else value)
                for depth, value in row["values"]["2 threads"].items()
            ]
    return []


# ---- the command -------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Add, render or draw. Return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="name", required=True)
    adding = commands.add_parser("add", help="add a row from the JSON on standard input")
    adding.add_argument("--machine", required=True, help="name of a file in results/, no suffix")
    adding.add_argument("--what", required=True, help="the figure in words (Markdown)")
    adding.add_argument("--field", default="avg_ts", help="of `lariat bench` (default: avg_ts)")
    adding.add_argument("--unit", default="ratio", help="unit of the values (default: ratio)")
    adding.add_argument("--command", required=True, help="the command that printed the JSON")
    commands.add_parser("render", help="write the tables of docs/results.md")
    commands.add_parser("draw", help="draw the picture of the README")
    args = parser.parse_args(argv)
    try:
        if args.name == "add":
            _add(args)
        elif args.name == "render":
            from bench import proofs

            PAGE.write_text(render(PAGE.read_text("utf-8")), "utf-8")
            MODELS.write_text(proofs.render(MODELS.read_text("utf-8")), "utf-8")
        else:
            draw()
    except (ResultsError, OSError, json.JSONDecodeError, KeyError) as error:
        print(f"bench.results: error: {error}", file=sys.stderr)
        return 1
    return 0


def _add(args: argparse.Namespace) -> None:
    path = FOLDER / f"{args.machine}.json"
    machine = read(path)
    row = {
        "what": args.what,
        "unit": args.unit,
        "values": values_of(json.load(sys.stdin), args.field),
        "command": f"`{args.command}`",
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
    }
    add(machine, row)
    write(path, machine)


def _commit() -> str:
    """Short hash of the commit that was measured."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ResultsError(f"git does not know the commit: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
