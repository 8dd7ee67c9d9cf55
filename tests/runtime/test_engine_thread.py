"""One thread steps for everybody: who waits for it, who gives up, what ends it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from lariat import LLM, ContextError, LariatError, SamplingParams
from lariat.runtime.engine_thread import N_UNREAD
from lariat.runtime.request import Request

from tests.support.contexts import ids_of
from tests.support.model_files import write_llama
from tests.support.together import run_together

ROOT = Path(__file__).parents[2]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
DRAWN = SamplingParams(temperature=1.0, max_tokens=24, ignore_eos=True, seed=3)
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_layers=2, n_ctx=1024)


@pytest.fixture
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, n_threads=1) as llm:
        yield llm
        wait_until(lambda: is_idle(llm))
        assert llm.generate([1, 5], GREEDY).finish_reason == "length"


def is_idle(llm: LLM) -> bool:
    health = llm.health()
    return health.n_free == health.n_blocks and not health.n_running + health.n_waiting


def wait_until(is_true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.001)


def engine_threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name == "lariat-engine"}


def text_of(request: Request) -> str:
    return "".join(delta.text for delta in request.deltas)


class Box:
    """A mailbox that keeps what it gets."""

    def __init__(self) -> None:
        self.n_news: dict[Request, int] = {}

    def deliver(self, requests: list[Request]) -> None:
        for request in requests:
            self.n_news[request] = self.n_news.get(request, 0) + 1


def watched(llm: LLM, n_prompt: int, params: SamplingParams, box: Box | None = None) -> Request:
    request = llm.request(ids_of(n_prompt), params)
    llm.engine.start(request)
    llm.engine.watch(request, box or Box())
    return request


class Gate:
    """Holds forward passes back before the model runs, and counts them."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.threads: set[str] = set()
        self.is_held, self.may_go = threading.Event(), threading.Event()
        self.holds_from = 1 << 30  # tokens of a pass that is held
        forward = llm.runner.model.forward

        def gated(batch, n_threads):
            self.sizes.append(batch.n_tokens)
            self.threads.add(threading.current_thread().name)
            if batch.n_tokens >= self.holds_from:
                self.is_held.set()
                assert self.may_go.wait(30)
            return forward(batch, n_threads)

        monkeypatch.setattr(llm.runner.model, "forward", gated)


@pytest.fixture
def gate(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(llm, monkeypatch)


# ---- who steps ----


def test_a_thread_that_reads_all_requests_steps_itself(llm, gate):
    llm.generate([ids_of(9), ids_of(5)], GREEDY)
    assert gate.threads == {threading.current_thread().name}


def test_others_have_the_engine_thread_step(llm, gate):
    expected = llm.generate(ids_of(9), GREEDY).text
    gate.threads.clear()
    request = watched(llm, 5, LONG)
    assert llm.generate(ids_of(9), GREEDY).text == expected
    wait_until(lambda: request.closed)
    assert gate.threads == {"lariat-engine"}
    assert len(request.completion.token_ids) == LONG.max_tokens


def test_nobody_computes_for_streams_that_nobody_reads(llm):
    a, b = llm.stream(ids_of(9), LONG), llm.stream(ids_of(5), LONG)
    threading.Thread(target=next, args=(b,)).start()
    next(a)
    time.sleep(0.05)
    assert len(a.completion.token_ids) < 20
    a.close(), b.close()


@pytest.mark.parametrize("n", [2, 20])
def test_streams_of_many_threads_say_what_each_says_alone(llm, n):
    params = [SamplingParams(temperature=1.0, max_tokens=9, seed=i) for i in range(n)]
    alone = [llm.generate(ids_of(3 + 4 * i, seed=i), params[i]).text for i in range(n)]

    def work(i: int) -> None:
        for _ in range(3):
            assert llm.generate(ids_of(3 + 4 * i, seed=i), params[i]).text == alone[i]

    run_together(work, n)


def test_editors_come_in_between_steps(llm):
    """They wait for one pass, not for the text of others."""
    request = watched(llm, 5, SamplingParams(max_tokens=240, ignore_eos=True))
    with llm.context() as context:
        for i in range(20):
            context.append(ids_of(3, seed=i))
            n = len(request.completion.token_ids)
            wait_until(lambda: len(request.completion.token_ids) > n)  # noqa: B023
    assert not request.closed
    llm.engine.give_up(request)


def test_an_editor_does_not_wait_for_all_passes_of_a_long_prompt(path, monkeypatch):
    with LLM(path, n_threads=1, n_batch=512, n_ubatch=32) as llm, llm.context() as context:
        gate = Gate(llm, monkeypatch)
        gate.holds_from = 32
        request = watched(llm, 500, GREEDY)
        assert gate.is_held.wait(30)
        editor = threading.Thread(target=context.append, args=([5, 6],))
        editor.start()
        wait_until(lambda: llm.runner.exclusive.is_wanted)
        gate.may_go.set()
        editor.join(30)
        wait_until(lambda: request.closed)
        assert gate.sizes.index(2) == 1, "the second pass"
        assert len(request.completion.token_ids) == GREEDY.max_tokens
        assert request.completion.timings.n_prompt == 500


def test_unread_text_holds_the_engine_back_until_it_is_read(llm):
    params = SamplingParams(temperature=0, max_tokens=-1, ignore_eos=True, context_shift=True)
    box = Box()
    request = watched(llm, 5, params, box)
    wait_until(lambda: len(request.deltas) >= N_UNREAD)
    time.sleep(0.05)
    assert len(request.deltas) == N_UNREAD
    assert box.n_news == {request: 1}, "told once"
    llm.engine.look(request)
    for _ in range(3):  # the engine goes on when the first one is taken
        request.deltas.popleft()
        llm.engine.taken(request)
    wait_until(lambda: len(request.deltas) >= N_UNREAD)
    assert box.n_news == {request: 2}
    llm.engine.give_up(request)


# ---- giving up ----


def test_given_up_in_the_queue(path):
    with LLM(path, n_threads=1, n_ctx=64) as llm:
        first = watched(llm, 50, SamplingParams(max_tokens=10, ignore_eos=True))
        second = watched(llm, 40, GREEDY)  # there is no room for it
        llm.engine.give_up(second)
        wait_until(lambda: first.closed)
        wait_until(lambda: is_idle(llm))
        assert second.completion.token_ids == []
        assert first.finished


def test_given_up_in_the_midst_of_a_pass(path, monkeypatch):
    """It ends between two layers, and nothing of it stays."""
    with LLM(path, n_threads=1) as llm:
        gate = Gate(llm, monkeypatch)
        gate.holds_from = 500
        request = watched(llm, 500, GREEDY)
        assert gate.is_held.wait(30)
        n_held = llm.health().n_blocks - llm.health().n_free
        assert n_held == 16
        llm.engine.give_up(request)
        gate.may_go.set()
        wait_until(lambda: is_idle(llm))
        assert request.table.n_tokens == 0
        assert request.error is None
        assert request.completion.timings.n_prompt == 0
        assert llm.generate(ids_of(500), GREEDY).token_ids


def test_a_pass_goes_on_for_those_who_have_not_given_up(llm, gate):
    expected = llm.generate(ids_of(9), GREEDY).text
    gate.holds_from = 100
    other = watched(llm, 9, GREEDY)
    request = watched(llm, 300, GREEDY)
    assert gate.is_held.wait(30)
    llm.engine.give_up(request)
    gate.may_go.set()
    wait_until(lambda: other.closed)
    assert text_of(other) == expected
    assert request.completion.token_ids == []


def test_later_passes_of_a_step_leave_out_who_has_given_up(path, monkeypatch):
    with LLM(path, n_threads=1, n_batch=512, n_ubatch=64) as llm:
        gate = Gate(llm, monkeypatch)
        gate.holds_from = 64
        request = watched(llm, 400, GREEDY)
        assert gate.is_held.wait(30)
        llm.engine.give_up(request)
        gate.may_go.set()
        wait_until(lambda: is_idle(llm))
        assert gate.sizes == [64]


def test_given_up_while_decoding(llm):
    request = watched(llm, 9, LONG)
    wait_until(lambda: len(request.completion.token_ids) > 3)
    llm.engine.give_up(request)
    wait_until(lambda: is_idle(llm))
    assert len(request.completion.token_ids) < LONG.max_tokens


def test_closing_a_stream_from_another_thread_ends_the_one_that_reads(llm):
    other, stream = watched(llm, 5, LONG), llm.stream(ids_of(9), LONG)
    texts: list[str] = []
    reader = threading.Thread(target=lambda: texts.extend(stream))
    reader.start()
    wait_until(lambda: len(texts) > 3)
    stream.close()
    reader.join(30)
    assert not reader.is_alive()
    assert stream.completion.finish_reason is None
    wait_until(lambda: other.finished)


def test_a_stream_that_is_dropped_while_others_run_frees_its_blocks(llm):
    other = watched(llm, 5, LONG)
    next(llm.stream(ids_of(300), LONG))
    gc.collect()
    wait_until(lambda: llm.health().n_running == 1 or other.finished)
    wait_until(lambda: other.finished)


# ---- errors ----


def test_an_error_in_a_step_ends_its_requests_and_no_others(path, monkeypatch):
    with LLM(path, n_threads=1) as llm:
        expected = llm.generate(ids_of(9), GREEDY).text
        forward = llm.runner.model.forward

        def fail(batch, n_threads):
            monkeypatch.setattr(llm.runner.model, "forward", forward)
            raise MemoryError("no memory")

        box = Box()
        monkeypatch.setattr(llm.runner.model, "forward", fail)
        request = watched(llm, 9, GREEDY, box)
        wait_until(lambda: request.closed)
        assert isinstance(request.error, MemoryError)
        wait_until(lambda: bool(box.n_news))
        assert llm.generate(ids_of(9), GREEDY).text == expected
        again = watched(llm, 9, GREEDY)
        wait_until(lambda: again.closed)
        assert text_of(again) == expected


def test_an_error_in_the_scheduler_ends_all_that_there_are(llm, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(llm.runner.scheduler, "schedule", None)
        other, stream = watched(llm, 9, GREEDY), llm.stream(ids_of(5), GREEDY)
        with pytest.raises(TypeError):
            list(stream)
        wait_until(lambda: other.closed)
        assert isinstance(other.error, TypeError)


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_a_callback_that_raises_ends_its_own_request(llm, error):
    def fail(*_: int) -> None:
        raise error

    other = watched(llm, 9, LONG)
    stream = llm.stream(ids_of(9), GREEDY, prompt_progress=fail)
    with pytest.raises((ValueError, LariatError, type(error))):
        list(stream)
    wait_until(lambda: other.closed)
    assert other.finished or isinstance(error, KeyboardInterrupt)


def test_callbacks_cannot_use_or_close_the_model(llm):
    said: list[str] = []

    def use(*_: int) -> None:
        for act in (llm.close, lambda: llm.logits([1, 5])):
            try:
                act()
            except RuntimeError as error:
                said.append(str(error))

    request = llm.request(ids_of(9), GREEDY, prompt_progress=use)
    llm.engine.start(request)
    llm.engine.watch(request, Box())
    wait_until(lambda: request.closed)
    assert request.finished
    list(llm.stream(ids_of(9), GREEDY, prompt_progress=use))
    assert said == ["an LLM cannot be used from within its own callbacks"] * 4


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="alarms are Unix's")
def test_an_interrupt_while_waiting_ends_this_stream_alone(llm):
    def strike(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, strike)
    try:
        for _ in range(5):
            other = watched(llm, 5, SamplingParams(temperature=0, max_tokens=900, ignore_eos=True))
            stream = llm.stream(ids_of(9), SamplingParams(max_tokens=900, ignore_eos=True))
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(KeyboardInterrupt):
                list(stream)
            n = len(other.completion.token_ids)
            assert len("".join(stream)) < 900
            wait_until(lambda: len(other.completion.token_ids) > n or other.finished)  # noqa: B023
            llm.engine.give_up(other)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- the end ----


def test_closing_ends_a_pass_and_those_who_wait(path, monkeypatch):
    of_others = engine_threads()
    llm = LLM(path, n_threads=1)
    gate = Gate(llm, monkeypatch)
    gate.holds_from = 500
    said: list[BaseException] = []

    def read() -> None:
        try:
            list(llm.stream(ids_of(9), LONG))
        except BaseException as error:
            said.append(error)

    request = watched(llm, 500, GREEDY)
    assert gate.is_held.wait(30)
    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: llm.health().n_waiting == 1)
    closer = threading.Thread(target=llm.close)
    closer.start()
    wait_until(lambda: request.closed)
    gate.may_go.set()
    closer.join(30)
    reader.join(30)
    assert [str(error) for error in (*said, request.error)] == ["the model is closed"] * 2
    assert engine_threads() <= of_others
    assert llm.health().n_blocks == 0
    llm.close()


def test_a_model_that_nobody_holds_is_gone_and_its_thread_too(path):
    of_others = engine_threads()
    llm = LLM(path, n_threads=1)
    watched(llm, 9, GREEDY)
    wait_until(partial(is_idle, llm))
    (thread,) = engine_threads() - of_others
    runner = weakref.ref(llm.runner)
    del llm
    wait_until(lambda: gc.collect() >= 0 and runner() is None)
    thread.join(30)
    assert not thread.is_alive()


def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


ENDS = """
    import sys, threading
    from lariat import LLM, SamplingParams
    class Box:
        def deliver(self, requests):
            pass
    llm = LLM(sys.argv[1], n_threads=2)
    request = llm.request([1, 5], SamplingParams(max_tokens=-1, ignore_eos=True,
                                                 context_shift=True))
    llm.engine.start(request)
    llm.engine.watch(request, Box())
    while len(request.completion.token_ids) < 3:
        pass
    print("written")
"""


def test_the_interpreter_ends_in_the_midst_of_a_text(path):
    for _ in range(3):
        done = run(ENDS, path)
        assert (done.stdout, done.stderr, done.returncode) == ("written\n", "", 0)


FORKS = """
    import os, sys, warnings
    from lariat import LLM, SamplingParams
    warnings.simplefilter("ignore")
    class Box:
        def deliver(self, requests):
            pass
    llm = LLM(sys.argv[1], n_threads=1)
    params = SamplingParams(max_tokens=-1, ignore_eos=True, context_shift=True)
    request, stream = llm.request([1, 5], params), llm.stream([1, 6], params)
    llm.engine.start(request)
    llm.engine.watch(request, Box())
    next(stream)  # by the engine thread
    pid = os.fork()
    if pid == 0:
        for act in (lambda: list(stream), lambda: llm.generate([1, 5])):
            try:
                act()
            except RuntimeError as error:
                assert "forked" in str(error), error
            else:
                os._exit(3)
        stream.close()
        llm.engine.give_up(request)
        llm.close()
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    next(stream)
    llm.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_gets_errors_and_no_hang(path):
    done = run(FORKS, path)
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 0)


# ---- contexts ----


def test_a_context_that_refuses_a_request_is_free_again(llm):
    with llm.context() as context:
        context.append(ids_of(9))
        other = watched(llm, 5, LONG)
        with pytest.raises(ContextError, match="tokens, more than"):
            llm.stream(ids_of(1020), GREEDY, context=context)
        context.append([5])
        assert len(list(llm.stream([7], GREEDY, context=context)))
        assert len(context) == 11 + GREEDY.max_tokens
        llm.engine.give_up(other)


# ---- time ----


def test_others_decode_while_a_long_prompt_is_read(path, monkeypatch):
    """Counted in steps: the prompt is cut so that a step stays short, and each step decodes."""
    with LLM(path, n_threads=1, n_ctx=2048) as llm:
        llm.generate(ids_of(64), GREEDY)
        monkeypatch.setattr("lariat.runtime.pace.MAX_SECONDS", 0.0)
        gate = Gate(llm, monkeypatch)
        other = watched(llm, 5, SamplingParams(temperature=0, max_tokens=900, ignore_eos=True))
        wait_until(lambda: len(other.completion.token_ids) > 2)
        request = watched(llm, 900, GREEDY)
        n = len(other.completion.token_ids)
        wait_until(lambda: bool(request.completion.token_ids) or other.finished)
        assert len(other.completion.token_ids) - n > 5
        assert max(gate.sizes) < 512
        llm.engine.give_up(other), llm.engine.give_up(request)
        wait_until(lambda: is_idle(llm))


def test_a_lone_prompt_is_read_in_whole_batches(llm, gate):
    for _ in range(3):
        llm.generate(ids_of(700), GREEDY)
    assert [n for n in gate.sizes if n > 1] == [512, 188] * 3 or gate.sizes.count(512) >= 1


def test_health(llm, gate):
    assert llm.health().step_s is llm.health().idle_s is None
    gate.holds_from = 100
    request = watched(llm, 100, GREEDY)
    assert gate.is_held.wait(30)
    waiting = watched(llm, 9, GREEDY)
    health = llm.health()
    assert (health.n_running, health.n_waiting) == (1, 1)
    assert health.n_blocks - health.n_free == 4
    assert health.step_s is not None
    time.sleep(0.02)
    assert llm.health().step_s > health.step_s + 0.01
    gate.may_go.set()
    wait_until(lambda: request.closed and waiting.closed)
    wait_until(lambda: llm.health().step_s is None)
    assert llm.health().idle_s < 30
