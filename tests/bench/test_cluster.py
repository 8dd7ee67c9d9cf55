"""The simulated cluster, against sums that can be done by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("bench.cluster", reason="runs from the source tree only")
from bench import cluster
from bench.cluster import Cluster, Speed
from bench.experiments import cluster as experiment

SPEED = Speed(row=0.5, prompt=0.01, step=1.0, text=0.1, start=7.0)


def never(node: int) -> float:
    return np.inf


def nodes(n: int, next_failure: Callable[[int], float] = never, wait: float = 0.0) -> Cluster:
    return Cluster(np.ones(n), 4, next_failure, wait)


def once(at: float) -> Callable[[int], float]:
    """The first node fails, and then never again."""
    lasts = [at]
    return lambda node: lasts.pop() if node == 0 and lasts else np.inf


def naive(lengths: np.ndarray, n_parallel: int) -> list[tuple[int, int, int, int]]:
    """Counts when rows end, step by step."""
    left: dict[int, int] = {}
    waiting = list(range(len(lengths)))
    n_read = step = texts = n_begun = 0
    found = []
    while waiting or left:
        while waiting and len(left) < n_parallel:
            row = waiting.pop(0)
            n_begun, n_read = n_begun + 1, n_read + int(lengths[row, 0])
            left[row] = int(lengths[row, 1]) - 1
        done = [row for row, n in left.items() if n == 0]
        if done:
            del left[done[0]]
            found.append((n_begun, n_read, step, texts))
            continue
        step, texts = step + 1, texts + len(left)
        left = {row: n - 1 for row, n in left.items()}
    return found


@pytest.mark.parametrize("n_parallel", [1, 3, 50])
def test_counts_are_those_of_every_step(n_parallel: int) -> None:
    lengths = cluster.skewed_lengths(40, 20, 8, 1.0, np.random.default_rng(3))
    counts, order = cluster.works(lengths, n_parallel)
    assert counts.tolist() == [list(map(float, one)) for one in naive(lengths, n_parallel)]
    assert sorted(order) == list(range(40))
    assert counts[-1, 3] == (lengths[:, 1] - 1).sum()


def test_lengths_have_the_means_that_are_asked_for() -> None:
    lengths = cluster.skewed_lengths(200_000, 200, 50, 1.0, np.random.default_rng(0))
    assert lengths.mean(0) == pytest.approx([200, 50], rel=0.02)
    assert lengths.min() >= 1
    assert lengths[:, 1].max() == 1500


def test_a_queue_ends_with_its_last_chunk() -> None:
    found = cluster.run_queue(np.array([5.0, 1.0, 1.0, 1.0]), 7.0, nodes(2))
    assert (found.seconds, found.n_failures) == (12.0, 0)


def test_a_node_of_a_queue_that_fails_loses_its_chunk() -> None:
    found = cluster.run_queue(np.full(4, 10.0), 7.0, nodes(2, once(9.0), 100.0))
    assert (found.seconds, found.n_failures) == (47.0, 1)  # the other one computes all four
    found = cluster.run_queue(np.full(4, 10.0), 7.0, nodes(2, once(9.0), 3.0))
    assert found.seconds == 37.0  # it is back at 19, and takes one of the four


def test_a_chunk_that_was_lost_wakes_a_node_without_work() -> None:
    found = cluster.run_queue(np.array([10.0, 1.0]), 0.0, nodes(2, once(9.0), 100.0))
    assert found.seconds == 19.0


def test_a_shard_that_fails_keeps_what_is_done() -> None:
    lengths = np.array([[10, 1 + i] for i in range(6) for _ in range(2)])
    whole = cluster.run_array(lengths, SPEED, nodes(2))
    counts, _ = cluster.works(lengths[::2], 4)
    assert whole.seconds == pytest.approx(7 + counts[-1] @ SPEED.of_counts)
    failed = cluster.run_array(lengths, SPEED, nodes(2, once(whole.seconds - 0.001), 20.0))
    alone = cluster.works(lengths[-1:], 4)[0][-1] @ SPEED.of_counts
    assert failed.n_failures == 1
    assert failed.seconds == pytest.approx(whole.seconds - 0.001 + 20 + 7 + alone)


def test_slower_nodes_take_longer() -> None:
    slow = Cluster(np.array([1.0, 2.0]), 4, never, 0.0)
    assert cluster.run_queue(np.full(3, 6.0), 1.0, slow).seconds == 14.0
    lengths = np.array([[5, 5], [5, 5]])
    one = cluster.run_array(lengths, SPEED, nodes(2)).seconds
    assert cluster.run_array(lengths, SPEED, slow).seconds == pytest.approx(2 * one)


def test_speeds_are_found_again() -> None:
    dice = np.random.default_rng(1)
    counts = dice.uniform(1, 100, (12, 4))
    seconds = counts @ SPEED.of_counts
    assert cluster.fitted(counts, seconds) == pytest.approx(SPEED.of_counts)
    none = counts @ (SPEED.of_counts * [1, 1, 0, 1]) - 0.01 * counts[:, 2]
    assert (cluster.fitted(counts, none) >= 0).all()


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rows", "2000", "--nodes", "1,10", "--chunks", "32,256"]
    experiment.main(flags)
    first = capsys.readouterr().out
    experiment.main(flags)
    assert capsys.readouterr().out == first
    assert "| queue, 256 rows |" in first
    assert "| nodes | cut | hours |" in first
