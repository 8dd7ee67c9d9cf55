"""A flat batch: the tokens of one forward pass, in any mixture of prompts and decoding."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from lariat.cache.batch import Batch
from lariat.cache.blocks import BlockTable

if TYPE_CHECKING:
    from lariat.runtime.request import Request


@dataclass(frozen=True)
class Part:
    """Tokens of one request, or of nobody's, to compute behind those of a table."""

    table: BlockTable
    token_ids: List[int]
    logits: str = "none"  # "none", "last" or "all": the rows that are wanted
    rope_stage: int = 0  # see `RopeTable.stage`: for all tokens that are known
    request: Request | None = None  # whose tokens they are


def make_batch(parts: List[Part]) -> Batch:
    """Append each part to its table and lay out the batch. Each table occurs once."""
    n_past = np.array([part.table.n_tokens for part in parts], np.int32)
    places = [part.table.append(len(part.token_ids)) for part in parts]
    tables = [part.table.segments for part in parts]
    token_starts = _starts([len(part.token_ids) for part in parts])
    rows: list[int] = []
    for start, stop, part in zip(token_starts, token_starts[1:], parts, strict=False):
        if part.logits == "all":
            rows.extend(range(start, stop))
        elif part.logits == "last":
            rows.append(stop - 1)
    return Batch(
        token_ids=np.concatenate([np.asarray(part.token_ids, np.int32) for part in parts]),
        positions=np.concatenate([positions for _, positions in places]),
        slots=np.concatenate([slots for slots, _ in places]),
        token_starts=token_starts,
        n_past=n_past,
        segment_starts=_starts([len(table) for table in tables]),
        segments=np.concatenate(tables),
        logit_rows=np.array(rows, np.int32),
        rope_stage=max(part.rope_stage for part in parts),
    )


def split(parts: List[Part], n_ubatch: int) -> list[list[Part]]:
    """Cut parts into groups of at most `n_ubatch` tokens, in order.

    Of a part that is cut, only the last piece keeps a wish for the "last" logits. Parts of one
    group have the same RoPE stage.
    """
    groups: list[list[Part]] = [[]]
    room = n_ubatch
    for part in sorted(parts, key=lambda part: part.rope_stage):
        if groups[-1] and groups[-1][-1].rope_stage != part.rope_stage:
            groups.append([])
            room = n_ubatch
        at, n = 0, len(part.token_ids)
        while at < n:
            if room == 0:
                groups.append([])
                room = n_ubatch
            take = min(room, n - at)
            wish = part.logits if part.logits != "last" or at + take == n else "none"
            groups[-1].append(replace(part, token_ids=part.token_ids[at : at + take], logits=wish))
            at += take
            room -= take
    return [group for group in groups if group]


def _starts(lengths: List[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
