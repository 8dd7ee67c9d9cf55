"""How many tokens of a prompt fit into a step, from what steps have cost."""

from __future__ import annotations

import pytest
from lariat.runtime.pace import MAX_SECONDS, Pace


def test_nothing_is_known_at_first() -> None:
    pace = Pace()
    assert pace.budget is None
    pace.add(0, 4, 0.01)
    assert pace.budget is None


@pytest.mark.parametrize(
    ("token_s", "decode_s"),
    [(20e-6, 0.5e-3), (1e-3, 10e-3), (21e-3, 0.123), (0.3, 2.0)],
    ids=["15m", "1b", "7b", "70b"],
)
def test_a_step_takes_100_ms_or_two_steps_of_decoding(token_s: float, decode_s: float) -> None:
    pace = Pace()
    for _ in range(40):
        pace.add(0, 1, decode_s)
        n = pace.budget or 64
        pace.add(n, 1, decode_s + n * token_s)
    n = pace.budget
    assert n is not None
    due = max(MAX_SECONDS, 2 * decode_s)
    assert 0.6 * due <= decode_s + n * token_s <= 1.01 * due or n == 1


def test_the_estimate_follows_a_machine_that_becomes_slow() -> None:
    pace = Pace()
    for _ in range(5):
        pace.add(0, 1, 1e-3)
        pace.add(512, 0, 0.05)
    fast = pace.budget
    for _ in range(20):
        pace.add(64, 1, 0.5)
    assert fast is not None
    assert pace.budget is not None
    assert pace.budget < fast / 20


def test_a_free_prompt_is_still_bounded_and_the_dearest_goes_on() -> None:
    pace = Pace()
    pace.add(0, 1, 1.0)
    pace.add(8, 1, 0.5)  # less than decoding alone has taken
    assert pace.budget is not None
    assert 8 <= pace.budget <= 1 << 20
    pace.add(1, 0, 1e6)
    assert pace.budget == 1


def test_budgets_have_few_different_values() -> None:
    """Each size of batch has a program of its own."""
    seen = set()
    for i in range(1, 3000):
        pace = Pace()
        pace.add(1000, 0, i * 1e-3)
        seen.add(pace.budget)
    assert len(seen) < 40
