"""A batch on many nodes, computed on paper: rows, chunks, nodes that fail, nodes that are slower.

A node computes up to `n_parallel` texts at a time, and a row begins when another ends. Its time
follows from counts that do not depend on its speed: rows, tokens that are read, decode steps, and
texts in these steps. `Speed` has the seconds of each.

Work is cut in one of two ways. `run_array`: one shard a node (`lariat batch --shard K/N`) with a
journal, so that a node that fails loses what was in work. `run_queue`: chunks that nodes take one
after the other (`BatchWorker` under Dask, Ray or Spark), of which a node that fails loses one.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

COUNTS = ("rows", "tokens read", "decode steps", "texts in steps")


@dataclass(frozen=True)
class Speed:
    """Seconds of one node.

    row     of a row, beside its tokens
    prompt  of a token that is read
    step    of a decode step, however many texts are in it
    text    of a text in a decode step
    start   from the start of a process until it computes
    """

    row: float
    prompt: float
    step: float
    text: float
    start: float

    @property
    def of_counts(self) -> np.ndarray:
        """Seconds of each of `COUNTS`, float64 [4]."""
        return np.array([self.row, self.prompt, self.step, self.text])


@dataclass(frozen=True)
class Cluster:
    """Nodes.

    slowness     how many times as long as `Speed` says each node takes, float64 [n_nodes]
    n_parallel   texts that a node computes at a time
    next_failure seconds that a node lasts, by its number; called anew when it has been replaced
    replacement  seconds until a node that failed has been replaced, and starts
    """

    slowness: np.ndarray
    n_parallel: int
    next_failure: Callable[[int], float]
    replacement: float

    @property
    def n_nodes(self) -> int:
        """How many there are."""
        return len(self.slowness)


@dataclass(frozen=True)
class Outcome:
    """A run: seconds until all is done, and how many nodes failed."""

    seconds: float
    n_failures: int


def skewed_lengths(
    n_rows: int, n_prompt: float, n_tokens: float, skew: float, dice: np.random.Generator
) -> np.ndarray:
    """Tokens of prompts and answers, int64 [n_rows, 2]: log-normal with these means.

    `skew` is the deviation of their logarithms. None is below one, or above 30 times its mean.
    """
    mean = np.array([n_prompt, n_tokens])
    drawn = mean * np.exp(skew * dice.standard_normal((n_rows, 2)) - skew**2 / 2)
    return np.clip(np.rint(drawn), 1, 30 * mean).astype(np.int64)


def works(lengths: np.ndarray, n_parallel: int) -> tuple[np.ndarray, np.ndarray]:
    """What a node does until each of its rows is done.

    Returns `COUNTS`, float64 [n_rows, 4], in the order in which rows end, and the numbers of these
    rows, int64 [n_rows]. lengths: int64 [n_rows, 2], tokens of prompts and of answers.
    """
    n_rows = len(lengths)
    counts, order = np.empty((n_rows, 4)), np.empty(n_rows, np.int64)
    running: list[tuple[int, int]] = []  # the step that ends a row, and the row
    n_begun = n_read = step = n_texts = 0
    prompts, answers = lengths[:, 0].tolist(), lengths[:, 1].tolist()
    for i in range(n_rows):
        while n_begun < n_rows and len(running) < n_parallel:
            # The first token comes with the prompt.
            heapq.heappush(running, (step + answers[n_begun] - 1, n_begun))
            n_read += prompts[n_begun]
            n_begun += 1
        end, row = running[0]
        n_texts += (end - step) * len(running)
        step = end
        heapq.heappop(running)
        counts[i], order[i] = (n_begun, n_read, step, n_texts), row
    return counts, order


def run_queue(chunk_seconds: np.ndarray, start: float, cluster: Cluster) -> Outcome:
    """Nodes take chunks as they come. chunk_seconds: float64 [n_chunks], at a slowness of 1."""
    waiting = deque(range(len(chunk_seconds)))
    idle: list[int] = []
    number = itertools.count()  # of two events at a time, the older one
    events: list[tuple[float, int, str, int, int]] = []
    fails_at = [cluster.next_failure(node) for node in range(cluster.n_nodes)]
    n_left, n_failures = len(chunk_seconds), 0

    def add(time: float, name: str, node: int, chunk: int = -1) -> None:
        heapq.heappush(events, (time, next(number), name, node, chunk))

    for node in range(cluster.n_nodes):
        add(start * cluster.slowness[node], "ready", node)
    time = 0.0
    while n_left:
        time, _, name, node, chunk = heapq.heappop(events)
        if name == "fails":
            n_failures += 1
            waiting.appendleft(chunk)
            ready = time + cluster.replacement + start * cluster.slowness[node]
            fails_at[node] = time + cluster.replacement + cluster.next_failure(node)
            add(ready, "ready", node)
            for other in idle:
                add(time, "ready", other)
            idle.clear()
            continue
        n_left -= name == "done"
        if not waiting:
            idle.append(node)
            continue
        chunk = waiting.popleft()
        end = time + chunk_seconds[chunk] * cluster.slowness[node]
        fails = fails_at[node] < end
        add(max(time, fails_at[node]) if fails else end, "fails" if fails else "done", node, chunk)
    return Outcome(time, n_failures)


def run_array(lengths: np.ndarray, speed: Speed, cluster: Cluster) -> Outcome:
    """One shard a node: every Nth row. All of them run to their ends, and resume if they fail."""
    last, n_failures = 0.0, 0
    for node in range(cluster.n_nodes):
        slow = cluster.slowness[node]
        left = lengths[node :: cluster.n_nodes]
        time, fails_at = 0.0, cluster.next_failure(node)
        while len(left):
            counts, order = works(left, cluster.n_parallel)
            ends = time + slow * (speed.start + counts @ speed.of_counts)
            if fails_at >= ends[-1]:
                time = ends[-1]
                break
            n_failures += 1
            left = left[np.sort(order[ends > fails_at])]
            time = fails_at + cluster.replacement
            fails_at = time + cluster.next_failure(node)
        last = max(last, time)
    return Outcome(last, n_failures)


def chunks_of(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Neighbouring rows together, `size` of them in each chunk but the last."""
    return [lengths[at : at + size] for at in range(0, len(lengths), size)]


def chunk_counts(chunks: Sequence[np.ndarray], n_parallel: int) -> np.ndarray:
    """`COUNTS` of each chunk, float64 [n_chunks, 4]."""
    return np.array([works(chunk, n_parallel)[0][-1] for chunk in chunks])


def fitted(counts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Seconds of each of `COUNTS`, float64 [4], none below 0, from measured runs.

    counts: float64 [n_runs, 4]; seconds: float64 [n_runs]. Least squares of relative errors.
    """
    scaled = counts / seconds[:, None]
    used = np.ones(counts.shape[1], bool)
    while True:
        found = np.zeros(counts.shape[1])
        found[used] = np.linalg.lstsq(scaled[:, used], np.ones(len(seconds)), rcond=None)[0]
        if (found >= 0).all():
            return found
        used &= found > 0
