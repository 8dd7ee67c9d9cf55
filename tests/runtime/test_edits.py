"""Edits of a context, and the tokens behind them that recall what was edited."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lariat.runtime.edits import Edits

from tests.reference import relative_error
from tests.support.contexts import CACHES, GREEDY, ids_of, load, n_free, write_deep

TEXT = (
    "Anna lives in Paris . The sun is on the hill and birds sing in the old tree , in and out . "
    "People say that Anna likes the place . It rains now and then , and the river is wide ."
)
VOCABULARY = sorted({*TEXT.split(), "Berlin", "Tom"})


def ids(text: str) -> list[int]:
    return [VOCABULARY.index(word) for word in text.split()]


def texts(tokens: list[int], ranges: list[tuple[int, int]]) -> list[str]:
    return [" ".join(VOCABULARY[i] for i in tokens[a:b]) for a, b in ranges]


@pytest.fixture
def edits() -> Edits:
    return Edits(lambda id: f" {VOCABULARY[id]}")


def replaced(edits: Edits, tokens: list[int], at: int, word: str) -> list[int]:
    edits.delete(at, at + 1, tokens)
    rest = tokens[:at] + tokens[at + 1 :]
    edits.insert(at, ids(word), rest)
    return rest[:at] + ids(word) + rest[at:]


def test_later_words_of_the_edited_sentence_are_found(edits: Edits):
    tokens = replaced(edits, ids(TEXT), 3, "Berlin")
    found = texts(tokens, edits.recalled(tokens, 0.25))
    assert len(found) == 1
    assert found[0].startswith("People say that Anna likes the place .")


def test_the_share_is_kept_and_counts_from_the_edit(edits: Edits):
    tokens = replaced(edits, ids(TEXT), 3, "Berlin")
    for share in (0.0, 0.1, 0.3, 1.0):
        n = sum(stop - start for start, stop in edits.recalled(tokens, share))
        assert n <= share * (len(tokens) - 4)
        assert n or share < 0.1
    assert edits.recalled(tokens, 1.0)[0][0] >= 4


def test_places_follow_later_edits(edits: Edits):
    tokens = replaced(edits, ids(TEXT), 3, "Berlin")
    edits.insert(0, ids("Tom ."), tokens)  # in front of it all
    tokens = ids("Tom .") + tokens
    assert "People say that Anna likes" in " ".join(texts(tokens, edits.recalled(tokens, 0.5)))
    edits.delete(0, 6, tokens)  # with all of the edited sentence
    tokens = tokens[6:]
    assert "People say that Anna likes" in " ".join(texts(tokens, edits.recalled(tokens, 0.5)))


def test_tokens_that_are_deleted_are_not_recalled(edits: Edits):
    tokens = replaced(edits, ids(TEXT), 3, "Berlin")
    edits.delete(5, len(tokens), tokens)
    assert edits.recalled(tokens[:5], 1.0) == [(4, 5)]
    edits.delete(4, 5, tokens[:5])
    assert edits.recalled(tokens[:4], 1.0) == []


def test_an_end_that_has_gone_is_not_recalled(edits: Edits):
    tokens = replaced(edits, ids(TEXT), 3, "Berlin")
    for n in (len(tokens) - 3, 5, 4, 2, 0):
        found = edits.recalled(tokens[:n], 1.0)
        assert all(4 <= start < stop <= n for start, stop in found)
        assert bool(found) == (n > 4)
    edits.keep(2)
    assert edits.recalled(tokens, 1.0) == []


def test_an_edit_at_the_end_is_none(edits: Edits):
    tokens = ids(TEXT)
    edits.insert(len(tokens), ids("Tom"), tokens)
    edits.delete(len(tokens), len(tokens) + 1, [*tokens, *ids("Tom")])
    edits.delete(4, 4, tokens)
    assert edits.recalled(tokens, 1.0) == []


def test_what_is_moved_is_an_edit_at_both_ends(edits: Edits):
    tokens = ids(TEXT)
    edits.move(0, 5, len(tokens) - 5, tokens)
    tokens = tokens[5:] + tokens[:5]
    found = edits.recalled(tokens, 1.0)
    assert found
    assert found[0][0] == 0
    edits.clear()
    assert edits.recalled(tokens, 1.0) == []


# ---- contexts ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("cache", CACHES)
def test_repair_computes_what_recalls_the_edits_and_forgets_them(deep: Path, cache: str):
    with load(deep, cache) as llm:
        before, tokens = n_free(llm), ids_of(60)
        kept = tokens[:10] + tokens[12:]
        edits = Edits(lambda id: llm.tokenizer.decode_token(id).decode("utf-8", "replace"))
        edits.delete(10, 12, tokens)
        expected = edits.recalled(kept, 0.5)
        with llm.context() as edited:
            edited.append(tokens)
            edited.delete(10, 12)
            stale = edited.logits(tokens[:3])
            with edited.fork() as fork, edited.fork() as other:
                assert edited.repair(share=0.5) == sum(stop - start for start, stop in expected) > 0
                assert edited.tokens == kept
                assert edited.repair() == 0
                assert relative_error(edited.logits(tokens[:3]), stale) > 1e-3
                fork.recompute(expected)
                assert np.array_equal(fork.logits(tokens[:3]), edited.logits(tokens[:3]))
                other.repair(share=0.5)  # a fork has edits of its own
                assert np.array_equal(other.logits(tokens[:3]), edited.logits(tokens[:3]))
        assert n_free(llm) == before


def test_repair_after_streams_that_move_or_replace_tokens(deep: Path):
    with load(deep, "raw", n_ctx=64) as llm:
        before, tokens = n_free(llm), ids_of(50)
        with llm.context() as context:
            context.append(tokens)
            context.delete(10, 12)
            params = replace(GREEDY, context_shift=True, max_tokens=40)
            llm.generate(tokens[:3], params, context=context)  # evicts tokens before the edit
            assert len(context) <= 64
            assert context.repair(share=1.0) == 0
            context.truncate(20)
            context.delete(5, 7)
            llm.generate(tokens[:3], GREEDY, context=context)
            assert context.repair(share=1.0) > 0
        assert n_free(llm) == before


def test_a_share_that_is_none_is_refused(deep: Path):
    with load(deep, "raw") as llm, llm.context() as context:
        context.append(ids_of(20))
        for share in (-0.1, 1.1, "all", None, float("nan")):
            with pytest.raises(ValueError, match="expected a number from 0 to 1"):
                context.repair(share=share)  # type: ignore[arg-type]
        assert context.repair() == 0
