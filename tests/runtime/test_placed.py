"""Documents in a context: where they stand after edits, and when the text behind them chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from lariat import LLM, ChunkLibrary, SamplingParams
from lariat.errors import ContextError
from lariat.runtime.context import Context
from lariat.runtime.placed import Choice, Placed, rearranged, united, without

from tests.reference import relative_error
from tests.support.contexts import GREEDY, ids_of, load, n_free, write_mapped

A, B, QUESTION = ids_of(60), ids_of(45, 1), ids_of(9, 2)


@dataclass(frozen=True)
class Chosen:
    """A chooser that always chooses the same share, and remembers what it was asked."""

    ranges: tuple[tuple[int, int], ...] = ()
    asked: list[tuple[list[tuple[int, int]], list[int]]] = field(
        default_factory=list, compare=False
    )

    def choose(
        self,
        runner: object,
        table: object,
        ids: Sequence[int],
        documents: Sequence[Placed],
        question: Sequence[int],
    ) -> Choice:
        spans = [(one.start, one.stop) for one in documents]
        self.asked.append((spans, list(question)))
        start, stop = spans[-1]
        return Choice([(start + a, min(start + b, stop)) for a, b in self.ranges])


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):
    with load(write_mapped(tmp_path_factory.mktemp("model")), "raw") as llm:
        yield llm


@pytest.fixture(scope="module")
def library(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> ChunkLibrary:
    library = ChunkLibrary(tmp_path_factory.mktemp("shelf"))
    for name, ids in {"a": A, "b": B}.items():
        library.add(llm, name, ids)
    return library


def with_both(llm: LLM, library: ChunkLibrary, recompute: object) -> Context:
    context = llm.context()
    context.append(library["a"], recompute=recompute)
    context.append(library["b"], recompute=recompute)
    return context


# ---- numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([(0, 30)], [(5, 10), (12, 20)]),
        ([3, (0, 30)], [(8, 13), (15, 23)]),
        ([(0, 11), 7, (11, 30)], [(5, 10), (19, 27)]),
        ([(0, 7), (7, 30)], [(5, 10), (12, 20)]),  # cut and joined again
        ([(0, 7), 1, (7, 30)], [(5, 7), (13, 21)]),  # the part before the cut
        ([(0, 6), (8, 30)], [(5, 6), (10, 18)]),
        ([(12, 20), (0, 12), (20, 30)], [(0, 8), (13, 18)]),
        ([(0, 15)], [(5, 10), (12, 15)]),
        ([(6, 30)], [(6, 14)]),  # it has lost its beginning
        ([4], []),
        ([], []),
    ],
)
def test_documents_move_with_their_tokens(order, expected):
    placed = [Placed(5, 10, None), Placed(12, 20, None)]
    assert [(one.start, one.stop) for one in rearranged(placed, order)] == expected


def test_united_ranges_hold_each_token_once():
    assert united([(5, 9), (1, 3), (3, 4), (8, 12), (7, 7), (20, 19)]) == [(1, 4), (5, 12)]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], [(1, 4), (6, 12)]),
        ([(0, 20)], []),
        ([(2, 3), (8, 9), (11, 15)], [(1, 2), (3, 4), (6, 8), (9, 11)]),
        ([(4, 6), (12, 13)], [(1, 4), (6, 12)]),
        ([(0, 7)], [(7, 12)]),
    ],
)
def test_tokens_of_other_ranges_are_left_out(others, expected):
    assert without([(1, 4), (6, 12)], others) == expected


# ---- when they choose --------------------------------------------------------------------


def test_the_question_chooses_when_it_is_generated_from(llm, library):
    chooser = Chosen(((3, 7), (10, 30)))
    with with_both(llm, library, chooser) as context, with_both(llm, library, "none") as other:
        done = llm.generate(QUESTION, GREEDY, context=context)
        assert chooser.asked == [([(1, 61), (61, 106)], QUESTION)]
        assert (done.timings.n_recomputed, done.timings.n_prompt) == (24, 24 + len(QUESTION))
        other.recompute([(64, 68), (71, 91)])
        assert llm.generate(QUESTION, GREEDY, context=other).token_ids == done.token_ids
        assert context.tokens == other.tokens
        assert np.array_equal(context.logits([7]), other.logits([7]))
        llm.generate([5, 6], GREEDY, context=context)
        assert len(chooser.asked) == 1, "once"


def test_appended_text_waits_for_the_question_behind_it(llm, library):
    chooser = Chosen(((0, 45),))
    free = n_free(llm)
    with llm.context() as context, llm.context() as plain:
        context.append(library["a"], recompute=chooser)
        assert context.append([5, 6]) == 2
        context.append(library["b"], recompute=chooser)
        assert context.append([7, 8, 9]) == 3
        assert context.tokens == [*plain_ids(library), 5, 6, *B, 7, 8, 9]
        assert not chooser.asked
        done = llm.generate(QUESTION, GREEDY, context=context)
        assert chooser.asked == [([(1, 61), (63, 108)], [7, 8, 9, *QUESTION])]
        # All behind the first chunk, which is exact, was computed there.
        plain.append([*plain_ids(library), 5, 6, *B, 7, 8, 9])
        assert llm.generate(QUESTION, GREEDY, context=plain).token_ids == done.token_ids
        assert relative_error(context.logits([4]), plain.logits([4])) < 1e-5
    assert n_free(llm) == free


def plain_ids(library: ChunkLibrary) -> list[int]:
    return [*library["a"].sink, *A]


def test_text_that_was_computed_before_the_choice_is_computed_again(llm, library):
    chooser = Chosen(((0, 45),))
    with with_both(llm, library, chooser) as context, llm.context() as plain:
        context.append([7, 8, 9])
        context.compact()  # needs all tokens
        assert not chooser.asked
        plain.append([*plain_ids(library), *B, 7, 8, 9])
        wanted = plain.logits(QUESTION)
        assert relative_error(context.logits(QUESTION), wanted) < 1e-5
        done = llm.generate(QUESTION, GREEDY, context=context)
        assert done.timings.n_prompt == 45 + 3 + len(QUESTION)
        assert relative_error(context.logits([4]), plain_after(plain, context)) < 1e-5


def plain_after(plain: Context, context: Context) -> np.ndarray:
    plain.append(context.tokens[len(plain) :])
    return plain.logits([4])


def test_logits_choose_for_themselves_and_change_nothing(llm, library):
    chooser = Chosen(((0, 45),))
    with with_both(llm, library, chooser) as context, with_both(llm, library, "none") as other:
        free = n_free(llm)
        got = context.logits(QUESTION)
        assert n_free(llm) == free
        assert not np.array_equal(got, other.logits(QUESTION))
        assert np.array_equal(got, context.logits(QUESTION))
        assert len(chooser.asked) == 2


def test_a_prompt_without_an_answer_chooses_too(llm, library):
    chooser = Chosen(((0, 45),))
    with with_both(llm, library, chooser) as context, llm.context() as plain:
        llm.generate(QUESTION, SamplingParams(max_tokens=0), context=context)
        assert len(chooser.asked) == 1
        plain.append([*plain_ids(library), *B, *QUESTION])
        assert relative_error(context.logits([4]), plain.logits([4])) < 1e-5
        assert len(chooser.asked) == 1


def test_generation_right_behind_a_chunk_has_no_question(llm, library):
    chooser = Chosen(((0, 45),))
    with with_both(llm, library, chooser) as context, llm.context() as plain:
        done = llm.generate("", GREEDY, context=context)
        # The last token is computed for its logits, and so it is no part of the choice.
        assert chooser.asked == [([(1, 61), (61, 105)], [B[-1]])]
        plain.append([*plain_ids(library), *B])
        assert llm.generate("", GREEDY, context=plain).token_ids == done.token_ids
        assert done.timings.n_prompt == 45


def test_documents_are_remembered_through_edits(llm, library):
    chooser = Chosen()
    with with_both(llm, library, chooser) as context, llm.context() as third:
        context.insert(0, [5, 6, 7])
        context.move(64, 109, 0)  # b to the front
        with context.fork() as fork:
            third.append([9, 9])
            third.append(fork)
            third.logits(QUESTION)
            assert chooser.asked.pop()[0] == [(2, 47), (51, 111)]
            fork.delete(0, 46)
            fork.logits(QUESTION)
            assert chooser.asked.pop()[0] == [(3, 63)]
        context.truncate(50)
        llm.generate(QUESTION, GREEDY, context=context)
        assert chooser.asked.pop() == ([(0, 45), (49, 50)], QUESTION)


def test_a_loaded_context_has_no_documents(llm, library, tmp_path):
    chooser = Chosen()
    with with_both(llm, library, chooser) as context:
        context.save(tmp_path / "context")
        context.load(tmp_path / "context")
        llm.generate(QUESTION, GREEDY, context=context)
    assert not chooser.asked


def test_a_chunk_of_another_policy_is_no_text_behind(llm, library):
    chooser = Chosen(((0, 10),))
    with llm.context() as context:
        context.append([5])
        context.append(library["a"], recompute=chooser)
        context.append(library["b"], recompute="none")
        done = llm.generate(QUESTION, GREEDY, context=context)
        assert (done.timings.n_recomputed, chooser.asked[0][0]) == (10, [(1, 61)])


def test_without_room_for_the_choice_the_context_stays(tmp_path):
    with load(write_mapped(tmp_path), "raw", n_ctx=128) as llm:
        library = ChunkLibrary(tmp_path / "shelf")
        for name, ids in {"a": A, "b": B}.items():
            library.add(llm, name, ids)
        with with_both(llm, library, Chosen(((-60, 45),))) as context:
            before, free = context.tokens, n_free(llm)
            with pytest.raises(ContextError, match="free blocks"):
                llm.generate(QUESTION, GREEDY, context=context)
            assert (context.tokens, n_free(llm)) == (before, free)
            with pytest.raises(ContextError, match="free blocks"):
                context.logits(QUESTION)
            assert (context.tokens, n_free(llm)) == (before, free)
