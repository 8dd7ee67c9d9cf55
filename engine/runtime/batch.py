"""A flat batch: the tokens of one forward pass, in any mixture of prompts and decoding."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from lariat.cache.batch import Batch
from lariat.cache.blocks import BlockTable, slots_of
from lariat.cache.rope import OWN, Reading

if TYPE_CHECKING:
    from lariat.runtime.request import Request


@dataclass(frozen=True)
class Part:
    """Tokens of one request, or of nobody's, to compute behind those of a table, or in it."""

    table: BlockTable
    token_ids: List[int]
    logits: str = "none"  # "none", "last" or "all" rows; "hidden": all, before they are logits
    reading: Reading = OWN  # for all tokens that are known
    request: Request | None = None  # whose tokens they are
    start: int | None = None  # position of the first one, if the table has slots for them already

    @property
    def n_past(self) -> int:
        """Tokens of the table that stand before these."""
        return self.table.n_tokens if self.start is None else self.start

    @property
    def n_rows(self) -> int:
        """Rows of logits that are wanted."""
        return {"none": 0, "last": 1, "all": len(self.token_ids)}[self.logits]

    def place(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Slots and positions (int32 [n]) of the tokens, appended to the table unless they are in
        it, and the segments of all tokens up to the last of them (int32 [n_segments, 4])."""
        n = len(self.token_ids)
        if self.start is None:
            slots, positions = self.table.append(n)
            return slots, positions, self.table.segments
        stop = self.start + n
        positions = np.arange(self.start, stop, dtype=np.int32)
        return slots_of(self.table.cut(self.start, stop)), positions, self.table.cut(0, stop)


def make_batch(parts: List[Part]) -> Batch:
    """Append each part to its table, unless it has slots there, and lay out the batch.

    All parts have the same reading, and all or none want hidden rows. A table that is appended to
    occurs once. Others may occur several times: in each layer the keys of all parts are stored
    before any part attends.
    """
    n_past = np.array([part.n_past for part in parts], np.int32)
    places = [part.place() for part in parts]
    tables = [segments for _, _, segments in places]
    token_starts = _starts([len(part.token_ids) for part in parts])
    rows: list[int] = []
    for start, stop, part in zip(token_starts, token_starts[1:], parts, strict=False):
        if part.logits in ("all", "hidden"):
            rows.extend(range(start, stop))
        elif part.logits == "last":
            rows.append(stop - 1)
    return Batch(
        token_ids=np.concatenate([np.asarray(part.token_ids, np.int32) for part in parts]),
        positions=np.concatenate([positions for _, positions, _ in places]),
        slots=np.concatenate([slots for slots, _, _ in places]),
        token_starts=token_starts,
        n_past=n_past,
        segment_starts=_starts([len(table) for table in tables]),
        segments=np.concatenate(tables),
        logit_rows=np.array(rows, np.int32),
        reading=parts[0].reading,
        wants_hidden=parts[0].logits == "hidden",
    )


def split(parts: List[Part], n_ubatch: int, n_rows: int | None = None) -> list[list[Part]]:
    """Cut parts into groups of at most `n_ubatch` tokens, in order.

    Of a part that is cut, only the last piece keeps a wish for the "last" logits. Parts of one
    group have the same reading, and want at most `n_rows` rows of logits beside those "last" ones.
    """
    groups: list[list[Part]] = [[]]
    n_rows = n_ubatch if n_rows is None else n_rows
    room, row_room = n_ubatch, n_rows
    readings = list(dict.fromkeys(part.reading for part in parts))
    for part in sorted(parts, key=lambda part: readings.index(part.reading)):
        if groups[-1] and groups[-1][-1].reading != part.reading:
            groups.append([])
            room, row_room = n_ubatch, n_rows
        at, n, wants_all = 0, len(part.token_ids), part.logits == "all"
        while at < n:
            if room == 0 or (wants_all and row_room == 0):
                groups.append([])
                room, row_room = n_ubatch, n_rows
            take = min(room, n - at, row_room if wants_all else n)
            wish = part.logits if part.logits != "last" or at + take == n else "none"
            start = None if part.start is None else part.start + at
            ids = part.token_ids[at : at + take]
            groups[-1].append(replace(part, token_ids=ids, logits=wish, start=start))
            at += take
            room -= take
            row_room -= take if wants_all else 0
    return [group for group in groups if group]


def _starts(lengths: List[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
