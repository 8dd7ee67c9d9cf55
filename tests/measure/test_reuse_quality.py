"""Scores of reused keys: against sums by hand, and the bootstrap against what it must give."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lariat.measure.reuse_quality import bootstrap, pgr, predict, score

from tests.support.contexts import ids_of, load, write_shallow


def log_probs(*rows: list[float]) -> np.ndarray:
    return np.log(np.array(rows, np.float32))


def test_scores_of_an_answer():
    full = log_probs([0.5, 0.25, 0.25], [0.1, 0.8, 0.1])
    got = log_probs([0.25, 0.5, 0.25], [0.1, 0.8, 0.1])
    found = score(got, full, [1, 1])
    assert (found.exact, found.top1) == (True, 0.5)
    assert found.nll == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)
    assert found.kl == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 2, rel=1e-5)
    same = score(full, full, [1, 1])
    assert (same.exact, same.kl, same.top1) == (False, 0, 1)


def test_predictions_are_those_behind_the_question(tmp_path):
    with load(write_shallow(tmp_path), "raw") as llm, llm.context() as context:
        before, question, answer = ids_of(40), ids_of(7, 1), ids_of(3, 2)
        context.append(before)
        got = predict(context, question, answer)
        logits = llm.logits([*before, *question, *answer])[46:49].astype(float)
    wanted = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert got.shape == (3, llm.n_vocab)
    assert np.allclose(got, wanted, atol=1e-4)


def test_recovered_share_of_the_gap():
    full, without = np.array([1.0, 1, 0, 1]), np.array([0.0, 0, 0, 1])
    assert pgr(full, full, without) == 1
    assert pgr(without, full, without) == 0
    assert pgr(np.array([1.0, 0, 0, 1]), full, without) == 0.5
    assert pgr(-np.array([1.0, 0, 0, 1]), -full, -without) == 0.5  # less is better
    assert math.isnan(pgr(full, full, full))


def test_the_interval_holds_the_value_and_shrinks_with_more_questions():
    rng = np.random.default_rng(1)

    def interval(n: int) -> tuple[float, float]:
        without, full = rng.random(n), 2 + rng.random(n)
        return bootstrap((full + without) / 2 + rng.normal(0, 0.5, n), full, without)

    low, high = interval(400)
    assert low < 0.5 < high
    few = interval(20)
    assert few[1] - few[0] > 2 * (high - low)


def test_questions_of_one_group_are_drawn_together():
    full, without = np.ones(40), np.zeros(40)
    got = np.repeat([1.0, 0, 1, 0], 10)
    apart = bootstrap(got, full, without)
    together = bootstrap(got, full, without, groups=[i // 10 for i in range(40)])
    assert together == (0, 1)
    assert apart[1] - apart[0] < 0.4


def test_without_a_gap_there_is_no_interval():
    assert all(math.isnan(each) for each in bootstrap(np.ones(3), np.ones(3), np.ones(3)))
