"""Attention over the cache: how a task walks keys and values.

The conventions of _kernels.pyx hold here too. `attend` and `merge` are operations of a program.
_attention_plan.pyx says how they are cut into tasks; the cache's memory is in _cache.pyx.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset

from lariat._attention_plan cimport AttentionPlan, plan_t, span_t, tile_t, tokens_of_tile
from lariat._cache cimport Pool, block_of, kv_t
from lariat._kernels cimport (
    C_F16, C_F32, N_FLOAT_TYPES, SCORE_ROWS, SLOTS, Rope, kernels_t, rope_t, table
)
from lariat._program cimport Operation

cdef kernels_t *KERNELS = table()

cdef enum: LINE_FLOATS = 16  # floats of a cache line


cdef struct attention_t:
    const plan_t *plan
    const float *q
    float *out
    kv_t keys, values
    int raw              # whether keys are rotated when they are read, by `rope`
    const rope_t *rope
    float soft_cap       # 0: none
    const float *sinks   # [n_heads]; NULL: none
    int64_t n_heads, n_kv_heads, group, dk, dv


# ---- the operations ---------------------------------------------------------------------------

cdef class _Attend(Operation):
    cdef attention_t a


cdef _Attend attention_of(Pool pool, Py_ssize_t layer, const float[:, :, ::1] q,
                          AttentionPlan plan, float[:, :, ::1] out):
    cdef _Attend operation = _Attend()
    cdef attention_t *a = &operation.a
    a.n_heads, a.n_kv_heads = plan.n_heads, plan.n_kv_heads
    a.group = plan.n_heads // plan.n_kv_heads
    a.dk, a.dv = pool.head_dim_k, pool.head_dim_v
    pool.check_layer(layer)
    if (pool.n_kv_heads != a.n_kv_heads or pool.n_blocks != plan.n_blocks
            or a.dv != plan.head_dim_v):
        raise ValueError(
            f"a plan for {plan.n_blocks} blocks of {plan.n_kv_heads} heads and values of "
            f"{plan.head_dim_v}, but the pool has {pool.n_blocks} of {pool.n_kv_heads} and values "
            f"of {a.dv}"
        )
    if (q.shape[1] != a.n_heads or q.shape[2] != a.dk or out.shape[0] != q.shape[0]
            or out.shape[1] != a.n_heads or out.shape[2] != a.dv):
        raise ValueError(
            f"queries [{q.shape[0]}, {q.shape[1]}, {q.shape[2]}] and out [{out.shape[0]}, "
            f"{out.shape[1]}, {out.shape[2]}], expected [n, {a.n_heads}, {a.dk}] and "
            f"[n, {a.n_heads}, {a.dv}]"
        )
    a.plan = &plan.plan
    if q.shape[0]:
        a.q, a.out = &q[0, 0, 0], &out[0, 0, 0]
    a.keys, a.values = pool.keys(layer), pool.values(layer)
    a.soft_cap, a.sinks = 0, NULL
    return operation


def attend(Pool pool, Py_ssize_t layer, const float[:, :, ::1] q, AttentionPlan plan,
           float[:, :, ::1] out, Rope rope=None, float soft_cap=0, const float[::1] sinks=None):
    """Causal attention of a batch over the cached keys and values of its requests.

    q float32 [n_tokens, n_heads, head_dim_k]  # IN rotated, scaled (by 1 / sqrt(head_dim_k)), and
                                               #    transformed as the pool's keys are
    out float32 [n_tokens, n_heads, head_dim_v]  # OUT; `merge` completes it
    plan  filled with a batch of n_tokens when the operation is run; it has the window
    rope  the table that raw keys are rotated by; None: they have their positions already
    soft_cap  above 0: a score s becomes soft_cap tanh(s / soft_cap) (Gemma 2, arXiv 2408.00118)
    sinks float32 [n_heads]  # IN a score of each head that takes its part of the softmax and has no
                             #    value (gpt-oss, arXiv 2508.10925)
    """
    cdef _Attend operation = attention_of(pool, layer, q, plan, out)
    cdef attention_t *a = &operation.a
    cdef span_work_t span
    cdef tile_work_t tile
    if sinks is not None and sinks.shape[0] != a.n_heads:
        raise ValueError(f"{sinks.shape[0]} sinks of attention, expected one for each of "
                         f"{a.n_heads} heads")
    if not 0 <= soft_cap < INFINITY:
        raise ValueError(f"a soft cap of {soft_cap}, expected a number above 0, or 0 for none")
    a.soft_cap = soft_cap
    if sinks is not None:
        a.sinks = &sinks[0]
    if rope is not None:
        pool.check_rope(rope)
        plan.use(rope)
        a.rope, a.raw = &rope.table, True
    operation.n_work = max(divide_for_span(a, NULL, &span),
                           divide_for_tile(a, tokens_of_tile(a.group), NULL, &tile))
    operation.bind(attend_task, a, 0, (pool, q, plan, out, rope, sinks))
    operation.n_tasks = &plan.plan.n_tasks
    return operation


def merge(Pool pool, Py_ssize_t layer, const float[:, :, ::1] q, AttentionPlan plan,
          float[:, :, ::1] out):
    """Put together the partial results that `attend`, with the same arguments, has left."""
    cdef _Attend operation = attention_of(pool, layer, q, plan, out)
    operation.bind(merge_task, &operation.a, 0, (pool, q, plan, out))
    operation.n_tasks = &plan.plan.n_merge_tasks
    return operation


cdef void attend_task(const void *args, int64_t task, float *work) noexcept nogil:
    cdef const attention_t *a = <const attention_t *>args
    if task < a.plan.n_tiles:
        attend_tile(a, a.plan.tiles + task, work)
    else:
        attend_span(a, a.plan.spans + task - a.plan.n_tiles, work)


# ---- working memory ---------------------------------------------------------------------------

# A task's working memory is divided by the function that also says how much it is.

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


cdef struct span_work_t:
    float *q      # [SCORE_ROWS][dk] rotated back, for raw keys
    float *s      # [SCORE_ROWS][SLOTS] scores
    float *rows   # [SLOTS][dk] of the RoPE table, for group attention
    float *k      # [SLOTS][dk] quantized keys as float
    float *v      # [SLOTS][dv]


cdef int64_t divide_for_span(const attention_t *a, float *work, span_work_t *w) noexcept nogil:
    """Divide `work`. Returns how many floats a span takes of it; NULL: only that."""
    cdef area_t area = area_t(work, 0)
    w.q = take(&area, SCORE_ROWS * a.dk)
    w.s = take(&area, SCORE_ROWS * SLOTS)
    w.rows = take(&area, SLOTS * a.dk)
    w.k = take(&area, SLOTS * a.dk)
    w.v = take(&area, SLOTS * a.dv)
    return area.n


cdef struct tile_work_t:  # row g * n_tokens + t is query head g of the group and token t
    float *q         # [n_rows][dk]
    float *acc       # [n_rows][dv] weighted sums of values
    float *keys      # [dk][SLOTS] a block's, transposed
    float *stored    # [SLOTS][dk or dv] keys or values of another type as float
    float *s         # [n_tokens][SLOTS] scores of one query head
    float *m         # [n_rows] largest score
    float *norm      # [n_rows] sum of exp(score - m)
    float *far_q     # [n_rows][dk]; these four are for group attention
    float *far_keys  # [dk][SLOTS]
    float *far_rows  # [SLOTS][dk] of the RoPE table
    float *far_s     # [n_tokens][SLOTS]


cdef int64_t divide_for_tile(const attention_t *a, int64_t n_tokens, float *work,
                             tile_work_t *w) noexcept nogil:
    """Divide `work`. Returns how many floats a tile of n_tokens takes of it; NULL: only that."""
    cdef int64_t n_rows = n_tokens * a.group
    cdef area_t area = area_t(work, 0)
    w.q = take(&area, n_rows * a.dk)
    w.acc = take(&area, n_rows * a.dv)
    w.keys = take(&area, SLOTS * a.dk)
    w.stored = take(&area, SLOTS * max(a.dk, a.dv))
    w.s = take(&area, n_tokens * SLOTS)
    w.m = take(&area, n_rows)
    w.norm = take(&area, n_rows)
    if a.raw:
        w.far_q = take(&area, n_rows * a.dk)
        w.far_keys = take(&area, SLOTS * a.dk)
        w.far_rows = take(&area, SLOTS * a.dk)
        w.far_s = take(&area, n_tokens * SLOTS)
    return area.n


# ---- attention windows and sinks --------------------------------------------------------------

cdef inline int64_t n_hidden_keys(const attention_t *a, int64_t n_keys) noexcept nogil:
    """How many keys of the context, from its first, are outside the window of key n_keys - 1;
    below 0: none."""
    return n_keys - a.plan.window


cdef inline void begin_softmax(const attention_t *a, int64_t head, bint with_sink, float *m,
                               float *norm) noexcept nogil:
    """Largest score and sum of a query head before any key: those of its sink, if it has one."""
    m[0], norm[0] = -INFINITY, 0
    if with_sink and a.sinks != NULL:
        m[0], norm[0] = a.sinks[head], 1


# ---- group attention --------------------------------------------------------------------------

# Self-Extend (arXiv 2401.01325). A key that is `group_window` positions before the query or more is
# far: it stands at position // group_n, and the query then at
#     position // group_n + group_window - group_window // group_n,
# so that far keys go on where near ones end. From one query to the next, one more key is far.

cdef inline int64_t n_far_keys(const attention_t *a, int64_t n_keys) noexcept nogil:
    """How many keys of the context, from its first, are far from key n_keys - 1."""
    if not a.raw or a.rope.group_n == 1:
        return 0
    return max(0, n_keys - a.rope.group_window)


cdef inline int64_t far_rotation(const rope_t *rope, int64_t position) noexcept nogil:
    """By how many positions a query is rotated back for far keys."""
    return position - (position // rope.group_n + rope.group_window
                       - rope.group_window // rope.group_n)


cdef void group_rows(const rope_t *rope, int64_t position, int64_t n, int64_t dk,
                     float *rows) noexcept nogil:
    """The table rows of n grouped positions, [n][dk]"""
    cdef int64_t i
    for i in range(n):
        memcpy(rows + i * dk, rope.rows + (position + i) // rope.group_n * dk, dk * sizeof(float))


# ---- one token --------------------------------------------------------------------------------

cdef inline const uint8_t *rows_of(const kv_t *kv, const int32_t *seg, int64_t head, int n,
                                   int first, bint as_stored, float *as_float,
                                   int *type) noexcept nogil:
    """n rows of a segment from its row `first` on, of one head, and their type. Rows of floats are
    returned where they are stored. Quantized ones are made float in `as_float` [n][d], or, with
    `as_stored`, left alone: then the head's whole block is returned."""
    cdef const uint8_t *block = block_of(kv, seg[0], head, type)
    if type[0] < N_FLOAT_TYPES:
        return block + (seg[1] + first) * kv.d * (4 if type[0] == C_F32 else 2)
    if as_stored:
        return block
    KERNELS.dequantize[type[0]](block, seg[1] + first, n, kv.d, as_float)
    type[0] = C_F32
    return <const uint8_t *>as_float


cdef void attend_span(const attention_t *a, const span_t *task, float *work) noexcept nogil:
    """One token over some segments, for some KV heads: blocks outside and heads inside, so that
    memory is read in one run. Leaves maximum, sum and weighted values as a partial result, or the
    finished result in `out` where there is only one."""
    cdef float *m = a.plan.partials + task.partial * a.n_heads * (a.dv + 2)
    cdef float *norm = m + a.n_heads
    cdef float *acc = norm + a.n_heads
    cdef int64_t h0 = task.first_head * a.group, h1 = task.last_head * a.group
    cdef int64_t far = n_far_keys(a, task.n_keys), hidden = n_hidden_keys(a, task.n_keys)
    cdef int64_t segment, start, row
    cdef int n, n_far, first
    cdef const int32_t *seg
    cdef span_work_t w
    divide_for_span(a, work, &w)
    for row in range(h0, h1):
        begin_softmax(a, row, task.is_first, m + row, norm + row)
    memset(acc + h0 * a.dv, 0, (h1 - h0) * a.dv * sizeof(float))
    for segment in range(task.first_segment, task.last_segment):
        seg = a.plan.segments + segment * 4
        start = a.plan.starts[segment]
        n = min(seg[2], task.n_keys - start)
        first = <int>max(0, hidden - start)
        n_far = <int>max(first, min(n, far - start))
        if n_far > first:
            attend_run(a, task, seg, first, n_far - first, 1, m, &w)
        if n_far < n:
            attend_run(a, task, seg, n_far, n - n_far, 0, m, &w)
    if task.n_partials == 1:
        for row in range(h0, h1):
            finish_head(a, acc + row * a.dv, norm[row], task.token * a.n_heads + row)


cdef void attend_run(const attention_t *a, const span_t *task, const int32_t *seg, int first, int n,
                     bint is_far, float *m, const span_work_t *w) noexcept nogil:
    """n keys of a segment, which are all near the token or all far from it."""
    cdef float *norm = m + a.n_heads
    cdef float *acc = norm + a.n_heads
    # One query makes numbers float on its way, stepped by a position a row if keys are raw. Several
    # queries share them as float.
    cdef bint v_as_stored = a.group == 1
    cdef bint k_as_stored = v_as_stored and a.dk % 64 == 0 and not is_far
    cdef int type_k, type_v, n_q, slot = seg[1] + first
    cdef int64_t position = seg[3] + first, rotation = position, head, row
    cdef rope_t rope
    cdef const float *q
    cdef const uint8_t *k
    cdef const uint8_t *v
    if a.raw:
        rope = a.rope[0]
        if is_far:
            rotation = far_rotation(&rope, task.n_keys - 1) + position // rope.group_n
            group_rows(&rope, position % rope.group_n, n, a.dk, w.rows)
            rope.rows, rope.step = w.rows, NULL
    for head in range(task.first_head, task.last_head):
        k = rows_of(&a.keys, seg, head, n, first, k_as_stored, w.k, &type_k)
        v = rows_of(&a.values, seg, head, n, first, v_as_stored, w.v, &type_v)
        row = head * a.group
        while row < (head + 1) * a.group:
            n_q = <int>min(SCORE_ROWS, (head + 1) * a.group - row)
            q = a.q + (task.token * a.n_heads + row) * a.dk
            if a.raw:
                KERNELS.rotate_back(q, n_q, a.rope.rows + rotation * a.dk, a.dk // 2, w.q)
                q = w.q
            if type_k < N_FLOAT_TYPES:
                KERNELS.scores[a.raw][type_k](q, n_q, k, n, a.dk, &rope, w.s)
            else:
                KERNELS.block_scores[a.raw][type_k](q, k, slot, n, a.dk, &rope, w.s)
            if a.soft_cap > 0:
                KERNELS.soft_cap(w.s, n_q * SLOTS, a.soft_cap)
            KERNELS.softmax_block(w.s, n_q, n, n, 0, m + row, norm + row, acc + row * a.dv, a.dv)
            if type_v < N_FLOAT_TYPES:
                KERNELS.weighted_sum[type_v](w.s, n_q, v, n, a.dv, acc + row * a.dv)
            else:
                KERNELS.block_weighted_sum[type_v](w.s, v, slot, n, a.dv, acc + row * a.dv)
            row = row + n_q


cdef void merge_task(const void *args, int64_t task, float *work) noexcept nogil:
    """Add up the partial results of one head in order, each brought to the common maximum."""
    cdef const attention_t *a = <const attention_t *>args
    cdef const int32_t *merge = a.plan.merges + task // a.n_heads * 3
    cdef int64_t head = task % a.n_heads
    cdef int64_t stride = a.n_heads * (a.dv + 2), partial, i
    cdef float *first = a.plan.partials + merge[1] * stride
    cdef float *acc = first + 2 * a.n_heads + head * a.dv
    cdef float *other_m
    cdef float *other
    cdef float max_score = first[head], total, factor
    for partial in range(1, merge[2]):
        max_score = max(max_score, first[partial * stride + head])
    factor = exp_of(first[head] - max_score)
    total = first[a.n_heads + head] * factor
    for i in range(a.dv):
        acc[i] *= factor
    for partial in range(1, merge[2]):
        other_m = first + partial * stride
        factor = exp_of(other_m[head] - max_score)
        total += other_m[a.n_heads + head] * factor
        other = other_m + 2 * a.n_heads + head * a.dv
        for i in range(a.dv):
            acc[i] += other[i] * factor
    finish_head(a, acc, total, merge[0] * a.n_heads + head)


cdef extern from "<math.h>" nogil:
    float exp_of "expf"(float) noexcept


cdef inline void finish_head(const attention_t *a, const float *acc, float norm,
                             int64_t row) noexcept nogil:
    """Divide a weighted sum of values by the sum of its weights, into a row of `out`."""
    cdef int64_t i
    cdef float factor = 1 / norm
    cdef float *out = a.out + row * a.dv
    for i in range(a.dv):
        out[i] = acc[i] * factor
    if a.values.hadamard:
        KERNELS.hadamard(out, a.dv)


# ---- a tile of a prompt -----------------------------------------------------------------------

cdef struct view_t:  # a tile's view of a segment
    const int32_t *seg
    int64_t start         # tokens of the context before it
    int64_t far           # keys of the context that are far from the tile's last token
    int64_t far_from_all  # keys that are far from its first token too; below 0: none
    int n                 # keys of the segment that the last token attends to
    int n_far             # of these, keys that are far from it
    int first_token       # the first one that attends to any of them
    int end_token         # the first one behind it that does not: they are outside its window
    int64_t hidden        # keys of the context that are outside the window of the first token


cdef void attend_tile(const attention_t *a, const tile_t *task, float *work) noexcept nogil:
    """A run of one request's new tokens against one KV head. Token t attends to one key more than
    token t - 1."""
    cdef tile_work_t w
    cdef view_t view
    cdef int64_t segment, n_keys = task.n_keys + task.n_tokens - 1  # of the last token
    divide_for_tile(a, task.n_tokens, work, &w)
    view.far = n_far_keys(a, n_keys)
    view.far_from_all = view.far - (task.n_tokens - 1)
    view.hidden = n_hidden_keys(a, task.n_keys)
    begin_tile(a, task, &view, &w)
    for segment in range(task.first_segment, task.last_segment):
        view.seg, view.start = a.plan.segments + segment * 4, a.plan.starts[segment]
        if view.start >= n_keys:
            break
        view.n = <int>min(view.seg[2], n_keys - view.start)
        view.n_far = <int>min(view.n, max(0, view.far - view.start))
        view.first_token = <int>max(0, view.start - task.n_keys + 1)
        view.end_token = <int>min(task.n_tokens, view.start + view.n - view.hidden)
        attend_view(a, task, &view, &w)
    finish_tile(a, task, &w)


cdef void begin_tile(const attention_t *a, const tile_t *task, const view_t *view,
                     const tile_work_t *w) noexcept nogil:
    """Queries head by head, those for far keys too, and nothing summed."""
    cdef int64_t n_rows = task.n_tokens * a.group, g, t, row, rotation, head
    cdef const float *q
    for g in range(a.group):
        head = task.head * a.group + g
        for t in range(task.n_tokens):
            row = g * task.n_tokens + t
            q = a.q + ((task.token + t) * a.n_heads + head) * a.dk
            begin_softmax(a, head, True, w.m + row, w.norm + row)
            memcpy(w.q + row * a.dk, q, a.dk * sizeof(float))
            if view.far_from_all + t > 0:
                rotation = far_rotation(a.rope, task.n_keys - 1 + t)
                KERNELS.rotate_back(q, 1, a.rope.rows + rotation * a.dk, a.dk // 2,
                                    w.far_q + row * a.dk)
            elif view.far > 0:
                memset(w.far_q + row * a.dk, 0, a.dk * sizeof(float))  # its scores are not used
    memset(w.acc, 0, n_rows * a.dv * sizeof(float))


cdef void attend_view(const attention_t *a, const tile_t *task, const view_t *view,
                      const tile_work_t *w) noexcept nogil:
    """All queries of a tile over the keys and values of a segment."""
    cdef int n_q = view.end_token - view.first_token
    cdef int64_t n_keys = task.n_keys + view.first_token - view.start  # of the first query
    cdef int64_t g, row
    cdef const float *values
    load_keys(a, task, view, w)
    values = load_values(a, task, view, w)
    for g in range(a.group):
        row = g * task.n_tokens + view.first_token
        score_head(a, view, w, row)
        if a.soft_cap > 0:
            KERNELS.soft_cap(w.s, n_q * SLOTS, a.soft_cap)
        if view.hidden + view.end_token - 1 > view.start:
            hide_keys(view, w.s)
        KERNELS.softmax_block(w.s, n_q, view.n, <int>n_keys, 1, w.m + row, w.norm + row,
                              w.acc + row * a.dv, a.dv)
        KERNELS.weighted_sum[C_F32](w.s, n_q, values, view.n, a.dv, w.acc + row * a.dv)


cdef inline bint has_near_keys(const view_t *view) noexcept nogil:
    """Whether a key of the segment is near one of the tile's tokens."""
    return view.far_from_all - view.start < view.n


cdef void load_keys(const attention_t *a, const tile_t *task, const view_t *view,
                    const tile_work_t *w) noexcept nogil:
    """Keys of a segment as float, rotated and transposed; far ones by their grouped positions."""
    cdef int type
    cdef const int32_t *seg = view.seg
    cdef const float *rope_row = a.rope.rows + seg[3] * a.dk if a.raw else NULL
    cdef const uint8_t *k = rows_of(&a.keys, seg, task.head, view.n, 0, False, w.stored, &type)
    if has_near_keys(view):
        KERNELS.keys[type](k, view.n, a.dk, rope_row, w.keys)
    if view.n_far > 0:
        group_rows(a.rope, seg[3], view.n_far, a.dk, w.far_rows)
        KERNELS.keys[type](k, view.n_far, a.dk, w.far_rows, w.far_keys)


cdef const float *load_values(const attention_t *a, const tile_t *task, const view_t *view,
                              const tile_work_t *w) noexcept nogil:
    """Values of a segment as float, [n][dv]. Overwrites keys that are in `w.stored`."""
    cdef int type
    cdef const uint8_t *v = rows_of(&a.values, view.seg, task.head, view.n, 0, False, w.stored,
                                    &type)
    if type != C_F16:
        return <const float *>v
    KERNELS.to_f32(<const uint16_t *>v, view.n * a.dv, w.stored)
    return w.stored


cdef void hide_keys(const view_t *view, float *s) noexcept nogil:
    """Give keys that are outside a token's window no weight, in scores of one query head."""
    cdef int64_t t, j
    for t in range(view.end_token - view.first_token):
        for j in range(view.hidden + view.first_token + t - view.start):
            s[t * SLOTS + j] = -INFINITY


cdef void score_head(const attention_t *a, const view_t *view, const tile_work_t *w,
                     int64_t row) noexcept nogil:
    """Scores of one query head, from `row` on, for the tokens that attend to the segment."""
    cdef int n_q = view.end_token - view.first_token
    cdef int64_t t, n_far
    if has_near_keys(view):
        KERNELS.tile_scores(w.q + row * a.dk, n_q, w.keys, a.dk, w.s)
    if view.n_far == 0:
        return
    KERNELS.tile_scores(w.far_q + row * a.dk, n_q, w.far_keys, a.dk, w.far_s)
    for t in range(n_q):
        n_far = view.far_from_all + view.first_token + t - view.start
        n_far = min(view.n, max(0, n_far))
        memcpy(w.s + t * SLOTS, w.far_s + t * SLOTS, n_far * sizeof(float))


cdef void finish_tile(const attention_t *a, const tile_t *task,
                      const tile_work_t *w) noexcept nogil:
    cdef int64_t g, t, row, token_row
    for g in range(a.group):
        for t in range(task.n_tokens):
            row = g * task.n_tokens + t
            token_row = (task.token + t) * a.n_heads + task.head * a.group + g
            finish_head(a, w.acc + row * a.dv, w.norm[row], token_row)
