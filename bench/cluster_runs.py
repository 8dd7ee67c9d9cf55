"""Two real processes of one processor each, of which one is killed, beside `bench.cluster`.

The speeds that the simulation gets are measured with other rows, by both processes at the same
time, because they share the machine's memory: before, between and after the runs that are compared.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from lariat import DEMO_MODEL, BatchWorker

from bench import cluster
from bench.cluster import Cluster, Speed

_N_NODES = 2
_KILL_AT = 0.4  # of the time that the simulation needs without it
_N_IDS = 200  # token ids of prompts, from 300 on: any vocabulary has them
_WARM_UP = np.array([[8, 4]])


@dataclass(frozen=True)
class Compared:
    """A run: seconds that it took, and that the simulation took."""

    name: str
    measured: float
    simulated: float


@dataclass(frozen=True)
class Found:
    """The speeds that were measured, their mean, and the runs."""

    speed: Speed
    runs: list[Compared]


def rows_of(lengths: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Rows of these lengths, whose prompts have nothing in common."""
    dice = np.random.default_rng(seed)
    return [
        {
            "custom_id": f"{seed}-{i}", "prompt": (300 + dice.integers(_N_IDS, size=n)).tolist(),
            "max_tokens": int(n_tokens), "ignore_eos": True, "temperature": 0,
        }
        for i, (n, n_tokens) in enumerate(lengths)
    ]  # fmt: skip


def _pin(node: int) -> None:
    """Give this process one processor, and children the same."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[node % len(processors)]})
    os.environ["OMP_NUM_THREADS"] = "1"


def _serve(connection: Connection, node: int, worker: BatchWorker) -> None:
    """A node of a queue: answers chunks, and sends the seconds of each."""
    _pin(node)
    worker.load()
    worker(rows_of(_WARM_UP, 0))
    connection.send(0.0)
    while True:
        rows = connection.recv()
        began = time.perf_counter()
        answers = worker(rows)
        assert all(one["error"] is None for one in answers)
        connection.send(time.perf_counter() - began)


class _Node:
    """A process that answers chunks. `pending` is the chunk that it has, or None."""

    def __init__(self, number: int, worker: BatchWorker) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, number, worker), daemon=True)
        self._process.start()
        other.close()
        self.number, self.pending = number, None

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _nodes(worker: BatchWorker) -> tuple[list[_Node], float]:
    """Processes that are ready, and the seconds that it took."""
    began = time.perf_counter()
    nodes = [_Node(number, worker) for number in range(_N_NODES)]
    for node in nodes:
        node.connection.recv()
    return nodes, time.perf_counter() - began


def queue(worker: BatchWorker, chunks: list[list[dict[str, Any]]], kill_at: float) -> float:
    """Seconds until all chunks are answered, from the start of the processes. The first of them is
    killed after `kill_at` seconds, and another takes its place."""
    waiting: deque[list[dict[str, Any]]] = deque(chunks)
    began = time.perf_counter()
    nodes = [_Node(number, worker) for number in range(_N_NODES)]
    n_left, is_killed = len(chunks), False
    try:
        while n_left:
            left = max(0.0, began + kill_at - time.perf_counter()) if not is_killed else None
            ready: list[Any] = wait([node.connection for node in nodes], left)
            if not ready and not is_killed:
                is_killed = True
                nodes[0].kill()
                if nodes[0].pending is not None:
                    waiting.appendleft(nodes[0].pending)
                nodes[0] = _Node(0, worker)
                continue
            for node in nodes:
                if node.connection in ready:
                    node.connection.recv()
                    n_left -= node.pending is not None
                    node.pending = waiting.popleft() if waiting else None
                    if node.pending is not None:
                        node.connection.send(node.pending)
        return time.perf_counter() - began
    finally:
        for node in nodes:
            node.kill()


def array(flags: list[str], rows: list[dict[str, Any]], kill_at: float) -> float:
    """Seconds until two shards of `lariat batch` are done, of which the first is killed after
    `kill_at` seconds and goes on at once. Infinite `kill_at`: neither is."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "rows.jsonl")
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))

        def start(node: int, *more: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "lariat", "batch", str(source), *flags, *more]
            command += ["-o", f"{folder}/{node}", "--shard", f"{node + 1}/{_N_NODES}"]
            return subprocess.Popen(command, preexec_fn=lambda: _pin(node))

        began = time.perf_counter()
        processes = [start(node) for node in range(_N_NODES)]
        try:
            if np.isfinite(kill_at):
                time.sleep(kill_at)
                processes[0].kill()
                processes[0].wait()
                processes[0] = start(0, "--resume")
            codes = [process.wait() for process in processes]
            took = time.perf_counter() - began
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if any(codes):
            raise SystemExit(f"lariat batch ended with {codes}")
        return took


def _calibrate(worker: BatchWorker, chunks: list[np.ndarray], n_parallel: int) -> np.ndarray:
    """Seconds of each of `COUNTS`, of a process whose neighbour works too."""
    nodes, _ = _nodes(worker)
    counts = cluster.chunk_counts(chunks, n_parallel)
    seconds = np.empty((_N_NODES, len(chunks)))
    try:
        for i, chunk in enumerate(chunks):
            for node in nodes:
                node.connection.send(rows_of(chunk, 1000 * (i + 1) + node.number))
            for node in nodes:
                seconds[node.number, i] = node.connection.recv()
    finally:
        for node in nodes:
            node.kill()
    return cluster.fitted(np.tile(counts, (_N_NODES, 1)), seconds.ravel())


def _calibration_chunks(n_parallel: int, n_prompt: int, n_tokens: int) -> list[np.ndarray]:
    """Chunks that tell the counts apart: one text, several, many; long prompts and long answers."""
    shapes = [
        (1, n_prompt, 2 * n_tokens), (n_parallel // 4, n_prompt, n_tokens),
        (n_parallel, n_prompt, n_tokens), (2 * n_parallel, n_prompt, 2),
        (4 * n_parallel, 2, 1), (n_parallel, 4 * n_prompt, 2), (3 * n_parallel, n_prompt, n_tokens),
    ]  # fmt: skip
    return [np.tile([p, g], (max(1, n), 1)) for n, p, g in shapes]


def compare(
    model: str | None,
    n_rows: int,
    lengths_mean: tuple[float, float],
    skew: float,
    n_parallel: int,
    chunk: int,
    seed: int,
) -> Found:
    """Measure the speeds, run both cuts, and simulate the same."""
    path = model or str(DEMO_MODEL)
    dice = np.random.default_rng(seed)
    lengths = cluster.skewed_lengths(n_rows, *lengths_mean, skew, dice)
    longest = int(lengths.sum(1).max())
    n_ctx = max(n_parallel * int(sum(lengths_mean)) * 4, 2 * longest)
    worker = BatchWorker(path, n_ctx=n_ctx, n_parallel=n_parallel)
    shapes = _calibration_chunks(n_parallel, int(lengths_mean[0]), int(lengths_mean[1]))
    rows = rows_of(lengths, seed)
    pieces = cluster.chunks_of(lengths, chunk)
    at = range(0, n_rows, chunk)
    chunks = [rows[i : i + chunk] for i in at]
    flags = ["-q", "-m", path, "-c", str(n_ctx), "-np", str(n_parallel), "-t", "1"]

    def simulate(run: Callable[[Cluster], cluster.Outcome], kill_at: float) -> float:
        lasts = [kill_at, np.inf]  # the first node, and the one in its place

        def next_failure(node: int) -> float:
            return np.inf if node else lasts.pop(0)

        return run(Cluster(np.ones(_N_NODES), n_parallel, next_failure, 0.0)).seconds

    runs, measured = [], [_calibrate(worker, shapes, n_parallel)]
    starts: list[float] = []
    for name in ("queue", "array"):
        if name == "queue":
            nodes, start = _nodes(worker)
            for node in nodes:
                node.kill()
        else:
            start = array(flags, rows_of(np.tile(_WARM_UP, (_N_NODES, 1)), seed), np.inf)
        starts.append(start)

        def speed_of(found: np.ndarray, start: float = start) -> Speed:
            return Speed(*(float(one) for one in found), start)

        def run_of(speed: Speed, name: str = name) -> Callable[[Cluster], cluster.Outcome]:
            if name == "array":
                return lambda of: cluster.run_array(lengths, speed, of)
            seconds = cluster.chunk_counts(pieces, n_parallel) @ speed.of_counts
            return lambda of: cluster.run_queue(seconds, speed.start, of)

        kill_at = _KILL_AT * simulate(run_of(speed_of(measured[-1])), np.inf)
        took = queue(worker, chunks, kill_at) if name == "queue" else array(flags, rows, kill_at)
        measured.append(_calibrate(worker, shapes, n_parallel))
        speed = speed_of((measured[-1] + measured[-2]) / 2)
        runs.append(Compared(name, took, simulate(run_of(speed), kill_at)))
    mean = np.mean(measured, axis=0)
    return Found(Speed(*(float(one) for one in mean), float(np.mean(starts))), runs)
