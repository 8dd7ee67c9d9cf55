"""Row-wise operations that only some architectures have: GELU, scaled and normalised sums, caps.

The conventions of _kernels.pyx hold here too: each function returns an Operation of a program.
"""

from libc.math cimport floor, log1p
from libc.stdint cimport int32_t, int64_t

from lariat._kernels cimport TASK_FLOATS, Activations, kernels_t, q8_of, q8_t, quantize_row, table
from lariat._program cimport Operation

cdef kernels_t *KERNELS = table()


cdef struct parts_t:  # arguments of operations on parts of rows
    float *x
    const float *y
    float factor
    int64_t dim, per_row  # tasks of a row
    q8_t q8


cdef class _Parts(Operation):
    cdef parts_t a


cdef int64_t set_parts(parts_t *a, float[:, ::1] x, const float[:, ::1] y) except -1:
    """Cut rows x [n, dim] into tasks and say how many; y is None or has the shape of x."""
    cdef int64_t n = x.shape[0]
    a.dim, a.per_row = x.shape[1], (x.shape[1] + TASK_FLOATS - 1) // TASK_FLOATS
    if y is not None and (y.shape[0] != n or y.shape[1] != a.dim):
        raise ValueError(f"rows of [{n}, {a.dim}] and [{y.shape[0]}, {y.shape[1]}], expected the "
                         f"same shape")
    if n:
        a.x = &x[0, 0]
        if y is not None:
            a.y = &y[0, 0]
    return n * a.per_row


cdef inline int64_t part_of(const parts_t *a, int64_t task, int64_t *first,
                            int64_t *n) noexcept nogil:
    """The row of a task, and which of its numbers: `n` from `first` on. Parts begin where blocks of
    activations do."""
    first[0] = task % a.per_row * TASK_FLOATS
    n[0] = min(a.dim - first[0], TASK_FLOATS)
    return task // a.per_row


def gelu_mul(float[:, ::1] gate, const float[:, ::1] up, Activations q8=None):
    """gate = GELU(gate) * up, with GELU's approximation by tanh (arXiv 1606.08415, 2002.05202).

    gate float32 [n, n_ff]  # IN OUT; up float32 [n, n_ff]  # IN
    q8  # OUT the result, quantized, if it is given
    """
    cdef _Parts op = _Parts()
    op.a.q8 = q8_of(q8, gate.shape[0], gate.shape[1])
    op.bind(gelu_mul_task, &op.a, set_parts(&op.a, gate, up), (gate, up, q8))
    return op


cdef void gelu_mul_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const parts_t *a = <const parts_t *>args
    cdef int64_t first, n, row = part_of(a, task, &first, &n)
    cdef float *gate = a.x + row * a.dim + first
    KERNELS.gelu_mul(gate, a.y + row * a.dim + first, n)
    if a.q8.q != NULL:
        quantize_row(&a.q8, row, gate, first, first + n)


def add_scaled(float[:, ::1] x, const float[:, ::1] y, float factor):
    """x += factor * y. x float32 [n, dim]  # IN OUT; y float32 [n, dim]  # IN"""
    cdef _Parts op = _Parts()
    op.a.factor = factor
    op.bind(add_scaled_task, &op.a, set_parts(&op.a, x, y), (x, y))
    return op


cdef void add_scaled_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const parts_t *a = <const parts_t *>args
    cdef int64_t i, first, n, row = part_of(a, task, &first, &n)
    cdef float *x = a.x + row * a.dim + first
    cdef const float *y = a.y + row * a.dim + first
    for i in range(n):
        x[i] += a.factor * y[i]


def scale(float[:, ::1] x, float factor):
    """x *= factor. x float32 [n, dim]  # IN OUT"""
    cdef _Parts op = _Parts()
    op.a.factor = factor
    op.bind(scale_task, &op.a, set_parts(&op.a, x, None), (x,))
    return op


cdef void scale_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const parts_t *a = <const parts_t *>args
    cdef int64_t i, first, n, row = part_of(a, task, &first, &n)
    cdef float *x = a.x + row * a.dim + first
    for i in range(n):
        x[i] *= a.factor


def soft_cap(float[:, ::1] x, float cap):
    """x = cap * tanh(x / cap) (arXiv 2408.00118). x float32 [n, dim]  # IN OUT; cap above 0"""
    cdef _Parts op = _Parts()
    op.a.factor = cap
    op.bind(soft_cap_task, &op.a, set_parts(&op.a, x, None), (x,))
    return op


cdef void soft_cap_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const parts_t *a = <const parts_t *>args
    cdef int64_t first, n, row = part_of(a, task, &first, &n)
    KERNELS.soft_cap(a.x + row * a.dim + first, n, a.factor)


cdef struct norm_t:
    float *x
    float *y
    const float *weight
    float eps
    int64_t n, dim, per_task


cdef class _Norm(Operation):
    cdef norm_t a


def add_norm(float[:, ::1] x, float[:, ::1] y, const float[::1] weight, float eps):
    """x += RMSNorm(y) (arXiv 1910.07467), row by row.

    x float32 [n, dim]  # IN OUT; y float32 [n, dim]  # IN OUT, normalised in place
    weight float32 [dim]  # IN
    """
    cdef _Norm op = _Norm()
    cdef norm_t *a = &op.a
    a.n, a.dim, a.eps = x.shape[0], x.shape[1], eps
    if y.shape[0] != a.n or y.shape[1] != a.dim or weight.shape[0] != a.dim:
        raise ValueError(
            f"add_norm of [{y.shape[0]}, {y.shape[1]}] with {weight.shape[0]} weights to "
            f"[{a.n}, {a.dim}]"
        )
    if a.n:
        a.x, a.y, a.weight = &x[0, 0], &y[0, 0], &weight[0]
    a.per_task = max(1, TASK_FLOATS // max(1, a.dim))
    op.bind(add_norm_task, a, (a.n + a.per_task - 1) // a.per_task, (x, y, weight))
    return op


cdef void add_norm_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const norm_t *a = <const norm_t *>args
    cdef int64_t i, j
    cdef float *x
    cdef float *y
    for i in range(task * a.per_task, min(a.n, (task + 1) * a.per_task)):
        x, y = a.x + i * a.dim, a.y + i * a.dim
        KERNELS.rms_norm(y, a.weight, a.eps, a.dim, y)
        for j in range(a.dim):
            x[j] += y[j]


cdef struct temper_t:
    float *x
    const int32_t *positions
    double beta
    int64_t n, dim, length


cdef class _Temper(Operation):
    cdef temper_t a


def temper(float[:, ::1] x, const int32_t[::1] positions, double beta, int64_t length):
    """x *= 1 + beta log(1 + floor(position / length)), row by row: queries grow with their
    position, so that softmax stays sharp over many keys (Llama 4, arXiv 2501.19399).

    x float32 [n, dim]  # IN OUT; positions int32 [n]  # IN; length above 0
    """
    cdef _Temper op = _Temper()
    cdef temper_t *a = &op.a
    if positions.shape[0] != x.shape[0] or length < 1:
        raise ValueError(f"{positions.shape[0]} positions for {x.shape[0]} rows, and a length of "
                         f"{length}, expected one for each row and 1 or more")
    a.n, a.dim, a.beta, a.length = x.shape[0], x.shape[1], beta, length
    if a.n:
        a.x, a.positions = &x[0, 0], &positions[0]
    op.bind(temper_task, a, a.n, (x, positions))
    return op


cdef void temper_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const temper_t *a = <const temper_t *>args
    cdef int64_t i
    cdef float factor = <float>(1 + a.beta * log1p(floor(a.positions[task] / <double>a.length)))
    cdef float *x = a.x + task * a.dim
    for i in range(a.dim):
        x[i] *= factor
