"""Kernels: instruction sets, interleaved weights, matrix multiplication, row-wise operations.

Each function that computes returns an Operation of a program (_program.pyx): a call computes
nothing, it records what to do with which arrays. This module cuts work into tasks; the innermost
tiles are C functions of one instruction set each, called through the table `KERNELS`
(simd/kernels.h). Tasks depend on the size of the problem alone, never on the number of threads, so
results are bit-equal with any number of them. Arrays are C-contiguous; docstrings give their
shapes, # IN marks what is read and # OUT what is written. Attention is in _attention.pyx, the cache
in _cache.pyx.
"""

import os

import numpy as np

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memmove, memset

from lariat._program cimport Operation

cdef extern from "simd/kernels.h" nogil:
    kernels_t KERNELS
    ctypedef struct target_t:
        const char *isa
        const char *core
        int (*supported)() noexcept nogil
    enum: N_TARGETS
    const target_t *TARGETS
    const char *core_at_hand() noexcept
    void fill_table(int, kernels_t *) noexcept
    void map_pages(const uint8_t *, int64_t) noexcept
    ctypedef struct weight_type_t:
        const char *name
        int number, columns, bytes, loaded_as, packed
        void (*pack)(const uint8_t *const *, int64_t, void *) noexcept nogil
    const weight_type_t *WEIGHT_TYPES


cdef kernels_t *table() noexcept nogil:
    return &KERNELS


# ---- instruction sets -------------------------------------------------------------------------

# Rows of simd/targets.def in their order: instruction set and kind of core.
_TARGETS = tuple((TARGETS[i].isa.decode(), TARGETS[i].core.decode()) for i in range(N_TARGETS))
_ISAS = tuple(dict.fromkeys(isa for isa, _ in _TARGETS if isa != "test"))
_CORES = tuple(dict.fromkeys(core for _, core in _TARGETS))
_in_use = {"is_forced": False}  # and "isa" and "core": names


def supported_isas():
    """Names of the instruction sets that this processor and system have, the lowest first."""
    return tuple(dict.fromkeys(isa for isa, _ in variants()))


def isa():
    """Name of the instruction set in use."""
    return _in_use["isa"]


def use_isa(name):
    """Switch all kernels to the instruction set `name`; the kind of core stays.

    Raises ValueError if the set is unknown or missing here.
    """
    supported = supported_isas()
    if name not in (*supported, *_ISAS):
        raise ValueError(f"instruction set {name!r} is unknown, expected one of {', '.join(_ISAS)}")
    if name not in supported:
        names = ", ".join(supported)
        raise ValueError(f"instruction set {name!r} is not supported here, only {names}")
    _use(name, _in_use["core"])


def core():
    """Name of the kind of core that kernels are chosen for (simd/tuning.h)."""
    return _in_use["core"]


def use_core(name):
    """Choose the kernels for a kind of core; any runs anywhere. Raises ValueError if it is unknown.

    An instruction set without such a target keeps the one that it has. Then none is measured.
    """
    if name not in _CORES:
        raise ValueError(f"kind of core {name!r} is unknown, expected one of {', '.join(_CORES)}")
    _use(_in_use["isa"], name)
    _in_use["is_forced"] = True


def core_is_forced():
    """Whether somebody has named the kind of core."""
    return _in_use["is_forced"]


def variants():
    """Targets that this machine can run, the lowest first: (instruction set, kind of core) each."""
    return tuple(_TARGETS[i] for i in range(N_TARGETS) if TARGETS[i].supported())


def _use(isa, core):
    fill(isa, core, &KERNELS)
    _in_use.update(isa=isa, core=core)


cdef int fill(str isa, str core, kernels_t *out) except -1:
    target = (isa, core) if (isa, core) in _TARGETS else (isa, "other")
    fill_table(_TARGETS.index(target), out)
    return 0


def _force(variable, use):
    if os.environ.get(variable):
        try:
            use(os.environ[variable])
        except ValueError as error:
            raise ImportError(f"{variable}: {error}") from None


*_, _best = supported_isas()
_use(_best, core_at_hand().decode())
_force("LARIAT_ISA", use_isa)
_force("LARIAT_CORE", use_core)


# ---- weights ----------------------------------------------------------------------------------

# name: row of simd/types.def
_WEIGHT_TYPES = {WEIGHT_TYPES[i].name.decode(): i for i in range(N_WEIGHT_TYPES)}


def weight_types():
    """Types of matrices: name -> (number in GGUF files, columns of a block, bytes of a block)."""
    cdef const weight_type_t *t = WEIGHT_TYPES
    return {name: (t[i].number, t[i].columns, t[i].bytes) for name, i in _WEIGHT_TYPES.items()}


cdef int64_t row_bytes(int type, int64_t n_cols) noexcept nogil:
    """Bytes of an interleaved row of n_cols weights, whole blocks"""
    return n_cols // WEIGHT_TYPES[type].columns * WEIGHT_TYPES[type].packed


def packed_bytes(str type_name, Py_ssize_t n_rows, Py_ssize_t n_cols):
    """Bytes of an interleaved matrix, n_rows rounded up to 16; grids need more than in the file."""
    cdef int type = _WEIGHT_TYPES[type_name]
    return (n_rows + GROUP_ROWS - 1) // GROUP_ROWS * GROUP_ROWS * row_bytes(type, n_cols)


cdef class Matrix:
    """A weight matrix [n_rows, n_cols], interleaved by groups of 16 rows (simd/layout.h).

    rows       uint8 [n_rows, bytes of a row]  # IN  as GGUF stores them
    out        uint8 [packed_bytes(...)]       # OUT 64-byte aligned; kept by the matrix
    order      int64 [n_rows] or None          # IN  row r of the matrix is row order[r] of `rows`
    """

    def __init__(self, const uint8_t[:, ::1] rows, str type_name, Py_ssize_t n_cols,
                 uint8_t[::1] out, const int64_t[::1] order=None, int n_threads=1):
        cdef int type = _WEIGHT_TYPES[type_name]
        cdef const weight_type_t *t = &WEIGHT_TYPES[type]
        if n_cols % t.columns or rows.shape[1] != n_cols // t.columns * t.bytes:
            raise ValueError(
                f"rows of {rows.shape[1]} bytes, expected {n_cols // t.columns * t.bytes}: "
                f"{n_cols} columns of {type_name} in blocks of {t.columns}"
            )
        self.hold(out, type_name, rows.shape[0], n_cols)
        if order is not None and (order.shape[0] != self.n_rows or not self.n_rows
                                  or np.min(order) < 0 or np.max(order) >= self.n_rows):
            raise ValueError(
                f"an order of {order.shape[0]} rows, expected {self.n_rows} from 0 to "
                f"{self.n_rows - 1}"
            )
        cdef const int64_t *order_p = NULL
        if order is not None:
            order_p = &order[0]
        cdef const uint8_t *source = &rows[0, 0]
        cdef uint8_t *target = &out[0]
        cdef int64_t n_bytes_row = rows.shape[1], n_r = self.n_rows, n_c = n_cols
        cdef Py_ssize_t n_groups = (self.n_rows + GROUP_ROWS - 1) // GROUP_ROWS
        cdef Py_ssize_t n_runs = (n_groups + RUN_GROUPS - 1) // RUN_GROUPS, run
        for run in prange(n_runs, nogil=True, schedule="static", num_threads=n_threads):
            pack_run(type, source, n_bytes_row, n_r, n_c, order_p, run * RUN_GROUPS,
                     min(n_groups, (run + 1) * RUN_GROUPS), target)

    @staticmethod
    def of_packed(const uint8_t[::1] packed, str type_name, Py_ssize_t n_rows, Py_ssize_t n_cols):
        """The matrix [n_rows, n_cols] that another one left in `packed`, its `out`  # IN

        uint8 [packed_bytes(...)], 64-byte aligned; kept by the matrix. Nothing is read or copied.
        """
        cdef Matrix matrix = Matrix.__new__(Matrix)
        matrix.hold(packed, type_name, n_rows, n_cols)
        return matrix

    cdef int hold(self, const uint8_t[::1] packed, str type_name, Py_ssize_t n_rows,
                  Py_ssize_t n_cols) except -1:
        """Take interleaved rows, or the place for them. ValueError if it has another size."""
        cdef int type = _WEIGHT_TYPES[type_name]
        cdef const weight_type_t *t = &WEIGHT_TYPES[type]
        n_bytes = packed_bytes(type_name, n_rows, n_cols)
        if packed.shape[0] != n_bytes:
            raise ValueError(
                f"{packed.shape[0]} bytes for the interleaved matrix, expected {n_bytes}"
            )
        self.type_name, self.type, self.packed = type_name, t.loaded_as, packed
        self.n_rows, self.n_cols, self.quantized = n_rows, n_cols, t.columns > 1
        self.group_bytes = GROUP_ROWS * row_bytes(type, n_cols)
        return 0


cdef enum:
    RUN_GROUPS = 8  # of a matrix, whose part of the file is mapped at once


cdef void pack_run(int type, const uint8_t *source, int64_t n_bytes_row, int64_t n_rows,
                   int64_t n_cols, const int64_t *order, int64_t group, int64_t end,
                   uint8_t *out) noexcept nogil:
    cdef int64_t first = group * GROUP_ROWS, last = min(n_rows, end * GROUP_ROWS)
    map_pages(source + first * n_bytes_row, (last - first) * n_bytes_row)
    while group < end:
        pack_group(type, source, n_bytes_row, n_rows, n_cols, order, group,
                   out + group * GROUP_ROWS * row_bytes(type, n_cols))
        group += 1


cdef void pack_group(int type, const uint8_t *source, int64_t n_bytes_row, int64_t n_rows,
                     int64_t n_cols, const int64_t *order, int64_t group,
                     uint8_t *out) noexcept nogil:
    cdef const uint8_t *rows[16]
    cdef int64_t r, row
    for r in range(GROUP_ROWS):
        row = group * GROUP_ROWS + r
        if row >= n_rows:
            rows[r] = NULL
        else:
            rows[r] = source + n_bytes_row * (row if order == NULL else order[row])
    WEIGHT_TYPES[type].pack(rows, n_cols, out)


# ---- matrix multiplication ----------------------------------------------------------------------

cdef class Activations:
    """Buffers for up to n_tokens columns of up to n_cols activations, quantized to 8 bits.

    Each block of 32 has a scale, max |x| / 127 rounded to 11 significant bits as in llama.cpp.
    `quantize` fills it once for all the matrices that read the same activations.
    """

    def __init__(self, Py_ssize_t n_tokens, Py_ssize_t n_cols):
        n_blocks = n_tokens * max(n_cols // BLOCK, 1)
        self.q = np.zeros(n_blocks * BLOCK, np.int8)
        self.scale = np.zeros(n_blocks, np.float32)
        self.neg8_sum = np.zeros(n_blocks, np.int32)
        self.half_sum = np.zeros(n_blocks * 2, np.int16)
        self.n_tokens = self.n_cols = 0


cdef q8_t q8_of(Activations out, Py_ssize_t n_tokens, Py_ssize_t n_cols) except *:
    """Where [n_tokens, n_cols] activations go; nowhere if `out` is None."""
    cdef q8_t q8
    memset(&q8, 0, sizeof(q8))
    q8.n_tokens, q8.n_cols = n_tokens, n_cols
    if out is None:
        return q8
    if n_cols % BLOCK:
        raise ValueError(f"rows of {n_cols} activations, expected a multiple of {BLOCK}")
    if n_tokens * n_cols > out.q.shape[0]:
        raise ValueError(f"{n_tokens} x {n_cols} activations, expected at most {out.q.shape[0]}")
    out.n_tokens, out.n_cols = n_tokens, n_cols
    if n_tokens:
        q8.q, q8.scale = &out.q[0], &out.scale[0]
        q8.neg8_sum, q8.half_sum = &out.neg8_sum[0], &out.half_sum[0]
    return q8


cdef void quantize_row(const q8_t *out, int64_t row, const float *x, int64_t first,
                       int64_t last) noexcept nogil:
    """Numbers [first, last) of a token, x, go to their place in the tiles of `activations_t`."""
    cdef int64_t tile = 0, width = tile_width(&KERNELS, out.n_tokens), at
    while row >= tile + width:
        tile += width
        width = tile_width(&KERNELS, out.n_tokens - tile)
    at = tile * (out.n_cols // BLOCK) + first // BLOCK * width + row - tile
    KERNELS.quantize_column(x, last - first, width, out.q + at * BLOCK, out.scale + at,
                            out.neg8_sum + at, out.half_sum + 2 * at)


cdef struct rows_t:  # arguments of row-wise operations
    const float *x
    const float *weight
    float *out
    float eps
    int64_t n, dim, per_task
    q8_t q8


cdef class _Rows(Operation):
    cdef rows_t a


cdef int64_t set_rows(rows_t *a, int64_t n, int64_t dim) noexcept:
    """Cut n rows into tasks and say how many."""
    a.n, a.dim, a.per_task = n, dim, max(1, TASK_FLOATS // max(1, dim))
    return (n + a.per_task - 1) // a.per_task


def quantize(const float[:, ::1] x, Activations out):
    """x float32 [n_tokens, n_cols]  # IN, n_cols a multiple of 32; out  # OUT"""
    cdef _Rows op = _Rows()
    op.a.q8 = q8_of(out, x.shape[0], x.shape[1])
    op.a.x = &x[0, 0] if x.shape[0] else NULL
    op.bind(quantize_task, &op.a, set_rows(&op.a, x.shape[0], x.shape[1]), (x, out))
    return op


cdef void quantize_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const rows_t *a = <const rows_t *>args
    cdef int64_t i
    for i in range(task * a.per_task, min(a.n, (task + 1) * a.per_task)):
        quantize_row(&a.q8, i, a.x + i * a.dim, 0, a.dim)


cdef struct matmul_t:
    int type, add
    const uint8_t *weights
    int64_t group_bytes, n_rows, n_groups, per_task, n_cols
    activations_t x
    float *out


cdef class _Matmul(Operation):
    cdef matmul_t a


def matmul(Matrix w, const float[:, ::1] x, Activations q8, float[:, ::1] out, bint add=False):
    """out = x @ w.T, or out += x @ w.T with `add`.

    x float32 [n_tokens, n_cols]  # IN; q8 the same, quantized, read if w is quantized  # IN
    out float32 [n_tokens, n_rows]  # OUT
    """
    cdef Py_ssize_t n = x.shape[0]
    if x.shape[1] != w.n_cols or out.shape[0] != n or out.shape[1] != w.n_rows:
        raise ValueError(
            f"matmul of [{n}, {x.shape[1]}] into [{out.shape[0]}, {out.shape[1]}], expected "
            f"[{n}, {w.n_cols}] into [{n}, {w.n_rows}]"
        )
    if w.quantized and (q8.n_tokens != n or q8.n_cols != w.n_cols):
        raise ValueError(
            f"quantized activations of [{q8.n_tokens}, {q8.n_cols}], expected [{n}, {w.n_cols}]"
        )
    cdef _Matmul op = _Matmul()
    cdef matmul_t *a = &op.a
    if n == 0:
        op.bind(matmul_task, a, 0, None)
        return op
    a.type, a.add, a.weights, a.group_bytes = w.type, add, &w.packed[0], w.group_bytes
    a.n_rows, a.n_groups = w.n_rows, (w.n_rows + GROUP_ROWS - 1) // GROUP_ROWS
    a.n_cols, a.out = n, &out[0, 0]
    a.per_task = max(1, min(TASK_BYTES // w.group_bytes,
                            TASK_PRODUCTS // (GROUP_ROWS * w.n_cols * n)))
    a.x.x, a.x.n_k = &x[0, 0], w.n_cols
    a.x.q, a.x.scale = &q8.q[0], &q8.scale[0]
    a.x.neg8_sum, a.x.half_sum = &q8.neg8_sum[0], &q8.half_sum[0]
    op.bind(matmul_task, a, (a.n_groups + a.per_task - 1) // a.per_task, (w, x, q8, out))
    return op


cdef void matmul_task(const void *args, int64_t task, float *work) noexcept nogil:
    """Some row groups times all columns, tile after tile."""
    cdef const matmul_t *a = <const matmul_t *>args
    cdef matmul_fn tile
    cdef int64_t group, col, width
    for group in range(task * a.per_task, min(a.n_groups, (task + 1) * a.per_task)):
        col = 0
        while col < a.n_cols:
            tile = matmul_of(&KERNELS, a.type, a.x.n_k, a.n_cols - col, &width)
            tile(a.weights + group * a.group_bytes, &a.x, col, <int>width,
                 a.out + col * a.n_rows + group * GROUP_ROWS, a.n_rows,
                 <int>min(GROUP_ROWS, a.n_rows - group * GROUP_ROWS), a.add)
            col = col + width


# ---- rows -------------------------------------------------------------------------------------

def rms_norm(const float[:, ::1] x, const float[::1] weight, float eps, float[:, ::1] out,
             Activations q8=None):
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row (arXiv 1910.07467).

    x float32 [n, dim]  # IN; weight float32 [dim]  # IN; out float32 [n, dim]  # OUT, may be x
    q8  # OUT the same, quantized, if it is given
    """
    cdef Py_ssize_t n = x.shape[0], dim = x.shape[1]
    if weight.shape[0] != dim or out.shape[0] != n or out.shape[1] != dim:
        raise ValueError(
            f"rms_norm with {weight.shape[0]} weights into [{out.shape[0]}, {out.shape[1]}], "
            f"expected {dim} weights and [{n}, {dim}]"
        )
    cdef _Rows op = _Rows()
    op.a.q8, op.a.eps, op.a.weight = q8_of(q8, n, dim), eps, &weight[0]
    if n:
        op.a.x, op.a.out = &x[0, 0], &out[0, 0]
    op.bind(rms_norm_task, &op.a, set_rows(&op.a, n, dim), (x, weight, out, q8))
    return op


cdef void rms_norm_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const rows_t *a = <const rows_t *>args
    cdef int64_t i
    for i in range(task * a.per_task, min(a.n, (task + 1) * a.per_task)):
        KERNELS.rms_norm(a.x + i * a.dim, a.weight, a.eps, a.dim, a.out + i * a.dim)
        if a.q8.q != NULL:
            quantize_row(&a.q8, i, a.out + i * a.dim, 0, a.dim)


def add_bias(const float[::1] bias, float[:, ::1] out):
    """out += bias, row by row. bias float32 [dim]  # IN; out float32 [n, dim]  # IN OUT"""
    if bias.shape[0] != out.shape[1]:
        raise ValueError(f"a bias of {bias.shape[0]} numbers, expected {out.shape[1]}")
    cdef _Rows op = _Rows()
    op.a.weight = &bias[0]
    op.a.out = &out[0, 0] if out.shape[0] else NULL
    op.bind(add_bias_task, &op.a, set_rows(&op.a, out.shape[0], out.shape[1]), (bias, out))
    return op


cdef void add_bias_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const rows_t *a = <const rows_t *>args
    cdef int64_t i, j
    for i in range(task * a.per_task, min(a.n, (task + 1) * a.per_task)):
        for j in range(a.dim):
            a.out[i * a.dim + j] += a.weight[j]


cdef struct select_t:
    float *x
    const int32_t *rows
    int64_t n, dim


cdef class _Select(Operation):
    cdef select_t a


def select_rows(float[:, ::1] x, const int32_t[::1] rows):
    """x[i] = x[rows[i]], in place. x float32 [n, dim]  # IN OUT; rows int32 [n_rows], rising  # IN
    """
    if rows.shape[0] > x.shape[0]:
        raise ValueError(f"{rows.shape[0]} rows to select, expected at most {x.shape[0]}")
    cdef _Select op = _Select()
    if rows.shape[0]:
        op.a.x, op.a.rows = &x[0, 0], &rows[0]
    op.a.n, op.a.dim = rows.shape[0], x.shape[1]
    op.bind(select_rows_task, &op.a, rows.shape[0] > 0, (x, rows))  # one task: in order
    return op


cdef void select_rows_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const select_t *a = <const select_t *>args
    cdef int64_t i
    for i in range(a.n):
        memmove(a.x + i * a.dim, a.x + a.rows[i] * a.dim, a.dim * sizeof(float))


cdef class Rope:
    """The table of cosines and sines that kernels read; it may grow between two runs."""

    def __init__(self, const float[:, ::1] rows, const float[:, ::1] step, float gain=1,
                 int group_n=1, int group_window=1):
        """rows float32 [n_positions, head_dim], cos then sin; step float32 [2, head_dim / 2]:
        2 (1 - cos theta), sin theta

        Scores are multiplied by `gain`. With `group_n` above 1, raw keys `group_window` positions
        away and more stand at position // group_n.
        """
        self.head_dim = rows.shape[1]
        self.set(rows, step, gain, group_n, group_window)

    def set(self, const float[:, ::1] rows, const float[:, ::1] step, float gain=1,
            int group_n=1, int group_window=1):
        """Put another table of the same head_dim in its place."""
        if (rows.shape[1] != self.head_dim or step.shape[0] != 2
                or step.shape[1] * 2 != self.head_dim):
            raise ValueError(
                f"RoPE rows of {rows.shape[1]} numbers and steps of [{step.shape[0]}, "
                f"{step.shape[1]}], expected {self.head_dim} and [2, {self.head_dim // 2}]"
            )
        if group_n < 1 or group_window < 1 or group_window % group_n:
            raise ValueError(
                f"group attention with groups of {group_n} and a window of {group_window} "
                f"positions, expected a window of whole groups"
            )
        self.rows, self.step, self.n_positions = rows, step, rows.shape[0]
        self.table = rope_t(&rows[0, 0], &step[0, 0], gain, group_n, group_window)


cdef struct rotate_t:
    float *x
    const rope_t *rope
    const int32_t *positions
    float scale
    bint hadamard
    int64_t n, n_heads, head_dim, per_task


cdef class _Rotate(Operation):
    cdef rotate_t a


def rope(float[:, :, ::1] x, Rope table, const int32_t[::1] positions, float scale,
         bint hadamard=False):
    """Rotate each head by its token's position (arXiv 2104.09864) and multiply by `scale` and by
    the table's gain; with `hadamard`, transform it as cached keys are: see _cache.Pool.

    x float32 [n_tokens, n_heads, head_dim]  # IN OUT, pairs (i, i + head_dim / 2)
    positions int32 [n_tokens]  # IN, within the table when the operation is run
    """
    cdef _Rotate op = _Rotate()
    cdef rotate_t *a = &op.a
    a.n, a.n_heads, a.head_dim, a.scale = x.shape[0], x.shape[1], x.shape[2], scale
    a.hadamard = hadamard
    if table.head_dim != a.head_dim or positions.shape[0] != a.n:
        raise ValueError(
            f"rope of heads of {a.head_dim} at {positions.shape[0]} positions, expected heads of "
            f"{table.head_dim} at {a.n}"
        )
    if a.n:
        a.x, a.rope, a.positions = &x[0, 0, 0], &table.table, &positions[0]
    a.per_task = max(1, TASK_FLOATS // max(1, a.n_heads * a.head_dim))
    op.bind(rope_task, a, (a.n + a.per_task - 1) // a.per_task, (x, table, positions))
    return op


cdef void rope_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const rotate_t *a = <const rotate_t *>args
    cdef int64_t i, h
    for i in range(task * a.per_task, min(a.n, (task + 1) * a.per_task)):
        rope_token(a.x + i * a.n_heads * a.head_dim, a.rope.rows + a.positions[i] * a.head_dim,
                   a.n_heads, a.head_dim, a.scale * a.rope.gain)
        if a.rope.gain != 1:
            undo_gain(a.x + i * a.n_heads * a.head_dim, a.rope, a.n_heads, a.head_dim // 2)
        for h in range(a.n_heads if a.hadamard else 0):
            KERNELS.hadamard(a.x + (i * a.n_heads + h) * a.head_dim, a.head_dim)


cdef void undo_gain(float *x, const rope_t *rope, int64_t n_heads, int64_t half) noexcept nogil:
    """Takes the gain back from pairs that are never rotated: no position changes them."""
    cdef int64_t h, i
    for i in range(half):
        if rope.step[i] == 0 and rope.step[half + i] == 0:
            for h in range(2 * n_heads):
                x[h * half + i] /= rope.gain


cdef void rope_token(float *x, const float *row, int64_t n_heads, int64_t d,
                     float scale) noexcept nogil:
    cdef int64_t h
    for h in range(n_heads):
        KERNELS.rope_head(x + h * d, row, d // 2, scale)


cdef struct silu_t:
    float *gate
    const float *up
    int64_t n_ff, per_row  # tasks of a row
    q8_t q8


cdef class _Silu(Operation):
    cdef silu_t a


def silu_mul(float[:, ::1] gate, const float[:, ::1] up, Activations q8=None):
    """gate = silu(gate) * up (arXiv 2002.05202).

    gate float32 [n, n_ff]  # IN OUT; up float32 [n, n_ff]  # IN
    q8  # OUT the result, quantized, if it is given
    """
    cdef Py_ssize_t n = gate.shape[0], n_ff = gate.shape[1]
    if up.shape[0] != n or up.shape[1] != n_ff:
        raise ValueError(f"up is [{up.shape[0]}, {up.shape[1]}], expected [{n}, {n_ff}]")
    cdef _Silu op = _Silu()
    op.a.q8, op.a.n_ff = q8_of(q8, n, n_ff), n_ff
    op.a.per_row = (n_ff + TASK_FLOATS - 1) // TASK_FLOATS
    if n:
        op.a.gate, op.a.up = &gate[0, 0], &up[0, 0]
    op.bind(silu_mul_task, &op.a, n * op.a.per_row, (gate, up, q8))
    return op


cdef void silu_mul_task(const void *args, int64_t task, float *work) noexcept nogil:
    """A part of a row; parts begin where blocks of activations do."""
    cdef const silu_t *a = <const silu_t *>args
    cdef int64_t row = task // a.per_row, first = task % a.per_row * TASK_FLOATS
    cdef int64_t last = min(a.n_ff, first + TASK_FLOATS)
    cdef float *gate = a.gate + row * a.n_ff + first
    KERNELS.silu_mul(gate, a.up + row * a.n_ff + first, last - first)
    if a.q8.q != NULL:
        quantize_row(&a.q8, row, gate, first, last)
