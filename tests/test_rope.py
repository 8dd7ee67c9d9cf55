"""The rotary table against cos and sin of Python's floats (64 bits)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.config import ModelConfig
from engine.rope import RopeTable, frequencies


def config(
    head_dim: int = 16, rope_dim: int | None = None, base: float = 10000.0, scale: float = 1.0
) -> ModelConfig:
    return ModelConfig(
        n_vocab=8,
        n_ctx_train=64,
        dim=32,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        head_dim_k=head_dim,
        head_dim_v=16,
        n_ff=32,
        norm_eps=1e-5,
        rope_dim=head_dim if rope_dim is None else rope_dim,
        rope_freq_base=base,
        rope_scale=scale,
    )


@pytest.mark.parametrize("base", [10000.0, 500000.0, 1e6])
@pytest.mark.parametrize("head_dim", [2, 8, 64, 80, 128])
def test_frequencies_are_those_of_the_paper(head_dim, base):
    theta = frequencies(config(head_dim, base=base))
    expected = [base ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    assert theta.dtype == np.float64
    np.testing.assert_allclose(theta, expected, rtol=1e-14)
    assert theta[0] == 1.0


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.5, 8.0])
def test_linear_scaling_divides_positions(scale):
    plain, scaled = frequencies(config()), frequencies(config(scale=scale))
    np.testing.assert_allclose(scaled * scale, plain, rtol=1e-15)
    if scale >= 1:
        rows = RopeTable(scaled, 64).rows
        at_multiples = rows[:: int(scale)]
        np.testing.assert_allclose(
            at_multiples, RopeTable(plain, 64).rows[: len(at_multiples)], atol=1e-7
        )


def test_factors_divide_each_frequency():
    factors = np.array([1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0, 32.0])
    got = frequencies(config(scale=2.0), factors)
    np.testing.assert_allclose(got * factors * 2.0, frequencies(config()), rtol=1e-15)


def test_pairs_beyond_the_rotated_dims_do_not_turn():
    theta = frequencies(config(head_dim=16, rope_dim=6))
    np.testing.assert_allclose(theta[:3], [10000 ** (-2 * i / 6) for i in range(3)], rtol=1e-14)
    assert theta.shape == (8,)
    assert not theta[3:].any()
    rows = RopeTable(theta, 40).rows
    assert (rows[:, 3:8] == 1).all(), "cos"
    assert (rows[:, 11:] == 0).all(), "sin"
    factors = np.array([2.0, 3.0, 4.0])
    np.testing.assert_allclose(
        frequencies(config(rope_dim=6), factors)[:3] * factors, theta[:3], rtol=1e-15
    )


# The last entries are where an angle in float32 would be off by 1e-3 and more.
@pytest.mark.parametrize("position", [0, 1, 31, 1023, 1024, 4095, 32767, 100_000])
def test_rows_are_rounded_once_from_float64(position):
    theta = frequencies(config(head_dim=64))
    table = RopeTable(theta, 100_001)
    table.reach(position)
    row = table.rows[position].astype(np.float64)
    angles = [position * float(t) for t in theta]
    # Half a float32 step below 1; the angle's own error is 1e5 * 2^-53.
    np.testing.assert_allclose(row[:32], [math.cos(a) for a in angles], rtol=0, atol=2**-25 + 2e-11)
    np.testing.assert_allclose(row[32:], [math.sin(a) for a in angles], rtol=0, atol=2**-25 + 2e-11)


def test_step_keeps_its_precision_for_slow_pairs():
    """2 (1 - cos theta) of a theta of 1e-8 is 1e-16: gone if it were taken from cos."""
    theta = np.array([1.0, 0.1, 1e-3, 1e-5, 1e-8, 0.0])
    step = RopeTable(theta, 32).step
    assert step.dtype == np.float32
    assert step.shape == (2, 6)
    # Exact by the series for small angles, by the definition for large ones.
    expected = [2 * (1 - math.cos(t)) if t > 0.01 else t * t * (1 - t * t / 12) for t in theta]
    np.testing.assert_allclose(step[0], expected, rtol=1e-7)
    np.testing.assert_allclose(step[1], [math.sin(t) for t in theta], rtol=1e-7)


def test_stepping_reproduces_the_rows():
    """What kernels do with `step`: add the change, and change the change."""
    theta = frequencies(config(head_dim=64))
    table = RopeTable(theta, 64)
    d, s = table.step.astype(np.float64)
    rows = table.rows.astype(np.float64)
    cos, sin = rows[:, :32], rows[:, 32:]
    # cos(a + t) = cos a - (d / 2) cos a - sin t sin a, and sin alike
    np.testing.assert_allclose(cos[1:], cos[:-1] - d / 2 * cos[:-1] - s * sin[:-1], atol=2e-7)
    np.testing.assert_allclose(sin[1:], sin[:-1] - d / 2 * sin[:-1] + s * cos[:-1], atol=2e-7)


def test_the_table_grows_only_as_it_is_used():
    table = RopeTable(frequencies(config()), 1 << 20)
    assert len(table.rows) <= 2048, "a long context is paid for when it is used"
    first = table.rows.copy()
    lengths = set()
    for position in range(0, 9000, 37):
        table.reach(position)
        assert len(table.rows) > position
        lengths.add(len(table.rows))
    assert len(lengths) <= 6, "grows by doubling, not by a little each time"
    assert len(table.rows) <= 4 * 9000
    assert np.array_equal(table.rows[: len(first)], first)
    at_once = RopeTable(frequencies(config()), 1 << 20)
    at_once.reach(8999)
    n = min(len(at_once.rows), len(table.rows))
    assert np.array_equal(at_once.rows[:n], table.rows[:n])
    for array in (table.rows, at_once.rows):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


def test_reaching_what_is_there_changes_nothing():
    table = RopeTable(frequencies(config()), 5000)
    rows = table.rows
    table.reach(len(rows) - 1)
    assert table.rows is rows


@pytest.mark.parametrize("n_positions", [32, 33, 1023, 1024, 1025, 3000])
def test_the_last_position_is_there_and_the_next_is_refused(n_positions):
    table = RopeTable(frequencies(config()), n_positions)
    table.reach(n_positions - 1)
    assert len(table.rows) == n_positions
    with pytest.raises(ValueError, match=f"{n_positions}.*{n_positions}"):
        table.reach(n_positions)
    assert len(table.rows) == n_positions


def test_a_short_table_has_the_rows_of_a_whole_block():
    """Kernels read the rows 0 to 31 for the offsets within a block."""
    assert len(RopeTable(frequencies(config()), 5).rows) == 32
