"""`LLM.embed`: vectors of texts, against the model in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lariat import DEMO_MODEL, LLM, SamplingParams

from tests.reference import Reference, relative_error
from tests.support.model_files import write_llama

IDS = [3 + i * 7 % 280 for i in range(300)]  # several pieces


@pytest.mark.parametrize("cache", ["roped", "raw"])
def test_vectors_follow_the_reference(tmp_path: Path, cache: str) -> None:
    path = write_llama(tmp_path / "m.gguf", dim=32, n_heads=4, n_kv_heads=2)
    rows = Reference(path).hidden(IDS)
    with LLM(path, cache=cache, type_k="f32", type_v="f32", n_threads=2, n_ctx=512) as llm:
        mean, last = (llm.embed(IDS, how, normalize=False) for how in ("mean", "last"))
        assert mean.dtype == np.float32
        assert mean.shape == (llm.config.dim,)
        assert relative_error(mean, rows.mean(0)) < 1e-5
        assert relative_error(last, rows[-1]) < 1e-5
        unit = llm.embed(IDS, "last")
        assert relative_error(unit, rows[-1] / np.linalg.norm(rows[-1])) < 1e-5
        pool = llm.runner.cache.pool
        assert pool.n_free == pool.n_blocks


def test_logits_are_what_they_were_after_a_vector() -> None:
    with LLM(DEMO_MODEL, n_threads=1) as llm:
        ids = llm.tokenize("Once upon a time")
        before = llm.logits(ids)
        vector = llm.embed("Once upon a time")
        assert np.array_equal(llm.logits(ids), before)
        assert np.array_equal(llm.embed(ids), vector)
        with llm.stream("One day", SamplingParams(max_tokens=8, seed=1)) as stream:
            next(stream)
            assert np.array_equal(llm.embed(ids), vector)  # beside others
            rest = "".join(stream)
        assert stream.completion.text.endswith(rest)
        assert stream.completion.text == llm.generate("One day", stream_params()).text


def stream_params() -> SamplingParams:
    return SamplingParams(max_tokens=8, seed=1)


def test_what_cannot_be_a_vector_is_refused() -> None:
    with LLM(DEMO_MODEL, n_threads=1, n_ctx=64) as llm:
        for prompt, pooling, message in [
            ("a", "max", "pooling is 'max'"),
            ([], "mean", "the prompt is empty"),
            ([5] * 65, "mean", "more than the context"),
            ([999999], "mean", "out of range"),
        ]:
            with pytest.raises(ValueError, match=message):
                llm.embed(prompt, pooling)
