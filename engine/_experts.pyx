"""The matrices of experts, and their feed-forward.

The conventions of _kernels.pyx hold here too; _routing.pyx has what comes before and after. A task
belongs to one expert and computes some rows of its matrices for all tokens that go there. How many
tasks there are is known when `route` is done, so it is looked up then.
"""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from lariat import _kernels
from lariat._kernels cimport (
    GROUP_ROWS, TASK_BYTES, TASK_PRODUCTS, Activations, Matrix, activations_t, kernels_t, matmul_fn,
    matmul_of, q8_of, q8_t, quantize_row, table
)
from lariat._program cimport Operation
from lariat._routing cimport Routing, q8_of_expert, routing_t

cdef kernels_t *KERNELS = table()

cdef enum:
    LINE = 64          # bytes of a cache line
    PAIR_ROWS = 32     # of two groups of rows: what is quantized together
    RUN_COLUMNS = 128  # of an expert that are computed at once: their floats stay in the L2 cache


# ---- weights ------------------------------------------------------------------------------------

def expert_bytes(str type_name, Py_ssize_t n_rows, Py_ssize_t n_cols):
    """Bytes of an expert's interleaved matrix, whole cache lines."""
    return (_kernels.packed_bytes(type_name, n_rows, n_cols) + LINE - 1) // LINE * LINE


cdef struct experts_t:
    int type
    const uint8_t *weights
    int64_t expert_bytes, group_bytes, n_rows, n_cols


cdef class ExpertMatrix:
    """A weight matrix [n_rows, n_cols] of each expert, interleaved one after the other.

    rows       a list of uint8 [n_rows, bytes of a row]   # IN  of each expert, as GGUF stores them
    out        uint8 [n_experts * expert_bytes(...)]      # OUT 64-byte aligned; kept by the matrix
    """

    cdef readonly str type_name
    cdef readonly Py_ssize_t n_experts, n_rows, n_cols
    cdef readonly bint quantized
    cdef experts_t w
    cdef const uint8_t[::1] packed

    def __init__(self, list rows, str type_name, Py_ssize_t n_cols, uint8_t[::1] out,
                 int n_threads=1):
        cdef Py_ssize_t i, n_bytes, n_packed
        if not rows:
            raise ValueError("no experts, expected at least one")
        self.hold(out, type_name, len(rows), len(rows[0]), n_cols)
        n_bytes = self.w.expert_bytes
        n_packed = _kernels.packed_bytes(type_name, self.n_rows, n_cols)
        for i in range(self.n_experts):
            if len(rows[i]) != self.n_rows:
                raise ValueError(f"expert {i} has {len(rows[i])} rows, expected {self.n_rows}")
            Matrix(rows[i], type_name, n_cols, out[i * n_bytes : i * n_bytes + n_packed], None,
                   n_threads)

    @staticmethod
    def of_packed(const uint8_t[::1] packed, str type_name, Py_ssize_t n_experts,
                  Py_ssize_t n_rows, Py_ssize_t n_cols):
        """The matrices [n_experts, n_rows, n_cols] that others left in `packed`, their `out`  # IN

        uint8 [n_experts * expert_bytes(...)], 64-byte aligned; kept. Nothing is read or copied.
        """
        cdef ExpertMatrix matrix = ExpertMatrix.__new__(ExpertMatrix)
        matrix.hold(packed, type_name, n_experts, n_rows, n_cols)
        return matrix

    cdef int hold(self, const uint8_t[::1] packed, str type_name, Py_ssize_t n_experts,
                  Py_ssize_t n_rows, Py_ssize_t n_cols) except -1:
        """Take interleaved matrices, or the place for them. ValueError if it has another size."""
        cdef Matrix one
        cdef Py_ssize_t n_bytes = expert_bytes(type_name, n_rows, n_cols)
        if n_experts < 1 or packed.shape[0] != n_bytes * n_experts:
            raise ValueError(
                f"{packed.shape[0]} bytes for the interleaved matrices, expected "
                f"{n_bytes * n_experts}"
            )
        n_packed = _kernels.packed_bytes(type_name, n_rows, n_cols)
        one = Matrix.of_packed(packed[:n_packed], type_name, n_rows, n_cols)
        self.type_name, self.packed, self.quantized = type_name, packed, one.quantized
        self.n_experts, self.n_rows, self.n_cols = n_experts, n_rows, n_cols
        self.w.type, self.w.group_bytes, self.w.expert_bytes = one.type, one.group_bytes, n_bytes
        self.w.n_rows, self.w.n_cols, self.w.weights = n_rows, n_cols, &self.packed[0]
        return 0


cdef void multiply(const experts_t *w, int64_t expert, int64_t row, int64_t n_rows,
                   const activations_t *x, int64_t col, int64_t n_cols, float *out,
                   int64_t stride) noexcept nogil:
    """out [n_cols][stride] = rows of an expert, from `row` on, times the columns from `col` on.

    `row` is the first of a group. The columns stand as those of a matmul of their own.
    """
    cdef const uint8_t *group = (w.weights + expert * w.expert_bytes
                                 + row // GROUP_ROWS * w.group_bytes)
    cdef matmul_fn tile
    cdef int64_t r = 0, c, width
    while r < n_rows:
        c = 0
        while c < n_cols:
            tile = matmul_of(KERNELS, w.type, w.n_cols, n_cols - c, &width)
            tile(group, x, col + c, <int>width, out + c * stride + r, stride,
                 <int>min(GROUP_ROWS, n_rows - r), False)
            c += width
        group += w.group_bytes
        r += GROUP_ROWS


# ---- feed-forward -------------------------------------------------------------------------------

cdef activations_t columns_of(const float[:, ::1] x, Activations q8) noexcept:
    """Columns of a matmul: x [n, n_cols], and the same quantized."""
    cdef activations_t columns
    columns.x, columns.n_k = &x[0, 0], x.shape[1]
    columns.q, columns.scale = &q8.q[0], &q8.scale[0]
    columns.neg8_sum, columns.half_sum = &q8.neg8_sum[0], &q8.half_sum[0]
    return columns


cdef int check_columns(ExpertMatrix w, Routing routing, const float[:, ::1] x, Activations q8,
                       Py_ssize_t n_rows) except -1:
    """ValueError unless the columns [n_rows, n_cols] are what the matrices multiply."""
    if w.n_experts != routing.n_experts:
        raise ValueError(f"matrices of {w.n_experts} experts, expected {routing.n_experts}")
    if x.shape[0] != n_rows or x.shape[1] != w.n_cols:
        raise ValueError(
            f"columns of [{x.shape[0]}, {x.shape[1]}], expected [{n_rows}, {w.n_cols}]"
        )
    if w.quantized and (q8.n_tokens != n_rows or q8.n_cols != w.n_cols):
        raise ValueError(
            f"quantized columns of [{q8.n_tokens}, {q8.n_cols}], expected [{n_rows}, {w.n_cols}]"
        )
    return 0


cdef const float *bias_of(const float[:, ::1] bias, ExpertMatrix w) except? NULL:
    """The numbers of a bias float32 [n_experts, n_rows], NULL if there is none."""
    if bias is None:
        return NULL
    if bias.shape[0] != w.n_experts or bias.shape[1] != w.n_rows:
        raise ValueError(
            f"a bias of [{bias.shape[0]}, {bias.shape[1]}], expected [{w.n_experts}, {w.n_rows}]"
        )
    return &bias[0, 0]


cdef int64_t rows_of_task(const experts_t *w, int64_t row_bytes, int64_t n_rows,
                          int64_t n_experts) noexcept:
    """Rows of an expert's matrices that make a task, whole pairs, where all experts together have
    n_rows columns; a row of these matrices has row_bytes."""
    cdef int64_t n_columns = max(1, n_rows // n_experts)  # on average
    cdef int64_t n = min(TASK_BYTES // row_bytes, TASK_PRODUCTS // (w.n_cols * n_columns))
    return max(1, n // PAIR_ROWS) * PAIR_ROWS


cdef struct gate_up_t:
    const routing_t *routing
    experts_t gate, up
    const float *gate_bias  # [n_experts][n_ff] or NULL
    const float *up_bias
    activations_t x
    int one_token  # all experts read column 0
    float alpha, limit  # 0: SwiGLU as it was
    float *out     # [n_rows][n_ff]
    q8_t q8
    int64_t n_ff, per_task, n_tasks


cdef class _GateUp(Operation):
    cdef gate_up_t a


def gate_up(Routing routing, ExpertMatrix gate, ExpertMatrix up, const float[:, ::1] x,
            Activations x_q8, float[:, ::1] out, Activations q8=None,
            const float[:, ::1] gate_bias=None, const float[:, ::1] up_bias=None,
            float alpha=0, float limit=0):
    """out = silu(gate_e x) * up_e x of each row (arXiv 2002.05202), e the row's expert.

    x float32 [n_rows, dim]  # IN the rows that `gather` made; or a single token, [1, dim], that all
    its experts read; x_q8 the same, quantized, read if a matrix is quantized  # IN
    out float32 [n_rows, n_ff]  # OUT; q8  # OUT the same, quantized, if it is given: only one of
    the two is written
    gate_bias, up_bias float32 [n_experts, n_ff]  # IN, if there are any

    With a limit above 0, as in gpt-oss (arXiv 2508.10925), the gate is at most `limit`, up is kept
    within it and raised by 1, and the logistic function has `alpha` times the gate:
    gate / (1 + exp(-alpha gate)) * (up + 1).
    """
    cdef _GateUp op = _GateUp()
    cdef gate_up_t *a = &op.a
    cdef Py_ssize_t n_rows = out.shape[0], n_ff = gate.n_rows
    a.one_token = n_rows == routing.n_used
    check_columns(gate, routing, x, x_q8, 1 if a.one_token else n_rows)
    check_columns(up, routing, x, x_q8, 1 if a.one_token else n_rows)
    if up.n_rows != n_ff or out.shape[1] != n_ff:
        raise ValueError(f"gate has {n_ff} rows, up {up.n_rows}, out {out.shape[1]} columns")
    a.routing, a.gate, a.up, a.x = &routing.r, gate.w, up.w, columns_of(x, x_q8)
    a.gate_bias, a.up_bias = bias_of(gate_bias, gate), bias_of(up_bias, up)
    a.alpha, a.limit, a.out, a.n_ff = alpha, limit, &out[0, 0], n_ff
    a.q8 = q8_of(q8, n_rows, n_ff)
    a.per_task = rows_of_task(&a.gate, (gate.w.group_bytes + up.w.group_bytes) // GROUP_ROWS,
                              n_rows, gate.n_experts)
    a.n_tasks = (n_ff + a.per_task - 1) // a.per_task
    op.n_work = 2 * RUN_COLUMNS * PAIR_ROWS
    op.bind(gate_up_task, a, a.n_tasks,
            (routing, gate, up, x, x_q8, out, q8, gate_bias, up_bias))
    op.n_units = &routing.r.n_entries
    return op


cdef void gate_up_task(const void *args, int64_t task, float *work) noexcept nogil:
    """Some rows of gate and up of an expert, for all of its columns."""
    cdef const gate_up_t *a = <const gate_up_t *>args
    cdef const routing_t *r = a.routing
    cdef int64_t expert = r.entries[task // a.n_tasks], row = task % a.n_tasks * a.per_task
    cdef int64_t end = min(a.n_ff, row + a.per_task), col, c, n_rows, n_cols
    cdef int64_t first = 0 if a.one_token else r.first[expert]
    cdef float *gate = work
    cdef float *up = work + RUN_COLUMNS * PAIR_ROWS
    cdef q8_t q8
    if a.q8.q != NULL:
        q8 = q8_of_expert(&a.q8, r, expert)
    while row < end:
        n_rows = min(PAIR_ROWS, end - row)
        col = 0
        while col < r.n_rows[expert]:
            n_cols = min(RUN_COLUMNS, r.n_rows[expert] - col)
            multiply(&a.gate, expert, row, n_rows, &a.x, first + col, n_cols, gate, PAIR_ROWS)
            multiply(&a.up, expert, row, n_rows, &a.x, first + col, n_cols, up, PAIR_ROWS)
            for c in range(n_cols):
                activate(a, expert, row, n_rows, gate + c * PAIR_ROWS, up + c * PAIR_ROWS)
                if a.q8.q != NULL:
                    quantize_row(&q8, col + c, gate + c * PAIR_ROWS, row, row + n_rows)
                else:
                    memcpy(a.out + (r.first[expert] + col + c) * a.n_ff + row,
                           gate + c * PAIR_ROWS, n_rows * sizeof(float))
            col += n_cols
        row += PAIR_ROWS


cdef void activate(const gate_up_t *a, int64_t expert, int64_t row, int64_t n, float *gate,
                   float *up) noexcept nogil:
    """gate = act(gate) * up, for n rows of an expert from `row` on. NaN stays NaN."""
    cdef int64_t i
    cdef float limit = a.limit, alpha = a.alpha, inverse
    if a.gate_bias != NULL:
        for i in range(n):
            gate[i] += a.gate_bias[expert * a.n_ff + row + i]
    if a.up_bias != NULL:
        for i in range(n):
            up[i] += a.up_bias[expert * a.n_ff + row + i]
    if limit > 0:  # silu(alpha gate) / alpha
        inverse = 1 / alpha
        for i in range(n):
            gate[i] = alpha * (limit if gate[i] > limit else gate[i])
            up[i] = limit if up[i] > limit else -limit if up[i] < -limit else up[i]
            up[i] = (up[i] + 1) * inverse
    KERNELS.silu_mul(gate, up, n)


cdef struct down_t:
    const routing_t *routing
    experts_t w
    activations_t x
    const float *bias  # [n_experts][dim] or NULL
    float *out         # [n_rows][dim]
    int64_t per_task, n_tasks


cdef class _Down(Operation):
    cdef down_t a


def down(Routing routing, ExpertMatrix w, const float[:, ::1] x, Activations q8,
         float[:, ::1] out, const float[:, ::1] bias=None):
    """out = w_e x + b_e of each row, e the row's expert.

    x float32 [n_rows, n_ff]  # IN; q8 the same, quantized, read if w is quantized  # IN
    out float32 [n_rows, dim]  # OUT; bias float32 [n_experts, dim]  # IN, if there is one
    """
    cdef _Down op = _Down()
    cdef down_t *a = &op.a
    check_columns(w, routing, x, q8, x.shape[0])
    if out.shape[0] != x.shape[0] or out.shape[1] != w.n_rows:
        raise ValueError(f"out is [{out.shape[0]}, {out.shape[1]}], expected [{x.shape[0]}, "
                         f"{w.n_rows}]")
    a.routing, a.w, a.x, a.out = &routing.r, w.w, columns_of(x, q8), &out[0, 0]
    a.bias = bias_of(bias, w)
    a.per_task = rows_of_task(&a.w, a.w.group_bytes // GROUP_ROWS, x.shape[0], w.n_experts)
    a.n_tasks = (w.n_rows + a.per_task - 1) // a.per_task
    op.bind(down_task, a, a.n_tasks, (routing, w, x, q8, out, bias))
    op.n_units = &routing.r.n_entries
    return op


cdef void down_task(const void *args, int64_t task, float *work) noexcept nogil:
    """Some rows of an expert's matrix, for all of its columns."""
    cdef const down_t *a = <const down_t *>args
    cdef const routing_t *r = a.routing
    cdef int64_t expert = r.entries[task // a.n_tasks], row = task % a.n_tasks * a.per_task
    cdef int64_t n_rows = min(a.per_task, a.w.n_rows - row), c, i
    cdef float *out = a.out + r.first[expert] * a.w.n_rows + row
    cdef const float *bias
    multiply(&a.w, expert, row, n_rows, &a.x, r.first[expert], r.n_rows[expert], out, a.w.n_rows)
    if a.bias != NULL:
        bias = a.bias + expert * a.w.n_rows + row
        for c in range(r.n_rows[expert]):
            for i in range(n_rows):
                out[c * a.w.n_rows + i] += bias[i]
