"""Routing of tokens to experts (arXiv 1701.06538, 2101.03961), and what moves their rows.

The conventions of _kernels.pyx hold here too. In a layer of n tokens that go to k experts each,
these operations follow each other:

    route     picks the experts of each token by the router's logits, and lists the n k rows that
              they have to compute, ordered by expert
    gather    copies the tokens to their rows, so that a tile of a matmul finds its columns together
    gate_up, down  the feed-forward of each row's expert (_experts.pyx)
    combine   adds the weighted rows of a token, in the order of its experts

So each matrix is read once for all of its tokens, and one that no token goes to is not read. For a
single token there is nothing to gather: all its experts read the same column.
"""

import numpy as np

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from lariat._kernels cimport BLOCK, TASK_FLOATS, Activations, q8_of, q8_t, quantize_row
from lariat._program cimport Operation

cdef extern from "<math.h>" nogil:
    float exp_of "expf"(float) noexcept

_GATINGS = ("softmax", "sigmoid", "softmax of the chosen")


# ---- routing ------------------------------------------------------------------------------------

cdef class Routing:
    """Where the tokens of a layer go: up to `n_tokens` tokens to `n_used` of `n_experts` each.

    `route` fills it when a program runs; all layers use the same.
    """

    def __init__(self, Py_ssize_t n_tokens, Py_ssize_t n_experts, Py_ssize_t n_used):
        if n_tokens < 1 or not 1 <= n_used <= n_experts:
            raise ValueError(f"{n_tokens} tokens to {n_used} of {n_experts} experts")
        self.n_tokens, self.n_experts, self.n_used = n_tokens, n_experts, n_used
        self._chosen, self._place = np.zeros((2, n_tokens, n_used), np.int32)
        self._weights = np.zeros((n_tokens, n_used), np.float32)
        self._entries, self._first, self._n_rows = np.zeros((3, n_experts), np.int32)
        self.r.n_experts, self.r.n_used, self.r.n_entries = n_experts, n_used, 0
        self.r.chosen, self.r.place = &self._chosen[0, 0], &self._place[0, 0]
        self.r.weights, self.r.entries = &self._weights[0, 0], &self._entries[0]
        self.r.first, self.r.n_rows = &self._first[0], &self._n_rows[0]

    def chosen(self, Py_ssize_t n):
        """The experts of the first n tokens, the one of the largest logit first, and their weights:
        int32 and float32 [n, n_used], copies."""
        return np.array(self._chosen[:n]), np.array(self._weights[:n])


cdef struct route_t:
    routing_t *routing
    const float *logits
    int gating, normalized
    float scale
    int64_t n, per_task
    int n_tasks


cdef class _Route(Operation):
    cdef route_t a


def route(const float[:, ::1] logits, Routing routing, str gating, bint normalized, float scale):
    """The phases that pick the experts of each token and order the rows by expert: a list.

    logits float32 [n_tokens, n_experts]  # IN; routing  # OUT
    gating      "softmax" over all logits, "sigmoid" of each, or "softmax of the chosen" ones
    normalized  whether the weights of a token are divided by their sum
    scale       of the weights
    """
    cdef Py_ssize_t n = logits.shape[0]
    if logits.shape[1] != routing.n_experts or n > routing.n_tokens:
        raise ValueError(
            f"logits [{n}, {logits.shape[1]}], expected [at most {routing.n_tokens}, "
            f"{routing.n_experts}]"
        )
    if gating not in _GATINGS:
        raise ValueError(f"gating is {gating!r}, expected one of {', '.join(_GATINGS)}")
    cdef _Route op = _Route(), order = _Route()
    op.a.routing, op.a.gating, op.a.normalized = &routing.r, _GATINGS.index(gating), normalized
    op.a.scale, op.a.n = scale, n
    op.a.per_task = max(1, TASK_FLOATS // (routing.n_experts * routing.n_used))
    if n:
        op.a.logits = &logits[0, 0]
    op.a.n_tasks = <int>((n + op.a.per_task - 1) // op.a.per_task)
    op.n_work = routing.n_experts
    op.bind(route_task, &op.a, op.a.n_tasks, (logits, routing))
    order.a = op.a
    order.bind(order_task, &order.a, 1, routing)
    return [op] if op.a.n_tasks == 1 else [op, order]


cdef void route_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const route_t *a = <const route_t *>args
    cdef const routing_t *r = a.routing
    cdef int64_t i
    for i in range(task * a.per_task, min(a.n, (task + 1) * a.per_task)):
        choose(a.logits + i * r.n_experts, r.n_experts, r.n_used, work, r.chosen + i * r.n_used)
        weigh(a, a.logits + i * r.n_experts, r.chosen + i * r.n_used, r.weights + i * r.n_used)
    if a.n_tasks == 1:
        order_task(args, 0, work)


cdef void choose(const float *logits, int64_t n, int64_t n_used, float *left,
                 int32_t *chosen) noexcept nogil:
    """The largest logits in order, of equal ones the first. Any number may be NaN."""
    cdef int64_t i, e
    cdef int32_t best
    memcpy(left, logits, n * sizeof(float))
    for i in range(n_used):
        best = 0
        for e in range(1, n):
            if left[e] > left[best]:
                best = <int32_t>e
        chosen[i] = best
        left[best] = -INFINITY


cdef void weigh(const route_t *a, const float *logits, const int32_t *chosen,
                float *weights) noexcept nogil:
    """The weights of a token's experts. All are NaN if a logit is not finite."""
    cdef int64_t i
    cdef float largest = logits[chosen[0]], total = 0, poison = 0
    for i in range(a.routing.n_experts):
        poison += logits[i] * 0
        if a.gating == 0:
            total += exp_of(logits[i] - largest)
    for i in range(a.routing.n_used):
        if a.gating == 1:
            weights[i] = 1 / (1 + exp_of(-logits[chosen[i]]))
        else:
            weights[i] = exp_of(logits[chosen[i]] - largest)
        if a.gating == 2:
            total += weights[i]
    if a.gating != 1:
        for i in range(a.routing.n_used):
            weights[i] /= total
    if a.normalized:
        total = 0
        for i in range(a.routing.n_used):
            total += weights[i]
        # The smallest sum that llama.cpp divides by.
        total = 6.103515625e-5 if total < 6.103515625e-5 else total
        for i in range(a.routing.n_used):
            weights[i] /= total
    for i in range(a.routing.n_used):
        weights[i] = weights[i] * a.scale + poison


cdef void order_task(const void *args, int64_t task, float *work) noexcept nogil:
    """Count the rows of each expert, and give each token its rows."""
    cdef const route_t *a = <const route_t *>args
    cdef routing_t *r = a.routing
    cdef int64_t i, e
    cdef int32_t next_row = 0
    memset(r.n_rows, 0, r.n_experts * sizeof(int32_t))
    for i in range(a.n * r.n_used):
        r.n_rows[r.chosen[i]] += 1
    r.n_entries = 0
    for e in range(r.n_experts):
        r.first[e] = next_row
        next_row += r.n_rows[e]
        if r.n_rows[e]:
            r.entries[r.n_entries] = <int32_t>e
            r.n_entries += 1
            r.n_rows[e] = 0
    for i in range(a.n * r.n_used):
        e = r.chosen[i]
        r.place[i] = r.first[e] + r.n_rows[e]
        r.n_rows[e] += 1


# ---- rows ---------------------------------------------------------------------------------------

cdef q8_t q8_of_expert(const q8_t *all, const routing_t *r, int64_t expert) noexcept nogil:
    """Where an expert's rows are quantized: a matmul of their own, from its first row on."""
    cdef q8_t q8 = all[0]
    cdef int64_t block = r.first[expert] * (all.n_cols // BLOCK)
    q8.n_tokens = r.n_rows[expert]
    q8.q, q8.scale, q8.neg8_sum = all.q + BLOCK * block, all.scale + block, all.neg8_sum + block
    q8.half_sum = all.half_sum + 2 * block
    return q8


cdef struct gather_t:
    const routing_t *routing
    const float *x
    float *out  # NULL: only quantized
    q8_t q8
    int64_t n, dim, per_task


cdef class _Gather(Operation):
    cdef gather_t a


def gather(Routing routing, const float[:, ::1] x, float[:, ::1] out=None, Activations q8=None):
    """Copy each token to the rows of its experts.

    x float32 [n_tokens, dim]  # IN
    out float32 [n_tokens * n_used, dim]  # OUT, if it is given; q8  # OUT the same, quantized
    """
    cdef Py_ssize_t n = x.shape[0], dim = x.shape[1], n_rows = n * routing.n_used
    if n > routing.n_tokens or (out is not None and (out.shape[0] != n_rows
                                                     or out.shape[1] != dim)):
        raise ValueError(f"{n} tokens of {dim} numbers, which do not fit the routing or the rows")
    cdef _Gather op = _Gather()
    op.a.routing, op.a.n, op.a.dim = &routing.r, n, dim
    op.a.q8 = q8_of(q8, n_rows, dim)
    op.a.per_task = max(1, TASK_FLOATS // (dim * routing.n_used))
    if n:
        op.a.x = &x[0, 0]
        op.a.out = NULL if out is None else &out[0, 0]
    op.bind(gather_task, &op.a, (n + op.a.per_task - 1) // op.a.per_task, (routing, x, out, q8))
    return op


cdef void gather_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const gather_t *a = <const gather_t *>args
    cdef const routing_t *r = a.routing
    cdef const float *x
    cdef int64_t i, j, expert, row
    cdef q8_t q8
    for i in range(task * a.per_task, min(a.n, (task + 1) * a.per_task)):
        x = a.x + i * a.dim
        for j in range(r.n_used):
            expert, row = r.chosen[i * r.n_used + j], r.place[i * r.n_used + j]
            if a.out != NULL:
                memcpy(a.out + row * a.dim, x, a.dim * sizeof(float))
            if a.q8.q != NULL:
                q8 = q8_of_expert(&a.q8, r, expert)
                quantize_row(&q8, row - r.first[expert], x, 0, a.dim)


# ---- sums ---------------------------------------------------------------------------------------

cdef struct combine_t:
    const routing_t *routing
    const float *rows
    float *out
    int64_t dim, per_row, piece  # tasks of a token, and numbers of each


cdef class _Combine(Operation):
    cdef combine_t a


def combine(Routing routing, const float[:, ::1] rows, float[:, ::1] out):
    """out += the weighted sum of a token's rows, in the order of its experts.

    rows float32 [n_tokens * n_used, dim]  # IN; out float32 [n_tokens, dim]  # IN OUT
    """
    cdef Py_ssize_t n = out.shape[0], dim = out.shape[1]
    if rows.shape[0] != n * routing.n_used or rows.shape[1] != dim:
        raise ValueError(f"rows [{rows.shape[0]}, {rows.shape[1]}], expected "
                         f"[{n * routing.n_used}, {dim}]")
    cdef _Combine op = _Combine()
    op.a.routing, op.a.dim = &routing.r, dim
    op.a.piece = max(64, TASK_FLOATS // routing.n_used // 64 * 64)
    op.a.per_row = (dim + op.a.piece - 1) // op.a.piece
    if n:
        op.a.rows, op.a.out = &rows[0, 0], &out[0, 0]
    op.bind(combine_task, &op.a, n * op.a.per_row, (routing, rows, out))
    return op


cdef void combine_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const combine_t *a = <const combine_t *>args
    cdef const routing_t *r = a.routing
    cdef int64_t token = task // a.per_row, first = task % a.per_row * a.piece
    cdef int64_t n = min(a.piece, a.dim - first), i, j, k
    cdef float *out = a.out + token * a.dim + first
    cdef const float *row
    cdef float weight
    cdef float total[TASK_FLOATS]
    memset(total, 0, n * sizeof(float))
    for j in range(r.n_used):
        k = token * r.n_used + j
        row, weight = a.rows + r.place[k] * a.dim + first, r.weights[k]
        for i in range(n):
            total[i] += weight * row[i]
    for i in range(n):
        out[i] += total[i]


cdef struct gated_t:
    const float *x
    const float *gate
    const float *y
    float *out
    int64_t n_in, dim


cdef class _Gated(Operation):
    cdef gated_t a


def add_gated(const float[:, ::1] x, const float[::1] gate, const float[:, ::1] y,
              float[:, ::1] out):
    """out += y / (1 + exp(-gate x)), row by row: an expert that all tokens share.

    x float32 [n, n_in], gate float32 [n_in], y float32 [n, dim]  # IN
    out float32 [n, dim]  # IN OUT
    """
    cdef Py_ssize_t n = out.shape[0], dim = out.shape[1]
    if x.shape[0] != n or gate.shape[0] != x.shape[1] or y.shape[0] != n or y.shape[1] != dim:
        raise ValueError(
            f"x is [{x.shape[0]}, {x.shape[1]}], the gate [{gate.shape[0]}], y [{y.shape[0]}, "
            f"{y.shape[1]}], which do not fit out, [{n}, {dim}]"
        )
    cdef _Gated op = _Gated()
    op.a.gate, op.a.n_in, op.a.dim = &gate[0], x.shape[1], dim
    if n:
        op.a.x, op.a.y, op.a.out = &x[0, 0], &y[0, 0], &out[0, 0]
    op.bind(add_gated_task, &op.a, n, (x, gate, y, out))
    return op


cdef void add_gated_task(const void *args, int64_t task, float *work) noexcept nogil:
    """A row. The product has eight sums, so that the compiler makes vectors of them."""
    cdef const gated_t *a = <const gated_t *>args
    cdef const float *x = a.x + task * a.n_in
    cdef const float *y = a.y + task * a.dim
    cdef float *out = a.out + task * a.dim
    cdef float sums[8]
    cdef float logit = 0, factor
    cdef int64_t i, j
    memset(sums, 0, sizeof(sums))
    for i in range(0, a.n_in - 7, 8):
        for j in range(8):
            sums[j] += x[i + j] * a.gate[i + j]
    for i in range(a.n_in // 8 * 8, a.n_in):
        logit += x[i] * a.gate[i]
    for j in range(8):
        logit += sums[j]
    factor = 1 / (1 + exp_of(-logit))
    for i in range(a.dim):
        out[i] += factor * y[i]
