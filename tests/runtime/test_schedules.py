"""Logits have the same bits however tokens are cut into passes, whoever is beside them, and
whatever was computed before and taken back."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM
from lariat.runtime.batch import Part

from tests.support.contexts import CACHES, GREEDY, ids_of, load
from tests.support.model_files import write_llama

TYPES = ("f16", "f32", "q8_0", "q4_0", "q8_ch", "q4_ch")
N_TOKENS = 140
UBATCHES = (1, 3, 32, 100, 512)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By query heads to a KV head"""
    folder = tmp_path_factory.mktemp("models")
    return {
        group: write_llama(
            folder / f"{group}.gguf",
            n_layers=2,
            n_heads=n_heads,
            n_kv_heads=n_heads // group,
            head_dim=64,
            n_ctx=256,
        )
        for group, n_heads in ((1, 2), (3, 3), (8, 8))
    }


def logits_of(llm: LLM, ids: list[int]) -> np.ndarray:
    return llm.logits(ids).copy()


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("cache", CACHES)
def test_any_pieces_and_any_ubatch(isa, paths, cache, type):
    for path in paths.values():
        ids = ids_of(N_TOKENS)
        expected = None
        for n_ubatch in UBATCHES:
            with load(path, cache, type_k=type, type_v=type, n_ubatch=n_ubatch) as llm:
                logits = logits_of(llm, ids)
                expected = logits if expected is None else expected
                assert np.array_equal(logits, expected), n_ubatch
                rng = random.Random(n_ubatch)
                with llm.context() as context:
                    while len(context) < N_TOKENS - 40:
                        context.append(ids[len(context) :][: rng.randint(1, 40)])
                    at = len(context)
                    assert np.array_equal(context.logits(ids[at:]), expected[at:])


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("cache", CACHES)
def test_tokens_that_are_taken_back_leave_no_trace(isa, paths, cache, type):
    """As rejected drafts are: up to a block of them, across the end of a block or not"""
    ids = ids_of(N_TOKENS)
    with load(paths[1], cache, type_k=type, type_v=type) as llm:
        expected = logits_of(llm, ids)
        for seed in range(4):
            rng = random.Random(seed)
            with llm.context() as context:
                while len(context) < N_TOKENS - 30:
                    n = rng.randint(1, 9)
                    start = len(context)
                    context.append(ids[start : start + n])
                    context.append(ids_of(rng.randint(1, 32 - n), seed))
                    context.truncate(start + rng.randint(1, n))
                    if rng.random() < 0.2:
                        with context.fork() as other:
                            other.truncate(len(other) - 1)
                            other.append(ids_of(5))
                at = len(context)
                assert np.array_equal(context.logits(ids[at:]), expected[at:]), seed


def recorded(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], list[np.ndarray]]:
    """From now on, the logits of each pass by all tokens of the request up to theirs."""
    seen: dict[tuple[int, ...], list[np.ndarray]] = {}
    forward: Callable[..., np.ndarray] = llm.runner.forward

    def recording(parts: list[Part], *args, **options) -> np.ndarray:
        rows = forward(parts, *args, **options)
        wanted = [part for part in parts if part.logits == "last"]
        if all(part.request for part in parts) and len(wanted) == len(rows):
            for part, row in zip(wanted, rows, strict=True):
                key = tuple(part.request.ids[: part.table.n_tokens])
                seen.setdefault(key, []).append(row.copy())
        return rows

    monkeypatch.setattr(llm.runner, "forward", recording)
    return seen


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("cache", CACHES)
def test_neighbours_preemption_and_shared_prefixes(paths, cache, type, monkeypatch):
    """A pool that is too small for all, and prompts that begin alike; then each one alone."""
    shared = ids_of(70)
    prompts = [ids_of(n, seed=n) for n in (30, 31, 50, 2)] + [shared + ids_of(n) for n in (1, 9)]
    options = dict(type_k=type, type_v=type)
    with load(paths[3], cache, n_ctx=128, n_ubatch=32, **options) as llm:
        together = recorded(llm, monkeypatch)
        llm.generate(prompts, GREEDY)
        llm.generate(prompts, GREEDY)  # behind blocks that were kept
    monkeypatch.undo()
    with load(paths[3], cache, prefix_sharing=False, **options) as llm:
        for ids, rows in together.items():
            expected = logits_of(llm, list(ids))[-1]
            assert all(np.array_equal(row, expected) for row in rows), len(ids)
    assert len(together) >= len(prompts) * GREEDY.max_tokens
