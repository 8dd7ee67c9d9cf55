"""Number of threads: affinity, quota, limits; BLAS held to one; a fork that is refused."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, SamplingParams
from lariat.cache.kv_cache import KVCache
from lariat.runtime import threads
from lariat.runtime.batch import Batch
from threadpoolctl import ThreadpoolController

from tests.support.model_files import write_llama

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_layers=1)


# ---- resolve ----


@pytest.mark.parametrize("n", [1, 2, 512, np.int32(3)])
def test_a_sane_number_is_taken_as_it_is(n):
    assert threads.resolve(n) == int(n)
    assert type(threads.resolve(n)) is int


@pytest.mark.parametrize("n", [0, -1, 513, 1_000_000, 1 << 70])
def test_a_number_out_of_range_is_refused(n):
    with pytest.raises(ValueError, match=rf"^n_threads is {n}, expected 1 to 512$"):
        threads.resolve(n)
    with pytest.raises(ValueError, match=r"^n_threads_batch is"):
        threads.resolve(n, "n_threads_batch")


@pytest.mark.parametrize("n", [1.0, "2", True, [1], float("nan"), b"1"])
def test_what_is_no_whole_number_is_refused(n):
    with pytest.raises(ValueError, match="expected a whole number"):
        threads.resolve(n)


def test_none_is_what_is_available(monkeypatch):
    assert threads.resolve(None) == threads.available() >= 1
    monkeypatch.setattr(threads, "available", lambda: 2000)
    assert threads.resolve(None) == 512, "a very large machine is not an error"


@pytest.mark.parametrize(
    ("cores", "quota", "expected"),
    [(8, None, 8), (8, 4.0, 4), (8, 2.9, 2), (8, 0.5, 1), (2, 16.0, 2), (1, 0.01, 1)],
)
def test_available_is_the_smaller_of_cores_and_quota(monkeypatch, cores, quota, expected):
    monkeypatch.setattr(threads, "cores", lambda: [[cpu] for cpu in range(cores)])
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: quota)
    assert threads.available() == expected


# ---- affinity and topology ----


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_available_follows_the_affinity_mask():
    def within(cpus: set[int]) -> int:
        os.sched_setaffinity(0, cpus)  # of this worker thread alone
        return threads.available()

    cpus = os.sched_getaffinity(0)
    with ThreadPoolExecutor(1) as worker:
        assert worker.submit(within, {min(cpus)}).result() == 1
        assert worker.submit(within, cpus).result() == threads.available()
    assert threads.available() <= len(cpus)


def threads_with(**environment: str) -> int:
    """`available()` in a process with these variables, that may use two processors."""
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    script = f"""
        import os
        os.sched_setaffinity(0, {{{cpus}}})
        from lariat.runtime import threads
        print(len(threads._affinity()))
    """
    return int(run_script(script, environment=environment))


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two processors",
)
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OMP_PROC_BIND", "true", 2),
        ("OMP_PROC_BIND", "spread,close", 2),
        ("OMP_PROC_BIND", "master", 1),  # all threads share the place of the first
        ("OMP_PROC_BIND", "false", 2),
        ("OMP_PLACES", "threads", 2),
        ("OMP_PLACES", "{A},{B}", 2),
        ("OMP_PLACES", "{A,B}", 2),
        ("OMP_PLACES", "{B}", 1),  # the user wants one
        ("GOMP_CPU_AFFINITY", "A B", 2),
        ("GOMP_CPU_AFFINITY", "B", 1),
        ("OMP_DYNAMIC", "true", 2),
    ],
)
def test_threads_that_openmp_binds_are_counted_by_its_places(name, value, expected):
    """OpenMP binds the first thread when it is loaded, so the mask of that thread is too small."""
    a, b = sorted(os.sched_getaffinity(0))[:2]
    value = value.replace("A", str(a)).replace("B", str(b))
    assert threads_with(**{name: value}) == expected


def topology(folder: Path, siblings: dict[int, str]) -> str:
    for cpu, text in siblings.items():
        place = folder / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(text + "\n")
    return str(folder)


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ([0, 1, 2, 3], [[0, 2], [1, 3]]),
        ([0, 2], [[0, 2]]),
        ([0, 1], [[0], [1]]),
        ([3], [[3]]),
        ([0, 1, 2], [[0, 2], [1]]),
    ],
)
def test_hyper_threads_of_one_core_count_once(tmp_path, monkeypatch, allowed, expected):
    monkeypatch.setattr(threads, "_affinity", lambda: allowed)
    folder = topology(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    assert threads.cores(folder) == expected
    monkeypatch.setattr(threads, "cores", lambda read=threads.cores: read(folder))
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: None)
    assert threads.available() == len(expected)


def test_without_a_topology_processors_count(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "_affinity", lambda: [0, 1, 5])
    assert threads.cores(str(tmp_path)) == [[0], [1], [5]]


# ---- control groups ----


def cgroup(folder: Path, own: str, files: dict[str, str]) -> float | None:
    (folder / "own").write_text(own)
    for name, text in files.items():
        path = folder / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return threads._cgroup_quota(str(folder / "fs"), str(folder / "own"))


V1 = "4:memory:/a\n3:cpuset:/a\n2:cpu,cpuacct:/a/b\n1:name=systemd:/\n"
V1_FILES = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000"}, 4.0),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "200000 100000"}, 1.0),
        ("0::/host/only\n", {"cpu.max": "200000 100000"}, 2.0),  # a container without namespace
        ("0::/../../x\n", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/a\n", {"other/cpu.max": "100000 100000"}, None),
        ("0::/\n", {"cpu.max": "rubbish"}, None),
        ("0::/\n", {"cpu.max": "rubbish 100000"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
        ("0::/\n", {"cpu.max": ""}, None),
        ("", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_quota_of_version_2(tmp_path, own, files, expected):
    assert cgroup(tmp_path, own, files) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a/b": ("250000", "100000")}, 2.5),
        ({"a/b": ("-1", "100000")}, None),
        ({"": ("100000", "50000")}, 2.0),
        ({"a/b": ("-1", "100000"), "": ("300000", "100000")}, 3.0),
        ({"a/b": ("100000", "100000"), "": ("300000", "100000")}, 1.0),
        ({"a/b": ("-1", "100000"), "a": ("150000", "100000")}, 1.5),
        ({"a/b": ("100000", "0")}, None),
        ({"a/b": ("rubbish", "100000")}, None),
        ({}, None),
    ],
)
def test_the_quota_of_version_1(tmp_path, files, expected):
    written = {
        f"cpu/{group}/{name}": text
        for group, texts in files.items()
        for name, text in zip(V1_FILES, texts, strict=True)
    }
    assert cgroup(tmp_path, V1, written) == expected


def test_other_controllers_of_version_1_are_not_taken_for_cpu(tmp_path):
    files = {f"cpu/{name}": "100000" for name in V1_FILES}
    assert cgroup(tmp_path, "3:cpuset:/\n2:cpuacct:/\n1:name=cpu:/\n", files) is None


def test_no_control_groups_means_no_limit(tmp_path):
    assert threads._cgroup_quota(str(tmp_path), str(tmp_path / "missing")) is None


# ---- BLAS ----


def blas_threads() -> list[int]:
    pools = ThreadpoolController().select(user_api="blas")
    return [pool["num_threads"] for pool in pools.info()]


@pytest.mark.skipif(not blas_threads(), reason="NumPy's BLAS is not one that can be limited")
def test_blas_has_one_thread_within_the_forward_pass_and_its_own_number_after(model, monkeypatch):
    seen = []
    original = KVCache.prepare

    def spy(self: KVCache, batch: Batch) -> None:
        seen.append(blas_threads())
        original(self, batch)

    monkeypatch.setattr(KVCache, "prepare", spy)
    with (
        ThreadpoolController().limit(limits=2, user_api="blas"),
        LLM(model, n_threads=1) as llm,
    ):
        llm.generate([1, 2], SamplingParams(max_tokens=3, ignore_eos=True))
        llm.logits([5])
        assert set(blas_threads()) == {2}
    assert len(seen) == 4
    assert all(set(numbers) == {1} for numbers in seen)


@pytest.mark.skipif(not blas_threads(), reason="NumPy's BLAS is not one that can be limited")
def test_blas_gets_its_threads_back_after_an_error():
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        with pytest.raises(KeyboardInterrupt), threads.forward_pass():
            raise KeyboardInterrupt
        assert set(blas_threads()) == {2}


# ---- fork ----


def run_script(text: str, *args: object, environment: dict[str, str] | None = None) -> str:
    """Run Python in a process of its own; returns its output, or fails."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


IN_CHILD = """
    import os, sys, time, warnings
    from lariat import LLM, SamplingParams
    warnings.simplefilter("ignore")
    path, params = sys.argv[1], SamplingParams(max_tokens=4, temperature=0)

    def in_child(work):
        # Run `work` in a forked child: its exit code, or -1 if it hangs.
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = work()
            finally:
                os._exit(code)
        for _ in range(200):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        return -1

    def refused(work):
        try:
            work()
        except RuntimeError as error:
            return 7 if "fork" in str(error) and "spawn" in str(error) else 8
        return 9
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_forked_after_the_threads_started_gets_an_error_and_no_hang(model):
    script = (
        IN_CHILD
        + """
    llm = LLM(path, n_threads=2)
    before = llm.generate("the", params).token_ids
    print(in_child(lambda: refused(lambda: llm.generate("the", params))))
    print(in_child(lambda: refused(lambda: llm.logits([1, 2]))))
    print(in_child(lambda: refused(lambda: LLM(path))))
    print(in_child(lambda: 0 if llm.detokenize(llm.tokenize("the")) == "the" else 1))
    print(llm.generate("the", params).token_ids == before)
    """
    )
    assert run_script(script, model).split() == ["7", "7", "7", "0", "True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_forked_before_any_model_was_loaded_works(model):
    script = (
        IN_CHILD
        + """
    def work():
        with LLM(path, n_threads=2) as llm:
            return len(llm.generate([1, 2, 3], params).token_ids)
    print(in_child(work), in_child(work), work())
    """
    )
    assert run_script(script, model).split() == ["4", "4", "4"]


USES_OF_OPENMP = {
    "an import alone": "import lariat._kernels",
    "a team of one": "from lariat import _machine; _machine.thread_ids(1)",
    "a probe": "from lariat import _machine; _machine.thread_ids(3)",
    "quantize": """
from lariat.tools.quantize import QuantizeConfig, quantize_file
quantize_file(path, path + ".q8", QuantizeConfig("Q8_0"), 2, force=True)""",
    "measurements": """
from lariat.measure.machine import Probe
Probe(2, 1 << 20)""",
    "another library": """
import ctypes
body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: None)
ctypes.CDLL("libgomp.so.1").GOMP_parallel(body, None, 3, 0)""",
}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="forks are told by /proc")
@pytest.mark.parametrize("use", USES_OF_OPENMP)
def test_a_process_forked_after_any_use_of_openmp_works_or_gets_an_error(model, use):
    script = (
        IN_CHILD
        + f"""
    exec({USES_OF_OPENMP[use]!r})
    def work():
        with LLM(path, n_threads=2) as llm:
            return len(llm.generate([1, 2, 3], params).token_ids)
    def works_or_is_refused():
        try:
            return work()
        except RuntimeError:
            return refused(work)  # again, at once
    def in_another_thread():
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(works_or_is_refused).result()
    print(in_child(works_or_is_refused), in_child(in_another_thread))
    try:
        print(work())
    except RuntimeError as error:
        print(error)
    """
    )
    if use == "another library" and not has_libgomp():
        pytest.skip("needs libgomp")
    *in_children, here = run_script(script, model).split()
    assert here == "4", "the process itself goes on"
    if use in ("an import alone", "a team of one"):
        assert in_children == ["4", "4"]
    else:
        assert set(in_children) <= {"4", "7"}


def has_libgomp() -> bool:
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="forks are told by /proc")
def test_a_fork_is_told_from_a_program_of_its_own():
    script = """
        import os, subprocess, sys
        from lariat.runtime import threads
        code = "from lariat.runtime import threads; print(threads._was_forked())"
        print(threads._was_forked(), flush=True)
        if os.fork() == 0:
            print(threads._was_forked(), flush=True)
            subprocess.run([sys.executable, "-c", code])
            os._exit(0)
        os.wait()
    """
    assert run_script(script).split() == ["False", "True", "False"]
