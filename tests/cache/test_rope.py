"""The rotary table against cos and sin of Python's floats (64 bits)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lariat.cache.rope import RopeTable, RopeTables, frequencies, gain, steps
from lariat.config import ModelConfig, RopeConfig


def config(
    head_dim: int = 16,
    rope_dim: int | None = None,
    base: float = 10000.0,
    scale: float = 1.0,
    scaling: str = "linear",
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
        rope=RopeConfig(scaling, scale, base, 64),
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
        rows = RopeTable(config(scale=scale), 64).rows
        at_multiples = rows[:: int(scale)]
        np.testing.assert_allclose(
            at_multiples, RopeTable(config(), 64).rows[: len(at_multiples)], atol=1e-7
        )


def test_factors_divide_each_frequency():
    factors = np.array([1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0, 32.0])
    got = frequencies(config(scale=2.0), factors)
    np.testing.assert_allclose(got * factors * 2.0, frequencies(config()), rtol=1e-15)


def test_pairs_beyond_the_rotated_dims_do_not_rotate():
    theta = frequencies(config(head_dim=16, rope_dim=6))
    np.testing.assert_allclose(theta[:3], [10000 ** (-2 * i / 6) for i in range(3)], rtol=1e-14)
    assert theta.shape == (8,)
    assert not theta[3:].any()
    rows = RopeTable(config(head_dim=16, rope_dim=6), 40).rows
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
    table = RopeTable(config(head_dim=64), 100_001)
    table.reach(position)
    row = table.rows[position].astype(np.float64)
    angles = [position * float(t) for t in theta]
    # Half a float32 step below 1; the angle's own error is 1e5 * 2^-53.
    np.testing.assert_allclose(row[:32], [math.cos(a) for a in angles], rtol=0, atol=2**-25 + 2e-11)
    np.testing.assert_allclose(row[32:], [math.sin(a) for a in angles], rtol=0, atol=2**-25 + 2e-11)


def test_step_keeps_its_precision_for_slow_pairs():
    """2 (1 - cos theta) of a theta of 1e-8 is 1e-16: gone if it were taken from cos."""
    theta = np.array([1.0, 0.1, 1e-3, 1e-5, 1e-8, 0.0])
    step = steps(theta)
    assert step.dtype == np.float32
    assert step.shape == (2, 6)
    # Exact by the series for small angles, by the definition for large ones.
    expected = [2 * (1 - math.cos(t)) if t > 0.01 else t * t * (1 - t * t / 12) for t in theta]
    np.testing.assert_allclose(step[0], expected, rtol=1e-7)
    np.testing.assert_allclose(step[1], [math.sin(t) for t in theta], rtol=1e-7)


def test_stepping_reproduces_the_rows():
    """As kernels use `step`: they add the change, and change the change."""
    table = RopeTable(config(head_dim=64), 64)
    d, s = table.step.astype(np.float64)
    rows = table.rows.astype(np.float64)
    cos, sin = rows[:, :32], rows[:, 32:]
    # cos(a + t) = cos a - (d / 2) cos a - sin t sin a, and sin alike
    np.testing.assert_allclose(cos[1:], cos[:-1] - d / 2 * cos[:-1] - s * sin[:-1], atol=2e-7)
    np.testing.assert_allclose(sin[1:], sin[:-1] - d / 2 * sin[:-1] + s * cos[:-1], atol=2e-7)


def test_the_table_grows_only_as_it_is_used():
    table = RopeTable(config(), 1 << 20)
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
    at_once = RopeTable(config(), 1 << 20)
    at_once.reach(8999)
    n = min(len(at_once.rows), len(table.rows))
    assert np.array_equal(at_once.rows[:n], table.rows[:n])
    for array in (table.rows, at_once.rows):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


def test_reaching_what_is_there_changes_nothing():
    table = RopeTable(config(), 5000)
    rows = table.rows
    table.reach(len(rows) - 1)
    assert table.rows is rows


@pytest.mark.parametrize("n_positions", [32, 33, 1023, 1024, 1025, 3000])
def test_the_last_position_is_there_and_the_next_is_refused(n_positions):
    table = RopeTable(config(), n_positions)
    table.reach(n_positions - 1)
    assert len(table.rows) == n_positions
    with pytest.raises(ValueError, match=f"{n_positions}.*{n_positions}"):
        table.reach(n_positions)
    assert len(table.rows) == n_positions


def test_a_short_table_has_the_rows_of_a_whole_block():
    """Kernels read the rows 0 to 31 for the offsets within a block."""
    assert len(RopeTable(config(), 5).rows) == 32


def rotations(theta: np.ndarray, n: int) -> np.ndarray:
    """Within n positions."""
    return theta * n / (2 * math.pi)


def test_yarn_leaves_fast_pairs_alone_and_divides_slow_ones():
    rope = RopeConfig("yarn", scale=8.0, freq_base=1e4, yarn_orig_ctx=4096)
    plain = frequencies(config(128))
    got = frequencies(config(128), rope=rope)
    share = got / plain
    fast, slow = rotations(plain, 4096) > 40, rotations(plain, 4096) < 0.8
    assert fast.sum() > 15
    assert slow.sum() > 10
    np.testing.assert_allclose(share[fast], 1, rtol=1e-15)
    np.testing.assert_allclose(share[slow], 1 / 8, rtol=1e-15)
    assert (np.diff(share) <= 1e-15).all()
    between = share[(share < 1) & (share > 1 / 8 + 1e-9)]
    assert len(between) > 5
    np.testing.assert_allclose(np.diff(between), np.diff(between)[0], rtol=1e-9)  # a straight ramp


def test_yarn_s_parameters():
    def share(**more) -> np.ndarray:
        rope = RopeConfig("yarn", scale=4.0, **{"yarn_orig_ctx": 4096, **more})
        return frequencies(config(128), rope=rope) / frequencies(config(128))

    assert np.array_equal(share(), share(yarn_beta_fast=32.0, yarn_beta_slow=1.0))
    assert (share(yarn_ext_factor=0.0) == 1 / 4).all()
    half = share(yarn_ext_factor=0.5)
    np.testing.assert_allclose(half, (share() - 1 / 4) / 2 + 1 / 4, rtol=1e-12)
    assert (share(yarn_beta_fast=8.0) >= share()).all()
    assert (share(yarn_beta_slow=4.0) <= share()).all()
    assert not np.array_equal(share(yarn_beta_slow=4.0), share())
    assert (share(yarn_orig_ctx=512) <= share()).all()
    # A base of 1 and a length of less than one rotation must not divide by zero.
    assert np.isfinite(share(freq_base=1.0)).all()
    assert np.isfinite(share(yarn_orig_ctx=1)).all()


@pytest.mark.parametrize(
    ("rope", "factor"),
    [
        (RopeConfig("yarn", scale=4.0), 1 + 0.1 * math.log(4)),
        (RopeConfig("yarn", scale=0.5), 1.0),
        (RopeConfig("yarn", scale=4.0, yarn_attn_factor=3.0), 1 + 0.1 * math.log(4)),
        (RopeConfig("yarn", scale=4.0, yarn_attn_factor=3.0, yarn_ext_factor=0.0), 3.0),
        (RopeConfig("linear", scale=4.0), 1.0),
        (RopeConfig("linear", scale=4.0, yarn_attn_factor=3.0), 3.0),
        (RopeConfig("none", scale=4.0, yarn_ext_factor=1.0), 1.0),
    ],
)
def test_attention_factor(rope, factor):
    """llama.cpp's; a test against the program itself is `bench.experiments.stretch --peer`."""
    assert gain(config(), rope) == pytest.approx(factor**2, rel=1e-12)


def test_dynamic_scaling_grows_with_the_context():
    rope = RopeConfig("dynamic", yarn_orig_ctx=64, scale=2.0)
    plain = frequencies(config(16))
    for n in (0, 1, 64):
        assert np.array_equal(frequencies(config(16), rope=rope, n_tokens=n), plain)
    for n in (65, 96, 640):
        base = 10000 * (2.0 * n / 64 - 1) ** (16 / 14)
        expected = [base ** (-2 * i / 16) for i in range(8)]
        np.testing.assert_allclose(frequencies(config(16), rope=rope, n_tokens=n), expected)


def test_the_dynamic_table_is_made_anew_as_the_context_grows():
    rope = RopeConfig("dynamic", yarn_orig_ctx=64)
    table = RopeTable(config(), 5000, rope=rope)
    plain, kernel = table.rows[:64].copy(), table.kernel
    assert [table.stage(n) for n in (1, 64, 65, 72, 73, 128)] == [0, 0, 72, 72, 80, 128]
    table.reach(63)
    assert np.array_equal(table.rows[:64], plain)
    for n in (65, 100, 2000, 200, 101, 64, 3000):  # of several contexts
        table.reach(n - 1, n)
        theta = frequencies(config(), rope=rope, n_tokens=table.stage(n))
        angle = (n - 1) * theta
        expected = np.concatenate([np.cos(angle), np.sin(angle)])
        np.testing.assert_allclose(table.rows[n - 1], expected, atol=1e-6)
        np.testing.assert_allclose(table.step[1], np.sin(theta), atol=1e-7)
    assert table.kernel is kernel
    table.reach(10, 2000)  # the length that a prompt will have decides
    assert not np.allclose(table.rows[:64], plain)


def test_set_gives_the_same_positions_other_angles():
    table = RopeTable(config(), 3000)
    table.reach(2000)
    kernel = table.kernel
    table.set(RopeConfig("linear", scale=4.0, freq_base=5e5))
    table.reach(2000)
    assert table.kernel is kernel
    other = RopeTable(config(base=5e5, scale=4.0), 3000)
    other.reach(2000)
    assert np.array_equal(table.rows, other.rows)
    table.set(RopeConfig())
    table.reach(100)
    assert np.array_equal(table.rows[:101], RopeTable(config(), 101).rows)


def test_readings_take_turns_and_their_rows_stay():
    """Each has the rows that a table of its own would have, and no row is computed twice."""
    table = RopeTable(config(), 3000)
    kernel, kept = table.kernel, {}
    readings = [
        RopeConfig(), RopeConfig("yarn", 2.0, yarn_orig_ctx=64), RopeConfig("linear", 3.0),
        RopeConfig("dynamic", yarn_orig_ctx=64),
    ]  # fmt: skip
    for _ in range(2):
        for rope in readings:
            complete = table.complete(rope)
            table.reach(1500, rope=complete)
            other = RopeTable(config(), 3000, rope=rope)
            other.reach(1500)
            assert np.array_equal(table.rows[:1501], other.rows[:1501])
            assert np.array_equal(table.step, other.step)
            assert kept.setdefault(rope, table.rows) is table.rows
    assert table.kernel is kernel
    assert table.rope == config().rope
    plain = kept[readings[0]]
    for n in (2, 4, 8):  # Self-Extend has the same angles, and reads other rows
        table.reach(1500, rope=table.complete(RopeConfig(grp_attn_n=n)))
        assert table.rows is plain
    table.reach(10)
    assert table.rows is plain


def test_few_readings_are_kept():
    table = RopeTable(config(), 3000)
    first = table.rows
    for i in range(20):
        table.reach(5, rope=table.complete(RopeConfig("linear", 2.0 + i)))
    table.reach(5)
    assert table.rows is not first
    assert np.array_equal(table.rows, first)


def test_a_reading_with_the_own_settings_is_no_other():
    tables = RopeTables(config(), 100, rope=RopeConfig("yarn", 2.0))
    own = tables.complete(RopeConfig("yarn", 2.0))
    assert tables.reading(50, own) == tables.reading(50)
    assert tables.reading(50, tables.complete(RopeConfig())) != tables.reading(50)
