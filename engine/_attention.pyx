"""Attention over the cache: how it is cut into tasks, and what a task walks.

Conventions are those of _kernels.pyx, whose table of tiles is used here: `attend` and `merge` are
steps of a program. The cache's memory is in _cache.pyx.
"""

import numpy as np

from libc.math cimport INFINITY
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset

from lariat._cache cimport TASK_FLOATS, Pool, cells_t, unit_of
from lariat._kernels cimport (
    C_F16, C_F32, N_FLOAT_TYPES, SCORE_ROWS, SLOTS, Rope, kernels_t, rope_t, table
)
from lariat._program cimport Operation

cdef kernels_t *KERNELS = table()


# One pass over a sequence's segments with online softmax (arXiv 1805.02867, 2205.14135). Two ways
# to cut it. A token that stands alone (decode) reads keys and values once, in one run: a task is a
# span of segments times a range of KV heads, blocks outside and heads inside, and spans are merged
# in order. Tokens of a prompt share what they read: a task is a tile of tokens times one KV head,
# which turns each block's keys to float (and rotates raw ones) once for all its queries.

cdef enum:
    SPAN_SEGMENTS = 16   # segments of a decode task
    DECODE_TASKS = 16    # cut heads too while there are fewer tasks than this
    TILE_ROWS = 128      # queries of a prefill task: tokens times query heads of a KV head
    FEW_TOKENS = 4       # this many tokens of a sequence or fewer go the way of decode

cdef struct span_t:
    int32_t token, n_visible, first_segment, last_segment, first_head, last_head, part, n_parts

cdef struct tile_t:
    int32_t token, n_tokens, n_visible, first_segment, last_segment, head


cdef struct plan_t:  # of the batch at hand
    int64_t n_tasks      # of `attend`: tiles first, then spans
    int64_t n_merge_tasks
    int64_t n_tiles
    const tile_t *tiles
    const span_t *spans
    const int32_t *merges    # [n][3]: token, first part, number of parts
    const int32_t *segments  # [n][4]: block, first slot, length, first position
    const int32_t *starts    # [n]: tokens of the context before each segment
    float *parts


cdef struct attention_t:
    const plan_t *plan
    const float *q
    float *out
    cells_t keys, values
    int raw
    const rope_t *rope
    int64_t n_heads, n_kv_heads, group, dk, dv


cdef class AttentionPlan:
    """How a batch's attention is cut into tasks. Steps are recorded with a plan, and run with what
    it was last filled with."""

    cdef plan_t plan
    cdef int32_t[:, ::1] spans, tiles, merges
    cdef const int32_t[:, ::1] segments
    cdef int32_t[::1] starts
    cdef float[::1] parts
    cdef Py_ssize_t n_heads, n_kv_heads, n_blocks, head_dim_v, head_dims
    cdef Rope rope  # None: keys have their positions already

    def __init__(self, Pool pool, Py_ssize_t n_heads, Rope rope=None):
        """For attention over `pool` of `n_heads` query heads; over raw keys if `rope` is given."""
        if n_heads % pool.n_kv_heads:
            raise ValueError(f"{n_heads} query heads for {pool.n_kv_heads} KV heads")
        if rope is not None and rope.head_dim != pool.head_dim_k:
            raise ValueError("a RoPE table of another head_dim")
        self.n_heads, self.n_kv_heads, self.n_blocks = n_heads, pool.n_kv_heads, pool.n_blocks
        self.head_dim_v, self.head_dims = pool.head_dim_v, pool.head_dim_k + pool.head_dim_v
        self.rope = rope
        self.spans, self.tiles = np.zeros((8, 8), np.int32), np.zeros((8, 6), np.int32)
        self.merges, self.starts = np.zeros((8, 3), np.int32), np.zeros(8, np.int32)
        self.parts = np.zeros(1, np.float32)

    def fill(self, const int32_t[::1] token_starts, const int32_t[::1] n_past,
             const int32_t[::1] segment_starts, const int32_t[:, ::1] segments):
        """Take a batch.

        token_starts int32 [n_seqs + 1]    # IN tokens of the batch by sequence
        n_past int32 [n_seqs]              # IN tokens in each context before the batch
        segment_starts int32 [n_seqs + 1]  # IN segments by sequence
        segments int32 [n_segments, 4]     # IN block, first slot, length, first position; they hold
                                           #    the batch's own tokens too
        """
        cdef Py_ssize_t n_seqs = n_past.shape[0], n_segments = segments.shape[0], s, t, h, i
        cdef Py_ssize_t first, last, n_new, visible, end, n_spans, part, heads, per_tile
        cdef Py_ssize_t n_alone = 0, most_spans = 0, most_tiles = 0
        cdef Py_ssize_t at_span = 0, at_tile = 0, at_merge = 0, n_parts = 0
        per_tile = max(1, TILE_ROWS // (self.n_heads // self.n_kv_heads))
        if token_starts.shape[0] != n_seqs + 1 or segment_starts.shape[0] != n_seqs + 1 or (
                n_segments and segments.shape[1] != 4) or segment_starts[n_seqs] != n_segments:
            raise ValueError("a batch whose parts do not fit each other")
        self._check(segments)
        if self.starts.shape[0] < n_segments:
            self.starts = np.zeros(2 * n_segments, np.int32)
        for s in range(n_seqs):
            first, last = segment_starts[s], segment_starts[s + 1]
            visible = 0
            for i in range(first, last):
                self.starts[i] = visible
                if self.is_grouped() and segments[i, 3] != visible:
                    raise ValueError("group attention needs positions that count from 0")
                visible += segments[i, 2]
            n_new = token_starts[s + 1] - token_starts[s]
            if n_past[s] + n_new > visible:
                raise ValueError("the segments do not hold the tokens of the batch")
            if n_new > FEW_TOKENS:
                most_tiles += (n_new + per_tile - 1) // per_tile * self.n_kv_heads
            else:
                n_alone += n_new
                most_spans += n_new * ((last - first) // SPAN_SEGMENTS + 1) * self.n_kv_heads
        if self.tiles.shape[0] < most_tiles:
            self.tiles = np.zeros((2 * most_tiles, 6), np.int32)
        if self.spans.shape[0] < most_spans:
            self.spans = np.zeros((2 * most_spans, 8), np.int32)
        if self.merges.shape[0] < n_alone:
            self.merges = np.zeros((2 * n_alone, 3), np.int32)
        cdef tile_t *tile = <tile_t *>&self.tiles[0, 0]
        cdef span_t *span = <span_t *>&self.spans[0, 0]
        for s in range(n_seqs):
            first, last = segment_starts[s], segment_starts[s + 1]
            n_new = token_starts[s + 1] - token_starts[s]
            if n_new > FEW_TOKENS:
                t = (n_new - 1) // per_tile * per_tile
                while t >= 0:  # the last tiles see most, so they start first
                    for h in range(self.n_kv_heads):
                        tile[at_tile] = tile_t(token_starts[s] + t, min(per_tile, n_new - t),
                                               n_past[s] + t + 1, first, last, h)
                        at_tile += 1
                    t -= per_tile
                continue
            for t in range(n_new):
                visible = n_past[s] + t + 1
                end = last
                while self.starts[end - 1] >= visible:
                    end -= 1
                n_spans = (end - first + SPAN_SEGMENTS - 1) // SPAN_SEGMENTS
                heads = max(1, self.n_kv_heads * n_spans * n_alone // DECODE_TASKS,
                            TASK_FLOATS // (visible * self.head_dims))
                heads = min(heads, self.n_kv_heads)
                for part in range(n_spans):
                    i = first + part * SPAN_SEGMENTS
                    h = 0
                    while h < self.n_kv_heads:
                        span[at_span] = span_t(token_starts[s] + t, visible, i,
                                               min(end, i + SPAN_SEGMENTS), h,
                                               min(self.n_kv_heads, h + heads), n_parts + part,
                                               n_spans)
                        at_span += 1
                        h += heads
                if n_spans > 1:
                    self.merges[at_merge, 0] = token_starts[s] + t
                    self.merges[at_merge, 1], self.merges[at_merge, 2] = n_parts, n_spans
                    at_merge += 1
                n_parts += n_spans
        n = n_parts * self.n_heads * (self.head_dim_v + 2)
        if self.parts.shape[0] < n:
            self.parts = np.zeros(n + n // 2, np.float32)
        self.segments = segments
        self.plan.n_tasks, self.plan.n_tiles = at_tile + at_span, at_tile
        self.plan.n_merge_tasks = at_merge * self.n_heads
        self.plan.tiles, self.plan.spans, self.plan.merges = tile, span, &self.merges[0, 0]
        self.plan.starts, self.plan.parts = &self.starts[0], &self.parts[0]
        self.plan.segments = &segments[0, 0] if n_segments else NULL

    cdef bint is_grouped(self) noexcept:
        return self.rope is not None and self.rope.table.group_n > 1

    cdef int _check(self, const int32_t[:, ::1] segments) except -1:
        """Raise ValueError if a segment lies outside of the pool or of the RoPE table."""
        cdef Py_ssize_t i, limit
        limit = INT32_MAX if self.rope is None else self.rope.n_positions
        for i in range(segments.shape[0]):
            if (min(segments[i, 0], segments[i, 1], segments[i, 2], segments[i, 3]) < 0
                    or segments[i, 1] + segments[i, 2] > SLOTS or segments[i, 0] >= self.n_blocks):
                raise ValueError("a segment reaches out of its block or of the pool")
            if <int64_t>segments[i, 3] + segments[i, 2] > limit:
                raise ValueError(
                    f"position {segments[i, 3] + segments[i, 2] - 1} is beyond the RoPE table"
                )


cdef class _Attend(Operation):
    cdef attention_t a


cdef _Attend attention_step(Pool pool, Py_ssize_t layer, const float[:, :, ::1] q,
                            AttentionPlan plan, float[:, :, ::1] out):
    cdef _Attend step = _Attend()
    cdef attention_t *a = &step.a
    a.n_heads, a.n_kv_heads = plan.n_heads, plan.n_kv_heads
    a.group = plan.n_heads // plan.n_kv_heads
    a.dk, a.dv = pool.head_dim_k, pool.head_dim_v
    if (q.shape[1] != a.n_heads or q.shape[2] != a.dk or out.shape[0] != q.shape[0]
            or out.shape[1] != a.n_heads or out.shape[2] != a.dv or not 0 <= layer < pool.n_layers
            or pool.n_kv_heads != a.n_kv_heads or pool.n_blocks != plan.n_blocks
            or a.dv != plan.head_dim_v):
        raise ValueError("attention of arrays that do not fit each other")
    a.plan = &plan.plan
    if q.shape[0]:
        a.q, a.out = &q[0, 0, 0], &out[0, 0, 0]
    a.keys, a.values, a.raw = pool.keys(layer), pool.values(layer), plan.rope is not None
    if a.raw:
        a.rope = &plan.rope.table
    step.keep = (pool, q, plan, out)
    return step


def attend(Pool pool, Py_ssize_t layer, const float[:, :, ::1] q, AttentionPlan plan,
           float[:, :, ::1] out):
    """Causal attention of a batch over the cached keys and values of its sequences.

    q float32 [n_tokens, n_heads, head_dim_k]  # IN rotated, and scaled by 1 / sqrt(head_dim_k)
    out float32 [n_tokens, n_heads, head_dim_v]  # OUT; `merge` completes it
    plan  filled with a batch of n_tokens when the step is run
    """
    cdef _Attend step = attention_step(pool, layer, q, plan, out)
    # queries, sums, a block of keys and of keys or values as they were stored, scores; and for
    # group attention queries, keys, rows of the table, scores
    cdef int64_t rows = max(TILE_ROWS, step.a.group), d = max(step.a.dk, step.a.dv)
    step.n_work = rows * (step.a.dk + step.a.dv) + 2 * SLOTS * d + rows * (SLOTS + 2) + 64
    step.n_work += (rows + 2 * SLOTS) * step.a.dk + rows * SLOTS
    step.bind(attend_task, &step.a, 0, step.keep)
    step.n_tasks = &plan.plan.n_tasks
    return step


def merge(Pool pool, Py_ssize_t layer, const float[:, :, ::1] q, AttentionPlan plan,
          float[:, :, ::1] out):
    """Put together what `attend`, with the same arguments, has left in parts."""
    cdef _Attend step = attention_step(pool, layer, q, plan, out)
    step.bind(merge_task, &step.a, 0, step.keep)
    step.n_tasks = &plan.plan.n_merge_tasks
    return step


cdef void attend_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const attention_t *a = <const attention_t *>args
    if task < a.plan.n_tiles:
        attend_tile(a, a.plan.tiles + task, work)
    else:
        attend_span(a, a.plan.spans + task - a.plan.n_tiles, work)


# Group attention (Self-Extend, arXiv 2401.01325): a key that is `group_window` positions before the
# query or more stands at position // group_n, and the query then at
#     position // group_n + group_window - group_window // group_n,
# which is where far keys go on from near ones. What is far differs from query to query by one key.

cdef inline int64_t n_far_keys(const attention_t *a, int64_t n_visible) noexcept nogil:
    """How many keys of the context, from its first, are far from the last visible position."""
    if not a.raw or a.rope.group_n == 1:
        return 0
    return max(0, n_visible - a.rope.group_window)


cdef inline int64_t far_turn(const rope_t *rope, int64_t position) noexcept nogil:
    """By how many positions a query is turned back before it meets far keys."""
    return position - (position // rope.group_n + rope.group_window
                       - rope.group_window // rope.group_n)


cdef void group_rows(const rope_t *rope, int64_t position, int64_t n, int64_t dk,
                     float *rows) noexcept nogil:
    """The table rows of n grouped positions, [n][dk]"""
    cdef int64_t i
    for i in range(n):
        memcpy(rows + i * dk, rope.rows + (position + i) // rope.group_n * dk, dk * sizeof(float))


cdef inline const uint8_t *rows_of(const cells_t *c, const int32_t *seg, int64_t head, int n,
                                   int first, bint in_units, float *room,
                                   int *type) noexcept nogil:
    """n rows of a segment from its row `first` on, of one head, and their type: where they are
    stored, or, if they are quantized, as float in `room` [n][d]. With `in_units` quantized ones
    stay where they are, and what is returned is the whole unit."""
    cdef const uint8_t *unit = unit_of(c, seg[0], head, type)
    if type[0] < N_FLOAT_TYPES:
        return unit + (seg[1] + first) * c.d * (4 if type[0] == C_F32 else 2)
    if in_units:
        return unit
    KERNELS.dequantize[type[0]](unit, seg[1] + first, n, c.d, room)
    type[0] = C_F32
    return <const uint8_t *>room


cdef void attend_span(const attention_t *a, const span_t *task, float *work) noexcept nogil:
    """One token over segments [first, last) for KV heads [first, last): blocks outside, heads
    inside, so that memory is read in one run. Leaves maximum, sum and weighted values in its part,
    or the finished result in `out` where there is only one part."""
    cdef float *m = a.plan.parts + task.part * a.n_heads * (a.dv + 2)
    cdef float *norm = m + a.n_heads
    cdef float *acc = norm + a.n_heads
    cdef int64_t h0 = task.first_head * a.group, h1 = task.last_head * a.group
    cdef int64_t far = n_far_keys(a, task.n_visible), segment, row
    cdef int n, n_far
    cdef const int32_t *seg
    for row in range(h0, h1):
        m[row] = -INFINITY
        norm[row] = 0
    memset(acc + h0 * a.dv, 0, (h1 - h0) * a.dv * sizeof(float))
    for segment in range(task.first_segment, task.last_segment):
        seg = a.plan.segments + segment * 4
        n = min(seg[2], task.n_visible - a.plan.starts[segment])
        n_far = <int>min(n, max(0, far - a.plan.starts[segment]))
        if n_far > 0:
            attend_run(a, task, seg, 0, n_far, 1, m, work)
        if n_far < n:
            attend_run(a, task, seg, n_far, n - n_far, 0, m, work)
    if task.n_parts == 1:
        for row in range(h0, h1):
            divide(acc + row * a.dv, norm[row], a.dv, a.out + (task.token * a.n_heads + row) * a.dv)


cdef void attend_run(const attention_t *a, const span_t *task, const int32_t *seg, int first, int n,
                     bint is_far, float *m, float *work) noexcept nogil:
    """n keys of a segment, which are all near the token or all far from it."""
    cdef float *norm = m + a.n_heads
    cdef float *acc = norm + a.n_heads
    cdef float *turned = work                       # [SCORE_ROWS][dk]
    cdef float *s = work + SCORE_ROWS * a.dk        # [SCORE_ROWS][SLOTS]
    cdef float *rows = s + SCORE_ROWS * SLOTS       # [SLOTS][dk]
    cdef float *room_k = rows + SLOTS * a.dk        # [SLOTS][dk]
    cdef float *room_v = room_k + SLOTS * a.dk      # [SLOTS][dv]
    # One query turns numbers to float on its way, stepped by one position a row if keys are raw;
    # several share them as float.
    cdef bint v_in_units = a.group == 1, k_in_units = v_in_units and a.dk % 64 == 0 and not is_far
    cdef int type_k, type_v, slot = seg[1] + first
    cdef int64_t position = seg[3] + first, turn = position, head, row
    cdef int n_q
    cdef rope_t rope
    cdef const float *q
    cdef const uint8_t *k
    cdef const uint8_t *v
    if a.raw:
        rope = a.rope[0]
        if is_far:
            turn = far_turn(&rope, task.n_visible - 1) + position // rope.group_n
            group_rows(&rope, position % rope.group_n, n, a.dk, rows)
            rope.rows, rope.step = rows, NULL
    for head in range(task.first_head, task.last_head):
        k = rows_of(&a.keys, seg, head, n, first, k_in_units, room_k, &type_k)
        v = rows_of(&a.values, seg, head, n, first, v_in_units, room_v, &type_v)
        row = head * a.group
        while row < (head + 1) * a.group:
            n_q = <int>min(SCORE_ROWS, (head + 1) * a.group - row)
            q = a.q + (task.token * a.n_heads + row) * a.dk
            if a.raw:
                KERNELS.rotate_back(q, n_q, a.rope.rows + turn * a.dk, a.dk // 2, turned)
                q = turned
            if type_k < N_FLOAT_TYPES:
                KERNELS.scores[a.raw][type_k](q, n_q, k, n, a.dk, &rope, s)
            else:
                KERNELS.unit_scores[a.raw][type_k](q, k, slot, n, a.dk, &rope, s)
            KERNELS.softmax_block(s, n_q, n, n, 0, m + row, norm + row, acc + row * a.dv, a.dv)
            if type_v < N_FLOAT_TYPES:
                KERNELS.weigh[type_v](s, n_q, v, n, a.dv, acc + row * a.dv)
            else:
                KERNELS.unit_weigh[type_v](s, v, slot, n, a.dv, acc + row * a.dv)
            row = row + n_q


cdef void merge_task(const void *args, int64_t task, float *work) noexcept nogil:
    """Add up one head's parts in order, each brought to the common maximum."""
    cdef const attention_t *a = <const attention_t *>args
    cdef const int32_t *merge = a.plan.merges + task // a.n_heads * 3
    cdef int64_t head = task % a.n_heads
    cdef int64_t stride = a.n_heads * (a.dv + 2), part, i
    cdef float *first = a.plan.parts + merge[1] * stride
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
    cdef float *room = keys + SLOTS * a.dk  # [SLOTS][dk or dv]
    cdef float *s = room + SLOTS * max(a.dk, a.dv)  # [n_t][SLOTS]
    cdef float *m = s + n_t * SLOTS
    cdef float *norm = m + n_rows
    cdef float *far_q = norm + n_rows           # [n_rows][dk]
    cdef float *far_keys = far_q + n_rows * a.dk  # [dk][SLOTS]
    cdef float *far_rows = far_keys + SLOTS * a.dk  # [SLOTS][dk]
    cdef float *far_s = far_rows + SLOTS * a.dk   # [n_t][SLOTS]
    cdef int64_t far = n_far_keys(a, task.n_visible + n_t - 1)  # of the last token
    cdef const float *values
    cdef const float *rope_row
    cdef const uint8_t *k
    cdef const int32_t *seg
    cdef int64_t segment, g, t, row, token_row, begin, turn, n_of_t
    cdef int n, skip, n_far, type
    cdef const uint8_t *v
    for g in range(a.group):
        for t in range(n_t):
            token_row = (task.token + t) * a.n_heads + task.head * a.group + g
            row = g * n_t + t
            memcpy(q + row * a.dk, a.q + token_row * a.dk, a.dk * sizeof(float))
            if far - (n_t - 1 - t) > 0:
                turn = far_turn(a.rope, task.n_visible - 1 + t)
                KERNELS.rotate_back(q + row * a.dk, 1, a.rope.rows + turn * a.dk, a.dk // 2,
                                    far_q + row * a.dk)
            elif far > 0:
                memset(far_q + row * a.dk, 0, a.dk * sizeof(float))  # its scores are not used
    for row in range(n_rows):
        m[row] = -INFINITY
        norm[row] = 0
    memset(acc, 0, n_rows * a.dv * sizeof(float))
    for segment in range(task.first_segment, task.last_segment):
        seg = a.plan.segments + segment * 4
        n = <int>min(seg[2], task.n_visible + n_t - 1 - a.plan.starts[segment])
        if n <= 0:
            break
        begin = a.plan.starts[segment]
        n_far = <int>min(n, max(0, far - begin))
        rope_row = a.rope.rows + seg[3] * a.dk if a.raw else NULL
        k = rows_of(&a.keys, seg, task.head, n, 0, False, room, &type)
        if far - (n_t - 1) - begin < n:  # near the first token
            KERNELS.keys[type](k, n, a.dk, rope_row, keys)
        if n_far > 0:
            group_rows(a.rope, seg[3], n_far, a.dk, far_rows)
            KERNELS.keys[type](k, n_far, a.dk, far_rows, far_keys)
        v = rows_of(&a.values, seg, task.head, n, 0, False, room, &type)
        if type == C_F16:
            KERNELS.to_f32(<const uint16_t *>v, n * a.dv, room)
            v = <const uint8_t *>room
        values = <const float *>v
        skip = <int>max(0, begin - task.n_visible + 1)  # tokens before this segment
        for g in range(a.group):
            row = g * n_t + skip
            if far - (n_t - 1) - begin < n:
                KERNELS.tile_scores(q + row * a.dk, <int>(n_t - skip), keys, a.dk, s)
            if n_far > 0:
                KERNELS.tile_scores(far_q + row * a.dk, <int>(n_t - skip), far_keys, a.dk, far_s)
                for t in range(skip, n_t):
                    n_of_t = min(n, max(0, far - (n_t - 1 - t) - begin))
                    row = (t - skip) * SLOTS
                    memcpy(s + row, far_s + row, n_of_t * sizeof(float))
                row = g * n_t + skip
            KERNELS.softmax_block(s, <int>(n_t - skip), n, task.n_visible + skip - begin, 1,
                                  m + row, norm + row, acc + row * a.dv, a.dv)
            KERNELS.weigh[C_F32](s, <int>(n_t - skip), values, n, a.dv, acc + row * a.dv)
    for g in range(a.group):
        for t in range(n_t):
            token_row = (task.token + t) * a.n_heads + task.head * a.group + g
            divide(acc + (g * n_t + t) * a.dv, norm[g * n_t + t], a.dv, a.out + token_row * a.dv)
