"""The tasks of a batch's attention, as `attend` and `merge` read them."""

from libc.stdint cimport int32_t, int64_t

from lariat._kernels cimport Rope

cdef enum:
    TILE_ROWS = 128     # queries of a tile: tokens times query heads of a KV head
    SPAN_SEGMENTS = 16  # segments of a span, counted from a request's first

cdef inline int64_t tokens_of_tile(int64_t group) noexcept nogil:
    """Most tokens of a tile, for `group` query heads to a KV head"""
    return max(1, TILE_ROWS // group)


cdef struct part_t:  # tokens of one request in the batch
    int32_t first_token, n_tokens, n_past, first_segment, last_segment

cdef struct span_t:  # n_keys: keys of the context up to its token's own
    int32_t token, n_keys, first_segment, last_segment, first_head, last_head, partial, n_partials

cdef struct tile_t:  # n_keys: keys of the context up to its first token's own
    int32_t token, n_tokens, n_keys, first_segment, last_segment, head
    int32_t request_segment  # the first one of its request

cdef struct plan_t:  # of the batch at hand
    int64_t n_tasks          # of `attend`: tiles first, then spans
    int64_t n_merge_tasks
    int64_t n_tiles
    int64_t window           # how many keys a token attends to at most, the last ones
    const tile_t *tiles
    const span_t *spans
    const int32_t *merges    # [n][3]: token, first partial result, number of partial results
    const int32_t *segments  # [n][4]: block, first slot, length, first position
    const int32_t *starts    # [n]: tokens of the context before each segment
    const int32_t *ends      # [n]: tokens up to the last one that lies in the segment's block
    float *partials          # [n][n_heads (dv + 2)]: maxima, sums, weighted values


cdef class AttentionPlan:
    cdef plan_t plan
    cdef int32_t[:, ::1] spans, tiles, merges
    cdef const int32_t[:, ::1] segments
    cdef int32_t[::1] starts, ends
    cdef float[::1] partials
    cdef Py_ssize_t n_heads, n_kv_heads, n_blocks, head_dim_v, head_dims, tile_tokens
    cdef readonly Py_ssize_t window
    cdef int32_t n_spans, n_tiles, n_merges, n_partials  # of the batch
    cdef Py_ssize_t n_alone                              # its tokens that are cut as for decode
    cdef list ropes  # tables by which recorded operations rotate raw keys

    cdef int use(self, Rope rope) except -1
    cdef int _check_segments(self, const int32_t[::1] token_starts, const int32_t[::1] n_past,
                             const int32_t[::1] segment_starts,
                             const int32_t[:, ::1] segments) except -1
    cdef int _set_starts(self, const int32_t[::1] token_starts, const int32_t[::1] n_past,
                         const int32_t[::1] segment_starts,
                         const int32_t[:, ::1] segments) except -1
    cdef int _check_positions(self, Rope rope, const int32_t[:, ::1] segments) except -1
    cdef int _reserve_tasks(self, const int32_t[::1] token_starts,
                            const int32_t[::1] segment_starts) except -1
    cdef Py_ssize_t _first_segment(self, const part_t *part, Py_ssize_t end,
                                   Py_ssize_t n_keys) noexcept
    cdef void _add_tiles(self, const part_t *part) noexcept
    cdef void _add_spans(self, const part_t *part, Py_ssize_t t) noexcept
    cdef int _show(self) except -1
