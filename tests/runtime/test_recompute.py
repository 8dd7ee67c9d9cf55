"""Tokens that are computed anew in place: exactness, isolation, and that no block is ever lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lariat import ChunkLibrary
from lariat.cache.blocks import BlockPool, BlockTable
from lariat.config import CACHE_TYPES
from lariat.errors import ContextError

from tests.reference import relative_error
from tests.support.cache_blocks import CHANNEL_TYPES
from tests.support.contexts import CACHES, ids_of, load, n_free, write_deep, write_mapped

BOUNDS = {"f32": 1e-5, "f16": 3e-3, "q8_0": 5e-2, "q8_ch": 5e-2, "q4_0": 0.3, "q4_ch": 0.3}
SCATTERED = [(0, 1), (5, 9), (31, 34), (60, 97), (99, 100)]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("model"))


# ---- numbers -----------------------------------------------------------------------------


def test_renewed_tokens_have_slots_of_their_own_and_the_others_stay():
    pool = BlockPool(20)
    table = BlockTable(pool)
    table.append(100)
    before = table.segments.copy()
    (other,) = table.renewed(SCATTERED)
    assert np.array_equal(table.segments, before)
    assert other.n_tokens == 100
    is_new = np.zeros(100, bool)
    for start, stop in SCATTERED:
        is_new[start:stop] = True
    for i, new in enumerate(is_new):
        old_slot, slot = table.cut(i, i + 1)[0, :2], other.cut(i, i + 1)[0, :2]
        assert (tuple(old_slot) == tuple(slot)) != new
    used = {tuple(other.cut(i, i + 1)[0, :2]) for i in range(100)}
    assert len(used) == 100
    other.clear()
    table.clear()
    assert pool.n_free == 20


def test_a_pool_without_room_refuses_and_loses_no_block():
    pool = BlockPool(4)
    table = BlockTable(pool)
    table.append(100)
    with pytest.raises(IndexError):
        table.renewed([(0, 1)])
    table.truncate(60)
    with pytest.raises(IndexError):
        table.renewed([(0, 33), (34, 66)])
    assert pool.n_free == 2


# ---- exactness ---------------------------------------------------------------------------


@pytest.mark.parametrize("n_ubatch", [512, 24])
@pytest.mark.parametrize("types", CACHE_TYPES)
@pytest.mark.parametrize("cache", CACHES)
def test_recomputing_all_is_computing_afresh(deep, cache, types, n_ubatch):
    if cache == "roped" and types in CHANNEL_TYPES:
        pytest.skip("roped keys by channel keep their positions, so nothing can be inserted")
    a, b = ids_of(70), ids_of(43, 1)
    with load(deep, cache, type_k=types, type_v=types, n_ubatch=n_ubatch) as llm:
        free = n_free(llm)
        with llm.context() as context, llm.context() as fresh:
            context.append(b)
            context.insert(0, a)  # which b has not seen
            fresh.append(a + b)
            expected = fresh.logits([7, 8, 9])
            off = relative_error(context.logits([7, 8, 9]), expected)
            # In pieces of any size, ranges of one batch see each other's keys.
            assert context.recompute([(0, 3), (3, 50), (50, 51), (51, 113)]) == 113
            assert context.tokens == a + b
            error = relative_error(context.logits([7, 8, 9]), expected)
            assert error < min(BOUNDS[types], off / 10)
        assert n_free(llm) == free


@pytest.mark.parametrize("cache", CACHES)
def test_recomputing_the_end_is_truncating_and_appending(deep, cache):
    a, b, c = ids_of(45), ids_of(30, 1), ids_of(50, 2)
    with load(deep, cache, type_k="f32", type_v="f32") as llm, llm.context() as context:
        context.append(a + b + c)
        context.delete(45, 75)  # c knows of b still
        with context.fork() as other:
            other.truncate(45)
            other.append(c)
            expected = other.logits([5, 6])
        assert relative_error(context.logits([5, 6]), expected) > 1e-3
        context.recompute([(45, 95)])
        assert relative_error(context.logits([5, 6]), expected) < 1e-5
        context.append([9, 10])  # goes on behind the fresh blocks
        assert np.isfinite(context.logits([5])).all()


@pytest.mark.parametrize("types", ["f32", "q8_ch"])
@pytest.mark.parametrize("cache", CACHES)
def test_scattered_tokens_of_an_exact_context_come_out_equal(deep, cache, types):
    with load(deep, cache, type_k=types, type_v=types) as llm, llm.context() as context:
        context.append(ids_of(128))
        expected = context.logits([5, 6, 7])
        assert context.recompute(SCATTERED) == sum(stop - start for start, stop in SCATTERED)
        assert relative_error(context.logits([5, 6, 7]), expected) < BOUNDS[types]
        context.recompute([(100, 128)])
        context.append(ids_of(40, 3))  # behind slots in the midst of a block
        with llm.context() as fresh:
            fresh.append(context.tokens)
            wanted = fresh.logits([5, 6, 7])
        assert relative_error(context.logits([5, 6, 7]), wanted) < BOUNDS[types]


def test_ranges_in_one_batch_give_what_one_after_the_other_gives(deep):
    a, b = ids_of(70), ids_of(60, 1)
    with load(deep, "raw", type_k="f32", type_v="f32") as llm, llm.context() as context:
        context.append(b)
        context.insert(0, a)
        with context.fork() as other:
            for part in SCATTERED:
                other.recompute([part])
            expected = other.logits([5, 6])
        context.recompute(SCATTERED)
        assert relative_error(context.logits([5, 6]), expected) < 1e-5


# ---- isolation ---------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES)
def test_forks_keep_what_they_had(deep, cache):
    with load(deep, cache) as llm, llm.context() as context:
        context.append(ids_of(60))
        context.insert(0, ids_of(50, 1))
        with context.fork() as other:
            expected = other.logits([5, 6])
            context.recompute([(50, 70), (80, 110)])
            assert np.array_equal(other.logits([5, 6]), expected)


def test_a_chunk_s_blocks_are_not_written(tmp_path):
    model = write_mapped(tmp_path)
    library = ChunkLibrary(tmp_path / "shelf")
    with load(model, "raw") as llm:
        free = n_free(llm)
        library.add(llm, "a", ids_of(80))
        library.add(llm, "b", ids_of(75, 1))
        with llm.context() as untouched, llm.context() as context:
            for each in (untouched, context):
                each.append(library["a"])
                each.append(library["b"], recompute=0)
            expected = untouched.logits([5, 6])
            context.recompute([(81, 85), (100, 140)])
            assert np.array_equal(untouched.logits([5, 6]), expected)
            assert not np.array_equal(context.logits([5, 6]), expected)
            with llm.context() as again:
                again.append(library["a"])
                again.append(library["b"], recompute=0)
                assert np.array_equal(again.logits([5, 6]), expected)
        assert n_free(llm) == free


# ---- errors ------------------------------------------------------------------------------


def test_without_room_the_context_stays_as_it_was(deep):
    with load(deep, "raw", n_ctx=128) as llm, llm.context() as context:
        context.append(ids_of(126))
        expected = context.logits([5])
        free = n_free(llm)
        with pytest.raises(ContextError, match="free blocks"):
            context.recompute([(0, 126)])
        assert n_free(llm) == free
        assert np.array_equal(context.logits([5]), expected)


def test_a_pass_that_fails_leaves_the_context_as_it_was(deep, monkeypatch):
    with load(deep, "raw", n_ubatch=16) as llm, llm.context() as context:
        context.append(ids_of(90))
        expected, free = context.logits([5]), n_free(llm)
        forward, calls = llm.runner.forward, []

        def failing(*args: object) -> object:
            calls.append(args)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return forward(*args)

        monkeypatch.setattr(llm.runner, "forward", failing)
        with pytest.raises(KeyboardInterrupt):
            context.recompute([(10, 60)])
        monkeypatch.undo()
        assert n_free(llm) == free
        assert np.array_equal(context.logits([5]), expected)


@pytest.mark.parametrize(
    "ranges", [[(0, 11)], [(-1, 2)], [(5, 4)], [(4, 8), (2, 3)], [(0, 3), (2, 4)]]
)
def test_bad_ranges_are_refused(deep, ranges):
    with load(deep, "raw") as llm, llm.context() as context:
        context.append(ids_of(10))
        with pytest.raises(IndexError):
            context.recompute(ranges)


def test_no_ranges_compute_nothing(deep):
    with load(deep, "raw") as llm, llm.context() as context:
        assert context.recompute([]) == 0
        context.append(ids_of(10))
        free = n_free(llm)
        assert context.recompute([(4, 4)]) == 0
        assert n_free(llm) == free
