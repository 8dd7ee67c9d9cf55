"""Matrix multiplication by type, shape and instruction set, and the kernels beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lariat import _kernels
from lariat._program import Program
from lariat.formats import block_formats
from lariat.formats.block_formats import GGMLType
from lariat.os_memory import allocate

from bench.micro.conftest import ISAS, N_THREADS, Record
from tests.reference import relative_error, round_q8
from tests.support.model_files import encode

BEST = ISAS[-1]
TYPES = tuple(t.name for t in sorted(block_formats.SUPPORTED))
# More than the last cache of most processors holds, as the layers of a model are
DECODE_BYTES = 96 << 20
DECODE_COLS = 4096
PROMPT_SHAPES = {"square": (2048, 2048), "up": (5632, 2048), "down": (2048, 5632)}
N_CHECKED = 48  # rows that are compared with the reference, spread over the matrix


def random_matrix(type_name: str, n_rows: int, n_cols: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [n_rows, row_bytes]: one random row after the other, repeated to keep it quick."""
    few = rng.standard_normal((min(n_rows, 67), n_cols)).astype(np.float32)
    rows = encode(few, type_name).view(np.uint8)
    return np.ascontiguousarray(np.resize(rows, (n_rows, rows.shape[1])))


class Product:
    """y = W x for n_tokens columns."""

    def __init__(
        self, type_name: str, n_rows: int, n_cols: int, n_tokens: int, rng: np.random.Generator
    ) -> None:
        self.rows, self.type = random_matrix(type_name, n_rows, n_cols, rng), GGMLType[type_name]
        self.packed = allocate(_kernels.packed_bytes(type_name, n_rows, n_cols))
        self.matrix = _kernels.Matrix(self.rows, type_name, n_cols, self.packed, None, N_THREADS)
        self.x = rng.standard_normal((n_tokens, n_cols)).astype(np.float32)
        self.q8 = _kernels.Activations(n_tokens, n_cols)
        self.out = np.zeros((n_tokens, n_rows), np.float32)
        self.n_macs = n_rows * n_cols * n_tokens
        self.program = Program()
        if self.matrix.quantized:
            self.program.then(_kernels.quantize(self.x, self.q8))
        self.program.then(_kernels.matmul(self.matrix, self.x, self.q8, self.out))

    def run(self, n_threads: int) -> None:
        self.program.run(n_threads)

    def is_right(self) -> bool:
        """Against float64, with activations rounded as the kernels round them."""
        chosen = np.linspace(0, len(self.rows) - 1, N_CHECKED).astype(int)
        w = block_formats.dequantize(self.rows[chosen], self.type).astype(np.float64)
        x = self.x.astype(np.float64)
        if self.matrix.quantized:
            x = round_q8(self.x, short_scale=True)
        return relative_error(self.out[:, chosen], x @ w.T) < 1e-5


def measure(benchmark: Any, record: Record, product: Product, n_threads: int, rounds: int) -> None:
    benchmark.pedantic(product.run, args=(n_threads,), rounds=rounds, warmup_rounds=1)
    record(
        correct=product.is_right(),
        n_threads=n_threads,
        n_bytes=product.packed.nbytes,
        n_macs=product.n_macs,
    )


@pytest.mark.benchmark(group="decode: how fast is a matrix of each type read, for one token?")
@pytest.mark.parametrize("n_threads", sorted({1, N_THREADS}))
@pytest.mark.parametrize("type_name", TYPES)
def bench_decode_type(
    benchmark: Any, record: Record, rng: np.random.Generator, type_name: str, n_threads: int
) -> None:
    row_bytes = block_formats.row_bytes(GGMLType[type_name], DECODE_COLS)
    product = Product(type_name, DECODE_BYTES // row_bytes, DECODE_COLS, 1, rng)
    measure(benchmark, record, product, n_threads, 15)


@pytest.mark.benchmark(group="decode: what does each instruction set make of Q4_0, on one thread?")
@pytest.mark.parametrize("isa", ISAS, indirect=True)
def bench_decode_isa(benchmark: Any, record: Record, rng: np.random.Generator, isa: str) -> None:
    row_bytes = block_formats.row_bytes(GGMLType.Q4_0, DECODE_COLS)
    product = Product("Q4_0", DECODE_BYTES // row_bytes, DECODE_COLS, 1, rng)
    measure(benchmark, record, product, 1, 9 if isa != "scalar" else 3)


@pytest.mark.benchmark(group="prompt: how fast are 256 tokens multiplied, by type?")
@pytest.mark.parametrize("type_name", TYPES)
def bench_prompt_type(
    benchmark: Any, record: Record, rng: np.random.Generator, type_name: str
) -> None:
    product = Product(type_name, 2048, 2048, 256, rng)
    measure(benchmark, record, product, N_THREADS, 7)


@pytest.mark.benchmark(group="prompt: does the shape of a Q4_0 matrix matter, for 256 tokens?")
@pytest.mark.parametrize("shape", PROMPT_SHAPES)
def bench_prompt_shape(
    benchmark: Any, record: Record, rng: np.random.Generator, shape: str
) -> None:
    measure(benchmark, record, Product("Q4_0", *PROMPT_SHAPES[shape], 256, rng), N_THREADS, 7)


@pytest.mark.benchmark(group="batch: what do more tokens at once bring, Q4_0?")
@pytest.mark.parametrize("n_tokens", [1, 2, 4, 8, 16, 32, 64])
def bench_batch_size(
    benchmark: Any, record: Record, rng: np.random.Generator, n_tokens: int
) -> None:
    measure(benchmark, record, Product("Q4_0", 8192, 4096, n_tokens, rng), N_THREADS, 9)


@pytest.mark.benchmark(group="prompt: what does each instruction set make of Q4_0, 64 tokens?")
@pytest.mark.parametrize("isa", ISAS, indirect=True)
def bench_prompt_isa(benchmark: Any, record: Record, rng: np.random.Generator, isa: str) -> None:
    measure(benchmark, record, Product("Q4_0", 2048, 2048, 64, rng), 1, 7 if isa == BEST else 3)


# ---- beside the matrices -----------------------------------------------------------------------

N, DIM = 512, 4096  # tokens and width of a layer


@pytest.mark.benchmark(group="prompt: what do the small kernels cost for 512 tokens of 4096?")
def bench_rms_norm(benchmark: Any, record: Record, rng: np.random.Generator) -> None:
    x = rng.standard_normal((N, DIM)).astype(np.float32)
    weight, out = rng.standard_normal(DIM).astype(np.float32), np.zeros_like(x)
    program = Program().then(_kernels.rms_norm(x, weight, 1e-5, out))
    benchmark(program.run, N_THREADS)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * weight
    correct = relative_error(out, expected) < 1e-6
    record(correct=correct, n_threads=N_THREADS, n_bytes=2 * x.nbytes)


@pytest.mark.benchmark(group="prompt: what do the small kernels cost for 512 tokens of 4096?")
def bench_silu_mul(benchmark: Any, record: Record, rng: np.random.Generator) -> None:
    gate, up = rng.standard_normal((2, N, DIM)).astype(np.float32)
    first, room = gate.copy(), gate.copy()
    benchmark.pedantic(
        Program().then(_kernels.silu_mul(room, up)).run,
        setup=lambda: ((np.copyto(room, first), (N_THREADS,))[1], {}),
        rounds=30,
    )
    wide = first.astype(np.float64)
    correct = relative_error(room, wide / (1 + np.exp(-wide)) * up) < 1e-5
    record(correct=correct, n_threads=N_THREADS, n_bytes=3 * gate.nbytes)


@pytest.mark.benchmark(group="prompt: what do the small kernels cost for 512 tokens of 4096?")
def bench_quantize(benchmark: Any, record: Record, rng: np.random.Generator) -> None:
    """Checked through a product, because only kernels know the layout of rounded activations."""
    product = Product("Q4_0", 256, DIM, N, rng)
    benchmark(Program().then(_kernels.quantize(product.x, product.q8)).run, N_THREADS)
    product.run(N_THREADS)
    n_bytes = product.x.nbytes * (1 + 9 / 32)
    record(correct=product.is_right(), n_threads=N_THREADS, n_bytes=n_bytes)


@pytest.mark.benchmark(group="prompt: what do the small kernels cost for 512 tokens of 4096?")
def bench_rope(benchmark: Any, record: Record, rng: np.random.Generator) -> None:
    n_heads, d = DIM // 128, 128
    x = rng.standard_normal((N, n_heads, d)).astype(np.float32)
    angle = np.arange(N)[:, None] * 10000.0 ** (-np.arange(d // 2) / (d // 2))
    rows = np.concatenate([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    positions, room = np.arange(N, dtype=np.int32), x.copy()
    table = _kernels.Rope(rows, np.zeros((2, d // 2), np.float32))
    benchmark.pedantic(
        Program().then(_kernels.rope(room, table, positions, 1.0)).run,
        setup=lambda: ((np.copyto(room, x), (N_THREADS,))[1], {}),
        rounds=30,
    )
    lo, hi = x[..., : d // 2].astype(np.float64), x[..., d // 2 :].astype(np.float64)
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    correct = relative_error(room, np.concatenate([lo * c - hi * s, lo * s + hi * c], 2)) < 1e-5
    record(correct=correct, n_threads=N_THREADS, n_bytes=2 * x.nbytes)
