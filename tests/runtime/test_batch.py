"""Splitting parts and laying out a batch, against the same written with plain lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lariat.cache.blocks import SLOTS, BlockPool, BlockTable
from lariat.runtime.batch import Part, make_batch, split

requests = st.lists(
    st.tuples(
        st.integers(0, 70),  # tokens that the table holds already
        st.integers(1, 90),  # tokens of the part
        st.sampled_from(["none", "last", "all"]),
    ),
    min_size=1,
    max_size=6,
)


def make_parts(wanted: list[tuple[int, int, str]]) -> list[Part]:
    """Parts whose token ids are all different: 1000 * request + index."""
    pool = BlockPool(64)
    parts = []
    for i, (n_past, n, logits) in enumerate(wanted):
        table = BlockTable(pool)
        table.append(n_past)
        parts.append(Part(table, list(range(1000 * i, 1000 * i + n)), logits))
    return parts


@settings(max_examples=200, deadline=None)
@given(requests, st.integers(1, 100))
def test_split_keeps_all_tokens_in_order_and_fills_each_group(wanted, n_ubatch):
    parts = make_parts(wanted)
    before = [part.table.n_tokens for part in parts]
    groups = split(parts, n_ubatch)
    assert [part.table.n_tokens for part in parts] == before, "split takes no slots"

    sizes = [sum(len(piece.token_ids) for piece in group) for group in groups]
    assert all(size == n_ubatch for size in sizes[:-1])
    assert 1 <= sizes[-1] <= n_ubatch
    pieces = [piece for group in groups for piece in group]
    assert all(len(piece.token_ids) for piece in pieces)
    flat = [token for piece in pieces for token in piece.token_ids]
    assert flat == [token for part in parts for token in part.token_ids]
    for group in groups:
        tables = [id(piece.table) for piece in group]
        assert len(set(tables)) == len(tables), "each table once a group"

    for part in parts:
        wishes = [piece.logits for piece in pieces if piece.table is part.table]
        tokens = [t for piece in pieces if piece.table is part.table for t in piece.token_ids]
        assert tokens == list(part.token_ids)
        if part.logits == "last":
            assert wishes == ["none"] * (len(wishes) - 1) + ["last"]
        else:
            assert set(wishes) == {part.logits}


@settings(max_examples=200, deadline=None)
@given(requests)
def test_make_batch_follows_plain_lists(wanted):
    parts = make_parts(wanted)
    batch = make_batch(parts)
    starts = np.cumsum([0] + [n for _, n, _ in wanted]).tolist()

    assert batch.n_tokens == starts[-1]
    assert batch.token_ids.tolist() == [t for part in parts for t in part.token_ids]
    assert batch.token_starts.tolist() == starts
    assert batch.n_past.tolist() == [n_past for n_past, _, _ in wanted]
    assert batch.positions.tolist() == [
        position for n_past, n, _ in wanted for position in range(n_past, n_past + n)
    ]
    rows = {
        "none": lambda start, stop: [],
        "last": lambda start, stop: [stop - 1],
        "all": lambda start, stop: list(range(start, stop)),
    }
    assert batch.logit_rows.tolist() == [
        row
        for (_, _, logits), start, stop in zip(wanted, starts, starts[1:], strict=False)
        for row in rows[logits](start, stop)
    ]
    arrays = {name: a for name, a in vars(batch).items() if name not in ("reading", "wants_hidden")}
    for name, array in arrays.items():
        assert array.dtype == np.int32, name
        assert array.flags.c_contiguous, name

    # The new tokens are in the tables, and the segments say where.
    assert [part.table.n_tokens for part in parts] == [past + n for past, n, _ in wanted]
    for i, (n_past, n, _) in enumerate(wanted):
        table = batch.segments[batch.segment_starts[i] : batch.segment_starts[i + 1]]
        assert table.tolist() == parts[i].table.segments.tolist()
        slots = [b * SLOTS + first + j for b, first, length, _ in table for j in range(length)]
        assert slots[n_past : n_past + n] == batch.slots[starts[i] : starts[i + 1]].tolist()
    assert batch.segment_starts[-1] == len(batch.segments)
    assert len(set(batch.slots.tolist())) == batch.n_tokens


def test_split_pieces_follow_each_other_in_the_cache():
    """The groups of one part, run one after the other, put it where one batch would."""
    whole = make_batch(make_parts([(5, 80, "last")]))
    batches = [make_batch(group) for group in split(make_parts([(5, 80, "last")]), 33)]
    assert [batch.n_tokens for batch in batches] == [33, 33, 14]
    assert [batch.n_past.tolist() for batch in batches] == [[5], [38], [71]]
    assert [len(batch.logit_rows) for batch in batches] == [0, 0, 1]
    for name in ("token_ids", "positions", "slots"):
        parts = np.concatenate([getattr(batch, name) for batch in batches])
        assert np.array_equal(parts, getattr(whole, name)), name


def test_a_batch_keeps_its_segments_when_the_context_goes_on():
    (part,) = make_parts([(0, 3, "none")])
    batch = make_batch([part])
    part.table.append(4)
    assert batch.segments[:, 2].tolist() == [3]


@pytest.mark.parametrize("n_ubatch", [1, 2, 512])
def test_splitting_nothing_gives_no_groups(n_ubatch):
    assert split([], n_ubatch) == []
