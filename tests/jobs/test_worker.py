"""BatchWorker: the same answers in this process, in pools, under Dask and under Ray."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import BatchWorker

from tests.support.batches import mixed_rows, run, write_rows

ROWS = mixed_rows(24)
PLAIN = [{"custom_id": f"id-{i}", "prompt": f"The {w}", "max_tokens": 6}
         for i, w in enumerate(["cat", "dog", "hat", "sun", "sea", "boy"])]  # fmt: skip
WORKER = BatchWorker(n_ctx=1024, n_threads=1, n_parallel=8)


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    return WORKER(ROWS)  # type: ignore[no-any-return]


def chunks(n: int = 4) -> list[list[dict[str, Any]]]:
    return [ROWS[i : i + n] for i in range(0, len(ROWS), n)]


def joined(parts: Any) -> list[dict[str, Any]]:
    return [row for part in parts for row in part]


def test_lines_are_those_of_the_command(tmp_path: Path) -> None:
    out = run(write_rows(tmp_path / "in", ROWS), tmp_path / "out")
    assert WORKER.lines(ROWS) == out.splitlines()


def test_a_pickled_worker_in_other_processes(expected: list[dict[str, Any]]) -> None:
    assert len(pickle.dumps(WORKER)) < 1000
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        assert joined(pool.map(WORKER, chunks())) == expected


def test_frames() -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    answers = WORKER(PLAIN)
    columns = {name: [row[name] for row in PLAIN] for name in PLAIN[0]} | {"label": list("abcdef")}
    texts = [one["text"] for one in answers]
    arrays = {name: np.array(values) for name, values in columns.items()}
    found = WORKER(arrays)
    assert found["text"].tolist() == texts
    assert found["label"] is arrays["label"]
    assert found["completion_tokens"].tolist() == [6] * 6
    frame = WORKER(pandas.DataFrame(columns))
    assert frame["text"].tolist() == texts
    assert list(frame.columns)[:4] == list(columns)
    table = WORKER(pyarrow.table(columns))
    assert table["text"].to_pylist() == texts
    assert next(WORKER.frames([pandas.DataFrame(columns)])).equals(frame)


def test_missing_values_and_errors_of_frames() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["The", None, "The"], "max_tokens": [2, 2, float("nan")],
                              "temperature": [0.5, 0.5, -1]})  # fmt: skip
    found = WORKER(frame)
    assert found["completion_tokens"].tolist() == [2, 0, 0]
    assert pandas.isna(found["error"][0])
    assert "needs a prompt" in found["error"][1]
    assert "temperature" in found["error"][2]
    with pytest.raises(TypeError, match="expected a list of rows"):
        WORKER(5)


def test_rows_without_ids_have_seeds_of_their_own_contents() -> None:
    row = {"prompt": "Once upon a time", "max_tokens": 16, "temperature": 1.5, "top_k": 0}
    other = {**row, "top_k": 1000}
    a, b, c = (one["text"] for one in WORKER([row, other, row]))
    assert a == c != b
    assert WORKER([other])[0]["text"] == b


def test_bad_settings_are_found_where_the_worker_is_made() -> None:
    with pytest.raises(ValueError, match="temperature"):
        BatchWorker(sampling={"temperature": -1})


def test_threads_are_the_processors_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from lariat.jobs.worker import threads_given

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_given() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_given() is None


class DiesOnce:
    """A worker whose process is killed in the midst of the first row that has a mark."""

    def __init__(self, mark: Path, worker: BatchWorker = WORKER) -> None:
        self.mark, self.worker = mark, worker

    def __call__(self, given: Any) -> Any:
        ids = given["custom_id"] if isinstance(given, dict) else [row["custom_id"] for row in given]
        if ROWS[8]["custom_id"] in ids and not self.mark.exists():
            self.mark.write_text(str(os.getpid()))
            self.worker(given)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.worker(given)


def test_dask_with_a_worker_that_is_killed(expected: list[dict[str, Any]], tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    import dask

    patient = dict.fromkeys(("connect", "tcp"), "600s")  # a machine that is busy with other things
    mark = tmp_path / "mark"
    with (
        dask.config.set({"distributed.comm.timeouts": patient}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        futures = client.map(DiesOnce(mark), chunks())
        assert joined(client.gather(futures)) == expected
    assert mark.exists()


# Ray's own deadlines are for quiet machines, and it kills workers where memory is short.
PATIENT_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_server_request_timeout_seconds": "120",
    "RAY_health_check_failure_threshold": "100",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_raylet_start_wait_time_s": "60",
    "RAY_worker_register_timeout_seconds": "600",
}
RAY_NOT_STARTED = "The current node timed out during startup"
N_STARTS = 3


def run_program(*arguments: str | Path, home: Path) -> str:
    """Run Python; returns what it printed. What it keeps for its user goes to `home`.

    Ray gives its processes 15 seconds to start, which nothing can change. It is started again;
    where others have all processors, it may not start at all, and then the test is skipped.
    """
    for _ in range(N_STARTS):
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=1800,
            cwd=Path(__file__).parents[2], env={**os.environ, **PATIENT_RAY, "HOME": str(home)},
        )  # fmt: skip
        if RAY_NOT_STARTED not in done.stderr:
            break
    else:
        if os.getloadavg()[1] > 4 * (os.cpu_count() or 1):
            pytest.skip(f"Ray does not start: {os.getloadavg()[1]:.0f} processes want to run")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


RAY = """
import json, os, signal, sys
import ray
from tests.jobs.test_worker import DiesOnce, PLAIN, RAY_ROWS
from pathlib import Path

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
mark = Path(sys.argv[1])

class Worker(DiesOnce):
    pass

data = ray.data.from_items(RAY_ROWS, override_num_blocks=6)
found = data.map_batches(
    Worker, fn_constructor_args=(mark,), compute=ray.data.ActorPoolStrategy(size=2), batch_size=4,
    num_cpus=1, max_restarts=-1, max_task_retries=-1,
)
rows = {row["custom_id"]: row["text"] for row in found.take_all()}
Path(sys.argv[2]).write_text(json.dumps(rows))  # Ray prints to standard output
"""
RAY_ROWS = [
    {"custom_id": ROWS[i]["custom_id"], "prompt": f"Once upon a time {i}", "max_tokens": 6}
    for i in range(24)
]


def test_ray_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    expected = {row["custom_id"]: answer["text"] for row, answer in
                zip(RAY_ROWS, WORKER(RAY_ROWS), strict=True)}  # fmt: skip
    mark = tmp_path / "mark"
    run_program("-c", RAY, str(mark), str(tmp_path / "answers"), home=tmp_path)
    assert json.loads((tmp_path / "answers").read_text()) == expected
    assert mark.exists()


PAGE = Path(__file__).parents[2] / "docs" / "batch.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.S | re.M)
NAMES = ("concurrent.futures", "dask", "ray", "pyspark")


@pytest.mark.parametrize("name", NAMES)
def test_programs_of_the_page(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    if name == "ray" and "LARIAT_KILLS" not in os.environ:
        pytest.skip("make test-long runs it: Ray takes half a minute")
    (program,) = [code for code in PROGRAMS if re.search(rf"^(from|import) {name}\b", code, re.M)]
    script = tmp_path / "program.py"
    script.write_text(program)
    assert run_program(script, home=tmp_path).splitlines()[-1] == "40"


def test_the_page_has_all_programs() -> None:
    assert len(PROGRAMS) == len(NAMES)
