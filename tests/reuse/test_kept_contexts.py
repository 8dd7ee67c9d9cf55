"""Contexts of earlier prompts, edited into later ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from lariat.errors import ContextError
from lariat.reuse.kept_contexts import WAYS, KeptContexts, Prepared
from lariat.reuse.library import ChunkLibrary
from lariat.reuse.rearrange import find_document, plan

from tests.reference import relative_error
from tests.support.contexts import ids_of, load
from tests.support.model_files import write_llama

A, B, C, D, E = ids_of(40), ids_of(30, 1), ids_of(20, 2), ids_of(35, 3), ids_of(3, 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer: there keys and values depend on their own token alone, so that moving them has an
    exact answer."""
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_layers=1, n_ctx=512)


def joined(texts: Sequence[list[int]]) -> list[int]:
    return list(chain.from_iterable(texts))


def logits(prepared: Prepared) -> np.ndarray:
    return prepared.context.logits(prepared.rest)[-1]


def use(kept: KeptContexts, ids: list[int], way: str = "placed", documents=()) -> Prepared:
    """Prepare a prompt, and keep it with all its tokens, as a stream would leave it."""
    prepared = kept.prepare(ids, documents, way)
    prepared.context.append(prepared.rest)
    kept.keep(prepared)
    return prepared


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("before", "prompt", "n_computed", "n_moved"),
    [
        (A + B, A + B + C, len(C), 0),  # the next turn
        (A + B + C, A + D + C + E, len(D + E), len(C)),  # a turn was edited
        (A + B + C, A + C + E, len(E), len(C)),  # one was taken out
        (A + B + C, B + A + C + E, len(E), len(A + B + C)),  # two were exchanged
        (A + C, A + B + C + E, len(B + E), len(C)),  # one was put in
        (A + B, C + D, len(C + D), 0),
        (A, A, 1, 0),
    ],
)
def test_a_prompt_is_put_together_from_what_is_there(
    path, way, before, prompt, n_computed, n_moved
):
    with load(path, "raw") as llm:
        kept = KeptContexts(llm)
        use(kept, before)
        prepared = kept.prepare(prompt, (), way)
        assert prepared.context.tokens + prepared.rest == prompt
        if way == "exact":
            assert prepared.plan.n_moved == 0
        else:
            assert prepared.plan.n_computed == n_computed
            assert prepared.plan.n_moved == n_moved
        assert relative_error(logits(prepared), llm.logits(prompt)[-1]) < 2e-3
        prepared.context.close()
        kept.clear()
        assert llm.runner.cache.pool.n_free == llm.runner.cache.pool.n_blocks


def test_any_order_of_pieces_is_found(path):
    rng = random.Random(5)
    texts = [ids_of(16 + rng.randrange(30), seed) for seed in range(10, 18)]
    with load(path, "raw", n_ctx=2048) as llm:
        kept = KeptContexts(llm)
        use(kept, joined(texts[:6]))
        for _ in range(20):
            prompt = joined(rng.sample(texts, rng.randrange(1, 8))) + E
            prepared = use(kept, prompt, rng.choice(("placed", "repaired")))
            assert prepared.context.tokens == prompt
            assert sum(map(len, prepared.plan.pieces)) == len(prompt)
            with prepared.context.fork() as copy:
                expected = llm.logits([*prompt, 7])[-1]
                assert relative_error(copy.logits([7])[-1], expected) < 2e-3
        kept.clear()


def test_exact_takes_only_what_is_exact(path):
    with load(path, "raw") as llm:
        kept = KeptContexts(llm)
        use(kept, A + B + C)
        moved = use(kept, A + C + D)
        assert moved.plan.n_exact == len(A)
        again = kept.plan(A + C + D + E, (), "exact")
        assert (again.n_computed, again.n_moved) == (len(C + D + E), 0)
        assert kept.plan(A + C + D + E, (), "placed").n_computed == len(E)
        # What is computed with moved text before it is moved text too.
        assert kept.plan(A + C + D + E, (), "placed").n_moved == len(C + D)


def test_documents_come_from_their_files(path, tmp_path):
    with load(path, "raw") as llm:
        library, kept = ChunkLibrary(tmp_path / "library"), KeptContexts(llm)
        chunks = [library.add(llm, name, ids) for name, ids in (("b", B), ("d", D))]
        prompt = A + B + C + D + E
        documents = [find_document(chunk, prompt) for chunk in chunks]
        assert [(d.start, d.stop) for d in documents] == [(40, 70), (90, 125)]
        for way, n_computed in (("exact", len(prompt)), ("placed", 63), ("repaired", 63)):
            prepared = kept.prepare(prompt, documents, way)
            assert prepared.context.tokens + prepared.rest == prompt
            assert prepared.plan.n_computed == n_computed
            assert relative_error(logits(prepared), llm.logits(prompt)[-1]) < 2e-3
            prepared.context.close()
        # The same documents in another order come from the context that holds them.
        use(kept, prompt, "placed", documents)
        other = A + D + C + B + E
        again = [find_document(chunk, other) for chunk in chunks]
        assert kept.plan(other, again, "placed").n_computed == len(E)
        assert all(p.document is None for p in kept.plan(other, again, "placed").pieces)


def test_a_document_that_the_text_around_it_changes_is_cut(path, tmp_path):
    with load(path, "raw") as llm:
        chunk = ChunkLibrary(tmp_path / "library").add(llm, "b", B)
        prompt = A + B[2:-3] + C
        document = find_document(chunk, prompt)
        assert (document.start, document.stop, document.n_behind) == (40, 65, 3)
        prepared = KeptContexts(llm).prepare(prompt, [document], "placed")
        assert prepared.context.tokens + prepared.rest == prompt
        assert prepared.plan.n_computed == len(A + C)
        assert relative_error(logits(prepared), llm.logits(prompt)[-1]) < 2e-3
        assert find_document(chunk, A + C) is None


def test_room_is_made_by_those_that_were_used_least_recently(path):
    with load(path, "raw") as llm:
        pool = llm.runner.cache.pool
        kept = KeptContexts(llm)
        use(kept, A)
        use(kept, B)
        kept.plan(A + E, (), "placed")
        use(kept, A + E)  # closes that of A, which it begins with
        assert len(kept) == 2
        kept.make_room((pool.n_free - 1) * 32)
        assert len(kept) == 2
        kept.make_room(pool.n_free * 32)
        assert len(kept) == 1
        assert kept.plan(A + E + C, (), "placed").n_computed == len(C)
        kept.make_room(10**6)
        assert (len(kept), pool.n_free) == (0, pool.n_blocks)


def test_a_prompt_makes_room_for_itself(path):
    with load(path, "raw", n_ctx=96) as llm:
        kept = KeptContexts(llm)
        for ids in (A, B, C, D, A + B):
            use(kept, ids)
        assert kept.prepare(A + B + C, (), "placed").plan.n_computed == len(C)


def test_few_contexts_are_kept(path):
    with load(path, "raw") as llm:
        kept = KeptContexts(llm, max_contexts=2)
        for ids in (A, B, C):
            use(kept, ids)
        assert len(kept) == 2
        assert kept.plan(A + E, (), "placed").n_computed == len(A + E)
        assert kept.plan(B + E, (), "placed").n_computed == len(E)


def test_a_roped_cache_is_exact_alone(path):
    with load(path, "roped") as llm:
        kept = KeptContexts(llm)
        use(kept, A + B, "exact")
        assert kept.plan(A + B + C, (), "exact").n_computed == len(C)
        with pytest.raises(ContextError, match="raw cache"):
            kept.plan(A, (), "placed")
        with pytest.raises(ValueError, match="expected one of exact, repaired, placed"):
            kept.plan(A, (), "moved")


def test_a_plan_of_nothing_computes_all():
    made = plan([], A, n_exact=0, n_least=16)
    assert (made.n_computed, made.n_moved, made.n_exact) == (len(A), 0, len(A))
