"""The algorithms: how work is cut into tasks, what a task walks, how parts are merged.

The innermost tiles are C functions of one instruction set each, called through the table
`KERNELS` (simd/kernels.h). Everything here is cut by the size of the problem alone, never by the
number of threads, so that results are bit-equal with any number of them. Arrays are C-contiguous;
shapes stand in the docstrings, # IN and # OUT say what is read and written.
"""

import os

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset

cdef extern from "simd/kernels.h" nogil:
    enum: GROUP_ROWS, BLOCK, SLOTS, SCORE_ROWS
    enum: W_F32, W_F16, W_BF16, W_Q4_0, W_Q4_1, W_Q8_0, W_Q6_K
    enum: LEVEL_SCALAR, LEVEL_AVX2, LEVEL_AVX512
    ctypedef struct activations_t:
        const float *x
        int8_t *q
        float *scale
        int32_t *neg8_sum
        int16_t *half_sum
        int64_t n_k
    ctypedef struct rope_t:
        const float *rows
        const float *step
    ctypedef void (*matmul_fn)(const void *, const activations_t *, int64_t, int, float *, int64_t,
                               int, int) noexcept nogil
    ctypedef void (*scores_fn)(const float *, int, const void *, int, int64_t, const rope_t *,
                               float *) noexcept nogil
    ctypedef void (*keys_fn)(const void *, int, int64_t, const float *, float *) noexcept nogil
    ctypedef void (*weigh_fn)(const float *, int, const void *, int, int64_t,
                              float *) noexcept nogil
    ctypedef struct kernels_t:
        int level
        matmul_fn matmul[7]
        void (*rms_norm)(const float *, const float *, float, int64_t, float *) noexcept nogil
        void (*quantize_column)(const float *, int64_t, int64_t, int8_t *, float *, int32_t *,
                                int16_t *) noexcept nogil
        void (*rope_head)(float *, const float *, int64_t, float) noexcept nogil
        void (*silu_mul)(float *, const float *, int64_t) noexcept nogil
        void (*to_f16)(const float *, int64_t, uint16_t *) noexcept nogil
        void (*to_f32)(const uint16_t *, int64_t, float *) noexcept nogil
        void (*rotate_back)(const float *, const float *, int64_t, float *) noexcept nogil
        scores_fn scores[2][2]
        keys_fn keys[2]
        void (*tile_scores)(const float *, int, const float *, int64_t, float *) noexcept nogil
        void (*softmax_block)(float *, int, int, int, int, float *, float *, float *,
                              int64_t) noexcept nogil
        weigh_fn weigh[2]
    kernels_t KERNELS
    int supported_level() noexcept
    void select_level(int) noexcept
    int64_t tile_width(int64_t) noexcept
    void pack_q4_0(const uint8_t *const *, int64_t, void *) noexcept
    void pack_q4_1(const uint8_t *const *, int64_t, void *) noexcept
    void pack_q8_0(const uint8_t *const *, int64_t, void *) noexcept
    void pack_q6_K(const uint8_t *const *, int64_t, void *) noexcept
    void pack_16bit(const uint8_t *const *, int64_t, void *) noexcept
    void pack_32bit(const uint8_t *const *, int64_t, void *) noexcept


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
        raise ValueError(f"instruction set {name!r} is unknown, expected one of {', '.join(_LEVELS)}")
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


# ---- the cache ----------------------------------------------------------------------------------

cdef class Pool:
    """The memory of the cache: [layer][block][kv_head][32 slots][head_dim], keys and values apart.

    k, v uint8 [bytes], 64-byte aligned; float16, or float32 where *_f32 is set.
    """

    cdef readonly Py_ssize_t n_layers, n_blocks, n_kv_heads, head_dim_k, head_dim_v
    cdef uint8_t[::1] k, v
    cdef bint k_f32, v_f32

    def __init__(self, uint8_t[::1] k, uint8_t[::1] v, Py_ssize_t n_layers, Py_ssize_t n_blocks,
                 Py_ssize_t n_kv_heads, Py_ssize_t head_dim_k, Py_ssize_t head_dim_v, bint k_f32,
                 bint v_f32):
        n = n_layers * n_blocks * n_kv_heads * SLOTS
        if (k.shape[0] != n * head_dim_k * (4 if k_f32 else 2)
                or v.shape[0] != n * head_dim_v * (4 if v_f32 else 2)):
            raise ValueError("the memory of the cache has another size than its shape")
        self.k, self.v, self.k_f32, self.v_f32 = k, v, k_f32, v_f32
        self.n_layers, self.n_blocks, self.n_kv_heads = n_layers, n_blocks, n_kv_heads
        self.head_dim_k, self.head_dim_v = head_dim_k, head_dim_v


def store(Pool pool, Py_ssize_t layer, const float[:, :, ::1] k, const float[:, :, ::1] v,
          const int32_t[::1] slots, int n_threads):
    """Write keys and values of new tokens into their slots.

    k float32 [n_tokens, n_kv_heads, head_dim_k]  # IN; v likewise with head_dim_v  # IN
    slots int32 [n_tokens]  # IN, block * 32 + slot
    """
    cdef Py_ssize_t n = k.shape[0], n_heads = pool.n_kv_heads, i
    cdef int64_t dk = pool.head_dim_k, dv = pool.head_dim_v
    if (v.shape[0] != n or slots.shape[0] != n or k.shape[1] != n_heads or v.shape[1] != n_heads
            or k.shape[2] != dk or v.shape[2] != dv or not 0 <= layer < pool.n_layers):
        raise ValueError("store of arrays that do not fit the cache")
    if n == 0:
        return
    cdef uint8_t *k_out = layer_k(pool, layer)
    cdef uint8_t *v_out = layer_v(pool, layer)
    cdef const float *kp = &k[0, 0, 0]
    cdef const float *vp = &v[0, 0, 0]
    cdef const int32_t *sp = &slots[0]
    cdef int k_f32 = pool.k_f32, v_f32 = pool.v_f32
    if n == 1:
        store_token(kp, k_out, sp[0], n_heads, dk, k_f32)
        store_token(vp, v_out, sp[0], n_heads, dv, v_f32)
        return
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        store_token(kp + i * n_heads * dk, k_out, sp[i], n_heads, dk, k_f32)
        store_token(vp + i * n_heads * dv, v_out, sp[i], n_heads, dv, v_f32)


cdef inline uint8_t *layer_k(Pool pool, Py_ssize_t layer) noexcept:
    return &pool.k[0] + layer * (pool.k.shape[0] // pool.n_layers)


cdef inline uint8_t *layer_v(Pool pool, Py_ssize_t layer) noexcept:
    return &pool.v[0] + layer * (pool.v.shape[0] // pool.n_layers)


cdef void store_token(const float *x, uint8_t *layer, int64_t at, int64_t n_heads, int64_t d,
                      int f32) noexcept nogil:
    cdef int64_t h, row
    for h in range(n_heads):
        row = (at // SLOTS * n_heads + h) * SLOTS + at % SLOTS
        if f32:
            memcpy(layer + row * d * 4, x + h * d, d * 4)
        else:
            KERNELS.to_f16(x + h * d, d, <uint16_t *>(layer + row * d * 2))


# ---- attention ------------------------------------------------------------------------------
#
# One pass over a sequence's segments with online softmax (arXiv 1805.02867, 2205.14135). Two ways
# to cut it. A token that stands alone (decode) reads keys and values once, in one run: a task is a
# span of segments times a range of KV heads, blocks outside and heads inside, and spans are merged
# in order. Tokens of a prompt share what they read: a task is a tile of tokens times one KV head,
# which turns each block's keys to float (and rotates raw ones) once for all its queries.

cdef enum:
    SPAN_SEGMENTS = 16   # segments of a decode task
    DECODE_TASKS = 16    # cut heads too while there are fewer tasks than this
    SMALL_SPANS = 16384  # floats read by all decode tasks: less than this is done by one thread
    TILE_ROWS = 128      # queries of a prefill task: tokens times query heads of a KV head
    FEW_TOKENS = 4       # this many tokens of a sequence or fewer go the way of decode

cdef struct span_t:
    int32_t token, n_visible, first_segment, last_segment, first_head, last_head, part, n_parts

cdef struct tile_t:
    int32_t token, n_tokens, n_visible, first_segment, last_segment, head


cdef struct attention_t:  # what every task of one call shares
    const float *q
    float *out
    const uint8_t *k
    const uint8_t *v
    int k_f32, v_f32, raw
    rope_t rope
    int64_t n_heads, n_kv_heads, group, dk, dv
    const int32_t *segments  # [n][4]: block, first slot, length, first position
    const int32_t *starts    # [n]: tokens of the context before each segment
    float *parts


cdef class AttentionPlan:
    """How one batch's attention is cut into tasks; made once and used by every layer.

    token_starts int32 [n_seqs + 1]    # IN tokens of the batch by sequence
    n_past int32 [n_seqs]              # IN tokens in each context before the batch
    segment_starts int32 [n_seqs + 1]  # IN segments by sequence
    segments int32 [n_segments, 4]     # IN block, first slot, length, first position; they hold
                                       #    the batch's own tokens too
    """

    cdef int32_t[:, ::1] spans, tiles
    cdef int32_t[:, ::1] merges  # [n][3]: token, first part, number of parts
    cdef const int32_t[:, ::1] segments
    cdef int32_t[::1] starts
    cdef Py_ssize_t n_tokens, n_parts, n_seen, max_position, max_block
    cdef Py_ssize_t n_heads, n_kv_heads

    def __init__(self, const int32_t[::1] token_starts, const int32_t[::1] n_past,
                 const int32_t[::1] segment_starts, const int32_t[:, ::1] segments,
                 Py_ssize_t n_heads, Py_ssize_t n_kv_heads):
        self.n_heads, self.n_kv_heads, self.segments = n_heads, n_kv_heads, segments
        lengths = np.asarray(segments)[:, 2]
        starts = np.cumsum(lengths, dtype=np.int32) - lengths
        ends = np.asarray(segments)
        self.max_position = int((ends[:, 3] + lengths).max()) - 1 if len(ends) else 0
        self.max_block = int(ends[:, 0].max()) if len(ends) else 0
        if len(ends) and (ends.min() < 0 or (ends[:, 1] + lengths).max() > SLOTS):
            raise ValueError("a segment reaches out of its block")
        spans, tiles, merges = [], [], []
        n_parts = n_seen = 0
        group = n_heads // n_kv_heads
        n_alone = sum(
            token_starts[s + 1] - token_starts[s]
            for s in range(n_past.shape[0])
            if token_starts[s + 1] - token_starts[s] <= FEW_TOKENS
        )
        for s in range(n_past.shape[0]):
            first, last = segment_starts[s], segment_starts[s + 1]
            starts[first:last] -= starts[first] if last > first else 0
            n_new = token_starts[s + 1] - token_starts[s]
            if n_new and n_past[s] + n_new > starts[last - 1] + lengths[last - 1]:
                raise ValueError("the segments do not hold the tokens of the batch")
            if n_new > FEW_TOKENS:
                per_tile = max(1, TILE_ROWS // group)
                # the last tiles see most, so they start first
                for t in reversed(range(0, n_new, per_tile)):
                    for h in range(n_kv_heads):
                        tiles.append((token_starts[s] + t, min(per_tile, n_new - t),
                                      n_past[s] + t + 1, first, last, h))
                continue
            for t in range(n_new):
                visible = n_past[s] + t + 1
                end = first + int(np.searchsorted(starts[first:last], visible))
                span_firsts = range(first, end, SPAN_SEGMENTS)
                n_cuts = -(-DECODE_TASKS // (len(span_firsts) * n_alone))
                heads = -(-n_kv_heads // min(n_kv_heads, n_cuts))
                for part, at in enumerate(span_firsts):
                    for h in range(0, n_kv_heads, heads):
                        spans.append((token_starts[s] + t, visible, at,
                                      min(end, at + SPAN_SEGMENTS), h,
                                      min(n_kv_heads, h + heads), n_parts + part,
                                      len(span_firsts)))
                if len(span_firsts) > 1:
                    merges.append((token_starts[s] + t, n_parts, len(span_firsts)))
                n_parts += len(span_firsts)
                n_seen += visible
        self.starts = np.ascontiguousarray(starts)
        self.n_parts, self.n_seen = n_parts, n_seen
        self.n_tokens = token_starts[n_past.shape[0]]
        self.spans = np.array(spans, np.int32).reshape(-1, 8)
        self.tiles = np.array(tiles, np.int32).reshape(-1, 6)
        self.merges = np.array(merges, np.int32).reshape(-1, 3)


cdef class Scratch:
    """Working memory of attention; grows to what a plan needs and stays."""

    cdef float[::1] parts, threads

    def __init__(self):
        self.parts = np.zeros(1, np.float32)
        self.threads = np.zeros(1, np.float32)

    cdef reserve(self, Py_ssize_t n_parts, Py_ssize_t n_threads):
        if self.parts.shape[0] < n_parts:
            self.parts = np.zeros(n_parts + n_parts // 2, np.float32)
        if self.threads.shape[0] < n_threads:
            self.threads = np.zeros(n_threads + n_threads // 2, np.float32)


def attend(Pool pool, Py_ssize_t layer, const float[:, :, ::1] q, AttentionPlan plan,
           const float[:, ::1] rope_rows, const float[:, ::1] rope_step, bint raw, Scratch scratch,
           float[:, :, ::1] out, int n_threads):
    """Causal attention of a batch over the cached keys and values of its sequences.

    q float32 [n_tokens, n_heads, head_dim_k]  # IN rotated, and scaled by 1 / sqrt(head_dim_k)
    rope_rows float32 [n_positions, head_dim_k]  # IN the RoPE table, read if `raw`
    rope_step float32 [2, head_dim_k / 2]  # IN 2 (1 - cos theta), sin theta; read if `raw`
    out float32 [n_tokens, n_heads, head_dim_v]  # OUT
    """
    cdef attention_t a
    cdef Py_ssize_t n_heads = plan.n_heads, i
    a.n_heads, a.n_kv_heads, a.group = n_heads, plan.n_kv_heads, n_heads // plan.n_kv_heads
    a.dk, a.dv = pool.head_dim_k, pool.head_dim_v
    if (q.shape[0] != plan.n_tokens or q.shape[1] != n_heads or q.shape[2] != a.dk
            or out.shape[0] != plan.n_tokens or out.shape[1] != n_heads or out.shape[2] != a.dv
            or pool.n_kv_heads != plan.n_kv_heads or plan.max_block >= pool.n_blocks
            or rope_rows.shape[1] != a.dk or rope_step.shape[1] * 2 != a.dk
            or not 0 <= layer < pool.n_layers):
        raise ValueError("attention of arrays that do not fit each other")
    if raw and (plan.max_position >= rope_rows.shape[0] or rope_rows.shape[0] < SLOTS):
        raise ValueError(f"position {plan.max_position} is beyond the RoPE table")
    if plan.n_tokens == 0:
        return
    a.q, a.out = &q[0, 0, 0], &out[0, 0, 0]
    a.k, a.v = layer_k(pool, layer), layer_v(pool, layer)
    a.k_f32, a.v_f32, a.raw = pool.k_f32, pool.v_f32, raw
    a.rope.rows, a.rope.step = &rope_rows[0, 0], &rope_step[0, 0]
    a.segments, a.starts = &plan.segments[0, 0], &plan.starts[0]
    cdef Py_ssize_t n_spans = plan.spans.shape[0], n_tiles = plan.tiles.shape[0]
    cdef Py_ssize_t n_merges = plan.merges.shape[0]
    # floats of working memory a thread: queries, sums, a block of keys and of values, scores
    cdef int64_t rows = max(TILE_ROWS, a.group) if n_tiles else SCORE_ROWS
    cdef int64_t room = (rows + SLOTS) * (a.dk + a.dv) + rows * (SLOTS + 2) + 64
    scratch.reserve(plan.n_parts * n_heads * (a.dv + 2), room * n_threads)
    cdef float *work = &scratch.threads[0]
    a.parts = &scratch.parts[0]
    cdef const span_t *spans = NULL
    cdef const tile_t *tiles = NULL
    cdef const int32_t *merges = NULL
    cdef int team = n_threads
    if n_tiles:
        tiles = <const tile_t *>&plan.tiles[0, 0]
        for i in prange(n_tiles, nogil=True, schedule="dynamic", num_threads=n_threads):
            attend_tile(&a, &tiles[i], work + threadid() * room)
    if n_spans:
        spans = <const span_t *>&plan.spans[0, 0]
        if plan.n_seen * a.n_kv_heads * (a.dk + a.dv) < SMALL_SPANS:
            team = 1
        for i in prange(n_spans, nogil=True, schedule="dynamic", num_threads=team):
            attend_span(&a, &spans[i], work + threadid() * room)
    if n_merges:
        merges = &plan.merges[0, 0]
        for i in prange(n_merges * n_heads, nogil=True, schedule="static", num_threads=n_threads):
            merge_parts(&a, merges + i // n_heads * 3, i % n_heads)


cdef void attend_span(const attention_t *a, const span_t *task, float *work) noexcept nogil:
    """One token over segments [first, last) for KV heads [first, last): blocks outside, heads
    inside, so that memory is read in one run. Leaves maximum, sum and weighted values in its part,
    or the finished result in `out` where there is only one part."""
    cdef float *m = a.parts + task.part * a.n_heads * (a.dv + 2)
    cdef float *l = m + a.n_heads
    cdef float *acc = l + a.n_heads
    cdef float *turned = work                       # [SCORE_ROWS][dk]
    cdef float *s = work + SCORE_ROWS * a.dk        # [SCORE_ROWS][SLOTS]
    cdef int64_t h0 = task.first_head * a.group, h1 = task.last_head * a.group
    cdef int64_t segment, head, row, at, i
    cdef int n, n_q
    cdef const int32_t *seg
    cdef const float *q
    cdef const uint8_t *k
    cdef const uint8_t *v
    for row in range(h0, h1):
        m[row] = -INFINITY
        l[row] = 0
    memset(acc + h0 * a.dv, 0, (h1 - h0) * a.dv * sizeof(float))
    for segment in range(task.first_segment, task.last_segment):
        seg = a.segments + segment * 4
        n = min(seg[2], task.n_visible - a.starts[segment])
        for head in range(task.first_head, task.last_head):
            at = (seg[0] * a.n_kv_heads + head) * SLOTS + seg[1]
            k = a.k + at * a.dk * (4 if a.k_f32 else 2)
            v = a.v + at * a.dv * (4 if a.v_f32 else 2)
            row = head * a.group
            while row < (head + 1) * a.group:
                n_q = <int>min(SCORE_ROWS, (head + 1) * a.group - row)
                q = a.q + (task.token * a.n_heads + row) * a.dk
                if a.raw:
                    for i in range(n_q):
                        KERNELS.rotate_back(q + i * a.dk, a.rope.rows + seg[3] * a.dk, a.dk // 2,
                                            turned + i * a.dk)
                    q = turned
                KERNELS.scores[a.raw][a.k_f32](q, n_q, k, n, a.dk, &a.rope, s)
                KERNELS.softmax_block(s, n_q, n, n, 0, m + row, l + row, acc + row * a.dv, a.dv)
                KERNELS.weigh[a.v_f32](s, n_q, v, n, a.dv, acc + row * a.dv)
                row = row + n_q
    if task.n_parts == 1:
        for row in range(h0, h1):
            divide(acc + row * a.dv, l[row], a.dv, a.out + (task.token * a.n_heads + row) * a.dv)


cdef void merge_parts(const attention_t *a, const int32_t *merge, int64_t head) noexcept nogil:
    """Add up one head's parts in order, each brought to the common maximum."""
    cdef int64_t stride = a.n_heads * (a.dv + 2), part, i
    cdef float *first = a.parts + merge[1] * stride
    cdef float *acc = first + 2 * a.n_heads + head * a.dv
    cdef float *part_m
    cdef float *other
    cdef float most = first[head], total, grow
    for part in range(1, merge[2]):
        most = max(most, first[part * stride + head])
    grow = exp_of(first[head] - most)
    total = first[a.n_heads + head] * grow
    for i in range(a.dv):
        acc[i] *= grow
    for part in range(1, merge[2]):
        part_m = first + part * stride
        grow = exp_of(part_m[head] - most)
        total += part_m[a.n_heads + head] * grow
        other = part_m + 2 * a.n_heads + head * a.dv
        for i in range(a.dv):
            acc[i] += other[i] * grow
    divide(acc, total, a.dv, a.out + (merge[0] * a.n_heads + head) * a.dv)


cdef extern from "<math.h>" nogil:
    float exp_of "expf"(float) noexcept


cdef inline void divide(const float *x, float by, int64_t n, float *out) noexcept nogil:
    cdef int64_t i
    cdef float factor = 1 / by
    for i in range(n):
        out[i] = x[i] * factor


cdef void attend_tile(const attention_t *a, const tile_t *task, float *work) noexcept nogil:
    """A run of one sequence's new tokens against one KV head. Row g * n_tokens + t is query head g
    of the group and token t, which sees one position more than token t - 1."""
    cdef int64_t n_t = task.n_tokens, n_rows = n_t * a.group
    cdef float *q = work                    # [n_rows][dk]
    cdef float *acc = q + n_rows * a.dk     # [n_rows][dv]
    cdef float *keys = acc + n_rows * a.dv  # [dk][SLOTS]
    cdef float *value_room = keys + SLOTS * a.dk
    cdef float *s = value_room + SLOTS * a.dv  # [n_t][SLOTS]
    cdef float *m = s + n_t * SLOTS
    cdef float *l = m + n_rows
    cdef const float *values
    cdef const float *rope_row
    cdef const int32_t *seg
    cdef int64_t segment, g, t, at, row, token_row
    cdef int n, skip
    for g in range(a.group):
        for t in range(n_t):
            token_row = (task.token + t) * a.n_heads + task.head * a.group + g
            memcpy(q + (g * n_t + t) * a.dk, a.q + token_row * a.dk, a.dk * sizeof(float))
    for row in range(n_rows):
        m[row] = -INFINITY
        l[row] = 0
    memset(acc, 0, n_rows * a.dv * sizeof(float))
    for segment in range(task.first_segment, task.last_segment):
        seg = a.segments + segment * 4
        n = <int>min(seg[2], task.n_visible + n_t - 1 - a.starts[segment])
        if n <= 0:
            break
        at = (seg[0] * a.n_kv_heads + task.head) * SLOTS + seg[1]
        rope_row = a.rope.rows + seg[3] * a.dk if a.raw else NULL
        KERNELS.keys[a.k_f32](a.k + at * a.dk * (4 if a.k_f32 else 2), n, a.dk, rope_row, keys)
        if a.v_f32:
            values = <const float *>(a.v) + at * a.dv
        else:
            KERNELS.to_f32(<const uint16_t *>(a.v) + at * a.dv, n * a.dv, value_room)
            values = value_room
        skip = <int>max(0, a.starts[segment] - task.n_visible + 1)  # tokens before this segment
        for g in range(a.group):
            row = g * n_t + skip
            KERNELS.tile_scores(q + row * a.dk, <int>(n_t - skip), keys, a.dk, s)
            KERNELS.softmax_block(s, <int>(n_t - skip), n,
                                  task.n_visible + skip - a.starts[segment], 1, m + row, l + row,
                                  acc + row * a.dv, a.dv)
            KERNELS.weigh[1](s, <int>(n_t - skip), values, n, a.dv, acc + row * a.dv)
    for g in range(a.group):
        for t in range(n_t):
            token_row = (task.token + t) * a.n_heads + task.head * a.group + g
            divide(acc + (g * n_t + t) * a.dv, l[g * n_t + t], a.dv, a.out + token_row * a.dv)
