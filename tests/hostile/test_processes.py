"""Several threads, forked processes and too little memory: an error, never corruption or a hang."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from lariat import LLM, SamplingParams
from lariat.os_memory import allocate
from lariat.runtime import threads

from tests.support.model_files import write_llama
from tests.support.together import run_together

ROOT = Path(__file__).parents[2]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_ctx=128)


# ---- threads (test_llm.py: several that generate at once) ----


def test_threads_that_read_one_stream_get_all_of_it(path: Path) -> None:
    """Each piece goes to one of the threads."""
    with LLM(path, n_threads=1) as llm:
        expected = llm.generate([1, 5], GREEDY).text
        for _ in range(5):
            stream = llm.stream([1, 5], GREEDY)
            n_chars: list[int] = []
            run_together(lambda _: n_chars.extend(len(piece) for piece in stream))  # noqa: B023
            assert sum(n_chars) == len(expected)
            assert stream.completion.text == expected


def generate(llm: LLM, started: threading.Event, said: list[BaseException]) -> None:
    try:
        for _ in range(1000):
            llm.generate([1, 5], GREEDY)
            started.set()
    except BaseException as error:
        said.append(error)


def test_closing_while_another_thread_generates(path: Path) -> None:
    """It waits for the step, and the other thread gets an error."""
    for _ in range(5):
        llm, started = LLM(path, n_threads=1), threading.Event()
        said: list[BaseException] = []
        worker = threading.Thread(target=generate, args=(llm, started, said), daemon=True)
        worker.start()
        assert started.wait(30)
        llm.close()
        worker.join(30)
        assert not worker.is_alive()
        assert [str(error) for error in said] == ["the model is closed"]
        assert isinstance(said[0], ValueError)


# ---- fork (test_threads.py: after use, before use) ----

FORKED_WHILE_BUSY = """
    import os, sys, threading, time, warnings
    from lariat import LLM, SamplingParams
    warnings.simplefilter("ignore")
    llm = LLM(sys.argv[1], n_threads=1)
    context = llm.context()
    context.append([1, 5, 6, 7])
    stream = llm.stream([1, 5], SamplingParams(max_tokens=100))
    next(stream)
    # Another thread is in the middle of a step: it holds the lock, and is missing in the child.
    holds, may_go = threading.Event(), threading.Event()
    def step():
        with llm.runner.exclusive:
            holds.set()
            may_go.wait()
    other = threading.Thread(target=step)
    other.start()
    holds.wait()
    pid = os.fork()
    if pid == 0:
        def refused(work):
            try:
                work()
            except RuntimeError as error:
                assert "forked" in str(error) and "spawn" in str(error), error
            else:
                os._exit(3)
        refused(lambda: llm.generate([1, 5]))
        refused(lambda: llm.logits([1, 5]))
        refused(lambda: next(stream) and list(stream))
        refused(lambda: context.append([8]))
        refused(lambda: context.delete(1, 2))
        refused(lambda: context.fork())
        stream.close()
        context.close()
        llm.close()
        llm.close()
        del stream, context, llm
        sys.exit(0)
    for _ in range(200):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(pid, 9)
        sys.exit("the child hangs")
    may_go.set()
    other.join()
    print(os.waitstatus_to_exitcode(status), len(llm.generate([1, 5], SamplingParams(max_tokens=3,
          temperature=0, ignore_eos=True)).token_ids))
"""


def run(script: str, *args: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with at most `limit` bytes of addresses."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
    if limit is not None:
        command = ["/bin/sh", "-c", f'ulimit -v {limit // 1024}; exec "$@"', "sh", *command]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_forked_in_the_midst_of_a_step_gets_errors_and_no_hang(path: Path) -> None:
    done = run(FORKED_WHILE_BUSY, path)
    assert done.stderr == ""
    assert done.stdout.split() == ["0", "3"]


# ---- memory ----


def test_memory_that_the_system_refuses_is_one_sentence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from lariat.cli.main import main

    with pytest.raises(MemoryError, match=r"^the system refuses 4611686018\.4 GB of memory$"):
        allocate(1 << 62)
    code = main(["generate", "-p", "a", "-n", "1", "-q", "-c", str(1 << 27), "-ctk", "f32"])
    out, err = capfd.readouterr()
    if code == 0:
        pytest.skip("this system promises any amount of memory")
    assert (code, out) == (1, "")
    assert err.startswith("lariat: error: not enough memory: the system refuses ")
    assert err.count("\n") == 1


MAIN = """
    import sys
    from lariat.cli.main import main
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of addresses as on Linux")
def test_too_little_memory_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With limits from too low for the libraries to high enough, in steps."""
    # Commands that other tests ran in this process have set it; with it, less memory is enough.
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    seen = set()
    for limit in (160, 180, 1000):
        done = run(MAIN, "generate", "-p", "a", "-n", "2", "-q", "-t", 2, limit=limit << 20)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 1)
        if done.returncode:
            assert done.stderr.strip().count("\n") == 0, done.stderr
        seen.add(done.returncode)
    assert seen == {0, 1}


def test_threads_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """OpenMP would end the process."""
    started = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(MemoryError, match="the system refuses to start 9 threads"):
        LLM(path, n_threads=9)
    assert not any(thread.is_alive() for thread in started)
    started.clear()
    threads.check_startable(4)
    assert len(started) == 3
