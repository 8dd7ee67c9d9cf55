"""Attention over the cache: its memory, how attention is cut into tasks, what a task walks.

Conventions are those of _kernels.pyx, whose table of tiles is used here.
"""

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset

from engine._kernels cimport SCORE_ROWS, SLOTS, kernels_t, rope_t, table

cdef kernels_t *KERNELS = table()


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
        cdef Py_ssize_t s, first, last, n_new, n_alone, t
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
        n_alone = 0
        for s in range(n_past.shape[0]):
            n_new = token_starts[s + 1] - token_starts[s]
            n_alone += n_new if n_new <= FEW_TOKENS else 0
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
    cdef float *norm = m + a.n_heads
    cdef float *acc = norm + a.n_heads
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
        norm[row] = 0
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
                KERNELS.softmax_block(s, n_q, n, n, 0, m + row, norm + row, acc + row * a.dv, a.dv)
                KERNELS.weigh[a.v_f32](s, n_q, v, n, a.dv, acc + row * a.dv)
                row = row + n_q
    if task.n_parts == 1:
        for row in range(h0, h1):
            divide(acc + row * a.dv, norm[row], a.dv, a.out + (task.token * a.n_heads + row) * a.dv)


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
    cdef float *norm = m + n_rows
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
        norm[row] = 0
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
                                  task.n_visible + skip - a.starts[segment], 1, m + row, norm + row,
                                  acc + row * a.dv, a.dv)
            KERNELS.weigh[1](s, <int>(n_t - skip), values, n, a.dv, acc + row * a.dv)
    for g in range(a.group):
        for t in range(n_t):
            token_row = (task.token + t) * a.n_heads + task.head * a.group + g
            divide(acc + (g * n_t + t) * a.dv, norm[g * n_t + t], a.dv, a.out + token_row * a.dv)
