"""Kernels: instruction sets, interleaved weights, matrix multiplication, row-wise operations.

How work is cut into tasks stands here; the innermost tiles are C functions of one instruction set
each, called through the table `KERNELS` (simd/kernels.h). Everything is cut by the size of the
problem alone, never by the number of threads, so that results are bit-equal with any number of
them. Arrays are C-contiguous; shapes stand in the docstrings, # IN and # OUT say what is read and
written. Attention and the cache are in _attention.pyx.
"""

import os

import numpy as np

from cython.parallel cimport prange
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t

cdef extern from "simd/kernels.h" nogil:
    enum: LEVEL_SCALAR, LEVEL_AVX2, LEVEL_AVX512
    kernels_t KERNELS
    int supported_level() noexcept
    void select_level(int) noexcept
    void pack_q4_0(const uint8_t *const *, int64_t, void *) noexcept
    void pack_q4_1(const uint8_t *const *, int64_t, void *) noexcept
    void pack_q8_0(const uint8_t *const *, int64_t, void *) noexcept
    void pack_q6_K(const uint8_t *const *, int64_t, void *) noexcept
    void pack_16bit(const uint8_t *const *, int64_t, void *) noexcept
    void pack_32bit(const uint8_t *const *, int64_t, void *) noexcept


cdef kernels_t *table() noexcept nogil:
    return &KERNELS


# ---- instruction sets -------------------------------------------------------------------------

_LEVELS = ("scalar", "avx2", "avx512")


def supported_isas():
    """Names of the instruction-set levels that this processor and system have, lowest first."""
    return _LEVELS[: supported_level() + 1]


def isa():
    """Name of the level in use."""
    return _LEVELS[KERNELS.level]


def use_isa(name):
    """Switch all kernels to the level `name`. Raises ValueError if it is unknown or missing."""
    if name not in _LEVELS:
        raise ValueError(
            f"instruction set {name!r} is unknown, expected one of {', '.join(_LEVELS)}"
        )
    if name not in supported_isas():
        raise ValueError(
            f"instruction set {name!r} is not supported here, only {', '.join(supported_isas())}"
        )
    select_level(_LEVELS.index(name))


select_level(supported_level())
if os.environ.get("LARIAT_ISA"):
    try:
        use_isa(os.environ["LARIAT_ISA"])
    except ValueError as error:
        raise ImportError(f"LARIAT_ISA: {error}") from None


# ---- weights ----------------------------------------------------------------------------------

# name: number in the kernel table, columns of a block, bytes of a block of 16 rows
_WEIGHT_TYPES = {
    "F32": (W_F32, 1, 64), "F16": (W_F16, 1, 32), "BF16": (W_BF16, 1, 32),
    "Q4_0": (W_Q4_0, 32, 288), "Q4_1": (W_Q4_1, 32, 320), "Q8_0": (W_Q8_0, 32, 544),
    "Q6_K": (W_Q6_K, 256, 3360),
}  # fmt: skip


def packed_bytes(str type_name, Py_ssize_t n_rows, Py_ssize_t n_cols):
    """Bytes of an interleaved matrix: those of the file, with n_rows rounded up to 16."""
    _, n_block, n_bytes = _WEIGHT_TYPES[type_name]
    return (n_rows + GROUP_ROWS - 1) // GROUP_ROWS * (n_cols // n_block) * n_bytes


cdef class Matrix:
    """A weight matrix [n_rows, n_cols], interleaved by groups of 16 rows (simd/layout.h).

    rows       uint8 [n_rows, bytes of a row]  # IN  as GGUF stores them
    out        uint8 [packed_bytes(...)]       # OUT 64-byte aligned; kept by the matrix
    order      int64 [n_rows] or None          # IN  row r of the matrix is row order[r] of `rows`
    """

    cdef readonly str type_name
    cdef readonly Py_ssize_t n_rows, n_cols
    cdef readonly bint quantized
    cdef int kind
    cdef int64_t group_bytes
    cdef uint8_t[::1] packed

    def __init__(self, const uint8_t[:, ::1] rows, str type_name, Py_ssize_t n_cols,
                 uint8_t[::1] out, const int64_t[::1] order=None, int n_threads=1):
        kind, n_block, n_bytes = _WEIGHT_TYPES[type_name]
        self.type_name, self.kind, self.n_cols, self.packed = type_name, kind, n_cols, out
        self.n_rows = rows.shape[0]
        self.quantized = n_block > 1
        self.group_bytes = n_cols // n_block * n_bytes
        if n_cols % n_block or rows.shape[1] * GROUP_ROWS != self.group_bytes:
            raise ValueError(f"rows of {rows.shape[1]} bytes are not {n_cols} columns {type_name}")
        if out.shape[0] != packed_bytes(type_name, self.n_rows, n_cols):
            raise ValueError(f"the packed matrix does not fit into {out.shape[0]} bytes")
        if order is not None and (order.shape[0] != self.n_rows or not self.n_rows
                                  or np.min(order) < 0 or np.max(order) >= self.n_rows):
            raise ValueError("order is not one of the matrix's rows")
        cdef Py_ssize_t n_groups = (self.n_rows + GROUP_ROWS - 1) // GROUP_ROWS
        cdef const int64_t *order_p = NULL
        if order is not None:
            order_p = &order[0]
        cdef const uint8_t *source = &rows[0, 0]
        cdef uint8_t *target = &out[0]
        cdef int64_t row_bytes = rows.shape[1], n_r = self.n_rows, n_c = n_cols
        cdef int64_t group_bytes = self.group_bytes
        cdef int kind_c = kind
        cdef Py_ssize_t g
        for g in prange(n_groups, nogil=True, schedule="static", num_threads=n_threads):
            pack_group(kind_c, source, row_bytes, n_r, n_c, order_p, g, target + g * group_bytes)


cdef void pack_group(int kind, const uint8_t *source, int64_t row_bytes, int64_t n_rows,
                     int64_t n_cols, const int64_t *order, int64_t group,
                     uint8_t *out) noexcept nogil:
    cdef const uint8_t *rows[16]
    cdef int64_t r, row
    for r in range(GROUP_ROWS):
        row = group * GROUP_ROWS + r
        if row >= n_rows:
            rows[r] = NULL
        else:
            rows[r] = source + row_bytes * (row if order == NULL else order[row])
    if kind == W_Q4_0:
        pack_q4_0(rows, n_cols, out)
    elif kind == W_Q4_1:
        pack_q4_1(rows, n_cols, out)
    elif kind == W_Q8_0:
        pack_q8_0(rows, n_cols, out)
    elif kind == W_Q6_K:
        pack_q6_K(rows, n_cols, out)
    elif kind == W_F32:
        pack_32bit(rows, n_cols, out)
    else:
        pack_16bit(rows, n_cols, out)


# ---- matrix multiplication ----------------------------------------------------------------------

cdef class Activations:
    """Room for up to n_tokens columns of up to n_cols activations, quantized to 8 bits.

    Each block of 32 has a scale, max |x| / 127 rounded to 11 significant bits as in llama.cpp.
    `quantize` fills it once for all the matrices that read the same activations.
    """

    cdef int8_t[::1] q
    cdef float[::1] scale
    cdef int32_t[::1] neg8_sum
    cdef int16_t[::1] half_sum
    cdef Py_ssize_t n_tokens, n_cols  # of what it holds

    def __init__(self, Py_ssize_t n_tokens, Py_ssize_t n_cols):
        n_blocks = n_tokens * max(n_cols // BLOCK, 1)
        self.q = np.zeros(n_blocks * BLOCK, np.int8)
        self.scale = np.zeros(n_blocks, np.float32)
        self.neg8_sum = np.zeros(n_blocks, np.int32)
        self.half_sum = np.zeros(n_blocks * 2, np.int16)
        self.n_tokens = self.n_cols = 0


def quantize(const float[:, ::1] x, Activations out, int n_threads):
    """x float32 [n_tokens, n_cols]  # IN, n_cols a multiple of 32; out  # OUT"""
    cdef Py_ssize_t n = x.shape[0], n_k = x.shape[1], c
    if n_k % BLOCK or n * n_k > out.q.shape[0]:
        raise ValueError(f"{n} x {n_k} activations do not fit or do not divide by {BLOCK}")
    out.n_tokens, out.n_cols = n, n_k
    if n == 0:
        return
    cdef int8_t *q = &out.q[0]
    cdef float *scale = &out.scale[0]
    cdef int32_t *neg8_sum = &out.neg8_sum[0]
    cdef int16_t *half_sum = &out.half_sum[0]
    cdef const float *xp = &x[0, 0]
    if n == 1:  # not worth waking threads
        with nogil:
            quantize_column(xp, 0, 1, n_k, q, scale, neg8_sum, half_sum)
        return
    for c in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        quantize_column(xp, c, n, n_k, q, scale, neg8_sum, half_sum)


cdef void quantize_column(const float *x, int64_t c, int64_t n, int64_t n_k, int8_t *q,
                          float *scale, int32_t *neg8_sum, int16_t *half_sum) noexcept nogil:
    """Column c of n goes to its place in the tiles of `activations_t` (simd/layout.h)."""
    cdef int64_t first = 0, width = tile_width(n), at
    while c >= first + width:
        first += width
        width = tile_width(n - first)
    at = first * (n_k // BLOCK) + (c - first)
    KERNELS.quantize_column(x + c * n_k, n_k, width, q + at * BLOCK, scale + at, neg8_sum + at,
                            half_sum + 2 * at)


# Bytes of weights of one task: enough to pay for its start, little enough to share out evenly.
cdef enum: TASK_BYTES = 65536


def matmul(Matrix w, const float[:, ::1] x, Activations q8, float[:, ::1] out, bint add,
           int n_threads):
    """out = x @ w.T, or out += x @ w.T with `add`.

    x float32 [n_tokens, n_cols]  # IN; q8 the same, quantized, read if w is quantized  # IN
    out float32 [n_tokens, n_rows]  # OUT
    """
    cdef Py_ssize_t n = x.shape[0]
    if x.shape[1] != w.n_cols or out.shape[0] != n or out.shape[1] != w.n_rows:
        raise ValueError(
            f"matmul of [{n}, {x.shape[1]}] with [{w.n_rows}, {w.n_cols}] into "
            f"[{out.shape[0]}, {out.shape[1]}]"
        )
    if w.quantized and (q8.n_tokens != n or q8.n_cols != w.n_cols):
        raise ValueError("the quantized activations are not those of x")
    if n == 0:
        return
    cdef activations_t a
    a.x, a.n_k = &x[0, 0], w.n_cols
    a.q, a.scale = &q8.q[0], &q8.scale[0]
    a.neg8_sum, a.half_sum = &q8.neg8_sum[0], &q8.half_sum[0]
    cdef matmul_fn tile = KERNELS.matmul[w.kind]
    cdef const uint8_t *weights = &w.packed[0]
    cdef int64_t group_bytes = w.group_bytes, n_rows = w.n_rows
    cdef Py_ssize_t n_groups = (w.n_rows + GROUP_ROWS - 1) // GROUP_ROWS, task
    cdef Py_ssize_t per_task = max(1, TASK_BYTES // group_bytes)
    cdef Py_ssize_t n_tasks = (n_groups + per_task - 1) // per_task
    cdef float *o = &out[0, 0]
    cdef int add_c = add, team = n_threads if n_tasks > 1 else 1  # one task wakes nobody
    for task in prange(n_tasks, nogil=True, schedule="dynamic", num_threads=team):
        matmul_groups(tile, weights, group_bytes, n_rows, task * per_task,
                      min(n_groups, (task + 1) * per_task), &a, n, o, add_c)


cdef void matmul_groups(matmul_fn tile, const uint8_t *weights, int64_t group_bytes, int64_t n_rows,
                        int64_t first, int64_t last, const activations_t *a, int64_t n_cols,
                        float *out, int add) noexcept nogil:
    """Row groups [first, last) times all columns, tile after tile."""
    cdef int64_t group, col, width
    for group in range(first, last):
        col = 0
        while col < n_cols:
            width = tile_width(n_cols - col)
            tile(weights + group * group_bytes, a, col, <int>width,
                 out + col * n_rows + group * GROUP_ROWS, n_rows,
                 <int>min(GROUP_ROWS, n_rows - group * GROUP_ROWS), add)
            col = col + width


# ---- rows -------------------------------------------------------------------------------------

def rms_norm(const float[:, ::1] x, const float[::1] weight, float eps, float[:, ::1] out,
             int n_threads):
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row (arXiv 1910.07467).

    x float32 [n, dim]  # IN; weight float32 [dim]  # IN; out float32 [n, dim]  # OUT
    """
    cdef Py_ssize_t n = x.shape[0], dim = x.shape[1], i
    if weight.shape[0] != dim or out.shape[0] != n or out.shape[1] != dim:
        raise ValueError("rms_norm of arrays that do not fit each other")
    if n == 0:
        return
    cdef const float *xp = &x[0, 0]
    cdef const float *wp = &weight[0]
    cdef float *o = &out[0, 0]
    if n == 1:
        KERNELS.rms_norm(xp, wp, eps, dim, o)
        return
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        KERNELS.rms_norm(xp + i * dim, wp, eps, dim, o + i * dim)


def rope(float[:, :, ::1] x, const float[:, ::1] rows, const int32_t[::1] positions, float scale,
         int n_threads):
    """Rotate each head by its token's position (arXiv 2104.09864) and multiply by `scale`.

    x float32 [n_tokens, n_heads, head_dim]  # IN OUT, pairs (i, i + head_dim / 2)
    rows float32 [n_positions, head_dim]  # IN, cos then sin; positions int32 [n_tokens]  # IN
    """
    cdef Py_ssize_t n = x.shape[0], n_heads = x.shape[1], d = x.shape[2], i
    if rows.shape[1] != d or positions.shape[0] != n:
        raise ValueError("rope of arrays that do not fit each other")
    if n == 0:
        return
    cdef float *xp = &x[0, 0, 0]
    cdef const float *rp = &rows[0, 0]
    cdef const int32_t *pp = &positions[0]
    if n == 1:
        rope_token(xp, rp + pp[0] * d, n_heads, d, scale)
        return
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        rope_token(xp + i * n_heads * d, rp + pp[i] * d, n_heads, d, scale)


cdef void rope_token(float *x, const float *row, int64_t n_heads, int64_t d,
                     float scale) noexcept nogil:
    cdef int64_t h
    for h in range(n_heads):
        KERNELS.rope_head(x + h * d, row, d // 2, scale)


cdef enum: SILU_SPAN = 8192


def silu_mul(float[:, ::1] gate, const float[:, ::1] up, int n_threads):
    """gate = silu(gate) * up (arXiv 2002.05202). Both float32 [n, n_ff]; gate # IN OUT, up # IN"""
    cdef int64_t n = gate.shape[0] * gate.shape[1]
    cdef Py_ssize_t i
    if up.shape[0] != gate.shape[0] or up.shape[1] != gate.shape[1]:
        raise ValueError("silu_mul of arrays of different shapes")
    if n == 0:
        return
    cdef float *g = &gate[0, 0]
    cdef const float *u = &up[0, 0]
    if n <= SILU_SPAN:
        KERNELS.silu_mul(g, u, n)
        return
    for i in prange((n + SILU_SPAN - 1) // SILU_SPAN, nogil=True, schedule="static",
                    num_threads=n_threads):
        KERNELS.silu_mul(g + i * SILU_SPAN, u + i * SILU_SPAN, min(SILU_SPAN, n - i * SILU_SPAN))
