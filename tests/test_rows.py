"""Row-wise operations of some architectures, at each instruction-set level, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from lariat import _kernels, _rows
from lariat._program import run

from tests.reference import relative_error

BOUND = 1e-6
SHAPES = [(1, 1), (1, 33), (3, 5000), (2, 8192), (5, 640)]


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.mark.parametrize("shape", SHAPES)
def test_gelu_mul(isa, rng, shape):
    gate = rng.uniform(-8, 8, shape).astype(np.float32)
    if gate.size > 4:
        gate.reshape(-1)[:5] = [-200.0, 200.0, 0.0, -1e-6, 12.0]
    up = rng.standard_normal(shape).astype(np.float32)
    wide = gate.astype(np.float64)
    u = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    expected = wide * (1 + np.tanh(u)) / 2 * up
    run(_rows.gelu_mul(gate, up), n_threads=2)
    assert gate.size < 100 or relative_error(gate, expected) < BOUND
    # Far below 0 the result is tiny, and all of it is the exp of a large number.
    assert np.allclose(gate, expected, rtol=2e-5, atol=1e-9)


def test_gelu_mul_quantizes_as_quantize_does(isa, rng):
    gate = rng.uniform(-8, 8, (3, 4160)).astype(np.float32)
    up = rng.standard_normal(gate.shape).astype(np.float32)
    data = rng.integers(0, 256, (16, gate.shape[1] // 32 * 34), dtype=np.uint8)
    data.reshape(16, -1, 34)[:, :, 1] = 0x1C  # f16 scales around 0.004
    weight = _kernels.Matrix(
        data, "Q8_0", gate.shape[1], np.zeros(_kernels.packed_bytes("Q8_0", 16, 4160), np.uint8)
    )
    products = []
    for at_once in (True, False):
        x, q8 = gate.copy(), _kernels.Activations(*gate.shape)
        run(_rows.gelu_mul(x, up, q8 if at_once else None))
        if not at_once:
            run(_kernels.quantize(x, q8))
        out = np.zeros((3, 16), np.float32)
        run(_kernels.matmul(weight, x, q8, out))
        products.append(out)
    assert products[0].any()
    assert np.array_equal(*products)


@pytest.mark.parametrize("cap", [0.5, 30.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_soft_cap(isa, rng, shape, cap):
    x = (rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 5, shape)).astype(np.float32)
    expected = cap * np.tanh(x.astype(np.float64) / cap)
    run(_rows.soft_cap(x, cap), n_threads=2)
    assert np.allclose(x, expected, rtol=5e-7, atol=0)


def test_what_is_not_a_number_stays_so(isa):
    x = np.full((1, 40), np.nan, np.float32)
    gate = x.copy()
    run(_rows.soft_cap(x, 5.0))
    run(_rows.gelu_mul(gate, np.ones_like(gate)))
    assert np.isnan(x).all()
    assert np.isnan(gate).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_sums(isa, rng, shape):
    x, y = rng.standard_normal((2, *shape)).astype(np.float32)
    weight = rng.standard_normal(shape[1]).astype(np.float32)
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    run(_rows.add_scaled(x, y, 0.22), n_threads=2)
    assert relative_error(x, wide_x + 0.22 * wide_y) < BOUND
    run(_rows.scale(x, 3.0), n_threads=2)
    wide_x = 3 * (wide_x + 0.22 * wide_y)
    assert relative_error(x, wide_x) < BOUND
    run(_rows.add_norm(x, y, weight, 1e-5), n_threads=2)
    rms = np.sqrt(np.mean(wide_y**2, axis=1, keepdims=True) + 1e-5)
    assert relative_error(x, wide_x + wide_y / rms * weight) < BOUND


def test_temper(isa, rng):
    x = rng.standard_normal((4, 100)).astype(np.float32)
    positions = np.array([0, 7, 8, 1000], np.int32)
    expected = x * (1 + 0.1 * np.log(1 + positions // 8))[:, None]
    run(_rows.temper(x, positions, 0.1, 8), n_threads=2)
    assert relative_error(x, expected) < BOUND


def test_shapes_that_do_not_fit_are_refused():
    x, y = np.zeros((2, 8), np.float32), np.zeros((2, 9), np.float32)
    for operation in (_rows.gelu_mul, lambda x, y: _rows.add_scaled(x, y, 1.0)):
        with pytest.raises(ValueError, match=r"rows of \[2, 8\] and \[2, 9\]"):
            operation(x, y)
    with pytest.raises(ValueError, match=r"add_norm of \[2, 8\] with 9 weights"):
        _rows.add_norm(x, x.copy(), np.ones(9, np.float32), 1e-5)
    for positions, length in ((np.zeros(3, np.int32), 8), (np.zeros(2, np.int32), 0)):
        with pytest.raises(ValueError, match="and a length of"):
            _rows.temper(x, positions, 0.1, length)
