"""A flat batch: what one forward pass computes, whatever mixture of prompts and decoding."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass

import numpy as np
from lariat.cache.batch import Batch
from lariat.cache.blocks import BlockTable


@dataclass(frozen=True)
class Part:
    """Tokens of one sequence that follow what its context holds."""

    context: BlockTable
    token_ids: List[int]
    logits: str = "none"  # "none", "last" or "all": the rows that are wanted
    rope_stage: int = 0  # see `RopeTable.stage`: of the context with all that is known in it


def make_batch(chunks: List[Part]) -> Batch:
    """Append each chunk to its context and lay out the batch. Each context occurs once."""
    n_past = np.array([chunk.context.n_tokens for chunk in chunks], np.int32)
    places = [chunk.context.append(len(chunk.token_ids)) for chunk in chunks]
    tables = [chunk.context.segments for chunk in chunks]
    token_starts = _starts([len(chunk.token_ids) for chunk in chunks])
    rows: list[int] = []
    for start, stop, chunk in zip(token_starts, token_starts[1:], chunks, strict=False):
        if chunk.logits == "all":
            rows.extend(range(start, stop))
        elif chunk.logits == "last":
            rows.append(stop - 1)
    return Batch(
        token_ids=np.concatenate([np.asarray(chunk.token_ids, np.int32) for chunk in chunks]),
        positions=np.concatenate([positions for _, positions in places]),
        slots=np.concatenate([slots for slots, _ in places]),
        token_starts=token_starts,
        n_past=n_past,
        segment_starts=_starts([len(table) for table in tables]),
        segments=np.concatenate(tables),
        logit_rows=np.array(rows, np.int32),
        rope_stage=max(chunk.rope_stage for chunk in chunks),
    )


def split(chunks: List[Part], n_ubatch: int) -> list[list[Part]]:
    """Cut chunks into groups of at most `n_ubatch` tokens, in order.

    Of a chunk that is cut, only the last piece keeps a wish for the "last" logits. Chunks of one
    group have the same RoPE stage.
    """
    groups: list[list[Part]] = [[]]
    room = n_ubatch
    for chunk in sorted(chunks, key=lambda chunk: chunk.rope_stage):
        if groups[-1] and groups[-1][-1].rope_stage != chunk.rope_stage:
            groups.append([])
            room = n_ubatch
        at, n = 0, len(chunk.token_ids)
        while at < n:
            if room == 0:
                groups.append([])
                room = n_ubatch
            take = min(room, n - at)
            wish = chunk.logits if chunk.logits != "last" or at + take == n else "none"
            piece = chunk.token_ids[at : at + take]
            groups[-1].append(Part(chunk.context, piece, wish, chunk.rope_stage))
            at += take
            room -= take
    return [group for group in groups if group]


def _starts(lengths: List[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
