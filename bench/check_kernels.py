"""Every kernel at every level on shapes drawn at random: is it right, and how fast is it?

python -m bench.check_kernels [--seed 7] [--shapes 3]

The judge is NumPy in float64; beside the deviation from it stands the one from the portable kernel.
Shapes are odd on purpose: numbers of rows, tokens and heads do not divide by the size of a vector
or a tile. Each kernel is timed on the same inputs right after its check, on one thread, and the
best of several runs counts. Ends with 1 if a deviation is above its bound.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from lariat import _cache, _kernels, _rows
from lariat._program import Program, run
from lariat.cache.blocks import BlockPool
from lariat.cache.kv_storage import CacheMemory
from lariat.formats import block_formats
from lariat.formats.block_formats import GGMLType

from tests.reference import relative_error, round_q8
from tests.support import cache_blocks
from tests.support.cache_blocks import CHANNEL_TYPES, QUANTIZED, config_of
from tests.support.kernel_cases import (
    FLOAT_TYPES,
    QUANT_TYPES,
    CacheCase,
    expected_product,
    pack,
    raw_weights,
)

BOUND = 3e-6  # of sums of float32 in another order
_SECONDS = 0.02  # that a kernel is timed for, at most
_CACHE_TYPES = ("f16", "f32", *QUANTIZED)


@dataclass
class Case:
    """A kernel on one input."""

    kernel: str
    type: str
    shape: str
    prepare: Callable[[], Program]  # inputs as they were, and what to run
    result: Callable[[], np.ndarray]
    expected: Callable[[], np.ndarray]  # float64
    n_bytes: float  # read and written
    n_macs: float = 0
    bound: float = BOUND
    step: float = 0  # deviation by one number of a quantized cache that is rounded the other way


@dataclass
class Row:
    """Results of one target."""

    case: Case
    isa: str
    deviation: float
    of_scalar: float
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether the deviation is within its bound.

        From the portable kernel it may be that of two sums of it, or of four numbers of a quantized
        cache, halfway between two steps, that are rounded the other way.
        """
        bound = self.case.bound
        of_scalar = max(min(2 * bound, 1e-3), 2 * self.case.step)
        return self.deviation <= bound and self.of_scalar <= of_scalar

    def __str__(self) -> str:
        c, s = self.case, self.seconds
        macs = f"{c.n_macs / s / 1e9:9.2f}" if c.n_macs else " " * 9
        return (
            f"{c.kernel:16} {c.type:7} {c.shape:34} {self.isa:12} {self.deviation:9.1e} "
            f"{self.of_scalar:9.1e} {s * 1e6:10.1f} {c.n_bytes / s / 1e9:8.2f} {macs}"
            f"{'' if self.is_right else f'  WRONG, bound {c.bound:.0e}'}"
        )


HEAD = (
    f"{'kernel':16} {'type':7} {'shape':34} {'level':12} {'deviation':>9} {'of scalar':>9} "
    f"{'us':>10} {'GB/s':>8} {'GMAC/s':>9}"
)


def check(case: Case) -> Iterator[Row]:
    """Run a case with every target that this machine has."""
    before, scalar, expected = (_kernels.isa(), _kernels.core()), None, case.expected()
    try:
        for isa, core in _kernels.variants():
            _kernels.use_isa(isa)
            _kernels.use_core(core)
            case.prepare().run(1)
            out = case.result().astype(np.float64)
            scalar = out if scalar is None else scalar
            deviation, of_scalar = relative_error(out, expected), relative_error(out, scalar)
            yield Row(
                case, isa if core == "other" else f"{isa}-{core}", deviation, of_scalar, _time(case)
            )
    finally:
        _kernels.use_isa(before[0])
        _kernels.use_core(before[1])


def _time(case: Case) -> float:
    """Seconds, the best of several runs."""
    best, spent, n = np.inf, 0.0, 0
    while n < 3 or spent < _SECONDS:
        program = case.prepare()
        start = time.perf_counter()
        program.run(1)
        taken = time.perf_counter() - start
        best, spent, n = min(best, taken), spent + taken, n + 1
    return best


# ---- the kernels, each with a shape drawn at random ----


def matmuls(rng: np.random.Generator) -> Iterator[Case]:
    """Products with weights of each type, for one token and for several."""
    for type in (*FLOAT_TYPES, *QUANT_TYPES):
        block = block_formats.BLOCK[GGMLType[type]][0]
        for n_tokens in (1, int(rng.integers(2, 70))):
            n_rows = int(rng.integers(1, 300))
            n_cols = int(rng.integers(1, 1500)) if block == 1 else block * int(rng.integers(1, 7))
            data = raw_weights(type, n_rows, n_cols, rng)
            x = rng.standard_normal((n_tokens, n_cols)).astype(np.float32)
            matrix, q8 = pack(data, type, n_cols), _kernels.Activations(n_tokens, n_cols)
            if matrix.quantized:
                run(_kernels.quantize(x, q8))
            out = np.zeros((n_tokens, n_rows), np.float32)
            product = Program().then(_kernels.matmul(matrix, x, q8, out))
            n_bytes = _kernels.packed_bytes(type, n_rows, n_cols) + x.nbytes + out.nbytes
            yield Case(
                "matmul", type, f"{n_rows} x {n_cols}, {n_tokens} tokens", lambda p=product: p,
                lambda out=out: out, partial(expected_product, data, type, x), n_bytes,
                n_rows * n_cols * n_tokens,
            )  # fmt: skip


def rows(rng: np.random.Generator) -> Iterator[Case]:
    """Kernels that take one row after the other."""
    n, dim = int(rng.integers(1, 40)), int(rng.integers(1, 3000))
    x = rng.standard_normal((n, dim)).astype(np.float32)
    weight = rng.standard_normal(dim).astype(np.float32)
    out, wide = np.zeros_like(x), x.astype(np.float64)
    norm = Program().then(_kernels.rms_norm(x, weight, 1e-5, out))
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * weight
    shape = f"{n} x {dim}"
    yield Case("rms_norm", "", shape, lambda: norm, lambda: out, _known(expected), 2 * x.nbytes)

    gate, up = rng.uniform(-20, 20, (n, dim)).astype(np.float32), x
    buffer, wide = gate.copy(), gate.astype(np.float64)
    silu = Program().then(_kernels.silu_mul(buffer, up))
    expected = wide / (1 + np.exp(-wide)) * up
    again = _restored(buffer, gate, silu)
    yield Case("silu_mul", "", shape, again, lambda: buffer, _known(expected), 3 * x.nbytes)

    gated = gate.copy()
    inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    expected = wide * (1 + np.tanh(inner)) / 2 * up
    again = _restored(gated, gate, Program().then(_rows.gelu_mul(gated, up)))
    yield Case("gelu_mul", "", shape, again, lambda: gated, _known(expected), 3 * x.nbytes)

    capped = gate.copy()
    again = _restored(capped, gate, Program().then(_rows.soft_cap(capped, 3.0)))
    of_capped = _known(3 * np.tanh(wide / 3))
    yield Case("soft_cap", "", shape, again, lambda: capped, of_capped, 2 * x.nbytes)

    n_cols = 32 * int(rng.integers(1, 60))
    y = rng.standard_normal((n, n_cols)).astype(np.float32) * 10
    # The rounded activations are the kernels' own affair, so they are judged by a product.
    data, q8 = raw_weights("Q8_0", 16, n_cols, rng), _kernels.Activations(n, n_cols)
    matrix, out_q = pack(data, "Q8_0", n_cols), np.zeros((n, 16), np.float32)
    rounding = Program().then(_kernels.quantize(y, q8))

    def product() -> np.ndarray:
        run(_kernels.matmul(matrix, y, q8, out_q))
        return out_q

    weights = block_formats.dequantize(data, GGMLType.Q8_0).astype(np.float64)
    expected = round_q8(y, short_scale=True) @ weights.T
    n_bytes = y.nbytes * (1 + 9 / 32)
    shape, of_product = f"{n} x {n_cols}", _known(expected)
    yield Case("quantize", "", shape, lambda: rounding, product, of_product, n_bytes)

    n_heads, half = int(rng.integers(1, 9)), int(rng.integers(1, 90))
    z = rng.standard_normal((n, n_heads, 2 * half)).astype(np.float32)
    angles, positions = rng.uniform(0, 6, (50, half)), rng.integers(0, 50, n).astype(np.int32)
    table = _rope(angles)
    out_z = z.copy()
    rotate = Program().then(_kernels.rope(out_z, table, positions, 0.25))
    expected = 0.25 * _rotated(z, angles[positions][:, None])
    again = _restored(out_z, z, rotate)
    shape = f"{n} x {n_heads} heads of {2 * half}"
    yield Case("rope", "", shape, again, lambda: out_z, _known(expected), 2 * z.nbytes)


def caches(rng: np.random.Generator) -> Iterator[Case]:
    """Keys and values on their way into the cache, and to other positions."""
    for type in _CACHE_TYPES:
        n_heads, half = int(rng.integers(1, 7)), 16 * int(rng.integers(1, 6))
        if type in ("f16", "f32"):
            half = int(rng.integers(1, 90))
        d = 2 * half
        x = rng.standard_normal((64, n_heads, d)).astype(np.float16).astype(np.float32)
        memory, pool = CacheMemory(config_of(1, n_heads, d, d), 2, type, type), BlockPool(2)
        slots = np.arange(64, dtype=np.int32)
        for _ in range(2):
            pool.allocate()
        memory.open(slots, pool)
        store = _cache.store(memory.kernel, 0, x, x, slots)
        program = Program().then(store)
        kernel = "store"
        if type in CHANNEL_TYPES:  # written as f16 first, and quantized when a block is full
            program.run(1)
            kernel, program = "seal", Program().then(_cache.seal(memory.kernel, slots[:2]))
        n_bytes = 2 * x.nbytes + memory.block_bytes * 2
        # Half a step of a number of 8 or 4 bits, seen from the mean size of all.
        bound = {"f16": 0, "f32": 0}.get(type, 0.01 if type.startswith("q8") else 0.15)
        step = float(2 * bound / x.size**0.5)

        def stored(memory: CacheMemory = memory, type: str = type, sealed: Any = None) -> Any:
            if type in CHANNEL_TYPES:  # read what was sealed, not the places of open blocks
                open_at = memory.open_at.copy()
                memory.open_at[:] = -1
                found = cache_blocks.values(memory, "k", type, 0)
                memory.open_at[:] = open_at
                return found
            return cache_blocks.values(memory, "k", type, 0)

        expected = x.reshape(2, 32, n_heads, d).swapaxes(1, 2).astype(np.float64)
        shape = f"64 x {n_heads} heads of {d}"
        truth = _known(expected)
        yield Case(
            kernel, type, shape, lambda p=program: p, stored, truth, n_bytes, bound=bound, step=step
        )
        if type in CHANNEL_TYPES:
            continue

        angles = rng.uniform(0, 6, (1, half)) * np.arange(50)[:, None]
        table, by = _rope(angles), int(rng.integers(-40, 40))
        moved = np.array([[0, 3, 20, by], [1, 0, 32, by]], np.int32)
        shift = Program().then(_cache.shift(memory.kernel, table, moved))

        def again(store: Any = store, shift: Program = shift) -> Program:
            run(store)
            return shift

        def rotated(before: np.ndarray = expected, by: int = by, angles: Any = angles) -> Any:
            after, angle = before.copy(), np.sign(by) * angles[abs(by)]
            after[0, :, 3:23] = _rotated(before[0, :, 3:23], angle)
            after[1] = _rotated(before[1], angle)
            return after

        bounds = {"f16": 1e-3, "f32": BOUND}
        n_bytes = 2 * 52 * n_heads * d * memory.block_bytes / (2 * 32 * n_heads * d)
        yield Case(
            "shift", type, f"52 x {n_heads} heads of {d}", again, stored, rotated, n_bytes,
            bound=bounds.get(type, 2 * bound), step=step,
        )  # fmt: skip


def attentions(rng: np.random.Generator) -> Iterator[Case]:
    """Attention over both caches, by type, with one query to a KV head and with several."""
    for type in _CACHE_TYPES:
        for raw in (False, True):
            for group in (1, int(rng.integers(2, 12))):
                for n_new in (1, int(rng.integers(20, 200))):
                    n_kv_heads, past = int(rng.integers(1, 4)), int(rng.integers(0, 400))
                    step = 32 if type in QUANTIZED else 2
                    dk, dv = (step * int(rng.integers(1, 160 // step)) for _ in "kv")
                    case = CacheCase(
                        rng, n_heads=group * n_kv_heads, n_kv_heads=n_kv_heads, dk=dk, dv=dv,
                        contexts=[(past + n_new, n_new)], types=(type, type),
                    )  # fmt: skip
                    case.store(raw, 1)
                    program, out = case.program(raw)
                    n_seen = n_new * past + n_new * (n_new + 1) / 2
                    positions = (past + n_new) * case.memory.block_bytes / 2 / 32  # of 2 layers
                    yield Case(
                        f"attend {'raw' if raw else 'roped'}", type,
                        f"{n_new} at {past}, {group * n_kv_heads}/{n_kv_heads} of {dk}, {dv}",
                        lambda program=program: program, lambda out=out: out,
                        partial(case.expected_of_stored, raw), positions + 2 * case.q.nbytes,
                        case.n_heads * (dk + dv) * n_seen,
                        # Weights of 8-bit values are rounded to 16 bits in one of the tiles.
                        bound=3e-5 if type.startswith("q8") else 2 * BOUND,
                    )  # fmt: skip


def _known(values: np.ndarray) -> Callable[[], np.ndarray]:
    """A function that returns the values."""
    return lambda: values


def _restored(buffer: np.ndarray, values: np.ndarray, program: Program) -> Callable[[], Program]:
    """For kernels that change their input."""

    def prepare() -> Program:
        np.copyto(buffer, values)
        return program

    return prepare


def _rope(angles: np.ndarray) -> _kernels.Rope:
    """A table of cos and sin, [n_positions, half] each; nothing is stepped here."""
    rows = np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    return _kernels.Rope(rows, np.zeros((2, angles.shape[1]), np.float32))


def _rotated(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """x [..., 2 half] rotated by halves, float64."""
    half = x.shape[-1] // 2
    lo, hi = x[..., :half].astype(np.float64), x[..., half:].astype(np.float64)
    c, s = np.cos(angle), np.sin(angle)
    return np.concatenate([lo * c - hi * s, lo * s + hi * c], -1)


GROUPS = (matmuls, rows, caches, attentions)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 if anything in it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--shapes", type=int, default=3, help="drawn for each kernel and type")
    args = parser.parse_args(argv)
    print(f"python -m bench.check_kernels --seed {args.seed} --shapes {args.shapes}\n{HEAD}")
    rng = np.random.default_rng(args.seed)
    n_wrong = n = 0
    for _ in range(args.shapes):
        for group in GROUPS:
            for case in group(rng):
                for row in check(case):
                    print(row, flush=True)
                    n, n_wrong = n + 1, n_wrong + (not row.is_right)
    levels = ", ".join(_kernels.supported_isas())
    print(f"{n} checks at levels {levels}: {f'{n_wrong} WRONG' if n_wrong else 'all right'}")
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
