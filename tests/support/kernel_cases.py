"""Inputs of the kernels, and what NumPy in float64 makes of them.

For the tests of each kernel, and for `bench/check_kernels.py`, which draws shapes at random.
"""

from __future__ import annotations

import numpy as np
from lariat import _attention, _cache, _kernels
from lariat._attention_plan import AttentionPlan
from lariat._program import Program, run
from lariat.cache.blocks import BlockPool
from lariat.cache.kv_storage import CacheMemory
from lariat.formats import block_formats
from lariat.formats.block_formats import GGMLType
from lariat.os_memory import allocate

from tests.reference import round_q8
from tests.support import cache_blocks
from tests.support.cache_blocks import config_of
from tests.support.model_files import set_scales

FLOAT_TYPES = ("F32", "F16", "BF16")
# Where the blocks hold scales: f16 (MXFP4: exponents), which are given sane values, and what
# belongs to them.
SCALES = {
    "Q4_0": [slice(0, 2)],
    "Q4_1": [slice(0, 2), slice(2, 4)],
    "Q5_0": [slice(0, 2)],
    "Q5_1": [slice(0, 2), slice(2, 4)],
    "Q8_0": [slice(0, 2)],
    "Q2_K": [slice(80, 82), slice(82, 84)],
    "Q3_K": [slice(108, 110)],
    "Q4_K": [slice(0, 2), slice(2, 4)],
    "Q5_K": [slice(0, 2), slice(2, 4)],
    "Q6_K": [slice(208, 210)],
    "IQ4_NL": [slice(0, 2)],
    "IQ4_XS": [slice(0, 2)],
    "MXFP4": [slice(0, 1)],
    "IQ3_S": [slice(0, 2)],
    "IQ3_XXS": [slice(0, 2)],
    "IQ2_S": [slice(0, 2)],
    "IQ2_XS": [slice(0, 2)],
    "IQ2_XXS": [slice(0, 2)],
    "IQ1_S": [slice(0, 2)],
    "IQ1_M": [slice(48, 56)],  # four words whose upper four bits are a quarter of it
    "TQ1_0": [slice(52, 54)],
    "TQ2_0": [slice(64, 66)],
}
SMALL_SCALES = {
    "Q2_K": slice(0, 16),
    "Q3_K": slice(96, 108),
    "Q4_K": slice(4, 16),
    "Q5_K": slice(4, 16),
    "Q6_K": slice(192, 208),
    "IQ4_XS": slice(2, 8),
    "IQ3_S": slice(106, 110),
    "IQ2_S": slice(74, 82),
    "IQ2_XS": slice(66, 74),
}
QUANT_TYPES = tuple(SCALES)


def raw_weights(type_name: str, n_rows: int, n_cols: int, rng) -> np.ndarray:
    """uint8 [n_rows, row_bytes] with every bit pattern of the integers, and sane scales."""
    t = GGMLType[type_name]
    if type_name in FLOAT_TYPES:
        return block_formats.quantize(rng.standard_normal((n_rows, n_cols)).astype(np.float32), t)
    per_block, n_bytes = block_formats.BLOCK[t]
    blocks = rng.integers(0, 256, (n_rows, n_cols // per_block, n_bytes), dtype=np.uint8)
    for at in SCALES[type_name]:
        set_scales(blocks, type_name, at, rng.uniform(-0.1, 0.1, blocks.shape[:2]))
    return blocks.reshape(n_rows, -1)


def pack(data: np.ndarray, type_name: str, n_cols: int, order=None, n_threads=2):
    out = allocate(_kernels.packed_bytes(type_name, len(data), n_cols))
    return _kernels.Matrix(data, type_name, n_cols, out, order, n_threads)


def multiply(matrix, x: np.ndarray, n_threads: int = 2, start: np.ndarray | None = None):
    q8 = _kernels.Activations(*x.shape)
    if matrix.quantized:
        run(_kernels.quantize(x, q8), n_threads=n_threads)
    out = np.full((len(x), matrix.n_rows), np.nan, np.float32) if start is None else start.copy()
    run(_kernels.matmul(matrix, x, q8, out, start is not None), n_threads=n_threads)
    return out


def expected_product(data: np.ndarray, type_name: str, x: np.ndarray) -> np.ndarray:
    w = block_formats.dequantize(data, GGMLType[type_name]).astype(np.float64)
    x = round_q8(x, short_scale=True) if type_name in QUANT_TYPES else x.astype(np.float64)
    return x @ w.T


class CacheCase:
    """Sequences of random keys and values, scattered over blocks, cut into odd segments."""

    def __init__(
        self,
        rng,
        *,
        n_heads,
        n_kv_heads,
        dk,
        dv,
        contexts,
        types=("f32", "f32"),
        grouped=None,
        window=0,
        soft_cap=0.0,
        with_sinks=False,
        hadamard=(False, False),
    ):
        self.grouped = grouped  # n and window of group attention
        self.window, self.soft_cap = window, soft_cap
        self.sinks = rng.normal(1, 2, n_heads).astype(np.float32) if with_sinks else None
        self.n_heads, self.n_kv_heads, self.dk, self.dv = n_heads, n_kv_heads, dk, dv
        self.keys, self.values, self.positions, tables = [], [], [], []
        n_blocks = 3 + sum(n // 9 + 2 for n, _ in contexts)
        self.types = types
        self.memory = CacheMemory(config_of(2, n_kv_heads, dk, dv), n_blocks, *types, hadamard)
        self.pool = self.memory.kernel
        self.theta = np.concatenate([10000.0 ** (-np.arange(dk // 2 - 1) / dk), [0.0]])
        blocks = iter(rng.permutation(n_blocks))
        for n, _ in contexts:
            table, slots, positions, at = [], [], [], 0
            while at < n:
                first = int(rng.integers(0, 20)) if rng.random() < 0.5 else 0
                length = min(n - at, 32 - first if rng.random() < 0.7 else 9)
                position = int(rng.integers(0, 900)) if rng.random() < 0.3 else 100 + at
                position = at + (0 if grouped else 50) if grouped or window else position
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
        self.store(raw, n_threads)
        program, out = self.program(raw)
        program.run(n_threads)
        return out

    def store(self, raw: bool, n_threads: int) -> None:
        """Fill the cache."""
        blocks = BlockPool(self.pool.n_blocks)
        every = np.array([blocks.allocate() for _ in range(self.pool.n_blocks)], np.int32)
        self.memory.open(every * 32, blocks)
        for k, v, positions, (_, slots) in zip(
            self.keys, self.values, self.positions, self.tables, strict=True
        ):
            stored = k if raw else self.turned(k, positions).astype(np.float32)
            run(_cache.store(self.pool, 1, stored, v, slots), n_threads=n_threads)
        self.memory.seal(every[::2] * 32 + 31, blocks, n_threads)  # every other one stays open

    def program(self, raw: bool) -> tuple[Program, np.ndarray]:
        """Attention over what `store` has written, and where its result goes."""
        starts = [np.cumsum([0, *lengths]).astype(np.int32) for lengths in (
            self.n_new, [len(table) for table, _ in self.tables])]  # fmt: skip
        table = _kernels.Rope(self.rows, self.step, 1, *(self.grouped or ()))
        plan = AttentionPlan(self.pool, self.n_heads, self.window)
        plan.fill(
            starts[0], np.array(self.n_past, np.int32), starts[1],
            np.concatenate([table for table, _ in self.tables]),
        )  # fmt: skip
        out = np.full((len(self.q), self.n_heads, self.dv), np.nan, np.float32)
        q = self.q
        if self.memory.hadamard[0]:
            q = cache_blocks.hadamard(q).astype(np.float32)
        where = (self.pool, 1, q, plan, out)
        attend = _attention.attend(*where, table if raw else None, self.soft_cap, self.sinks)
        return Program().then(attend).then(_attention.merge(*where, self.sinks)), out

    def run_in_pieces(self, raw: bool, n: int) -> np.ndarray:
        """As `run`, but n tokens of each request at a time."""
        whole = self.n_past, self.n_new, self.q
        starts = np.cumsum([0, *self.n_new])
        result = np.full((len(self.q), self.n_heads, self.dv), np.nan, np.float32)
        self.store(raw, 2)
        try:
            for done in range(0, max(self.n_new), n):
                new = [max(0, min(n, n_new - done)) for n_new in whole[1]]
                rows = [
                    np.arange(start + done, start + done + length)
                    for start, length in zip(starts[:-1], new, strict=True)
                ]
                at = np.concatenate(rows)
                self.n_new, self.q = new, np.ascontiguousarray(whole[2][at])
                self.n_past = [
                    past + min(done, n_new) for past, n_new in zip(whole[0], whole[1], strict=True)
                ]
                program, out = self.program(raw)
                program.run(2)
                result[at] = out
        finally:
            self.n_past, self.n_new, self.q = whole
        return result

    def expected(self, k_type=np.float32, v_type=np.float32, raw=True) -> np.ndarray:
        keys, values = [], []
        for s in range(len(self.n_new)):
            k = self.turned(self.keys[s].astype(k_type), self.positions[s])
            if not raw:
                k = self.turned(self.keys[s], self.positions[s]).astype(np.float32).astype(k_type)
            keys.append(k)
            values.append(self.values[s].astype(v_type).astype(np.float64))
        return self.attention(keys, values, [k.astype(k_type) for k in self.keys])

    def expected_of_stored(self, raw: bool) -> np.ndarray:
        """Of what the bytes in the cache mean, whatever they should have been."""
        k_of = cache_blocks.values(self.memory, "k", self.types[0], 1)
        v_of = cache_blocks.values(self.memory, "v", self.types[1], 1)
        keys, values, stored = [], [], []
        for (_, slots), positions in zip(self.tables, self.positions, strict=True):
            k = k_of[slots // 32, :, slots % 32]
            stored.append(k)
            keys.append(self.turned(k, positions) if raw else k)
            values.append(v_of[slots // 32, :, slots % 32])
        return self.attention(keys, values, stored)

    def attention(
        self, keys: list[np.ndarray], values: list[np.ndarray], unturned: list[np.ndarray]
    ) -> np.ndarray:
        """Over rotated keys and values of each sequence, float64; group attention turns keys that
        are not rotated its own way."""
        out, at, group = [], 0, self.n_heads // self.n_kv_heads
        for s, n_new in enumerate(self.n_new):
            k, v = keys[s], values[s]
            for t in range(n_new):
                n = self.n_past[s] + t + 1
                kh, vh = np.repeat(k[:n], group, 1), np.repeat(v[:n], group, 1)
                scores = np.einsum("hd,nhd->hn", self.q[at].astype(np.float64), kh)
                if self.grouped:
                    scores = self._with_far(scores, unturned[s][:n], at)
                if self.soft_cap:
                    scores = self.soft_cap * np.tanh(scores / self.soft_cap)
                if self.window:
                    scores[:, : max(0, n - self.window)] = -np.inf
                if self.sinks is not None:  # a key whose value is 0
                    scores = np.concatenate([scores, self.sinks[:, None].astype(np.float64)], 1)
                    vh = np.concatenate([vh, np.zeros_like(vh[:1])])
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
