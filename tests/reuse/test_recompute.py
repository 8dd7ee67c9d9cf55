"""Which tokens of chunks are computed anew: words, likelihood, first tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lariat import ChunkLibrary, Recompute
from lariat.reuse.recompute import AUTO, question_nll, ranked, recompute_of

from tests.reference import Reference, relative_error
from tests.support.contexts import GREEDY, ids_of, load, n_free, write_mapped


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mapped(tmp_path_factory.mktemp("model"))


@pytest.fixture
def llm(path: Path):
    with load(path, "raw") as llm:
        yield llm


# ---- words -------------------------------------------------------------------------------


def documents(*texts: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    ids, spans = [1], []
    for text in texts:
        spans.append((len(ids), len(ids) + len(text)))
        ids += text
    return ids, spans


def test_rare_words_of_the_question_come_first():
    common, rare = [50, 51, 52], [60]
    texts = [common * 5, common * 4 + rare + common, common * 9]
    order, begins = ranked(*documents(*texts), [*common, *rare], 6)
    assert order[0] == 1
    assert begins[1] <= 1 + 15 + 12 < begins[1] + 6


def test_pairs_of_words_tell_documents_apart_that_have_the_same_words():
    filler = ids_of(100)
    texts = [[*filler, 300, 301, *filler], [*filler, 301, 300, *filler], [*filler, 300]]
    for k, pair in enumerate(([300, 301], [301, 300])):
        order, begins = ranked(*documents(*texts), pair, 16)
        assert order[0] == k
        place = 1 + 201 * k + k + 100
        assert begins[k] <= place < begins[k] + 15


def test_the_second_best_has_what_the_best_does_not_have():
    texts = [[300, 301, 302, 9], [300, 301, 302, 8], [7, 303, 7, 7], [6, 6, 6, 6]]
    order, _ = ranked(*documents(*texts), [300, 301, 302, 303], 4)
    assert order[:2] in ([0, 2], [1, 2], [2, 0], [2, 1])


@pytest.mark.parametrize("question", [[], [1], [999, 998]])
@pytest.mark.parametrize("length", [None, 0, 1, 64])
def test_questions_without_common_words_and_short_documents_are_no_trouble(question, length):
    ids, spans = documents([10], [11, 12], ids_of(90))
    order, begins = ranked(ids, spans, question, length)
    assert sorted(order) == [0, 1, 2]
    assert begins == [start for start, _ in spans]


def test_a_long_prompt_counts_by_its_rarest_words_and_of_those_by_the_last():
    texts = [ids_of(4000, i) for i in range(4)]
    texts[2][1000:1003] = [1000, 1001, 1002]
    prompt = [*ids_of(5000, 9), 1000, 1001, 1002, *ids_of(20, 8)]
    order, begins = ranked(*documents(*texts), prompt, 64, 1)
    assert order == [2, 0, 1, 3]
    assert begins[2] <= 1 + 8000 + 1000 < begins[2] + 64


# ---- choices -----------------------------------------------------------------------------


def test_first_tokens_and_passages_are_what_is_computed(llm, tmp_path):
    library = ChunkLibrary(tmp_path / "shelf")
    texts = [ids_of(50), ids_of(70, 1), ids_of(40, 2)]
    for i, text in enumerate(texts):
        library.add(llm, str(i), text)
    question = texts[1][30:36]
    for recompute, n in (
        (Recompute(first=4), 8),
        (Recompute(first=100), 110),
        (Recompute(passages=1, length=16), 16),
        (Recompute(first=4, passages=1, length=16), 24),
        (Recompute(first=4, passages=1, length=None), 74),
        (Recompute(passages=9, length=None), 110),
        (Recompute(), 0),
        ("none", 0),
        (0, 0),
    ):
        with llm.context() as context:
            assert [context.append(library[str(i)], recompute=recompute) for i in range(3)] == [
                0
            ] * 3
            done = llm.generate(question, GREEDY, context=context)
            assert done.timings.n_recomputed == n, recompute
            assert done.timings.n_prompt == n + len(question)


def test_a_passage_is_computed_while_its_chunk_has_its_sinks_and_then_the_first_tokens(
    llm, tmp_path
):
    library = ChunkLibrary(tmp_path / "shelf")
    texts = [ids_of(50), ids_of(70, 1), ids_of(40, 2)]
    for i, text in enumerate(texts):
        library.add(llm, str(i), text)
    question = texts[1][30:36]
    with llm.context() as context, llm.context() as other, llm.context() as at_once:
        for i in range(3):
            context.append(library[str(i)], recompute=Recompute(first=4, passages=1, length=16))
            for each in (other, at_once):
                each.append(library[str(i)], recompute="none")
        _, begins = ranked(context.tokens, [(1, 51), (51, 121), (121, 161)], question, 16)
        firsts, passage = [(51, 55), (121, 125)], (begins[1], begins[1] + 16)
        other.recompute([passage])
        other.recompute(firsts)
        at_once.recompute([firsts[0], passage, firsts[1]])
        found, same, different = (each.logits(question) for each in (context, other, at_once))
        assert np.array_equal(found, same)
        assert not np.array_equal(found, different)
        done = llm.generate(question, GREEDY, context=context)
        assert done.timings.n_recomputed == 24
        assert llm.generate(question, GREEDY, context=other).token_ids == done.token_ids
        assert np.array_equal(context.logits([4]), other.logits([4]))


def test_a_chunk_behind_nothing_but_what_it_was_computed_behind_is_exact(llm, tmp_path):
    library = ChunkLibrary(tmp_path / "shelf")
    chunk = library.add(llm, "a", ids_of(50))
    other = library.add(llm, "b", ids_of(50), behind=[7, 7, 7, 7])
    everything = Recompute(passages=1, length=None)
    for document, before, n in ((chunk, [], 0), (chunk, [9], 50), (other, [], 50)):
        with llm.context() as context, llm.context() as plain:
            context.append(before)
            context.append(document, recompute=everything)
            done = llm.generate([5, 6], GREEDY, context=context)
            assert done.timings.n_recomputed == n
            plain.append(context.tokens)
            assert relative_error(context.logits([4]), plain.logits([4])) < 1e-5


def test_likelihood_is_that_of_the_question_behind_each_chunk_alone(path, llm):
    text, question = ids_of(50), ids_of(70, 3)  # more tokens than a pass has rows of logits
    free = n_free(llm)
    with llm.runner.exclusive:
        table = llm.runner.new_table()
        llm.runner.compute(table, [1, *text])
        got = question_nll(llm.runner, table, [(0, 51), (0, 20), (0, 51)], question)
        table.clear()
    assert n_free(llm) == free
    reference = Reference(path)
    for surprise, n in zip(got, (51, 20, 51), strict=True):
        rows = reference.logits([*[1, *text][:n], *question])[n:-1]
        log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        wanted = -log_p[np.arange(len(question) - 1), question[1:]].sum()
        assert surprise == pytest.approx(wanted, rel=1e-5)
    assert abs(got[0] - got[1]) > 1e-2


def test_the_likeliest_chunks_are_computed_anew(llm, tmp_path):
    library = ChunkLibrary(tmp_path / "shelf")
    texts = [ids_of(50 + i, i) for i in range(4)]
    question = ids_of(12, 9)
    surprise = []
    for i, text in enumerate(texts):
        library.add(llm, str(i), text)
        with llm.context() as context:
            context.append([1])
            context.append(text)
            rows = context.logits(question)[:-1].astype(float)
        log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        surprise.append(-log_p[np.arange(len(question) - 1), question[1:]].sum())
    best = 1 + int(np.argmin(surprise[1:]))
    recompute = Recompute(passages=1, length=None, by="likelihood")
    with llm.context() as context:
        context.append([9])
        for i in (1, 2, 3):
            context.append(library[str(i)], recompute=recompute)
        done = llm.generate(question, GREEDY, context=context)
        assert done.timings.n_recomputed == len(texts[best])
        assert done.timings.n_prompt == len(texts[best]) + (1 + 3) * len(question)


# ---- what may be asked for ---------------------------------------------------------------


def test_words_and_numbers():
    assert recompute_of("none") == recompute_of(0) == (0, None)
    assert recompute_of("all") == (None, None)
    assert recompute_of("auto") == recompute_of(AUTO) == (0, AUTO)
    assert recompute_of(7) == recompute_of(np.int64(7)) == (7, None)


@pytest.mark.parametrize("odd", [None, -1, 1.5, True, "some", "4", [], object()])
def test_other_values_are_refused(odd):
    with pytest.raises(ValueError, match="expected 'auto', 'none', 'all'"):
        recompute_of(odd)


@pytest.mark.parametrize(
    "fields",
    [{"first": -1}, {"first": None}, {"length": 1.5}, {"passages": True}, {"by": "magic"}],
)
def test_recompute_refuses_odd_fields(fields):
    with pytest.raises(ValueError, match="expected"):
        Recompute(**fields)
