"""`bench.reuse_readings`: its reader beside the engine, and what its choosers choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("bench", reason="runs from the source tree only")

from lariat import LLM, ChunkLibrary, Recompute
from lariat.measure import reuse_quality

from bench import reuse_readings
from bench.reuse_readings import AtOnce, ByAttention, ByDeviation, Reading
from tests.support.contexts import GREEDY, ids_of, load
from tests.support.model_files import write_llama

TEXTS = [ids_of(50), ids_of(40, 1), ids_of(30, 2)]
QUESTION, ANSWER = ids_of(9, 3), ids_of(4, 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_llama(folder / "m.gguf", n_layers=3, n_ctx=512, dim=128, n_heads=4, n_kv_heads=2)


@pytest.fixture(scope="module")
def llm(path: Path):
    with load(path, "raw") as llm:
        yield llm


def test_the_reader_reads_what_the_engine_reads(llm: LLM, path: Path):
    with llm.context() as context:
        context.append([1, *TEXTS[0], *TEXTS[1]])
        expected = reuse_quality.predict(context, QUESTION, ANSWER)
        stored = reuse_readings.stored_in(llm, context)

    def predicted(reading: Reading) -> np.ndarray:
        return reuse_readings.predict(str(path), stored, TEXTS[:2], QUESTION, ANSWER, reading)

    assert np.allclose(predicted(Reading()), expected, atol=1e-3)
    for other in (
        Reading(parallel=True), Reading(temperature=0.8), Reading(scale=0.8), Reading(n_hidden=9)
    ):  # fmt: skip
        assert not np.allclose(predicted(other), expected, atol=1e-3), other


def test_hidden_tokens_are_as_good_as_gone(llm: LLM, path: Path):
    n = len(TEXTS[0])
    with llm.context() as context:
        context.append([*TEXTS[0], *TEXTS[1]])
        keys, values = reuse_readings.stored_in(llm, context)
    changed = values.copy()
    changed[:, n : n + 4] = 100.0
    found = [
        reuse_readings.predict(
            str(path), (keys, each), TEXTS[:2], QUESTION, ANSWER, Reading(n_hidden=4)
        )
        for each in (values, changed)
    ]
    assert np.array_equal(*found)


def test_tokens_are_chosen_and_counted(llm: LLM, path: Path, tmp_path: Path):
    library = ChunkLibrary(tmp_path / "shelf")
    chunks = [library.add(llm, str(i), text) for i, text in enumerate(TEXTS)]
    n_moved = sum(map(len, TEXTS[1:]))
    for chooser, n_chosen, n_tried in (
        (ByDeviation(0, 0.5), n_moved // 2, round(n_moved / 3)),
        (ByDeviation(4, 0.0), 8, round(n_moved / 3)),
        (ByAttention(str(path), 0, 0.5), n_moved // 2, len(QUESTION)),
        (AtOnce(Recompute(first=4)), 8, 0),
    ):
        with llm.context() as context:
            for chunk in chunks:
                context.append(chunk, recompute=chooser)
            done = llm.generate(QUESTION, GREEDY, context=context)
        assert done.timings.n_recomputed == n_chosen, chooser
        assert done.timings.n_prompt == n_chosen + n_tried + len(QUESTION)


def test_all_tokens_by_deviation_are_full_prefill(llm: LLM, tmp_path: Path):
    library, chooser = ChunkLibrary(tmp_path / "shelf"), ByDeviation(0, 1.0)
    with llm.context() as context, llm.context() as full:
        for i, text in enumerate(TEXTS):
            context.append(library.add(llm, str(i), text), recompute=chooser)
        full.append(context.tokens)
        assert np.allclose(context.logits(QUESTION), full.logits(QUESTION), atol=1e-3)
