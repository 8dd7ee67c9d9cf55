"""Attention and the cache at each instruction-set level against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from lariat import _attention, _cache, _kernels
from lariat._attention_plan import AttentionPlan
from lariat._program import run
from lariat.cache.kv_storage import CacheMemory

from tests.reference import relative_error
from tests.support.cache_units import QUANTIZED, config_of
from tests.support.kernel_cases import CacheCase

BOUND = 1e-6


@pytest.fixture
def rng():
    return np.random.default_rng(7)


HEADS = [(2, 2, 128, 128), (4, 1, 64, 64), (6, 1, 80, 80), (3, 3, 8, 8), (10, 1, 2, 6),
         (4, 2, 48, 20), (2, 1, 130, 34), (9, 3, 16, 16), (12, 4, 34, 64)]  # fmt: skip
CONTEXTS = {
    "one token": [(1, 1)],
    "decode": [(75, 1), (32, 1), (33, 1), (700, 1)],
    "few": [(40, 3), (4, 4)],
    "prompts": [(75, 75), (140, 100), (33, 5)],
    "mixture": [(61, 1), (90, 70), (31, 2), (520, 1)],
}


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("contexts", CONTEXTS)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention(isa, rng, heads, contexts, raw):
    n_heads, n_kv_heads, dk, dv = heads
    case = CacheCase(
        rng, n_heads=n_heads, n_kv_heads=n_kv_heads, dk=dk, dv=dv, contexts=CONTEXTS[contexts]
    )
    got = case.run(raw)
    assert relative_error(got, case.expected()) < 3 * BOUND
    assert np.array_equal(case.run(raw, 1), got)
    assert np.array_equal(case.run(raw, 3), got)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("types", [("f16", "f16"), ("f16", "f32"), ("f32", "f16")], ids=str)
@pytest.mark.parametrize("contexts", ["decode", "mixture"])
def test_attention_with_f16_cache(isa, rng, types, contexts, raw):
    numpy_types = {"f16": np.float16, "f32": np.float32}
    for heads in ((2, 2, 128, 128), (4, 1, 80, 34)):
        case = CacheCase(
            rng, n_heads=heads[0], n_kv_heads=heads[1], dk=heads[2], dv=heads[3],
            contexts=CONTEXTS[contexts], types=types,
        )  # fmt: skip
        expected = case.expected(numpy_types[types[0]], numpy_types[types[1]], raw)
        # A roped key near the middle of two f16 values may round the other way than NumPy's.
        bound = 2e-5 if types[0] == "f16" and not raw else 3 * BOUND
        assert relative_error(case.run(raw), expected) < bound


@pytest.mark.parametrize("grouped", [(2, 8), (3, 3), (8, 64), (5, 30), (50, 50)], ids=str)
@pytest.mark.parametrize("contexts", CONTEXTS)
def test_group_attention(isa, rng, contexts, grouped):
    """Far keys in groups; windows shorter and longer than a block, than a tile, than the context"""
    for heads in ((2, 2, 128, 128), (4, 1, 64, 64), (10, 1, 2, 6), (4, 2, 48, 20)):
        case = CacheCase(
            rng, n_heads=heads[0], n_kv_heads=heads[1], dk=heads[2], dv=heads[3],
            contexts=CONTEXTS[contexts], grouped=grouped,
        )  # fmt: skip
        got = case.run(raw=True)
        assert relative_error(got, case.expected()) < 3 * BOUND
        assert np.array_equal(case.run(True, 1), got)
        assert np.array_equal(case.run(True, 3), got)


def test_group_attention_of_f16_keys(isa, rng):
    for heads in ((2, 2, 128, 128), (4, 1, 80, 34)):
        case = CacheCase(
            rng, n_heads=heads[0], n_kv_heads=heads[1], dk=heads[2], dv=heads[3],
            contexts=CONTEXTS["mixture"], grouped=(4, 16), types=("f16", "f16"),
        )  # fmt: skip
        assert relative_error(case.run(True), case.expected(np.float16, np.float16)) < 3 * BOUND


@pytest.mark.parametrize("type", QUANTIZED)
def test_group_attention_of_quantized_keys(isa, rng, type):
    """The near part of a unit is read as it is, the far one as float; both in one segment too."""
    for heads in ((2, 2, 128, 64), (10, 1, 32, 128)):
        case = CacheCase(
            rng, n_heads=heads[0], n_kv_heads=heads[1], dk=heads[2], dv=heads[3],
            contexts=[(61, 1), (75, 40), (300, 1)], grouped=(4, 16), types=(type, type),
        )  # fmt: skip
        got = case.run(True)
        bound = 2e-5 if type.startswith("q8") else 3 * BOUND  # see below
        assert relative_error(got, case.expected_of_stored(True)) < bound
        assert np.array_equal(case.run(True, 1), got)


def test_group_attention_needs_positions_in_order(rng):
    case = CacheCase(rng, n_heads=2, n_kv_heads=2, dk=8, dv=8, contexts=[(90, 1)])
    case.grouped = (2, 8)
    with pytest.raises(ValueError, match="count from 0"):
        case.run(raw=True)
    for grouped in ((0, 8), (2, 0), (3, 8)):
        with pytest.raises(ValueError, match="groups of"):
            _kernels.Rope(case.rows, case.step, 1, *grouped)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    "types", [*((t, t) for t in QUANTIZED), ("q8_ch", "f16"), ("f32", "q4_ch")]
)
def test_attention_with_quantized_cache(isa, rng, types, raw):
    """Heads of one and of several queries, and of 96, which the tile for one does not take."""
    for heads in ((2, 2, 128, 96), (2, 2, 96, 64), (10, 1, 32, 128)):
        case = CacheCase(
            rng, n_heads=heads[0], n_kv_heads=heads[1], dk=heads[2], dv=heads[3],
            contexts=[(61, 1), (75, 40), (300, 1)], types=types,
        )  # fmt: skip
        got = case.run(raw)
        # Weights of 8-bit values are rounded to 16 bits in one of the tiles.
        bound = 2e-5 if types[1].startswith("q8") else 3 * BOUND
        assert relative_error(got, case.expected_of_stored(raw)) < bound
        assert relative_error(got, case.expected()) < (0.3 if "q4" in "".join(types) else 0.03)
        assert np.array_equal(case.run(raw, 1), got)


def test_one_large_score_wins(isa, rng):
    """Scores of hundreds must neither overflow nor lose the others' place."""
    case = CacheCase(rng, n_heads=2, n_kv_heads=2, dk=64, dv=64, contexts=[(100, 1), (80, 40)])
    case.q *= 200
    for raw in (False, True):
        assert relative_error(case.run(raw), case.expected()) < 2e-4  # eps of a score of 1000


def test_f16_conversion(isa, rng):
    """store rounds as NumPy does: ties to even, subnormal, too large, signed zero."""
    edge = [0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, -1e6, 6e-8, 2.9e-8, 3.1e-8, -6.1e-5,
            1 + 2**-11, 1 + 3 * 2**-11, 5.96e-8, np.inf, 1 / 3]  # fmt: skip
    x = np.concatenate([edge, rng.standard_normal(48) * 10.0 ** rng.integers(-8, 5, 48)])
    x = x.astype(np.float32).reshape(1, 1, 64)
    memory = CacheMemory(config_of(1, 1, 64, 64), 1, "f16", "f16")
    run(_cache.store(memory.kernel, 0, x, x, np.array([3], np.int32)))
    with np.errstate(over="ignore"):
        expected = x.reshape(-1).astype(np.float16)
    got = memory._k.memory.view(np.float16).reshape(32, 64)
    assert np.array_equal(got[3].view(np.uint16), expected.view(np.uint16))
    assert not got[[2, 4]].any()


def test_attention_refuses_what_does_not_fit(rng):
    case = CacheCase(rng, n_heads=2, n_kv_heads=2, dk=8, dv=8, contexts=[(40, 1)])
    case.rows = case.rows[:90]
    with pytest.raises(ValueError, match="beyond the RoPE table"):
        case.run(raw=True)
    plan = AttentionPlan(case.pool, 2)

    def fill(n_past: int, segment: list[int]) -> None:
        starts = np.array([0, 1], np.int32)
        plan.fill(starts, np.array([n_past], np.int32), starts, np.array([segment], np.int32))

    with pytest.raises(ValueError, match="out of its block"):
        fill(0, [0, 30, 3, 0])
    with pytest.raises(ValueError, match="out of its block"):
        fill(0, [10000, 0, 3, 0])
    with pytest.raises(ValueError, match="request 0 hold 3 tokens, but it has 7 and 1"):
        fill(7, [0, 0, 3, 0])
