"""Where the tokens of a layer go: see _routing.pyx."""

from libc.stdint cimport int32_t, int64_t

from lariat._kernels cimport q8_t

cdef struct routing_t:
    int64_t n_experts, n_used
    int64_t n_entries  # experts that have rows
    int32_t *chosen    # [n_tokens][n_used] experts of a token, the one of the largest logit first
    float *weights     # [n_tokens][n_used]
    int32_t *place     # [n_tokens][n_used] their rows
    int32_t *entries   # [n_entries] experts that have rows, rising
    int32_t *first     # [n_experts] the first row of each
    int32_t *n_rows    # [n_experts]

cdef class Routing:
    cdef routing_t r
    cdef readonly Py_ssize_t n_tokens, n_experts, n_used
    cdef int32_t[:, ::1] _chosen, _place
    cdef float[:, ::1] _weights
    cdef int32_t[::1] _entries, _first, _n_rows

cdef q8_t q8_of_expert(const q8_t *all, const routing_t *r, int64_t expert) noexcept nogil
