"""Attention and the cache at each instruction-set level against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from engine import _attention, _cache, _kernels
from engine._program import Program, run
from engine.cache_memory import CacheMemory
from engine.segments import BlockPool
from tests import cache_units
from tests.cache_units import QUANTIZED, config_of
from tests.reference import relative_error

BOUND = 1e-6


@pytest.fixture(params=_kernels.supported_isas())
def isa(request):
    before = _kernels.isa()
    _kernels.use_isa(request.param)
    yield request.param
    _kernels.use_isa(before)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


class CacheCase:
    """Sequences of random keys and values, scattered over blocks, cut into odd segments."""

    def __init__(
        self, rng, *, n_heads, n_kv_heads, dk, dv, contexts, types=("f32", "f32"), grouped=None
    ):
        self.grouped = grouped  # n and window of group attention
        self.n_heads, self.n_kv_heads, self.dk, self.dv = n_heads, n_kv_heads, dk, dv
        self.keys, self.values, self.positions, tables = [], [], [], []
        n_blocks = 3 + sum(n // 9 + 2 for n, _ in contexts)
        self.types = types
        self.memory = CacheMemory(config_of(2, n_kv_heads, dk, dv), n_blocks, *types)
        self.pool = self.memory.kernel
        self.theta = np.concatenate([10000.0 ** (-np.arange(dk // 2 - 1) / dk), [0.0]])
        blocks = iter(rng.permutation(n_blocks))
        for n, _ in contexts:
            table, slots, positions, at = [], [], [], 0
            while at < n:
                first = int(rng.integers(0, 20)) if rng.random() < 0.5 else 0
                length = min(n - at, 32 - first if rng.random() < 0.7 else 9)
                position = int(rng.integers(0, 900)) if rng.random() < 0.3 else 100 + at
                position = at if grouped else position
                block = int(next(blocks))
                table.append((block, first, length, position))
                slots += [block * 32 + first + j for j in range(length)]
                positions += [position + j for j in range(length)]
                at += length
            k = rng.standard_normal((n, n_kv_heads, dk)).astype(np.float32)
            v = rng.standard_normal((n, n_kv_heads, dv)).astype(np.float32)
            self.keys.append(k)
            self.values.append(v)
            self.positions.append(np.array(positions))
            tables.append((np.array(table, np.int32), np.array(slots, np.int32)))
        self.tables = tables
        self.n_new = [new for _, new in contexts]
        self.n_past = [n - new for n, new in contexts]
        self.rows = np.concatenate(
            [f(np.arange(1000)[:, None] * self.theta) for f in (np.cos, np.sin)], 1
        ).astype(np.float32)
        self.step = np.stack([4 * np.sin(self.theta / 2) ** 2, np.sin(self.theta)]).astype(
            np.float32
        )
        self.q = rng.standard_normal((sum(self.n_new), n_heads, dk)).astype(np.float32)
        self.q /= np.float32(np.sqrt(dk) / 2)

    def turned(self, keys, positions):
        """Rotated by their positions, float64"""
        angle = (positions[:, None] * self.theta)[:, None]
        half = self.dk // 2
        lo, hi = keys[..., :half].astype(np.float64), keys[..., half:].astype(np.float64)
        return np.concatenate(
            [lo * np.cos(angle) - hi * np.sin(angle), lo * np.sin(angle) + hi * np.cos(angle)], -1
        )

    def run(self, raw: bool, n_threads: int = 2) -> np.ndarray:
        blocks = BlockPool(self.pool.n_blocks)
        every = np.array([blocks.allocate() for _ in range(self.pool.n_blocks)], np.int32)
        self.memory.open(every * 32, blocks)
        for k, v, positions, (_, slots) in zip(
            self.keys, self.values, self.positions, self.tables, strict=True
        ):
            stored = k if raw else self.turned(k, positions).astype(np.float32)
            run(_cache.store(self.pool, 1, stored, v, slots), n_threads=n_threads)
        self.memory.seal(every[::2] * 32 + 31, blocks, n_threads)  # every other one stays open
        starts = [np.cumsum([0, *lengths]).astype(np.int32) for lengths in (
            self.n_new, [len(table) for table, _ in self.tables])]  # fmt: skip
        table = _kernels.Rope(self.rows, self.step, 1, *(self.grouped or ()))
        plan = _attention.AttentionPlan(self.pool, self.n_heads, table if raw else None)
        plan.fill(
            starts[0], np.array(self.n_past, np.int32), starts[1],
            np.concatenate([table for table, _ in self.tables]),
        )  # fmt: skip
        out = np.full((len(self.q), self.n_heads, self.dv), np.nan, np.float32)
        where = (self.pool, 1, self.q, plan, out)
        program = Program().then(_attention.attend(*where)).then(_attention.merge(*where))
        program.run(n_threads)
        return out

    def expected(self, k_type=np.float32, v_type=np.float32, raw=True) -> np.ndarray:
        keys, values = [], []
        for s in range(len(self.n_new)):
            k = self.turned(self.keys[s].astype(k_type), self.positions[s])
            if not raw:
                k = self.turned(self.keys[s], self.positions[s]).astype(np.float32).astype(k_type)
            keys.append(k)
            values.append(self.values[s].astype(v_type).astype(np.float64))
        return self.attention(keys, values, k_type)

    def expected_of_stored(self, raw: bool) -> np.ndarray:
        """Of what the bytes in the cache mean, whatever they should have been."""
        k_of = cache_units.values(self.memory, "k", self.types[0], 1)
        v_of = cache_units.values(self.memory, "v", self.types[1], 1)
        keys, values = [], []
        for (_, slots), positions in zip(self.tables, self.positions, strict=True):
            k = k_of[slots // 32, :, slots % 32]
            keys.append(self.turned(k, positions) if raw else k)
            values.append(v_of[slots // 32, :, slots % 32])
        return self.attention(keys, values)

    def attention(
        self, keys: list[np.ndarray], values: list[np.ndarray], k_type=np.float32
    ) -> np.ndarray:
        """Over rotated keys and values of each sequence, float64."""
        out, at, group = [], 0, self.n_heads // self.n_kv_heads
        for s, n_new in enumerate(self.n_new):
            k, v = keys[s], values[s]
            for t in range(n_new):
                n = self.n_past[s] + t + 1
                kh, vh = np.repeat(k[:n], group, 1), np.repeat(v[:n], group, 1)
                scores = np.einsum("hd,nhd->hn", self.q[at].astype(np.float64), kh)
                if self.grouped:
                    scores = self._with_far(scores, self.keys[s][:n].astype(k_type), at)
                e = np.exp(scores - scores.max(1, keepdims=True))
                out.append(np.einsum("hn,nhd->hd", e / e.sum(1, keepdims=True), vh))
                at += 1
        return np.array(out)

    def _with_far(self, scores, keys, at: int) -> np.ndarray:
        """Scores [heads, keys] of query `at`, which is at the last key's position and rotated by it
        already; those of far keys are what Self-Extend's paper (arXiv 2401.01325) says."""
        n, window = self.grouped
        where, last = np.arange(len(keys)), len(keys) - 1
        turn = last // n + window - window // n - last
        q = self.turned(self.q[at : at + 1], np.array([turn]))[0]
        k = np.repeat(self.turned(keys, where // n), len(q) // self.n_kv_heads, 1)
        return np.where(last - where < window, scores, np.einsum("hd,nhd->hn", q, k))


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
    plan = _attention.AttentionPlan(case.pool, 2)

    def fill(n_past: int, segment: list[int]) -> None:
        starts = np.array([0, 1], np.int32)
        plan.fill(starts, np.array([n_past], np.int32), starts, np.array([segment], np.int32))

    with pytest.raises(ValueError, match="out of its block"):
        fill(0, [0, 30, 3, 0])
    with pytest.raises(ValueError, match="out of its block"):
        fill(0, [10000, 0, 3, 0])
    with pytest.raises(ValueError, match="do not hold"):
        fill(7, [0, 0, 3, 0])
