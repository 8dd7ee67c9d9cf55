"""Where places in a context go in an edit."""

from __future__ import annotations

import itertools

import numpy as np
from lariat.runtime.order import Order, Run, runs


def test_neighbours_that_stay_neighbours_are_one_run():
    order: Order = [(0, 4), (4, 6), 3, (8, 10)]
    assert runs(order, 0, 10) == [Run(0, 0, 6), Run(8, 9, 2)]
    assert runs(order, 2, 5) == [Run(2, 2, 3)]
    assert runs(order, 6, 8) == []


def test_the_runs_come_in_their_new_order():
    assert runs([(5, 8), (0, 5)], 3, 7) == [Run(5, 0, 2), Run(3, 6, 2)]


def test_runs_are_where_the_tokens_are():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, 20))
        cuts = [0, *sorted(rng.integers(0, n + 1, 3).tolist()), n]
        order: list[int | tuple[int, int]] = list(itertools.pairwise(cuts))
        rng.shuffle(order)
        order = order[: int(rng.integers(1, 5))]
        order.insert(int(rng.integers(0, len(order) + 1)), int(rng.integers(0, 4)))
        tokens: list[int] = []
        for piece in order:
            tokens += range(*piece) if isinstance(piece, tuple) else [-1] * piece
        start, stop = sorted(rng.integers(0, n + 1, 2).tolist())
        found = runs(order, start, stop)
        assert [i for i in tokens if start <= i < stop] == [
            i for run in found for i in range(run.before, run.before + run.n)
        ]
        assert all(tokens[run.at + i] == run.before + i for run in found for i in range(run.n))
