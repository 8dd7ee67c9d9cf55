"""Small pieces of attention: working memory, rows of scores, results of spans."""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from lariat._kernels cimport SLOTS

cdef enum: LINE_FLOATS = 16  # floats of a cache line


cdef struct area_t:
    float *start  # NULL: only count
    int64_t n     # floats given away


cdef inline float *take(area_t *area, int64_t n) noexcept nogil:
    """The next n floats. Pieces are whole cache lines."""
    cdef float *piece = NULL
    if area.start != NULL:
        piece = area.start + area.n
    area.n += (n + LINE_FLOATS - 1) // LINE_FLOATS * LINE_FLOATS
    return piece


cdef inline void hide_keys(float *s, int n_q, int64_t n_hidden, int more) noexcept nogil:
    """Give the first n_hidden + r * more keys of row r no weight."""
    cdef int64_t r, j
    for r in range(n_q):
        for j in range(n_hidden + r * more):
            s[r * SLOTS + j] = -INFINITY


cdef extern from "<math.h>" nogil:
    float exp_of "expf"(float) noexcept


cdef inline void copy_scores(const float *from_s, int n_q, int n, float *s) noexcept nogil:
    """The first n scores of each row"""
    cdef int r
    for r in range(n_q):
        memcpy(s + r * SLOTS, from_s + r * SLOTS, n * sizeof(float))


cdef inline void add_span(float *m, float *norm, float *acc, float span_m, float span_norm,
                          const float *span_acc, int64_t dv) noexcept nogil:
    """Add the result of a span to that of those before it, at their common maximum."""
    cdef int64_t i
    cdef float max_score, factor, span_factor
    if span_m == -INFINITY and span_norm == 0:  # no key of it is seen
        return
    max_score = max(m[0], span_m)
    factor, span_factor = exp_of(m[0] - max_score), exp_of(span_m - max_score)
    m[0] = max_score
    norm[0] = norm[0] * factor + span_norm * span_factor
    for i in range(dv):
        acc[i] = acc[i] * factor + span_acc[i] * span_factor
