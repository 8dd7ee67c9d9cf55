"""Streams that are left halfway, and errors in the middle of a step: nothing leaks, LLM goes on."""

from __future__ import annotations

import contextlib
import gc
import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lariat
import numpy as np
import pytest
from lariat import LLM, LariatError, SamplingParams, _attention, _cache, _kernels
from lariat._program import Program
from lariat.architectures import model, recorder
from lariat.cache.kv_cache import KVCache
from lariat.runtime import sampler

from tests.support.model_files import write_llama

PACKAGE = Path(lariat.__file__).parent
# What is called once for each size of batch, when its program is recorded, and for every batch.
RECORDED = {
    "rms_norm": recorder, "quantize": recorder, "matmul": recorder, "silu_mul": recorder,
    "rope": _kernels, "store": _cache, "attend": _attention,
}  # fmt: skip
PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = [[1, 5, 6, 7], [9] * 40, [1, 2, 3]]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_llama(folder / "m.gguf", n_layers=2, weight_type="Q8_0", n_ctx=256)


@pytest.fixture
def llm(path) -> Iterator[LLM]:
    with LLM(path, n_threads=1) as llm:
        yield llm
        assert_as_good_as_new(llm)


@pytest.fixture(scope="module")
def expected(path) -> list[list[int]]:
    with LLM(path, n_threads=1) as llm:
        return [llm.generate(prompt, PARAMS).token_ids for prompt in PROMPTS]


def assert_idle(llm: LLM) -> None:
    pool = llm.runner.cache.pool
    assert pool.n_free == pool.n_blocks, "blocks leaked"
    assert llm.runner.scheduler.n_unfinished == 0


def assert_as_good_as_new(llm: LLM) -> None:
    assert_idle(llm)
    again = llm.generate(PROMPTS[0], PARAMS)
    assert len(again.token_ids) == PARAMS.max_tokens
    assert again.finish_reason == "length"
    assert_idle(llm)


# ---- left halfway ----


@pytest.mark.parametrize("n_pieces", [0, 1, 3])
def test_closing_a_stream_halfway_frees_its_blocks(llm, n_pieces):
    stream = llm.stream(PROMPTS[1], PARAMS)
    for _ in range(n_pieces):
        next(stream)
    stream.close()
    assert_idle(llm)
    stream.close()
    assert stream.completion.finish_reason is None
    left = list(stream)  # what was computed may still be shown, and nothing more is computed
    assert len(left) <= 1
    assert_idle(llm)


def test_closing_one_of_two_leaves_the_other(llm, expected):
    a, b = (llm.stream(prompt, PARAMS) for prompt in PROMPTS[:2])
    next(a), next(b)
    a.close()
    pool = llm.runner.cache.pool
    assert pool.n_blocks - pool.n_free == 2, "the blocks of b"
    list(b)
    assert b.completion.token_ids == expected[1]
    n = len(a.completion.token_ids)
    assert a.completion.token_ids == expected[0][:n]
    assert n < PARAMS.max_tokens


def test_a_with_statement_closes_the_stream_after_break_and_error(llm):
    with llm.stream(PROMPTS[1], PARAMS) as stream:
        for _ in stream:
            break
    assert_idle(llm)
    with pytest.raises(KeyError), llm.stream(PROMPTS[1], PARAMS) as stream:
        raise KeyError(next(stream))
    assert_idle(llm)


def test_a_stream_that_nobody_holds_any_more_frees_its_blocks(llm):
    for _ in llm.stream(PROMPTS[1], PARAMS):
        break
    gc.collect()
    assert_idle(llm)


def test_streams_that_nobody_holds_do_not_slow_down_the_others(llm, monkeypatch):
    for _ in range(3):
        next(llm.stream(PROMPTS[0], PARAMS))
    gc.collect()
    sizes = []
    original = llm.runner.model.forward
    monkeypatch.setattr(
        llm.runner.model,
        "forward",
        lambda batch, n: sizes.append(batch.n_tokens) or original(batch, n),
    )
    llm.generate(PROMPTS[2], PARAMS)
    assert set(sizes[1:]) == {1}, "tokens were computed for a stream that is gone"


def test_closing_the_model_with_open_streams(path):
    llm = LLM(path, n_threads=1)
    stream = llm.stream(PROMPTS[0], PARAMS)
    next(stream)
    llm.close()
    n = len(stream.completion.token_ids)
    # Ends, or says that the model is closed; what was there may still come.
    with contextlib.suppress(ValueError):
        assert len(list(stream)) <= 1
    assert len(stream.completion.token_ids) == n
    assert stream.completion.finish_reason is None
    stream.close()


# ---- errors in the middle of a step ----


class Fault:
    """Fails at the n-th call of a kernel, of "prepare" of the cache, or of "run" of a program."""

    def __init__(self, monkeypatch, name: str, n: int, error: BaseException) -> None:
        self.n, self.error = n, error
        if name == "run":
            monkeypatch.setattr(model, "Program", self._program)
        else:
            where = RECORDED.get(name, KVCache)
            original = getattr(where, name)
            monkeypatch.setattr(where, name, lambda *args: self._counted(original, *args))

    def _counted(self, original: Callable, *args: object) -> object:
        self.n -= 1
        if self.n == 0:
            raise self.error
        return original(*args)

    def _program(self) -> Program:
        class Faulty(Program):
            def run(program, *args: int) -> None:
                self._counted(super().run, *args)

        return Faulty()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("no memory")])
@pytest.mark.parametrize(
    ("name", "n"),
    [*((name, n) for name in RECORDED for n in (1, 2, 3)),
     *((name, n) for name in ("prepare", "run") for n in (1, 2, 9))],
)  # fmt: skip
def test_an_error_in_a_step_leaves_the_model_usable(llm, monkeypatch, expected, name, n, error):
    """While a program is recorded, between two layers of the prompts, some way into decoding."""
    with monkeypatch.context() as patch:
        fault = Fault(patch, name, n, error)
        with pytest.raises(type(error)):
            llm.generate(PROMPTS, PARAMS)
        assert fault.n == 0
    assert_idle(llm)
    llm.runner.model._recorded.clear()  # those that count calls
    assert [c.token_ids for c in llm.generate(PROMPTS, PARAMS)] == expected


def test_an_interrupted_stream_keeps_what_it_said(llm, monkeypatch, expected):
    stream = llm.stream(PROMPTS[0], PARAMS)
    llm.runner.model._recorded.clear()  # programs that count no runs
    with monkeypatch.context() as patch:
        Fault(patch, "run", 6, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            list(stream)
    assert stream.completion.token_ids == expected[0][:5]
    assert stream.completion.finish_reason is None
    assert stream.completion.timings.n_prompt == len(PROMPTS[0])
    assert stream.completion.timings.n_decode == 4
    assert_idle(llm)
    assert stream.completion.text
    left = "".join(stream)  # ends, and computes nothing more
    assert stream.completion.text.endswith(left)
    assert stream.completion.token_ids == expected[0][:5]


def test_an_interrupted_step_leaves_those_that_wait(path, monkeypatch, expected):
    """Only the sequences of the step are given up."""
    with LLM(path, n_threads=1, n_ctx=64) as llm:
        with llm.context() as context:
            context.append([7] * 64)  # two of four blocks
            first = llm.stream(PROMPTS[1], PARAMS)  # takes the other two
            second = llm.stream(PROMPTS[2], PARAMS)
            with monkeypatch.context() as patch:
                Fault(patch, "run", 1, KeyboardInterrupt())
                with pytest.raises(KeyboardInterrupt):
                    next(first)
            assert list(first) == []
            list(second)
            assert second.completion.token_ids == expected[2]
        assert_idle(llm)


def test_an_error_in_logits_leaves_the_model_usable(llm, monkeypatch):
    before = llm.logits(PROMPTS[1])
    llm.runner.model._recorded.clear()
    with monkeypatch.context() as patch:
        Fault(patch, "run", 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            llm.logits(PROMPTS[1])
    assert_idle(llm)
    assert np.array_equal(llm.logits(PROMPTS[1]), before)


def test_an_error_in_the_sampler_or_a_callback_leaves_the_model_usable(llm, monkeypatch, expected):
    def fail(*_: object) -> int:
        raise LariatError("the logits hold NaN")

    with monkeypatch.context() as patch:
        patch.setattr(sampler, "sample", fail)
        assert all("NaN" in str(done.error) for done in llm.generate(PROMPTS, PARAMS))
        with pytest.raises(LariatError, match="NaN"):
            llm.generate(PROMPTS[0], PARAMS)
    assert_idle(llm)
    with pytest.raises(LariatError, match="NaN"):
        list(llm.stream(PROMPTS[1], PARAMS, prompt_progress=fail))
    assert_idle(llm)
    assert [c.token_ids for c in llm.generate(PROMPTS, PARAMS)] == expected


_LOCKS = ("exclusively", "_locked")


class _InterruptAt:
    """A trace function that raises KeyboardInterrupt before the n-th line of some files."""

    def __init__(self, names: set[str], n: int) -> None:
        self._files = {str(PACKAGE / name) for name in names}
        self.n = n
        self.where = ""

    def __call__(self, frame, event, arg):
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame, event, arg):
        # A trace function may strike between the end of a `with` block and the release of its lock;
        # a signal does not, for Python looks for signals only after calls, jumps and resumptions.
        if event == "line" and self.n > 0 and frame.f_code.co_name not in _LOCKS:
            self.n -= 1
            if self.n == 0 and (_within_del(frame) or _is_with(frame)):
                self.n = 1  # take the next line
            elif self.n == 0:
                self.where = f"{frame.f_code.co_name}, line {frame.f_lineno}"
                raise KeyboardInterrupt
        return self._line


def _is_with(frame) -> bool:
    """Leaving a `with` is one step for a signal, but a trace function can fail before it."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith("with ")


def _within_del(frame) -> bool:
    """Python swallows what is raised there."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def interrupt_everywhere(llm: LLM, names: set[str], step: int) -> Iterator[str]:
    """Generate again and again, interrupted at every `step`-th line that is run; yields where."""
    prompts, params = PROMPTS[::2], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    n, before = 1, sys.gettrace()
    while True:
        trace = _InterruptAt(names, n)
        llm.runner.model._recorded.clear()
        sys.settrace(trace)
        try:
            llm.generate(prompts, params)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        if trace.n > 0:
            return
        gc.collect()
        yield trace.where
        n += step


@pytest.mark.skipif(sys.gettrace() is not None, reason="something else is tracing")
@pytest.mark.parametrize(
    ("names", "step"),
    [
        (
            {
                "architectures/llama.py",
                "architectures/model.py",
                "architectures/recorder.py",
                "cache/kv_cache.py",
                "runtime/batch.py",
            },
            11,
        ),
        ({"llm.py", "runtime/runner.py", "runtime/scheduler.py"}, 5),
    ],
)
def test_an_interrupt_at_any_line_leaves_the_model_usable(path, names, step):
    """Ctrl-C arrives between two lines of Python, most often right behind a kernel."""
    with LLM(path, n_threads=1, n_ctx=64) as llm:
        expected = [llm.generate(p, PARAMS).token_ids[:2] for p in PROMPTS[::2]]
        n_places = 0
        for where in interrupt_everywhere(llm, names, step):
            n_places += 1
            try:
                assert_idle(llm)
                params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
                again = llm.generate(PROMPTS[::2], params)
                assert [c.token_ids for c in again] == expected
                assert_idle(llm)
            except Exception as error:
                raise AssertionError(f"interrupted in {where}: {error!r}") from error
    assert n_places > 40
