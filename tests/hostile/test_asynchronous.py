"""Exceptions that strike between any two lines: Ctrl-C in a notebook, alarms, timeouts of tests.

An alarm raises one after a random time, in the midst of whatever the engine does, thousands of
times. No block may be lost, no lock stay held, and everything has to work as before.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, ContextError, SamplingParams
from lariat.runtime.request import Request

from tests.support.contexts import GREEDY, ids_of
from tests.support.model_files import write_llama

N_STRIKES = int(os.environ.get("LARIAT_STRIKES", "600"))  # `make test-long` has more
N_CTX = 256

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="alarms are Unix's"),
    # Python itself drops exceptions that strike within `__del__`, and says so.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Strike(BaseException):
    """As KeyboardInterrupt, which pytest would take for its own."""


class Alarm:
    """Raises `Strike` once, after a while, within `act`."""

    def __init__(self) -> None:
        self.n_strikes = 0
        self._is_armed = False

    def ring(self, *_: object) -> None:
        if self._is_armed:
            self._is_armed = False
            self.n_strikes += 1
            raise Strike

    def act(self, action: Callable[[], object], after: float) -> None:
        """Errors of the engine's own are for the caller; a strike ends the action quietly."""
        try:
            self._is_armed = True
            signal.setitimer(signal.ITIMER_REAL, after)
            try:
                action()
            finally:
                self._is_armed = False
        except Strike:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    alarm = Alarm()
    before = signal.signal(signal.SIGALRM, alarm.ring)
    yield alarm
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_ctx=N_CTX)


@pytest.mark.parametrize("cache", ["raw", "roped"])
def test_no_block_is_lost_whenever_an_exception_strikes(path: Path, cache: str, alarm: Alarm):
    rng = random.Random(cache)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    with LLM(path, cache=cache, n_threads=1, n_ctx=N_CTX) as llm:
        n_blocks = llm.runner.cache.pool.n_blocks
        expected = llm.generate(ids_of(40), params).token_ids
        contexts = []

        def edit() -> None:
            """Random edits of contexts; some raise what edits may raise."""
            if len(contexts) < 3:
                contexts.append(llm.context())
            for _ in range(4):
                context = rng.choice(contexts)
                n = len(context)
                start, stop = sorted((rng.randint(0, n), rng.randint(0, n)))
                act = rng.randrange(6)
                if act <= 1 and n < 60:
                    context.insert(rng.randint(0, n), ids_of(rng.randint(1, 40)))
                elif act == 2:
                    context.delete(start, stop)
                elif act == 3:
                    context.move(start, stop, rng.randint(0, n - (stop - start)))
                elif act == 4:
                    context.fork().close()
                else:
                    context.logits(ids_of(3))

        def generate() -> None:
            llm.generate([ids_of(20), ids_of(33)], params)

        def stream() -> None:
            for _ in llm.stream(ids_of(rng.randint(1, 70)), params):
                pass

        while alarm.n_strikes < N_STRIKES:
            action = rng.choice(
                (edit, stream, lambda: llm.generate([ids_of(20), ids_of(33)], params))
            )
            with contextlib.suppress(ContextError):
                alarm.act(action, rng.uniform(1e-5, 8e-3))
            if rng.random() < 0.05:
                while contexts:
                    contexts.pop().close()
                gc.collect()
                assert llm.generate(ids_of(40), params).token_ids == expected
                assert llm.runner.cache.pool.n_free == n_blocks
        while contexts:
            contexts.pop().close()
        gc.collect()
        assert llm.generate(ids_of(40), params).token_ids == expected
        assert llm.runner.cache.pool.n_free == n_blocks
        assert not llm.runner.exclusive.is_held
        assert llm.generate("Once", GREEDY).finish_reason


@pytest.mark.parametrize("cache", ["raw", "roped"])
def test_a_context_that_was_struck_is_sound_or_refuses(path: Path, cache: str, alarm: Alarm):
    """Its tokens are those of before or after the edit. Only roped keys may be lost to it."""
    rng = random.Random(1)
    ids = ids_of(90)
    with LLM(path, cache=cache, n_threads=1, n_ctx=N_CTX) as llm:
        n_refused = 0
        for _ in range(min(N_STRIKES, 300)):
            with llm.context() as context, llm.context() as other:
                context.append(ids)
                start = rng.randint(0, 60)
                alarm.act(lambda c=context, s=start: c.delete(s, s + 20), rng.uniform(1e-5, 3e-4))
                assert context.tokens in (ids, ids[:start] + ids[start + 20 :])
                try:
                    other.append(context)
                except ContextError:
                    n_refused += 1
                    continue
                assert other.tokens == context.tokens
                assert np.isfinite(context.logits([5])).all()
        assert alarm.n_strikes > 50
        assert not n_refused or cache == "roped"


def test_requests_of_the_engine_thread_go_on_whatever_strikes_others(path: Path, alarm: Alarm):
    """Strikes hit the thread that reads and edits; the text of the others stays what it is."""
    rng = random.Random(2)
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)

    class Box:
        def deliver(self, requests: list[Request]) -> None:
            pass

    with LLM(path, cache="raw", n_threads=1, n_ctx=N_CTX) as llm:
        n_blocks = llm.runner.cache.pool.n_blocks
        expected = llm.generate(ids_of(30), params).token_ids
        n_done, request = 0, None

        def edit() -> None:
            with llm.context() as context:
                context.append(ids_of(rng.randint(1, 40)))
                context.delete(0, len(context))

        def stream() -> None:
            for _ in llm.stream(ids_of(rng.randint(1, 40)), GREEDY):
                pass

        n_least = min(N_STRIKES, 300)  # a slow machine gets through few requests in so many
        while alarm.n_strikes < n_least or (n_done <= 2 and alarm.n_strikes < 20 * n_least):
            if request is None or request.closed:
                if request is not None:
                    assert request.completion.token_ids == expected
                    n_done += 1
                request = llm.request(ids_of(30), params)
                llm.engine.start(request)
                llm.engine.watch(request, Box())
            with contextlib.suppress(ContextError):
                alarm.act(rng.choice((edit, stream)), rng.uniform(1e-5, 8e-3))
        assert n_done > 2
        llm.engine.give_up(request)
        gc.collect()
        assert llm.generate(ids_of(30), params).token_ids == expected
        assert llm.runner.cache.pool.n_free == n_blocks
        assert not llm.runner.exclusive.is_held
