"""Tokens of a context that are computed anew before a request's own, in the scheduler's steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, ChunkLibrary, SamplingParams
from lariat.cache.blocks import SLOTS, BlockPool, BlockTable
from lariat.runtime.context import Context
from lariat.runtime.placed import Choice, Placed
from lariat.runtime.renewal import Renewal

from tests.support.contexts import GREEDY, ids_of, load, n_free, write_mapped

A, B, QUESTION = ids_of(60), ids_of(45, 1), ids_of(9, 2)
N_BATCH = 16


@dataclass(frozen=True)
class Second:
    """A chooser that always chooses the whole second document."""

    def choose(
        self,
        runner: object,
        table: object,
        ids: Sequence[int],
        documents: Sequence[Placed],
        question: Sequence[int],
    ) -> Choice:
        return Choice([(documents[1].start, documents[1].stop)])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mapped(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(path: Path):
    with load(path, "raw", n_batch=N_BATCH) as llm:
        yield llm


def with_both(llm: LLM, folder: Path, recompute: object) -> Context:
    library = ChunkLibrary(folder)
    context = llm.context()
    for name, ids in {"a": A, "b": B}.items():
        context.append(library.add(llm, name, ids), recompute=recompute)
    return context


def step(llm: LLM) -> None:
    with llm.runner.exclusive:
        llm.runner.sweep()
        llm.runner.step()


# ---- the numbers -------------------------------------------------------------------------


def test_tokens_come_in_order_and_stand_in_the_table_when_all_are_computed():
    pool = BlockPool(16)
    table = BlockTable(pool)
    table.append(3 * SLOTS)
    before, free, ended = table.segments.copy(), pool.n_free, []
    renewal = Renewal(table, [[(3, 10), (40, 45)]], lambda: ended.append(True))
    assert (renewal.n_left, pool.n_free) == (12, free - 1)
    assert renewal.next(4) == [(3, 7)]
    assert renewal.next(9) == [(3, 10), (40, 42)]
    renewal.computed(4)
    assert renewal.next(100) == [(7, 10), (40, 45)]
    renewal.computed(4)
    assert (renewal.n_left, renewal.next(4)) == (4, [(41, 45)])
    assert np.array_equal(table.segments, before)
    renewed = renewal.table.segments.copy()
    renewal.computed(4)
    assert (renewal.n_left, renewal.next(1), ended) == (0, [], [True])
    assert np.array_equal(table.segments, renewed)
    table.clear()
    assert pool.n_free == 16


def test_a_round_begins_when_the_one_before_is_computed():
    pool = BlockPool(16)
    table = BlockTable(pool)
    table.append(3 * SLOTS)
    before, free, ended = table.segments.copy(), pool.n_free, []
    renewal = Renewal(table, [[(40, 45)], [(3, 6), (40, 41)]], lambda: ended.append(True))
    assert pool.n_free == free - 1, "both rounds are packed into one block"
    first = renewal.table
    assert np.array_equal(first.cut(0, 40), table.cut(0, 40)), "the next round has not begun"
    assert (renewal.n_left, renewal.n_ready, renewal.next(9)) == (9, 5, [(40, 45)])
    renewal.computed(5)
    assert renewal.table is not first
    assert np.array_equal(table.segments, before)
    assert (renewal.n_left, renewal.n_ready, renewal.next(9)) == (4, 4, [(3, 6), (40, 41)])
    renewal.computed(4)
    assert (renewal.n_left, renewal.n_ready, ended) == (0, 0, [True])
    assert not np.array_equal(table.segments, before)
    table.clear()
    assert pool.n_free == 16


def test_without_room_nothing_is_taken():
    pool = BlockPool(4)
    table = BlockTable(pool)
    table.append(2 * SLOTS)
    with pytest.raises(IndexError):
        Renewal(table, [[(0, SLOTS)], [(0, 2 * SLOTS)]], lambda: pytest.fail("it did not end"))
    assert pool.n_free == 2


def test_one_that_is_given_up_leaves_the_table_as_it_was():
    pool = BlockPool(16)
    table = BlockTable(pool)
    table.append(SLOTS)
    before, free = table.segments.copy(), pool.n_free
    renewal = Renewal(table, [[(0, 4)]], lambda: pytest.fail("it did not end"))
    renewal.computed(2)
    renewal.clear()
    renewal.clear()
    assert np.array_equal(table.segments, before)
    assert pool.n_free == free


# ---- requests ----------------------------------------------------------------------------


def test_steps_have_no_more_tokens_than_a_batch_and_give_the_same_text(llm, path, tmp_path):
    with with_both(llm, tmp_path, Second()) as context:
        found = llm.generate(QUESTION, GREEDY, context=context)
        after = context.logits([7])
    assert (found.timings.n_recomputed, found.timings.n_prompt) == (45, 45 + len(QUESTION))
    with load(path, "raw") as other, with_both(other, tmp_path, "all") as context:
        assert other.generate(QUESTION, GREEDY, context=context).token_ids == found.token_ids
        assert np.allclose(context.logits([7]), after, atol=1e-4)


def test_others_go_on_while_a_context_is_renewed(llm, tmp_path):
    long = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    alone = llm.generate(A, long).token_ids
    with with_both(llm, tmp_path, Second()) as context:
        first = llm.stream(A, long)
        next(first)
        second = llm.stream(QUESTION, GREEDY, context=context)
        timings = second.completion.timings
        assert timings.n_recomputed == 0, "nothing is computed when the stream opens"
        n_renewed = [0]
        while n_renewed[-1] < 45:
            n_before = len(first.completion.token_ids)
            step(llm)
            n_renewed.append(timings.n_recomputed)
            assert len(first.completion.token_ids) == n_before + 1
        assert all(0 < n < N_BATCH for n in np.diff(n_renewed))
        assert not second.completion.token_ids
        for _ in first:
            pass
        assert first.completion.token_ids == alone
        second.close()


def test_a_stream_that_is_closed_meanwhile_leaves_the_choice_to_the_next_text(llm, tmp_path):
    with with_both(llm, tmp_path, Second()) as context:
        free, before = n_free(llm), context.tokens
        stream = llm.stream(QUESTION, GREEDY, context=context)
        step(llm)
        assert 0 < stream.completion.timings.n_recomputed < 45
        stream.close()
        assert n_free(llm) == free
        assert context.tokens == [*before, *QUESTION]
        context.truncate(len(before))
        with context.fork() as copy:
            found = llm.generate(QUESTION, GREEDY, context=copy)
        assert found.timings.n_recomputed == 45
        with with_both(llm, tmp_path, Second()) as other:
            assert llm.generate(QUESTION, GREEDY, context=other).token_ids == found.token_ids
