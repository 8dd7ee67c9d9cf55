"""Attention and the cache at each instruction-set level against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from lariat import _attention, _cache, _kernels
from lariat._attention_plan import AttentionPlan
from lariat._program import run
from lariat.cache.kv_storage import CacheMemory

from tests.reference import relative_error
from tests.support.cache_blocks import QUANTIZED, config_of
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
    """The near part of a block is read as it is stored, the far one as float; both in a segment."""
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
    """Heads of one and of several queries, and of 96 dims, which the tile for one does not take."""
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


WINDOWS = (1, 31, 32, 70, 513, 5000)  # shorter and longer than blocks and tiles


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("contexts", CONTEXTS)
def test_attention_windows(isa, rng, contexts, window, raw):
    for heads in ((2, 2, 64, 64), (9, 3, 16, 12)):
        case = CacheCase(
            rng, n_heads=heads[0], n_kv_heads=heads[1], dk=heads[2], dv=heads[3],
            contexts=CONTEXTS[contexts], window=window,
        )  # fmt: skip
        got = case.run(raw)
        assert relative_error(got, case.expected()) < 3 * BOUND
        assert np.array_equal(case.run(raw, 1), got)
        assert np.array_equal(case.run(raw, 3), got)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("types", [("f16", "f16"), *((t, t) for t in QUANTIZED)], ids=str)
def test_attention_windows_over_cache_types(isa, rng, types, raw):
    for heads, window in (((2, 2, 128, 96), 40), ((10, 1, 32, 128), 77), ((2, 2, 96, 64), 20)):
        case = CacheCase(
            rng, n_heads=heads[0], n_kv_heads=heads[1], dk=heads[2], dv=heads[3],
            contexts=[(61, 1), (75, 40), (300, 1), (300, 180)], types=types, window=window,
        )  # fmt: skip
        got = case.run(raw)
        bound = 2e-5 if types[1].startswith("q8") else 3 * BOUND
        assert relative_error(got, case.expected_of_stored(raw)) < bound
        assert np.array_equal(case.run(raw, 1), got)


@pytest.mark.parametrize("window", [10, 40, 300])
@pytest.mark.parametrize("contexts", CONTEXTS)
def test_group_attention_within_a_window(isa, rng, contexts, window):
    """Windows that end among near keys, and among far ones."""
    for heads in ((2, 2, 128, 128), (4, 2, 48, 20)):
        case = CacheCase(
            rng, n_heads=heads[0], n_kv_heads=heads[1], dk=heads[2], dv=heads[3],
            contexts=CONTEXTS[contexts], grouped=(5, 30), window=window,
        )  # fmt: skip
        assert relative_error(case.run(raw=True), case.expected()) < 3 * BOUND


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("contexts", CONTEXTS)
@pytest.mark.parametrize(
    "extras",
    [{"soft_cap": 1.5}, {"soft_cap": 50.0}, {"with_sinks": True},
     {"soft_cap": 2.0, "with_sinks": True, "window": 33}],
    ids=str,
)  # fmt: skip
def test_soft_caps_and_sinks(isa, rng, contexts, extras, raw):
    for heads in ((2, 2, 128, 128), (12, 4, 34, 64), (10, 1, 2, 6)):
        case = CacheCase(
            rng, n_heads=heads[0], n_kv_heads=heads[1], dk=heads[2], dv=heads[3],
            contexts=CONTEXTS[contexts], **extras,
        )  # fmt: skip
        got = case.run(raw)
        assert relative_error(got, case.expected()) < 3 * BOUND
        assert np.array_equal(case.run(raw, 1), got)
        assert np.array_equal(case.run(raw, 3), got)


def test_a_window_reads_no_segment_outside(rng):
    """Values of hidden blocks are NaN, and no output is."""
    for contexts in ([(700, 1)], [(700, 3)], [(700, 300)]):
        case = CacheCase(rng, n_heads=4, n_kv_heads=2, dk=16, dv=16, contexts=contexts, window=50)
        first_token = contexts[0][0] - contexts[0][1]
        n_hidden = 0
        for _, _, length, position in case.tables[0][0].tolist():
            if position - 50 + length <= first_token - 50 + 1:
                case.values[0][position - 50 : position - 50 + length] = np.nan
                n_hidden += length
        assert n_hidden > 300
        for raw in (False, True):
            assert np.isfinite(case.run(raw)).all()


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("types", [("q8_0", "q8_0"), ("q4_0", "q4_0"), ("f16", "q4_0")], ids=str)
def test_attention_over_a_hadamard_transform(isa, rng, types, raw):
    """Of roped keys and of values: where one number is large, rounding is a fraction of what it is
    without the transform."""
    errors = []
    for transformed in (True, False):
        for heads in ((2, 2, 128, 96), (10, 1, 96, 128), (2, 2, 64, 160)):
            case = CacheCase(
                np.random.default_rng(1), n_heads=heads[0], n_kv_heads=heads[1], dk=heads[2],
                dv=heads[3], contexts=[(61, 1), (75, 40), (300, 1)], types=types,
                hadamard=(transformed and not raw, transformed),
            )  # fmt: skip
            for values in case.values:
                values[..., 5] *= 20
            got = case.run(raw)
            bound = 2e-5 if types[1].startswith("q8") else 3 * BOUND
            assert relative_error(got, case.expected_of_stored(raw)) < bound
            assert np.array_equal(case.run(raw, 1), got)
            errors.append(relative_error(got[..., :5], case.expected()[..., :5]))
    with_it, without = np.array(errors).reshape(2, -1)
    assert (with_it < 0.7 * without).all()


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
    got = memory.keys.memory.view(np.float16).reshape(32, 64)
    assert np.array_equal(got[3].view(np.uint16), expected.view(np.uint16))
    assert not got[[2, 4]].any()


POISON = np.uint32(0x7FC0_0DAD)  # a NaN


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("grouped", [None, (4, 16)], ids=str)
@pytest.mark.parametrize("types", [("f32", "f32"), ("f16", "f16"), ("q8_0", "q4_ch")], ids=str)
def test_a_task_stays_in_its_working_memory(isa, rng, types, grouped, n_threads):
    """It writes nothing behind it, and reads nothing of it that it has not written."""
    for heads in ((2, 2, 128, 96), (16, 2, 64, 32), (3, 1, 32, 64)):
        for raw in (False, True) if grouped is None else (True,):
            case = CacheCase(
                rng, n_heads=heads[0], n_kv_heads=heads[1], dk=heads[2], dv=heads[3],
                contexts=[(75, 1), (600, 1), (40, 3), (140, 130), (33, 5)], types=types,
                grouped=grouped,
            )  # fmt: skip
            expected = case.run(raw, n_threads)
            program, out = case.program(raw)
            areas = program.work_areas(n_threads).view(np.uint32)
            areas[:] = POISON
            program.run(n_threads)
            assert np.array_equal(out, expected)
            assert (areas[:, program.n_work :] == POISON).all()
            assert areas[:, program.n_work :].size
            assert (areas[:, : program.n_work] != POISON).any()


def test_working_memory_holds_the_largest_tile(rng):
    """Queries, sums, keys and a block as it is stored, scores, maxima and sums, and sums,
    maxima and sums of all spans so far: cache lines each."""
    case = CacheCase(rng, n_heads=6, n_kv_heads=2, dk=64, dv=32, contexts=[(200, 150)])
    program, _ = case.program(raw=False)
    n_rows = 128 // 3 * 3
    lines = [n_rows * 64, n_rows * 32, 64 * 32, 32 * 64, 128 // 3 * 32, n_rows, n_rows]
    lines += [n_rows * 32, n_rows, n_rows]
    assert program.n_work == sum(-(-n // 16) * 16 for n in lines)


def test_attention_refuses_what_does_not_fit(rng):
    case = CacheCase(rng, n_heads=2, n_kv_heads=2, dk=8, dv=8, contexts=[(40, 1)])
    case.rows = case.rows[:90]
    with pytest.raises(ValueError, match="beyond the RoPE table, which has 90"):
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
    plan = AttentionPlan(case.pool, 2, 5)
    starts = np.array([0, 1], np.int32), np.array([0, 2], np.int32)
    segments = np.array([[0, 0, 3, 0], [1, 0, 1, 7]], np.int32)
    with pytest.raises(ValueError, match="follow each other, but token 3 of request 0 is at pos"):
        plan.fill(starts[0], np.array([3], np.int32), starts[1], segments)


def test_attention_says_which_shapes_are_due(rng):
    case = CacheCase(rng, n_heads=4, n_kv_heads=2, dk=8, dv=6, contexts=[(40, 1)])
    plan = AttentionPlan(case.pool, 4)
    q, out = np.zeros((3, 4, 8), np.float32), np.zeros((3, 4, 6), np.float32)
    with pytest.raises(ValueError, match=r"\[3, 4, 8\] and out \[3, 4, 8\], .* \[n, 4, 6\]"):
        _attention.attend(case.pool, 0, q, plan, q.copy())
    with pytest.raises(ValueError, match=r"queries \[3, 4, 6\].* expected \[n, 4, 8\]"):
        _attention.merge(case.pool, 0, out, plan, out)
    with pytest.raises(ValueError, match="layer 2 of a cache of 2"):
        _attention.attend(case.pool, 2, q, plan, out)
    with pytest.raises(ValueError, match="3 sinks of attention, expected one for each of 4"):
        _attention.attend(case.pool, 0, q, plan, out, None, 0, np.zeros(3, np.float32))
    for cap in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="a soft cap of"):
            _attention.attend(case.pool, 0, q, plan, out, None, cap)
    with pytest.raises(ValueError, match="window of -1 positions"):
        AttentionPlan(case.pool, 4, -1)
    with pytest.raises(ValueError, match="3 query heads for 2 KV heads"):
        AttentionPlan(case.pool, 3)
    other = CacheMemory(config_of(2, 4, 8, 6), 5, "f32", "f32").kernel
    with pytest.raises(ValueError, match=r"5 blocks of 4 heads .* pool has \d+ of 2"):
        _attention.attend(case.pool, 0, q, AttentionPlan(other, 4), out)
    rope = _kernels.Rope(np.zeros((40, 6), np.float32), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="table of head_dim 6 for keys of head_dim 8"):
        _attention.attend(case.pool, 0, q, plan, out, rope)


def test_a_plan_checks_positions_for_each_table_in_use(rng):
    """Layers may have tables of their own; a batch has to lie within all of them."""
    case = CacheCase(rng, n_heads=2, n_kv_heads=2, dk=8, dv=8, contexts=[(40, 1)])
    plan = AttentionPlan(case.pool, 2)
    q = np.zeros((1, 2, 8), np.float32)
    for n in (50, 30):
        rope = _kernels.Rope(case.rows[:n].copy(), case.step)
        _attention.attend(case.pool, n // 50, q, plan, q.copy(), rope)
    starts, n_past = np.array([0, 1], np.int32), np.array([0], np.int32)
    plan.fill(starts, n_past, starts, np.array([[0, 0, 10, 20]], np.int32))
    with pytest.raises(ValueError, match="position 30 is beyond the RoPE table, which has 30"):
        plan.fill(starts, n_past, starts, np.array([[0, 0, 10, 21]], np.int32))
    plan.fill(starts, n_past, starts, np.array([[0, 0, 10, 20]], np.int32))
    rope = _kernels.Rope(case.rows[:20].copy(), case.step)
    with pytest.raises(ValueError, match="position 29 is beyond the RoPE table, which has 20"):
        _attention.attend(case.pool, 0, q, plan, q.copy(), rope)


PIECES = [
    dict(n_heads=2, n_kv_heads=2, dk=64, dv=128),
    dict(n_heads=2, n_kv_heads=2, dk=96, dv=64),  # quantized keys are made float first
    dict(n_heads=6, n_kv_heads=2, dk=64, dv=32),
    dict(n_heads=9, n_kv_heads=1, dk=128, dv=64),
    dict(n_heads=20, n_kv_heads=1, dk=32, dv=32, with_sinks=True, soft_cap=3.0),
    dict(n_heads=4, n_kv_heads=4, dk=64, dv=64, window=40, with_sinks=True),
    dict(n_heads=8, n_kv_heads=1, dk=64, dv=64, window=600, soft_cap=2.0),
    dict(n_heads=2, n_kv_heads=2, dk=64, dv=64, grouped=(4, 16)),
    dict(n_heads=10, n_kv_heads=1, dk=64, dv=64, grouped=(3, 48)),
]


@pytest.mark.parametrize("raw", [False, True], ids=["roped", "raw"])
@pytest.mark.parametrize(
    "types", [("f16", "f16"), ("f32", "f32"), *((t, t) for t in QUANTIZED)], ids=str
)
def test_tokens_have_the_same_bits_in_pieces_of_any_size(isa, rng, types, raw):
    """Alone, few together, and in tiles; within a span of segments and over several."""
    for shape in PIECES:
        if "grouped" in shape and not raw:
            continue
        contexts = [(30, 30), (530, 12), (880, 9), (5, 1)]
        case = CacheCase(rng, contexts=contexts, types=types, **shape)
        whole = case.run(raw)
        assert not np.isnan(whole).any()
        for n in (1, 3, 7, 8):
            assert np.array_equal(case.run_in_pieces(raw, n), whole), (shape, n)


@pytest.mark.parametrize("raw", [False, True], ids=["roped", "raw"])
@pytest.mark.parametrize("type", ["f16", "f32"])
def test_odd_heads_have_the_same_bits_in_pieces(isa, rng, type, raw):
    """Lengths that no vector divides"""
    for n_heads, n_kv_heads, dk, dv in ((3, 3, 6, 5), (10, 1, 20, 34), (8, 1, 44, 12)):
        case = CacheCase(
            rng, n_heads=n_heads, n_kv_heads=n_kv_heads, dk=dk, dv=dv,
            contexts=[(70, 40), (600, 9)], types=(type, type),
        )  # fmt: skip
        whole = case.run(raw)
        for n in (1, 5):
            assert np.array_equal(case.run_in_pieces(raw, n), whole), (dk, n)
