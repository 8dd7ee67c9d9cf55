"""Attention over the cache: how a task walks keys and values.

The conventions of _kernels.pyx hold here too. `attend` and `merge` are operations of a program.
_attention_plan.pyx says how they are cut into tasks; the cache's memory is in _cache.pyx.

A token has the same bits alone and among others, in a tile. Both add up in one order:
- A raw key is rotated by its offset in the segment, and the query back by the segment's position.
- A score is the sum that `scores` of the table makes; `tile_scores` repeats its order.
- A segment is one step of the online softmax (arXiv 1805.02867), with hidden keys at -inf.
- Spans of segments begin at the same segments for every token, and are added up in order.
- With types by channel, a token sees its own block as f16 and full blocks before it quantized.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset

from lariat._attention_plan cimport (
    SPAN_SEGMENTS, AttentionPlan, plan_t, span_t, tile_t, tokens_of_tile
)
from lariat._attention_rows cimport add_span, area_t, copy_scores, hide_keys, take
from lariat._cache cimport Pool, block_of, is_both, kv_t, sealed_block_of
from lariat._kernels cimport (
    C_F16, C_F32, N_FLOAT_TYPES, SCORE_ROWS, SLOTS, TILE_RAW, TILE_RAW_8, TILE_ROPED, Rope,
    kernels_t, rope_t, table
)
from lariat._program cimport Operation

cdef kernels_t *KERNELS = table()

cdef enum: ROTATED_ROWS = 16  # queries of a tile that are rotated back at once


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


cdef int set_sinks(attention_t *a, const float[::1] sinks) except -1:
    if sinks is None:
        return 0
    if sinks.shape[0] != a.n_heads:
        raise ValueError(f"{sinks.shape[0]} sinks of attention, expected one for each of "
                         f"{a.n_heads} heads")
    a.sinks = &sinks[0]
    return 0


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
    set_sinks(a, sinks)
    if not 0 <= soft_cap < INFINITY:
        raise ValueError(f"a soft cap of {soft_cap}, expected a number above 0, or 0 for none")
    a.soft_cap = soft_cap
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
          float[:, :, ::1] out, const float[::1] sinks=None):
    """Put together the partial results that `attend`, with the same arguments, has left."""
    cdef _Attend operation = attention_of(pool, layer, q, plan, out)
    set_sinks(&operation.a, sinks)
    operation.n_work = operation.a.dv
    operation.bind(merge_task, &operation.a, 0, (pool, q, plan, out, sinks))
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

cdef struct span_work_t:
    float *q      # [SCORE_ROWS][dk] rotated back, for raw keys
    float *s      # [SCORE_ROWS][SLOTS] scores
    float *far_s  # [SCORE_ROWS][SLOTS]; these two are for group attention
    float *rows   # [SLOTS][dk] of the RoPE table
    float *k      # [SLOTS][dk] quantized keys as float
    float *v      # [SLOTS][dv]
    float *total  # [dv] of a head


cdef int64_t divide_for_span(const attention_t *a, float *work, span_work_t *w) noexcept nogil:
    """Divide `work`. Returns how many floats a span takes of it; NULL: only that."""
    cdef area_t area = area_t(work, 0)
    w.q = take(&area, SCORE_ROWS * a.dk)
    w.s = take(&area, SCORE_ROWS * SLOTS)
    w.far_s = take(&area, SCORE_ROWS * SLOTS)
    w.rows = take(&area, SLOTS * a.dk)
    w.k = take(&area, SLOTS * a.dk)
    w.v = take(&area, SLOTS * a.dv)
    w.total = take(&area, a.dv)
    return area.n


cdef struct tile_work_t:  # row g * n_tokens + t is query head g of the group and token t
    float *q         # [n_rows][dk]
    float *acc       # [n_rows][dv] weighted sums of values, of a span
    float *keys      # [dk][SLOTS] a block's, transposed
    float *stored    # [SLOTS][dk or dv] keys or values of another type as float
    float *s         # [n_tokens][SLOTS] scores of one query head
    float *m         # [n_rows] largest score
    float *norm      # [n_rows] sum of exp(score - m)
    float *all_acc   # [n_rows][dv]; these three are of all spans so far
    float *all_m     # [n_rows]
    float *all_norm  # [n_rows]
    float *rotated   # [ROTATED_ROWS][dk] rotated back, for raw keys
    float *far_keys  # [dk][SLOTS]; these three are for group attention
    float *far_rows  # [SLOTS][dk] of the RoPE table
    float *far_s     # [SLOTS]


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
    w.all_acc = take(&area, n_rows * a.dv)
    w.all_m = take(&area, n_rows)
    w.all_norm = take(&area, n_rows)
    if a.raw:
        w.rotated = take(&area, ROTATED_ROWS * a.dk)
        w.far_keys = take(&area, SLOTS * a.dk)
        w.far_rows = take(&area, SLOTS * a.dk)
        w.far_s = take(&area, SLOTS)
    return area.n


# ---- attention windows, spans and sinks -------------------------------------------------------

cdef inline int64_t n_hidden_keys(const attention_t *a, int64_t n_keys) noexcept nogil:
    """How many keys of the context, from its first, are outside the window of key n_keys - 1;
    below 0: none."""
    return n_keys - a.plan.window


cdef inline void begin_total(const attention_t *a, int64_t head, float *m, float *norm,
                             float *acc) noexcept nogil:
    """The result of a query head before any span: its sink, if it has one."""
    m[0], norm[0] = -INFINITY, 0
    memset(acc, 0, a.dv * sizeof(float))
    if a.sinks != NULL:
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
                                   bint is_inside, bint as_stored, float *as_float,
                                   int *type) noexcept nogil:
    """The first n rows of a segment, of one head, and their type, as tokens of its block
    (`is_inside`) or tokens behind see them. Rows of floats are returned where they are stored.
    Quantized ones are made float in `as_float` [n][d], or, with `as_stored`, left alone: then the
    head's whole block is returned."""
    cdef const uint8_t *block
    if is_inside:
        block = block_of(kv, seg[0], head, type)
    else:
        block = sealed_block_of(kv, seg[0], head, type)
    if type[0] < N_FLOAT_TYPES:
        return block + seg[1] * kv.d * (4 if type[0] == C_F32 else 2)
    if as_stored:
        return block
    KERNELS.dequantize[type[0]](block, seg[1], n, kv.d, as_float)
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
    cdef int64_t segment, row
    cdef span_work_t w
    divide_for_span(a, work, &w)
    for row in range(h0, h1):
        m[row], norm[row] = -INFINITY, 0
    memset(acc + h0 * a.dv, 0, (h1 - h0) * a.dv * sizeof(float))
    for segment in range(task.first_segment, task.last_segment):
        attend_segment(a, task, segment, m, &w)
    if task.n_partials == 1:
        for row in range(h0, h1):
            merge_head(a, m, 1, row, task.token, w.total)


cdef void attend_segment(const attention_t *a, const span_t *task, int64_t segment, float *m,
                         const span_work_t *w) noexcept nogil:
    """One token over the keys and values of a segment."""
    cdef float *norm = m + a.n_heads
    cdef float *acc = norm + a.n_heads
    cdef const int32_t *seg = a.plan.segments + segment * 4
    cdef int64_t start = a.plan.starts[segment], hidden = n_hidden_keys(a, task.n_keys) - start
    cdef int64_t far_by = 0, head, row
    cdef int n = <int>min(seg[2], task.n_keys - start), type_k, type_v, n_q
    cdef int n_far = <int>max(0, min(n, n_far_keys(a, task.n_keys) - start))
    cdef bint is_inside = task.n_keys <= a.plan.ends[segment]
    # One query makes numbers float on its way. Several queries share them as float.
    cdef bint v_as_stored = a.group == 1
    cdef bint k_as_stored = v_as_stored and a.dk % 64 == 0
    cdef rope_t rope, far_rope
    cdef const float *q
    cdef const uint8_t *k
    cdef const uint8_t *v
    if a.raw:
        rope = far_rope = a.rope[0]
        if n_far > 0:
            far_by = far_rotation(&rope, task.n_keys - 1) + seg[3] // rope.group_n
            group_rows(&rope, seg[3] % rope.group_n, n_far, a.dk, w.rows)
            far_rope.rows = w.rows
    for head in range(task.first_head, task.last_head):
        k = rows_of(&a.keys, seg, head, n, is_inside, k_as_stored, w.k, &type_k)
        v = rows_of(&a.values, seg, head, n, is_inside, v_as_stored, w.v, &type_v)
        row = head * a.group
        while row < (head + 1) * a.group:
            n_q = <int>min(SCORE_ROWS, (head + 1) * a.group - row)
            q = a.q + (task.token * a.n_heads + row) * a.dk
            if n_far < n:
                score_keys(a, q, n_q, k, type_k, seg[1], n, &rope, seg[3], w.q, w.s)
            if n_far > 0:
                score_keys(a, q, n_q, k, type_k, seg[1], n_far, &far_rope, far_by, w.q, w.far_s)
                copy_scores(w.far_s, n_q, n_far, w.s)
            if a.soft_cap > 0:
                KERNELS.soft_cap(w.s, n_q * SLOTS, a.soft_cap)
            if hidden > 0:
                hide_keys(w.s, n_q, hidden, 0)
            KERNELS.softmax_block(w.s, n_q, n, n, 0, m + row, norm + row, acc + row * a.dv, a.dv)
            if type_v < N_FLOAT_TYPES:
                KERNELS.weighted_sum[type_v](w.s, n_q, v, n, a.dv, acc + row * a.dv)
            else:
                KERNELS.block_weighted_sum[type_v](w.s, v, seg[1], n, a.dv, acc + row * a.dv)
            row = row + n_q


cdef inline void score_keys(const attention_t *a, const float *q, int n_q, const uint8_t *k,
                            int type, int slot, int n, const rope_t *rope, int64_t back,
                            float *rotated, float *s) noexcept nogil:
    """Scores of n keys. With raw keys, the query is rotated back by `back` positions."""
    if a.raw:
        KERNELS.rotate_back(q, n_q, a.rope.rows + back * a.dk, a.dk // 2, rotated)
        q = rotated
    if type < N_FLOAT_TYPES:
        KERNELS.scores[a.raw][type](q, n_q, k, n, a.dk, rope, s)
    else:
        KERNELS.block_scores[a.raw][type](q, k, slot, n, a.dk, rope, s)


cdef void merge_task(const void *args, int64_t task, float *work) noexcept nogil:
    """Add up the partial results of one head."""
    cdef const attention_t *a = <const attention_t *>args
    cdef const int32_t *merge = a.plan.merges + task // a.n_heads * 3
    merge_head(a, a.plan.partials + merge[1] * a.n_heads * (a.dv + 2), merge[2], task % a.n_heads,
               merge[0], work)


cdef void merge_head(const attention_t *a, const float *first, int64_t n_partials, int64_t head,
                     int64_t token, float *total) noexcept nogil:
    """Add up the partial results of one head, in order, into its row of `out`."""
    cdef int64_t partial, stride = a.n_heads * (a.dv + 2), row = token * a.n_heads + head
    cdef int64_t at = 2 * a.n_heads + head * a.dv
    cdef const float *span
    cdef float m, norm
    if n_partials == 1 and a.sinks == NULL:
        finish_head(a, first + at, first[a.n_heads + head], row)
        return
    begin_total(a, head, &m, &norm, total)
    for partial in range(n_partials):
        span = first + partial * stride
        add_span(&m, &norm, total, span[head], span[a.n_heads + head], span + at, a.dv)
    finish_head(a, total, norm, row)


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
    bint is_inside        # tokens see the block as its own tokens do
    int first_token       # the first one that attends to any of them
    int end_token         # the first one behind it that does not: they are outside its window
    int64_t hidden        # keys of the context that are outside the window of the first token


cdef void attend_tile(const attention_t *a, const tile_t *task, float *work) noexcept nogil:
    """A run of one request's new tokens against one KV head. Token t attends to one key more than
    token t - 1."""
    cdef tile_work_t w
    cdef view_t view
    cdef int64_t segment, n_keys = task.n_keys + task.n_tokens - 1  # of the last token
    cdef bint is_whole = True  # there is one span
    divide_for_tile(a, task.n_tokens, work, &w)
    view.far = n_far_keys(a, n_keys)
    view.far_from_all = view.far - (task.n_tokens - 1)
    view.hidden = n_hidden_keys(a, task.n_keys)
    begin_tile(a, task, &w)
    for segment in range(task.first_segment, task.last_segment):
        view.seg, view.start = a.plan.segments + segment * 4, a.plan.starts[segment]
        if view.start >= n_keys:
            break
        if segment > task.first_segment and ends_span(task, segment):
            is_whole = False
            add_spans(a, task, &w)
        view.n = <int>min(view.seg[2], n_keys - view.start)
        view.n_far = <int>min(view.n, max(0, view.far - view.start))
        view.first_token = <int>max(0, view.start - task.n_keys + 1)
        view.end_token = <int>min(task.n_tokens, view.start + view.n - view.hidden)
        attend_sides(a, task, &view, a.plan.ends[segment] - task.n_keys + 1, &w)
    finish_tile(a, task, is_whole and a.sinks == NULL, &w)


cdef inline bint ends_span(const tile_t *task, int64_t segment) noexcept nogil:
    return (segment - task.request_segment) % SPAN_SEGMENTS == 0


cdef void begin_tile(const attention_t *a, const tile_t *task,
                     const tile_work_t *w) noexcept nogil:
    """Queries head by head, and nothing summed."""
    cdef int64_t g, t, row, head
    for g in range(a.group):
        head = task.head * a.group + g
        for t in range(task.n_tokens):
            row = g * task.n_tokens + t
            begin_total(a, head, w.all_m + row, w.all_norm + row, w.all_acc + row * a.dv)
            memcpy(w.q + row * a.dk, a.q + ((task.token + t) * a.n_heads + head) * a.dk,
                   a.dk * sizeof(float))
    begin_span(a, task, w)


cdef void begin_span(const attention_t *a, const tile_t *task,
                     const tile_work_t *w) noexcept nogil:
    cdef int64_t n_rows = task.n_tokens * a.group, row
    for row in range(n_rows):
        w.m[row], w.norm[row] = -INFINITY, 0
    memset(w.acc, 0, n_rows * a.dv * sizeof(float))


cdef void add_spans(const attention_t *a, const tile_t *task,
                    const tile_work_t *w) noexcept nogil:
    """Add the results of a span, of all rows, and begin the next one."""
    cdef int64_t row
    for row in range(task.n_tokens * a.group):
        add_span(w.all_m + row, w.all_norm + row, w.all_acc + row * a.dv, w.m[row], w.norm[row],
                 w.acc + row * a.dv, a.dv)
    begin_span(a, task, w)


cdef void attend_sides(const attention_t *a, const tile_t *task, view_t *view, int64_t n_inside,
                       const tile_work_t *w) noexcept nogil:
    """The first n_inside tokens of a tile, which lie in the segment's block or before its end, and
    then those behind it. They see the same, unless the block is there twice."""
    cdef int end = view.end_token, middle = end
    if is_both(&a.keys, view.seg[0]) or is_both(&a.values, view.seg[0]):
        middle = <int>max(view.first_token, min(end, n_inside))
    view.is_inside, view.end_token = True, middle
    if view.first_token < middle:
        attend_view(a, task, view, w)
        view.first_token = middle
    view.is_inside, view.end_token = False, end
    if view.first_token < end:
        attend_view(a, task, view, w)


cdef void attend_view(const attention_t *a, const tile_t *task, const view_t *view,
                      const tile_work_t *w) noexcept nogil:
    """All queries of a tile over the keys and values of a segment."""
    cdef int n_q = view.end_token - view.first_token
    cdef int64_t n_keys = task.n_keys + view.first_token - view.start  # of the first query
    cdef int64_t hidden = view.hidden + view.first_token - view.start  # from it
    cdef int64_t g, row
    cdef const float *values
    load_keys(a, task, view, w)
    values = load_values(a, task, view, w)
    for g in range(a.group):
        row = g * task.n_tokens + view.first_token
        score_head(a, task, view, w, g)
        if a.soft_cap > 0:
            KERNELS.soft_cap(w.s, n_q * SLOTS, a.soft_cap)
        if hidden + n_q - 1 > 0:
            hide_keys(w.s, n_q, hidden, 1)
        KERNELS.softmax_block(w.s, n_q, view.n, <int>n_keys, 1, w.m + row, w.norm + row,
                              w.acc + row * a.dv, a.dv)
        KERNELS.weighted_sum[C_F32](w.s, n_q, values, view.n, a.dv, w.acc + row * a.dv)


cdef inline bint has_near_keys(const view_t *view) noexcept nogil:
    """Whether a key of the segment is near one of the tile's tokens."""
    return view.far_from_all - view.start < view.n


cdef void load_keys(const attention_t *a, const tile_t *task, const view_t *view,
                    const tile_work_t *w) noexcept nogil:
    """Keys of a segment as float, raw ones rotated by their offsets, and transposed; far ones by
    the offsets of their grouped positions."""
    cdef int type
    cdef const int32_t *seg = view.seg
    cdef const uint8_t *k = rows_of(&a.keys, seg, task.head, view.n, view.is_inside, False,
                                    w.stored, &type)
    if has_near_keys(view):
        KERNELS.keys[type](k, view.n, a.dk, a.rope.rows if a.raw else NULL, w.keys)
    if view.n_far > 0:
        group_rows(a.rope, seg[3] % a.rope.group_n, view.n_far, a.dk, w.far_rows)
        KERNELS.keys[type](k, view.n_far, a.dk, w.far_rows, w.far_keys)


cdef const float *load_values(const attention_t *a, const tile_t *task, const view_t *view,
                              const tile_work_t *w) noexcept nogil:
    """Values of a segment as float, [n][dv]. Overwrites keys that are in `w.stored`."""
    cdef int type
    cdef const uint8_t *v = rows_of(&a.values, view.seg, task.head, view.n, view.is_inside, False,
                                    w.stored, &type)
    if type != C_F16:
        return <const float *>v
    KERNELS.to_f32(<const uint16_t *>v, view.n * a.dv, w.stored)
    return w.stored


cdef void score_head(const attention_t *a, const tile_t *task, const view_t *view,
                     const tile_work_t *w, int64_t g) noexcept nogil:
    """Scores of query head g of the group, for the tokens that attend to the segment."""
    cdef int n_q = view.end_token - view.first_token
    cdef int order = TILE_ROPED
    cdef int64_t t, done, n, n_far, row = g * task.n_tokens + view.first_token
    cdef const float *q
    if a.raw:  # a token alone has the group's queries in calls of SCORE_ROWS
        order = TILE_RAW_8 if g < a.group // SCORE_ROWS * SCORE_ROWS else TILE_RAW
    done = 0
    while done < n_q and has_near_keys(view):
        n = min(ROTATED_ROWS, n_q - done)
        q = w.q + (row + done) * a.dk
        if a.raw:
            KERNELS.rotate_back(q, <int>n, a.rope.rows + view.seg[3] * a.dk, a.dk // 2, w.rotated)
            q = w.rotated
        KERNELS.tile_scores(q, <int>n, w.keys, a.dk, order, w.s + done * SLOTS)
        done += n
    for t in range(n_q if view.n_far > 0 else 0):
        n_far = min(view.n, view.far_from_all + view.first_token + t - view.start)
        if n_far > 0:
            n = far_rotation(a.rope, task.n_keys - 1 + view.first_token + t)
            KERNELS.rotate_back(w.q + (row + t) * a.dk, 1,
                                a.rope.rows + (n + view.seg[3] // a.rope.group_n) * a.dk,
                                a.dk // 2, w.rotated)
            KERNELS.tile_scores(w.rotated, 1, w.far_keys, a.dk, order, w.far_s)
            copy_scores(w.far_s, 1, <int>n_far, w.s + t * SLOTS)


cdef void finish_tile(const attention_t *a, const tile_t *task, bint is_whole,
                      const tile_work_t *w) noexcept nogil:
    """The results of all rows; `is_whole`: there is one span and nothing else."""
    cdef const float *norm = w.norm if is_whole else w.all_norm
    cdef const float *acc = w.acc if is_whole else w.all_acc
    cdef int64_t g, t, row, token_row
    if not is_whole:
        add_spans(a, task, w)
    for g in range(a.group):
        for t in range(task.n_tokens):
            row = g * task.n_tokens + t
            token_row = (task.token + t) * a.n_heads + task.head * a.group + g
            finish_head(a, acc + row * a.dv, norm[row], token_row)
