"""Values of wrong types and sizes, at every entrance: a ValueError with a sentence, never another
exception from within, and nothing is computed."""

from __future__ import annotations

import dataclasses
import decimal
import fractions
import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import LLM, ChunkLibrary, Completion, LariatError, RopeConfig, SamplingParams
from lariat.config import EngineConfig
from lariat.runtime import sampler

from tests.support.contexts import ids_of, write_deep

ODD = {
    "None": None,
    "a bool": False,
    "a number": 7,
    "a fraction": 0.25,
    "a large number": 10**310,
    "a negative number": -(10**310),
    "NaN": math.nan,
    "a Fraction": fractions.Fraction(1, 3),
    "a Decimal": decimal.Decimal(2),
    "a complex number": 1j,
    "an object": object(),
    "a function": len,
    "a class": LLM,
    "bytes": b"cat",
    "no bytes": b"",
    "a dict": {"a": 1},
    "ids in a dict": {4: 1.0},
    "a set": {4, 5},
    "a list of None": [None],
    "a mixed list": ["a", 4, None],
    "a list of lists": [[4], [None]],
    "a list of bytes": [b"cat"],
    "an iterator": iter([4]),
    "a range": range(4, 6),
    "a NumPy number": np.float32(0.5),
    "a NumPy whole number": np.int16(3),
    "an array of no dimension": np.array(4),
    "an array of floats": np.array([0.5]),
    "a matrix": np.array([[4, 5]]),
    "a matrix of floats": np.array([[0.5]]),
    "an array of objects": np.array([None, "a"]),
}
GREEDY = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(path: Path) -> Iterator[LLM]:
    with LLM(path, cache="raw", n_threads=1, n_ctx=64) as llm:
        yield llm


@pytest.fixture
def llm(loaded: LLM) -> Iterator[LLM]:
    pool = loaded.runner.cache.pool
    yield loaded
    assert pool.n_free == pool.n_blocks, "blocks leaked"
    assert loaded.runner.scheduler.n_unfinished == 0


def is_refused(act: Callable[[], object], *others: type[Exception]) -> bool:
    """Whether it raises a ValueError with a sentence, or one of `others`; other exceptions fail."""
    try:
        act()
    except (ValueError, *others) as error:
        sentence = str(error)
    else:
        return False
    assert len(sentence) > 10
    assert "ambiguous" not in sentence  # NumPy's own words
    return True


def errors_of(completions: list[Completion]) -> None:
    """Raise the first error of a list of prompts."""
    for completion in completions:
        if completion.error is not None:
            raise completion.error


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("config", [SamplingParams, RopeConfig, EngineConfig])
def test_every_field_takes_a_value_or_refuses_it(config: type, odd: Any) -> None:
    for field in dataclasses.fields(config):
        taken = not is_refused(lambda name=field.name: config(**{name: odd}))
        # Threads are checked with what the machine has, see the next test.
        if taken and field.name not in (
            "stop",
            "stop_token_ids",
            "logits_processors",
            "logit_bias",
            "rope",
            "n_threads",
            "n_threads_batch",
        ):
            # What is taken is a plain value, so that no later line sees another type.
            value = getattr(config(**{field.name: odd}), field.name)
            assert value is None or type(value) in (int, float, bool, str), field.name


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_every_parameter_of_a_model_is_checked_before_its_file(odd: Any) -> None:
    for name in inspect.signature(LLM).parameters:
        options = {"model_path": "/no/such/file", name: odd}
        is_refused(lambda options=options: LLM(**options), OSError)
        if odd is not None and name in ("cache", "type_k", "type_v", "rope"):
            with pytest.raises(ValueError, match=name):
                LLM(**options)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_every_entrance_of_a_prompt(llm: LLM, odd: Any, tmp_path: Path) -> None:
    """Token ids in a list, a range or an array are a prompt; nothing else of these is."""
    is_prompt = isinstance(odd, range)
    library = ChunkLibrary(tmp_path)
    with llm.context() as context:
        context.append([5, 6, 7])
        for name, act in {
            "stream": lambda: list(llm.stream(odd, GREEDY)),
            "logits": lambda: llm.logits(odd),
            "check_ids": lambda: llm.check_ids(odd),
            "append": lambda: context.append(odd),
            "insert": lambda: context.insert(1, odd),
            "Context.logits": lambda: context.logits(odd),
            "stream a context": lambda: list(llm.stream(odd, GREEDY, context=context)),
            "generate with a context": lambda: llm.generate(odd, GREEDY, context=context),
            "generate a list": lambda: errors_of(llm.generate([[5], odd], GREEDY)),
            "add": lambda: library.add(llm, "a", odd),
        }.items():
            assert is_refused(act) is not is_prompt, name
        is_refused(lambda: llm.generate(odd, GREEDY))  # a matrix is several prompts
        is_refused(lambda: llm.detokenize(odd))
        if not is_prompt:
            assert is_refused(lambda: llm.tokenize(odd))


@pytest.mark.parametrize("odd", [b"cat", bytearray(b"cat"), memoryview(b"cat")])
def test_bytes_are_nowhere_taken_for_ids(llm: LLM, odd: Any, tmp_path: Path) -> None:
    with llm.context() as context:
        for act in (
            lambda: llm.detokenize(odd),
            lambda: llm.tokenize(odd),
            lambda: errors_of(llm.generate([[5], odd], GREEDY)),
            lambda: llm.check_ids(odd),
            lambda: list(llm.stream(odd, GREEDY, context=context)),
        ):
            assert is_refused(act)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_every_other_parameter(llm: LLM, odd: Any, tmp_path: Path) -> None:
    library = ChunkLibrary(tmp_path)
    chunk = library.add(llm, "a", "the hat")
    with llm.context() as context:
        context.append(ids_of(9))
        for act in (
            lambda: context.insert(odd, [5]),
            lambda: context.delete(odd, 2),
            lambda: context.delete(1, odd),
            lambda: context.truncate(odd),
            lambda: context.move(odd, 2, 1),
            lambda: context.move(0, odd, 1),
            lambda: context.move(0, 1, odd),
            lambda: context.append(chunk, recompute=odd),
            lambda: library[odd],
            lambda: library.remove(odd),
            lambda: library.add(llm, odd, "x"),
        ):
            is_refused(act, IndexError)
            context.truncate(0)
            context.append(ids_of(9))
        if odd is not None:
            assert is_refused(lambda: llm.generate([5], odd))
            assert is_refused(lambda: llm.generate([5], GREEDY, context=odd))
            assert is_refused(lambda: llm.stream([5], GREEDY, prompt_progress=odd)) is not callable(
                odd
            )
        assert is_refused(lambda: llm.set_rope(odd))
        assert is_refused(lambda: context.save(tmp_path / "c", note=odd))
        if not isinstance(odd, bytes):
            assert is_refused(lambda: context.save(odd))
            assert is_refused(lambda: context.load(odd))
            assert is_refused(lambda: ChunkLibrary(odd))


def test_none_means_none() -> None:
    params = SamplingParams(stop=None, logit_bias=None, seed=None)
    assert params == SamplingParams(stop=(), logit_bias={})
    assert SamplingParams(stop="end").stop == SamplingParams(stop=["end"]).stop == ("end",)


def test_overrides_are_of_the_types_of_metadata(path: Path) -> None:
    for bad, words in (
        ({"llama.block_count": None}, "override of llama.block_count is None"),
        ({"llama.block_count": [3]}, "expected a str, int, float or bool"),
        ({3: "x"}, "a key of overrides is 3"),
        ([("a", 1)], "expected a dict"),
    ):
        with pytest.raises(ValueError, match=words):
            LLM(path, overrides=bad)  # type: ignore[arg-type]
    with LLM(str(path).encode(), overrides=None, n_ctx=32) as llm:  # type: ignore[arg-type]
        assert llm.n_ctx == 32


def test_a_context_of_another_model_is_refused(llm: LLM, path: Path) -> None:
    """Its blocks are numbers of another pool."""
    with LLM(path, cache="raw", n_threads=1, n_ctx=64) as other, other.context() as context:
        context.append([5, 6])
        with pytest.raises(ValueError, match="another LLM"):
            llm.stream([7], GREEDY, context=context)
        assert len(context) == 2


# ---- biases and penalties that are too large ----


@pytest.mark.parametrize("bias", [1e39, -1e39, 10**400, math.inf, math.nan])
def test_a_bias_beyond_float32_is_refused(bias: float) -> None:
    with pytest.raises(ValueError, match="the logit bias of token 6 is"):
        SamplingParams(logit_bias={5: 1.0, 6: bias})


@pytest.mark.parametrize(
    "params",
    [
        {"logit_bias": {5: 1e38}, "repeat_penalty": 1e-6},
        {"logit_bias": {5: 1e38, 6: 1e38}, "repeat_penalty": 1e-5, "presence_penalty": -1e6},
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_overflows_together_is_blamed_and_not_the_file(
    llm: LLM, params: dict[str, Any], temperature: float
) -> None:
    wanted = SamplingParams(temperature=temperature, max_tokens=3, **params)
    with pytest.raises(LariatError, match="biases, penalties or processors make a logit inf"):
        llm.generate([5, 6], wanted)


def test_large_biases_that_fit_work(llm: LLM) -> None:
    for bias, chosen in ((1e38, True), (-1e38, False), (-math.inf, False)):
        params = SamplingParams(temperature=0, max_tokens=1, logit_bias={9: bias})
        assert (llm.generate([5, 6], params).token_ids == [9]) is chosen


def test_a_damaged_row_is_still_the_file_s_fault() -> None:
    logits = np.zeros(4, np.float32)
    logits[2] = np.inf
    with pytest.raises(LariatError, match="the model or its file is damaged"):
        sampler.sample(logits, SamplingParams(logit_bias={1: 5.0}), [], np.random.default_rng(0))


# ---- refusals before work begins ----


@pytest.mark.parametrize("types", ["q8_ch", "q4_ch"])
def test_a_shift_that_cannot_be_is_refused_before_anything_is_computed(
    path: Path, types: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = SamplingParams(max_tokens=500, context_shift=True)
    with LLM(path, n_ctx=64, type_k=types, type_v="f16") as llm, llm.context() as context:
        monkeypatch.setattr(llm.runner.model, "forward", None)
        for act in (
            lambda: llm.stream([5, 6], endless),
            lambda: llm.generate([[5], [6]], endless),
            lambda: llm.stream([5, 6], endless, context=context),
        ):
            with pytest.raises(ValueError, match=f"type {types} cannot in the roped cache"):
                act()
    for cache, type_k, type_v in (("raw", types, types), ("roped", "q8_0", types)):
        with LLM(path, n_ctx=96, cache=cache, type_k=type_k, type_v=type_v, n_threads=1) as llm:
            shifted = SamplingParams(max_tokens=120, context_shift=True, ignore_eos=True)
            assert len(llm.generate([5, 6], shifted).token_ids) == 120


@pytest.mark.parametrize("bytes_of", [bytes, bytearray, memoryview])
def test_bytes_are_no_token_ids(loaded, bytes_of, tmp_path):
    """Each of their numbers would be one."""
    what = bytes_of(b"Once")
    with loaded.context() as context:
        for act in (
            lambda: loaded.generate(what),
            lambda: loaded.stream(what),
            lambda: errors_of(loaded.generate([what])),
            lambda: loaded.logits(what),
            lambda: context.append(what),
            lambda: context.insert(0, what),
            lambda: context.logits(what),
            lambda: loaded.generate(what, context=context),
            lambda: ChunkLibrary(tmp_path).add(loaded, "a", what),
        ):
            with pytest.raises(ValueError, match=r"bytes|not a token id"):
                act()
