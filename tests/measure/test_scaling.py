"""Laws that are fitted to speeds over threads, of curves whose laws are known."""

from __future__ import annotations

import pytest
from lariat.measure import scaling
from lariat.measure.cases import Case, ModelFacts, Result

FACTS = ModelFacts("model.gguf", "llama 7B Q4_0", 4 << 30, 7 * 10**9)


def curve(seconds: dict[int, list[float]], roofs: dict[int, float] | None = None) -> list[Result]:
    """Results of writing, 4 GB a token, with these times and read bandwidths."""
    points = []
    for n, times in seconds.items():
        case = Case(n_gen=1, n_threads=n, n_threads_batch=n)
        result = Result(case, FACTS, "avx2", False, 4e9, None)
        for time in times:
            result.add(round(1e9 * time))
        result.bandwidths = [roofs[n]] if roofs else []
        points.append(result)
    return points


@pytest.mark.parametrize("serial", [0.0, 0.02, 0.3, 1.0])
def test_the_law_is_found_again(serial):
    found = scaling.amdahl({n: 7 * (serial + (1 - serial) / n) for n in (1, 2, 3, 8, 16)})
    assert found is not None
    assert found.serial_share == pytest.approx(serial, abs=1e-9)
    assert found.deviation == pytest.approx(0, abs=1e-9)


def test_a_curve_that_is_not_like_the_law_deviates():
    bound = scaling.amdahl({n: 1 / min(n, 3) for n in range(1, 9)})
    assert bound is not None
    assert 0.1 < bound.serial_share < 0.5
    assert bound.deviation > 0.1


def test_shares_stay_within_bounds():
    better_than_linear = scaling.amdahl({1: 1.0, 2: 0.45, 4: 0.2})
    slower_with_more = scaling.amdahl({1: 1.0, 2: 1.5, 4: 2.0})
    assert better_than_linear is not None
    assert slower_with_more is not None
    assert better_than_linear.serial_share == 0.0
    assert slower_with_more.serial_share == 1.0


def test_two_numbers_fit_any_law():
    assert scaling.amdahl({1: 1.0, 2: 0.6}) is None


@pytest.mark.parametrize(
    ("roofs", "expected"),
    [
        ({1: 20.0, 2: 38.0, 4: 50.0, 8: 51.0}, 4),
        ({1: 20.0, 2: 40.0, 4: 80.0}, None),
        ({1: 50.0, 2: 49.0}, 1),
        ({1: 20.0}, None),
        ({}, None),
    ],
)
def test_a_roof_is_flat_where_more_threads_hardly_raise_it(roofs, expected):
    assert scaling.saturation(roofs) == expected


def test_enough_is_where_more_threads_gain_3_percent_at_most():
    seconds = {1: [1.0], 2: [0.55], 4: [0.4], 8: [0.39], 16: [0.45]}
    assert scaling.enough(curve(seconds)) == 4
    assert scaling.enough(curve({1: [1.0], 2: [1.2]})) == 1
    assert scaling.enough(curve({1: [1.0], 2: [1.2], 64: [0.5]})) == 64


def test_pairs_decide_not_means():
    """The machine became slower from one repetition to the next, and had one interruption."""
    assert scaling.enough(curve({1: [1.0, 2.0, 3.0], 2: [0.8, 1.6, 30.0]})) == 2


def test_a_whole_curve():
    seconds = {n: [0.05 + 0.4 / n] for n in (1, 2, 4, 8)}
    roofs = {1: 12e9, 2: 24e9, 4: 40e9, 8: 40e9}
    found = scaling.of_curve(curve(seconds, roofs), n_processors=4)
    assert (found.roof, found.saturates_at, found.enough) == ("read", None, 8)
    assert found.best_share == pytest.approx(4e9 / 0.1 / 40e9)
    assert found.amdahl is not None
    assert found.amdahl.serial_share == pytest.approx(0.05 / 0.45)
    assert scaling.of_curve(curve(seconds, roofs), n_processors=8).saturates_at == 4
    without = scaling.of_curve(curve(seconds), n_processors=4)
    assert (without.roof, without.saturates_at, without.best_share) == (None, None, None)
    assert found.as_dict()["amdahl"]["serial_share"] == found.amdahl.serial_share
