"""`lariat batch`: rows of a file, a journal beside the output, and the output when all is done."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from lariat import _kernels
from lariat.errors import LariatError
from lariat.jobs import rows, tables
from lariat.jobs.answers import Answers
from lariat.jobs.batch import Batch, Progress
from lariat.jobs.journal import Journal
from lariat.jobs.rows import Row
from lariat.protocol.served import Served

SUFFIX = ".part"
"""The end of the journal's name, behind that of the output."""


@dataclass(frozen=True)
class Plan:
    """The task for a file.

    source      lines of JSON, or a table
    output      appears when all rows are done
    n_parallel  texts that are computed at a time
    shard       (k, n): rows whose number is k modulo n, k from 1; None: all
    resume      go on with the journal that is there
    ordered     whether the output has the order of the input
    """

    source: Path
    output: Path
    n_parallel: int = 32
    shard: tuple[int, int] | None = None
    resume: bool = False
    ordered: bool = True

    @property
    def journal(self) -> Path:
        """The file of the journal."""
        return self.output.with_name(self.output.name + SUFFIX)

    def has(self, number: int) -> bool:
        """Whether a row belongs to the shard."""
        return self.shard is None or (number - self.shard[0]) % self.shard[1] == 0


def check(plan: Plan) -> None:
    """Raise LariatError if the output is there already, OSError if there is no input."""
    if tables.is_table(plan.output) and not tables.is_table(plan.source):
        raise LariatError(f"{plan.output}: a table of answers needs a table of rows")
    for path in (plan.source, plan.output):
        if tables.is_table(path):
            tables.check(path)
    with open(plan.source, "rb") as file:
        if not file.seekable():
            raise LariatError(f"{plan.source} is a pipe, and a batch is read twice: give a file")
    if plan.output.exists() and not plan.journal.exists():
        raise LariatError(f"{plan.output} is there already: remove it, or name another output")
    if plan.journal.exists() and not plan.resume:
        Journal(plan.journal, {}, 0)  # its error says what can be done


def run(
    plan: Plan,
    answers: Answers,
    settings: Mapping[str, Any],
    report: Callable[[Progress, int], None] | None = None,
) -> Progress:
    """Compute all rows that are not in the journal, and write the output.

    `settings` are what the journal belongs to. `report` is called with what was done and how many
    rows there are to do, after each row. Raises what `Journal` and `check` raise.
    """
    known = _Known(plan)
    told = {**settings, "shard": list(plan.shard) if plan.shard else None}
    with Journal(plan.journal, told, known.n_lines, is_old=plan.resume) as journal:
        batch = Batch(answers, plan.n_parallel)
        n_to_do = known.n_rows - journal.n_done
        for row, line in batch.lines(_rows(plan, known, journal)):
            journal.add(row.number, row.custom_id, row.digest, line)
            if report is not None:
                report(batch.progress, n_to_do)
        as_table = partial(tables.write, plan.output) if tables.is_table(plan.output) else None
        journal.write(plan.output, ordered=plan.ordered, form=as_table)
    return batch.progress


def _lines(path: Path) -> Iterator[bytes]:
    if tables.is_table(path):
        yield from tables.lines(path)
        return
    with open(path, "rb") as file:
        yield from rows.lines(file)


def _rows(plan: Plan, known: _Known, journal: Journal) -> Iterator[Row]:
    """Rows of the shard that are not done."""
    for number, line in enumerate(_lines(plan.source), 1):
        if not plan.has(number) or not line.strip():
            continue
        row = rows.of_line(line, number)
        first = known.doubles.get(number)
        if first is not None and row.error is None:
            row = rows.failed(row, f"row {number} has the custom_id of row {first}")
        if not journal.has(number, row.digest):
            yield row


class _Known:
    """A first look at the input.

    n_lines  lines
    n_rows   rows of the shard
    doubles  numbers of rows whose custom_id was another row's before, and the number of that one
    """

    def __init__(self, plan: Plan) -> None:
        ids = array("Q")  # a hash of each line's custom_id; 0: a blank line
        for number, line in enumerate(_lines(plan.source), 1):
            ids.append(_hash(_id_of(line, number)) if line.strip() else 0)
        self.n_lines = len(ids)
        hashes = np.frombuffer(ids, np.uint64) if ids else np.zeros(0, np.uint64)
        filled = np.flatnonzero(hashes)
        self.n_rows = sum(1 for i in filled if plan.has(int(i) + 1))
        order = filled[np.argsort(hashes[filled], kind="stable")]
        again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
        self.doubles: dict[int, int] = {}
        for i in again:
            before = int(order[i - 1]) + 1
            self.doubles[int(order[i]) + 1] = self.doubles.get(before, before)


class _Id(msgspec.Struct):
    custom_id: str | int | None = None


_decoder = msgspec.json.Decoder(_Id)


def _id_of(line: bytes, number: int) -> str:
    """The custom_id of a line, its number if it has none, "line N" if it cannot be read."""
    try:
        given = _decoder.decode(line).custom_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return f"line {number}"
    return str(number if given is None else given)


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def settings_of(served: Served, **more: Any) -> dict[str, Any]:
    """All of a model that changes results: fingerprint, cache, kernels, defaults."""
    llm = served.llm
    defaults = {
        name: value
        for name, value in asdict(served.defaults).items()
        if name not in ("logits_processors", "grammar", "seed", "max_tokens", "stop")
    }
    try:
        own = version("lariat")
    except PackageNotFoundError:
        own = ""
    return {
        "version": own, **llm.signature(), "isa": _kernels.isa(), "n_ctx": llm.n_ctx,
        "swa_window_only": llm.settings.swa_window_only, "name": served.name,
        "template": served.template, "variables": served.variables, "now": served.now,
        "defaults": defaults, **more,
    }  # fmt: skip
