"""The block pool and contexts against a plain model: one list of slots a context."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lariat.cache.blocks import SLOTS, BlockPool, BlockTable

N_CONTEXTS = 3
operations = st.lists(
    st.tuples(
        st.integers(0, N_CONTEXTS - 1),
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 100)),
            st.tuples(st.just("append"), st.just(1)),
            st.tuples(st.just("truncate"), st.integers(0, 150)),
            st.tuples(st.just("clear"), st.just(0)),
        ),
    ),
    max_size=40,
)


def blocks_for(n_tokens: int) -> int:
    return -(-n_tokens // SLOTS)


def slots_of(context: BlockTable) -> list[int]:
    """The slots of all tokens, spelled out from the segments."""
    return [
        block * SLOTS + first + i
        for block, first, n, _ in context.segments.tolist()
        for i in range(n)
    ]


def positions_of(context: BlockTable) -> list[int]:
    return [start + i for _, _, n, start in context.segments.tolist() for i in range(n)]


def state(pool: BlockPool, context: BlockTable) -> tuple:
    return (
        pool.n_free,
        context.n_tokens,
        context.segments.tolist(),
    )


def check(pool: BlockPool, contexts: list[BlockTable], model: list[list[int]]) -> None:
    for context, slots in zip(contexts, model, strict=True):
        assert context.n_tokens == len(slots)
        assert slots_of(context) == slots
        assert positions_of(context) == list(range(len(slots)))
        table = context.segments
        assert table.dtype == np.int32
        assert table.shape == (blocks_for(len(slots)), 4)
        assert (table[:, 2] > 0).all(), "an empty segment holds a block"
        assert (table[:, 1] + table[:, 2] <= SLOTS).all()
    held = [slot // SLOTS for slots in model for slot in slots[::SLOTS]]
    assert len(set(held)) == len(held), "one block stands in two places"
    assert all(0 <= block < pool.n_blocks for block in held)
    assert pool.n_free == pool.n_blocks - len(held)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 9), operations)
def test_any_edits_follow_the_plain_model(n_blocks, edits):
    pool = BlockPool(n_blocks)
    contexts = [BlockTable(pool) for _ in range(N_CONTEXTS)]
    model: list[list[int]] = [[] for _ in contexts]
    for who, (what, n) in edits:
        context, slots = contexts[who], model[who]
        if what == "append":
            needed = blocks_for(len(slots) + n) - blocks_for(len(slots))
            before = state(pool, context)
            assert context.n_new_blocks(n) == needed
            assert state(pool, context) == before, "asking changes nothing"
            if needed > pool.n_free:
                with pytest.raises(IndexError, match="free blocks"):
                    context.append(n)
                assert state(pool, context) == before, "a refused append changes nothing"
            else:
                new, positions = context.append(n)
                assert new.dtype == positions.dtype == np.int32
                assert positions.tolist() == list(range(len(slots), len(slots) + n))
                slots.extend(new.tolist())
        elif what == "truncate":
            context.truncate(n)
            del slots[n:]
        else:
            context.clear()
            slots.clear()
        check(pool, contexts, model)
    for context in contexts:
        context.clear()
    assert pool.n_free == n_blocks
    taken = [pool.allocate() for _ in range(n_blocks)]
    assert sorted(taken) == list(range(n_blocks)), "every block comes back, each once"


# ---- what edits of contexts are made of: lists of tokens that share blocks ----

EDITS = st.lists(
    st.tuples(
        st.integers(0, N_CONTEXTS - 1),
        st.sampled_from(["append", "truncate", "delete", "move", "fork", "place", "seal", "clear"]),
        st.integers(0, 70),
        st.integers(0, 70),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), EDITS)
def test_edits_that_share_blocks_follow_a_plain_model(n_blocks, edits):
    """The model: a list of values a context, and what was written to each slot of the memory.

    A value must be found under its slot as long as a context holds it, whatever the others do.
    """
    memory: dict[int, int] = {}

    def copy(source: int, target: int, first: int, length: int) -> None:
        for i in range(first, first + length):
            memory[target * SLOTS + i] = memory[source * SLOTS + i]

    pool = BlockPool(n_blocks, copy)
    contexts = [BlockTable(pool) for _ in range(N_CONTEXTS)]
    model: list[list[int]] = [[] for _ in contexts]
    sealed: set[int] = set()
    fresh = iter(range(1_000_000))

    def write(slots: np.ndarray) -> list[int]:
        values = [next(fresh) for _ in slots]
        for slot, value in zip(slots.tolist(), values, strict=True):
            assert slot // SLOTS not in sealed, "a sealed block was written to"
            memory[slot] = value
        return values

    for who, what, a, b in edits:
        context, values = contexts[who], model[who]
        other = (who + 1) % N_CONTEXTS
        start, stop = sorted((min(a, len(values)), min(b, len(values))))
        if what == "append":
            if context.n_new_blocks(a) > pool.n_free:
                with pytest.raises(IndexError):
                    context.append(a)
            else:
                n_free, n_new = pool.n_free, context.n_new_blocks(a)
                slots, positions = context.append(a)
                # A block that is copied away from another holder is taken, and none given back.
                assert pool.n_free == n_free - n_new
                assert positions.tolist() == list(range(len(values), len(values) + a))
                values += write(slots)
        elif what == "truncate":
            context.truncate(a)
            del values[a:]
        elif what == "delete":
            context.delete(start, stop)
            del values[start:stop]
        elif what == "move":
            rows = [context.cut(start, stop), context.cut(0, start), context.cut(stop, len(values))]
            context.assign(np.concatenate(rows))
            model[who] = values[start:stop] + values[:start] + values[stop:]
        elif what == "fork":
            contexts[other].clear()
            contexts[other] = context.fork()
            model[other] = list(values)
        elif what == "place" and not values:
            n = 1 + a % SLOTS
            if pool.n_free:
                model[who] = write(context.place(np.array([[0, b % (SLOTS - n + 1), n]])))
            else:
                with pytest.raises(IndexError):
                    context.place(np.array([[0, 0, n]]))
        elif what == "seal" and len(context.segments):
            block = int(context.segments[a % len(context.segments), 0])
            pool.seal(block)
            sealed.add(block)
        elif what == "clear":
            context.clear()
            values.clear()
        held = {int(b) for c in contexts for b in c.segments[:, 0]}
        sealed &= held
        assert pool.n_free == n_blocks - len(held)
        for context, values in zip(contexts, model, strict=True):
            assert [memory[slot] for slot in slots_of(context)] == values
            assert positions_of(context) == list(range(len(values)))
            assert context.n_tokens == len(values)
            assert (context.segments[:, 2] > 0).all()
        for block in held:
            holders = sum(int((c.segments[:, 0] == block).sum()) for c in contexts)
            assert pool.n_holders(block) == holders


@pytest.mark.parametrize("piece", [1, 7, 31, 32, 33, 320])
def test_a_long_context_outgrows_its_first_table(piece):
    pool = BlockPool(20)
    context = BlockTable(pool)
    slots: list[int] = []
    for start in range(0, 640, piece):
        slots += context.append(min(piece, 640 - start))[0].tolist()
    check(pool, [context], [slots])
    assert slots == list(range(640)), "blocks of a fresh pool are taken in order"
    assert (pool.n_free, context.n_new_blocks(0), context.n_new_blocks(1)) == (0, 0, 1)


def test_the_room_of_the_last_block_is_used_again_after_truncating():
    pool = BlockPool(3)
    context = BlockTable(pool)
    first, _ = context.append(70)
    context.truncate(40)
    assert pool.n_free == 1
    again, positions = context.append(24)
    assert pool.n_free == 1
    assert again.tolist() == first[40:64].tolist()
    assert positions.tolist() == list(range(40, 64))


@pytest.mark.parametrize("n", [32, 33, 64, 1000])
def test_truncating_at_a_length_not_reached_changes_nothing(n):
    pool = BlockPool(2)
    context = BlockTable(pool)
    context.append(32)
    before = state(pool, context)
    context.truncate(n)
    assert state(pool, context) == before


def test_truncating_at_a_block_border_gives_the_next_block_back():
    pool = BlockPool(2)
    context = BlockTable(pool)
    context.append(33)
    assert pool.n_free == 0
    context.truncate(32)
    assert (pool.n_free, len(context.segments), context.n_tokens) == (1, 1, 32)


def test_the_pool_hands_out_each_block_once_lowest_first():
    pool = BlockPool(3)
    assert [pool.allocate() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(IndexError):
        pool.allocate()
    pool.release(1)
    assert (pool.n_free, pool.allocate()) == (1, 1)


def test_a_block_is_not_released_twice():
    pool = BlockPool(2)
    block = pool.allocate()
    pool.release(block)
    with pytest.raises(AssertionError):
        pool.release(block)
    assert pool.n_free == 2


def test_an_empty_pool_refuses_the_first_token():
    context = BlockTable(BlockPool(0))
    assert context.append(0)[0].shape == (0,)
    with pytest.raises(IndexError):
        context.append(1)
    assert context.n_tokens == 0
