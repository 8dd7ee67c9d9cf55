"""The same seed writes the same text and the same log-probabilities: alone, beside others, with
prefixes shared, in pieces and after a preemption. Bit for bit, with all types of the cache."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
from lariat import LLM, Completion, SamplingParams
from lariat.config import CACHE_TYPES

from tests.support.contexts import CACHES, ids_of, load, n_held, write_deep

PROMPT = ids_of(75)
PARAMS = SamplingParams(seed=7, max_tokens=30, ignore_eos=True, logprobs=3, temperature=1.0)

both = pytest.mark.parametrize("cache", CACHES)
each_type = pytest.mark.parametrize("type", CACHE_TYPES)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("model"))


def loaded(path: Path, cache: str, type: str, **options: object) -> LLM:
    return load(path, cache, type_k=type, type_v=type, **options)


@functools.cache
def alone(path: Path, cache: str, type: str) -> Completion:
    with loaded(path, cache, type) as llm:
        return llm.generate(PROMPT, PARAMS)


def assert_same(done: Completion, expected: Completion) -> None:
    assert done.token_ids == expected.token_ids
    assert done.text == expected.text
    assert done.logprobs == expected.logprobs


@both
@each_type
def test_beside_others(path, cache, type):
    """Others come and go while it runs; its passes have all sizes."""
    expected = alone(path, cache, type)
    with loaded(path, cache, type, n_ctx=2048, n_batch=96) as llm:
        others = [llm.stream(ids_of(40 + 30 * i, i + 1), PARAMS) for i in range(4)]
        for other in others[:3]:
            next(other)
        with llm.stream(PROMPT, PARAMS) as stream:
            first = next(stream)
            others[1].close()
            with llm.stream(ids_of(200, 9), PARAMS) as late:
                next(late)
                rest = "".join(stream)
            assert_same(stream.completion, expected)
            assert first + rest == expected.text
        for other in others:
            other.close()
        assert not n_held(llm)


@both
@each_type
def test_with_a_shared_prefix(path, cache, type):
    expected = alone(path, cache, type)
    with loaded(path, cache, type) as llm:
        llm.generate([*PROMPT[:64], 5, 6, 7], PARAMS)
        done = llm.generate(PROMPT, PARAMS)
        assert done.timings.n_reused == 64
        assert_same(done, expected)
        assert_same(llm.generate(PROMPT, PARAMS), expected)


@both
@each_type
@pytest.mark.parametrize("options", [{"n_ubatch": 1}, {"n_ubatch": 7, "n_batch": 40}])
def test_with_the_prompt_in_pieces(path, cache, type, options):
    expected = alone(path, cache, type)
    with loaded(path, cache, type, **options) as llm:
        assert_same(llm.generate(PROMPT, PARAMS), expected)


@both
@each_type
def test_after_a_preemption(path, cache, type):
    expected = alone(path, cache, type)
    with loaded(path, cache, type, n_ctx=192, prefix_sharing=False) as llm:
        with llm.stream(ids_of(110, 3), PARAMS) as older, llm.stream(PROMPT, PARAMS) as stream:
            "".join(older)
            "".join(stream)
            assert stream.completion.timings.n_prompt > 75, "it was computed again"
        assert_same(stream.completion, expected)


@both
@pytest.mark.parametrize("type", ["f16", "q8_0"])
def test_as_one_of_several_completions(path, cache, type):
    """Each is what its own seed writes alone."""
    several = replace(PARAMS, n=3)
    with loaded(path, cache, type) as llm:
        together = llm.generate(PROMPT, several)
        assert_same(together[0], alone(path, cache, type))
        for done, own in zip(together[1:], several.each()[1:], strict=True):
            with loaded(path, cache, type) as other:
                assert_same(other.generate(PROMPT, own), done)


@both
@each_type
def test_with_log_probabilities_of_the_prompt(path, cache, type):
    with loaded(path, cache, type) as llm:
        done = llm.generate(PROMPT, replace(PARAMS, prompt_logprobs=2))
    assert_same(done, alone(path, cache, type))
