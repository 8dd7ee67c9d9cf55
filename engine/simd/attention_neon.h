/* Attention tiles for NEON: queries against one block of up to 32 positions. attention_scalar.h says
 * what each operation does, scores_avx512.h how raw keys are rotated. A row that does not divide by
 * 8 ends in vectors padded with zeros.
 *
 * A score has four sums, one a lane: lane l adds up the dims l, l + 4 and so on, of raw keys both
 * halves of a pair in turn. The sums are added as (l0 + l1) + (l2 + l3). A tile of a prompt does the
 * same with a sum to a vector.
 */
#ifndef LARIAT_ATTENTION_NEON_H
#define LARIAT_ATTENTION_NEON_H

#include <arm_neon.h>

#include "attention_scalar.h"
#include "fetch.h"
#include "layout.h"
#include "vector_neon.h"

#define FOR_EACH_KEY_NEON(o) _Pragma("GCC unroll 8") for (int o = 0; o < n_k; o++)
#define FOR_EACH_VECTOR_NEON(x) _Pragma("GCC unroll 16") for (int x = 0; x < n_v; x++)

ALWAYS_INLINE float32x4_t load_4_neon(const void *p, int64_t i, const int f32) {
    return f32 ? vld1q_f32((const float *)p + i)
               : vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const f16_t *)p + i)));
}

ALWAYS_INLINE float32x4x2_t load_8_neon(const void *p, int64_t i, const int f32) {
    if (f32) return (float32x4x2_t){{load_4_neon(p, i, 1), load_4_neon(p, i + 4, 1)}};
    const float16x8_t x = vreinterpretq_f16_u16(vld1q_u16((const f16_t *)p + i));
    return (float32x4x2_t){{vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)}};
}

/* The first n < 4 elements from i on, zeros after them */
static inline float32x4_t load_some_neon(const void *p, int64_t i, int64_t n, const int f32) {
    uint8_t padded[16] = {0};
    if (f32) memcpy(padded, (const float *)p + i, 4 * (size_t)n);
    else memcpy(padded, (const f16_t *)p + i, 2 * (size_t)n);
    return load_4_neon(padded, 0, f32);
}

/* 4 elements from i on, or with `some` the n that are left */
ALWAYS_INLINE float32x4_t load_lanes_neon(const void *p, int64_t i, int64_t n, const int f32,
                                          const int some) {
    return some ? load_some_neon(p, i, n, f32) : load_4_neon(p, i, f32);
}

/* 4 elements from i on, or those that a row of `end` elements has left */
ALWAYS_INLINE float32x4_t load_up_to_neon(const void *p, int64_t i, int64_t end, int64_t base,
                                          const int f32) {
    return i + 4 <= end ? load_4_neon(p, base + i, f32) : load_some_neon(p, base + i, end - i, f32);
}

static inline void store_up_to_neon(float *p, int64_t i, int64_t end, float32x4_t x) {
    if (i + 4 <= end) {
        vst1q_f32(p + i, x);
        return;
    }
    float lanes[4];
    vst1q_f32(lanes, x);
    memcpy(p + i, lanes, sizeof(float) * (size_t)(end - i));
}

/* Lane i of the result is the sum of the lanes of p[i]. */
ALWAYS_INLINE float32x4_t sum_4_neon(const float32x4_t p_f32x4[4]) {
    return vpaddq_f32(vpaddq_f32(p_f32x4[0], p_f32x4[1]), vpaddq_f32(p_f32x4[2], p_f32x4[3]));
}

/* Four pairs (a, b) rotated by the angles of a table row */
ALWAYS_INLINE void rotate_neon(float32x4_t *a, float32x4_t *b, float32x4_t cosine,
                               float32x4_t sine) {
    const float32x4_t x = vfmsq_f32(vmulq_f32(*a, cosine), *b, sine);
    *b = vfmaq_f32(vmulq_f32(*a, sine), *b, cosine);
    *a = x;
}

/* How many bytes ahead of its use a key or value is asked for, into the L2 cache, in the order of
 * memory: as ahead_avx2, which says why. No ARM processor was at hand to measure it. */
ALWAYS_INLINE int64_t ahead_neon(int64_t block_bytes) {
    return block_bytes * (block_bytes >= 8192 ? 1 : block_bytes >= 4096 ? 2 : 4);
}

/* Asks for n_lines lines from byte `byte` of a block on. */
ALWAYS_INLINE void fetch_lines_neon(const void *p_f16, int64_t head_dim, int64_t byte,
                                    const int n_lines) {
    fetch_to_l2((const char *)p_f16 + byte, 64 * n_lines, ahead_neon(2 * SLOTS * head_dim));
}

/* Lane j of the new vector i is lane i of the old vector j. */
ALWAYS_INLINE void transpose_4_neon(float32x4_t rows_f32x4[4]) {
    float64x2_t t[4];
    for (int i = 0; i < 4; i += 2) {
        t[i] = vreinterpretq_f64_f32(vtrn1q_f32(rows_f32x4[i], rows_f32x4[i + 1]));
        t[i + 1] = vreinterpretq_f64_f32(vtrn2q_f32(rows_f32x4[i], rows_f32x4[i + 1]));
    }
    for (int i = 0; i < 2; i++) {
        rows_f32x4[i] = vreinterpretq_f32_f64(vtrn1q_f64(t[i], t[i + 2]));
        rows_f32x4[i + 2] = vreinterpretq_f32_f64(vtrn2q_f64(t[i], t[i + 2]));
    }
}

static void rotate_back_neon(const float *x, int n, const float *row, int64_t half, float *out) {
    int64_t i = 0;
    for (; i + 4 <= half; i += 4) {
        const float32x4_t cosine = vld1q_f32(row + i), sine = vld1q_f32(row + half + i);
        for (int h = 0; h < n; h++) {
            const float *from = x + 2 * half * h + i;
            float *to = out + 2 * half * h + i;
            const float32x4_t a = vld1q_f32(from), b = vld1q_f32(from + half);
            vst1q_f32(to, vfmaq_f32(vmulq_f32(b, sine), a, cosine));
            vst1q_f32(to + half, vfmsq_f32(vmulq_f32(b, cosine), a, sine));
        }
    }
    for (; i < half; i++)
        for (int h = 0; h < n; h++) {
            const float a = x[2 * half * h + i], b = x[2 * half * h + half + i];
            out[2 * half * h + i] = a * row[i] + b * row[half + i];
            out[2 * half * h + half + i] = b * row[i] - a * row[half + i];
        }
}

/* Adds the products of dims i..i + 7 with the keys that begin at at[] to n_q x n_k sums,
 * [query][key]. Keys are not rotated here. */
ALWAYS_INLINE void add_products_8_neon(const float *q, const int n_q, const void *k,
                                       const int64_t *at, const int n_k, int64_t head_dim,
                                       int64_t i, float32x4_t *sum, const int f32) {
    float32x4x2_t x[8];
    FOR_EACH_KEY_NEON(o) x[o] = load_8_neon(k, at[o] + i, f32);
    _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++)
        FOR_EACH_QUERY {
            const float32x4_t of_query = vld1q_f32(q + r * head_dim + i + 4 * h);
            FOR_EACH_KEY_NEON(o)
                sum[r * n_k + o] = vfmaq_f32(sum[r * n_k + o], x[o].val[h], of_query);
        }
}

/* The same for dims i..i + 3, or with `some` the last ones, fewer than 4. Raw keys are rotated by
 * `rows`, and the dims are those of both halves. */
ALWAYS_INLINE void add_products_4_neon(const float *q, const int n_q, const void *k,
                                       const int64_t *at, const int n_k, int64_t head_dim,
                                       int64_t i, const float *rows, float32x4_t *sum,
                                       const int raw, const int f32, const int some) {
    const int64_t half = head_dim / 2, left = (raw ? half : head_dim) - i;
    float32x4_t x[8], y[8];
    FOR_EACH_KEY_NEON(o) {
        x[o] = load_lanes_neon(k, at[o] + i, left, f32, some);
        if (raw) {
            y[o] = load_lanes_neon(k, at[o] + half + i, left, f32, some);
            rotate_neon(&x[o], &y[o], load_lanes_neon(rows, at[o] + i, left, 1, some),
                        load_lanes_neon(rows, at[o] + half + i, left, 1, some));
        }
        if (n_q > 1) continue; /* one query: no key waits in a register for another */
        sum[o] = vfmaq_f32(sum[o], x[o], load_lanes_neon(q, i, left, 1, some));
        if (raw) sum[o] = vfmaq_f32(sum[o], y[o], load_lanes_neon(q, half + i, left, 1, some));
    }
    if (n_q == 1) return;
    FOR_EACH_QUERY {
        const float32x4_t qx = load_lanes_neon(q, r * head_dim + i, left, 1, some);
        FOR_EACH_KEY_NEON(o) sum[r * n_k + o] = vfmaq_f32(sum[r * n_k + o], x[o], qx);
        if (!raw) continue;
        const float32x4_t qy = load_lanes_neon(q, r * head_dim + half + i, left, 1, some);
        FOR_EACH_KEY_NEON(o) sum[r * n_k + o] = vfmaq_f32(sum[r * n_k + o], y[o], qy);
    }
}

/* Scores of n_k keys from key j on, of n_q queries, from their sums [query][key] */
ALWAYS_INLINE void store_scores_neon(const float32x4_t *sum, const int n_q, const int n_k, float *s) {
    float sums[16];
    _Pragma("GCC unroll 4") for (int i = 0; i < n_q * n_k; i += 4)
        vst1q_f32(n_k >= 4 ? s + i / n_k * SLOTS + i % n_k : sums + i, sum_4_neon(sum + i));
    if (n_k < 4) FOR_EACH_QUERY memcpy(s + r * SLOTS, sums + r * n_k, sizeof(float) * (size_t)n_k);
}

/* Keys as they are; if they are raw, key j rotated by row j of the table. n_q is 1, 2, 4 or 8. Eight
 * sums at once or more hide the latency of a multiply-add. */
ALWAYS_INLINE void scores_rows_neon(const float *q, const int n_q, const void *k, int n,
                                    int64_t head_dim, const float *rows, float *s, const int raw,
                                    const int f32) {
    const int n_k = n_q == 1 ? 8 : n_q == 8 ? 2 : 4;
    const int64_t end = raw ? head_dim / 2 : head_dim;
    const int n_bytes = 32 * n_k * (raw ? 2 : 1); /* of 16 dims of n_k keys */
    for (int j = 0; j < n; j += n_k) {
        float32x4_t sum[16];
        int64_t at[8], i = 0;
        _Pragma("GCC unroll 16") for (int o = 0; o < n_q * n_k; o++) sum[o] = vdupq_n_f32(0);
        FOR_EACH_KEY_NEON(o) at[o] = (j + o < n ? j + o : n - 1) * head_dim;
        for (; i + 16 <= end; i += 16) {
            if (!f32)
                fetch_lines_neon(k, head_dim, 2 * at[0] + n_bytes / 16 * i, n_bytes / 64);
            if (raw)
                _Pragma("GCC unroll 1") for (int p = 0; p < 16; p += 4)
                    add_products_4_neon(q, n_q, k, at, n_k, head_dim, i + p, rows, sum, 1, f32, 0);
            else
                _Pragma("GCC unroll 2") for (int p = 0; p < 16; p += 8)
                    add_products_8_neon(q, n_q, k, at, n_k, head_dim, i + p, sum, f32);
        }
        for (; i + 4 <= end; i += 4)
            add_products_4_neon(q, n_q, k, at, n_k, head_dim, i, rows, sum, raw, f32, 0);
        if (i < end) add_products_4_neon(q, n_q, k, at, n_k, head_dim, i, rows, sum, raw, f32, 1);
        store_scores_neon(sum, n_q, n_k, s + j);
    }
}

ALWAYS_INLINE void scores_neon(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                               const rope_t *rope, float *s, const int raw, const int f32) {
    const float *rows = raw ? rope->rows : NULL;
    if (n_q == 8) {
        scores_rows_neon(q, 8, k, n, head_dim, rows, s, raw, f32);
        return;
    }
    if (n_q >= 4) {
        scores_rows_neon(q, 4, k, n, head_dim, rows, s, raw, f32);
        n_q -= 4, q += 4 * head_dim, s += 4 * SLOTS;
    }
    if (n_q >= 2) {
        scores_rows_neon(q, 2, k, n, head_dim, rows, s, raw, f32);
        n_q -= 2, q += 2 * head_dim, s += 2 * SLOTS;
    }
    if (n_q) scores_rows_neon(q, 1, k, n, head_dim, rows, s, raw, f32);
}

/* If head_dim is known when compiling, there are few addresses, and they need few registers. */
#define BY_HEAD_DIM_NEON(of)                  \
    if (head_dim == 128) of(128);             \
    else if (head_dim == 64) of(64);          \
    else of(head_dim);

#define SCORES_NEON(d) scores_neon(q, n_q, k, n, d, rope, s, raw, f32)
ALWAYS_INLINE void scores_any_neon(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                   const rope_t *rope, float *s, const int raw, const int f32) {
    BY_HEAD_DIM_NEON(SCORES_NEON)
}
#undef SCORES_NEON

static void scores_roped_f16_neon(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                  const rope_t *rope, float *s) {
    scores_any_neon(q, n_q, k, n, head_dim, rope, s, 0, 0);
}

static void scores_roped_f32_neon(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                  const rope_t *rope, float *s) {
    scores_any_neon(q, n_q, k, n, head_dim, rope, s, 0, 1);
}

static void scores_raw_f16_neon(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                const rope_t *rope, float *s) {
    scores_any_neon(q, n_q, k, n, head_dim, rope, s, 1, 0);
}

static void scores_raw_f32_neon(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                const rope_t *rope, float *s) {
    scores_any_neon(q, n_q, k, n, head_dim, rope, s, 1, 1);
}

/* Dims i..i + 3 of both halves of 4 keys, rotated if there are rows, into 4 columns of the tile */
ALWAYS_INLINE void keys_4_neon(const void *k, int64_t head_dim, int64_t i, const float *rows,
                               float *tile, const int f32) {
    const int64_t half = head_dim / 2;
    float32x4_t x[4], y[4];
    for (int o = 0; o < 4; o++) {
        const int64_t at = o * head_dim + i;
        x[o] = load_4_neon(k, at, f32);
        y[o] = load_4_neon(k, at + half, f32);
        if (rows) rotate_neon(&x[o], &y[o], vld1q_f32(rows + at), vld1q_f32(rows + at + half));
    }
    transpose_4_neon(x);
    transpose_4_neon(y);
    for (int d = 0; d < 4; d++) {
        vst1q_f32(tile + (i + d) * SLOTS, x[d]);
        vst1q_f32(tile + (half + i + d) * SLOTS, y[d]);
    }
}

ALWAYS_INLINE void keys_neon(const void *k, int n, int64_t head_dim, const float *row, float *tile,
                             const int f32) {
    const int64_t half = head_dim / 2;
    int j = 0;
    if (n < SLOTS) memset(tile, 0, sizeof(float) * SLOTS * (size_t)head_dim);
    for (; j + 4 <= n && half % 4 == 0; j += 4)
        for (int64_t i = 0; i < half; i += 4)
            keys_4_neon((const char *)k + (f32 ? 4 : 2) * j * head_dim, head_dim, i,
                        row ? row + j * head_dim : NULL, tile + j, f32);
    for (; j < n; j++)
        for (int64_t i = 0; i < half; i += 4) {
            const int64_t at = j * head_dim;
            float32x4_t a = load_up_to_neon(k, i, half, at, f32);
            float32x4_t b = load_up_to_neon(k, i, half, at + half, f32);
            if (row)
                rotate_neon(&a, &b, load_up_to_neon(row, i, half, at, 1),
                            load_up_to_neon(row, i, half, at + half, 1));
            float x[4], y[4];
            vst1q_f32(x, a);
            vst1q_f32(y, b);
            for (int64_t d = 0; d < 4 && i + d < half; d++) {
                tile[(i + d) * SLOTS + j] = x[d];
                tile[(half + i + d) * SLOTS + j] = y[d];
            }
        }
}

static void keys_f16_neon(const void *k, int n, int64_t head_dim, const float *row, float *tile) {
    keys_neon(k, n, head_dim, row, tile, 0);
}

static void keys_f32_neon(const void *k, int n, int64_t head_dim, const float *row, float *tile) {
    keys_neon(k, n, head_dim, row, tile, 1);
}

/* n_q queries against the 4 n_v keys from j on. Dims are added up in the order of scores_rows_neon
 * and sum_4_neon: a chain for each lane of that tile, and the chains as a tree. */
ALWAYS_INLINE void tile_rows_neon(const float *q, const int n_q, const float *tile,
                                  int64_t head_dim, int j, const int n_v, float *s,
                                  const int raw) {
    const int64_t half = raw ? head_dim / 2 : head_dim;
    float32x4_t waiting[2][16]; /* sums of 1 and 2 chains */
    for (int lane = 0; lane < 4; lane++) {
        float32x4_t sum[16];
        FOR_EACH_QUERY FOR_EACH_VECTOR_NEON(v) sum[r * n_v + v] = vdupq_n_f32(0);
        for (int64_t i = lane; i < half; i += 4)
            _Pragma("GCC unroll 2") for (int y = 0; y <= raw; y++) {
                const int64_t d = i + y * half;
                float32x4_t keys[8];
                FOR_EACH_VECTOR_NEON(v) keys[v] = vld1q_f32(tile + d * SLOTS + j + 4 * v);
                FOR_EACH_QUERY
                    FOR_EACH_VECTOR_NEON(v)
                        sum[r * n_v + v] =
                            vfmaq_n_f32(sum[r * n_v + v], keys[v], q[r * head_dim + d]);
            }
        int level = 0;
        for (; lane >> level & 1; level++)
            FOR_EACH_QUERY
                FOR_EACH_VECTOR_NEON(v)
                    sum[r * n_v + v] = vaddq_f32(waiting[level][r * n_v + v], sum[r * n_v + v]);
        FOR_EACH_QUERY
            FOR_EACH_VECTOR_NEON(v)
                if (lane == 3) vst1q_f32(s + r * SLOTS + j + 4 * v, sum[r * n_v + v]);
                else waiting[level][r * n_v + v] = sum[r * n_v + v];
    }
}

ALWAYS_INLINE void tile_of_scores_neon(const float *q, int n_q, const float *tile,
                                       int64_t head_dim, float *s, const int raw) {
    for (; n_q >= 4; n_q -= 4, q += 4 * head_dim, s += 4 * SLOTS)
        for (int j = 0; j < SLOTS; j += 16) tile_rows_neon(q, 4, tile, head_dim, j, 4, s, raw);
    if (n_q >= 2) {
        tile_rows_neon(q, 2, tile, head_dim, 0, 8, s, raw);
        n_q -= 2, q += 2 * head_dim, s += 2 * SLOTS;
    }
    if (n_q) tile_rows_neon(q, 1, tile, head_dim, 0, 8, s, raw);
}

static void tile_scores_neon(const float *q, int n_q, const float *tile, int64_t head_dim,
                             int order, float *s) {
    if (order == TILE_ROPED) tile_of_scores_neon(q, n_q, tile, head_dim, s, 0);
    else tile_of_scores_neon(q, n_q, tile, head_dim, s, 1);
}

static void softmax_block_neon(float *s, int n_q, int n, int n_keys, int more, float *m, float *l,
                               float *acc, int64_t head_dim) {
    for (int r = 0; r < n_q; r++, s += SLOTS, acc += head_dim) {
        int n_row = n_keys + r * more < n ? n_keys + r * more : n;
        n_row = n_row > 0 ? n_row : 0;
        for (int j = n_row; j < SLOTS; j++) s[j] = -INFINITY;
        float32x4_t max_f32x4[2] = {vld1q_f32(s), vld1q_f32(s + 4)};
        for (int j = 8; j < SLOTS; j += 8) { /* maxnm: of a number and NaN the number */
            max_f32x4[0] = vmaxnmq_f32(max_f32x4[0], vld1q_f32(s + j));
            max_f32x4[1] = vmaxnmq_f32(max_f32x4[1], vld1q_f32(s + j + 4));
        }
        const float max = vmaxnmvq_f32(vmaxnmq_f32(max_f32x4[0], max_f32x4[1]));
        if (max > m[r]) {
            const float shrink = expf(m[r] - max);
            m[r] = max;
            l[r] *= shrink;
            for (int64_t i = 0; i < head_dim; i += 4)
                store_up_to_neon(acc, i, head_dim,
                                 vmulq_n_f32(load_up_to_neon(acc, i, head_dim, 0, 1), shrink));
        }
        float32x4_t sum[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
        for (int j = 0; j < SLOTS; j += 8)
            _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++) {
                const float32x4_t score = vld1q_f32(s + j + 4 * h);
                const uint32x4_t masked = vceqq_f32(score, vdupq_n_f32(-INFINITY));
                const float32x4_t e = exp_neon(vsubq_f32(score, vdupq_n_f32(m[r])));
                const float32x4_t weight =
                    vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(e), masked));
                vst1q_f32(s + j + 4 * h, weight);
                sum[h] = vaddq_f32(sum[h], weight);
            }
        l[r] += vaddvq_f32(vaddq_f32(sum[0], sum[1]));
    }
}

/* n_q rows of acc, 4 n_v dims from dim i on. With `some`, the dims are the last ones, fewer than
 * 4. */
ALWAYS_INLINE void weighted_sum_dims_neon(const float *s, const int n_q, const void *v, int n,
                                          int64_t head_dim, int64_t i, const int n_v, float *acc,
                                          const int f32, const int some) {
    float32x4_t sum[16];
    FOR_EACH_QUERY
        FOR_EACH_VECTOR_NEON(x)
            sum[r * n_v + x] =
                load_lanes_neon(acc, r * head_dim + i + 4 * x, head_dim - i, 1, some);
    for (int j = 0; j < n; j++) {
        float32x4_t value[16];
        if (!f32 && (n_v >= 8 || j % (8 / n_v) == 0))
            fetch_lines_neon(v, head_dim, 64 * i + 8 * n_v * j, n_v < 8 ? 1 : n_v / 8);
        if (n_v == 1)
            value[0] = load_lanes_neon(v, j * head_dim + i, head_dim - i, f32, some);
        else
            _Pragma("GCC unroll 8") for (int x = 0; x + 1 < n_v; x += 2) {
                const float32x4x2_t both = load_8_neon(v, j * head_dim + i + 4 * x, f32);
                value[x] = both.val[0];
                value[x + 1] = both.val[1];
            }
        FOR_EACH_QUERY
            FOR_EACH_VECTOR_NEON(x)
                sum[r * n_v + x] = vfmaq_n_f32(sum[r * n_v + x], value[x], s[r * SLOTS + j]);
    }
    FOR_EACH_QUERY
        FOR_EACH_VECTOR_NEON(x)
            store_up_to_neon(acc + r * head_dim, i + 4 * x, some ? head_dim : INT64_MAX,
                             sum[r * n_v + x]);
}

ALWAYS_INLINE void weighted_sum_rows_neon(const float *s, const int n_q, const void *v, int n,
                                          int64_t head_dim, float *acc, const int f32) {
#define DIMS(n_v, some) \
    weighted_sum_dims_neon(s, n_q, v, n, head_dim, i, n_v, acc, f32, some)
    int64_t i = 0;
    if (n_q == 1)
        for (; i + 64 <= head_dim; i += 64) DIMS(16, 0);
    if (n_q <= 2)
        for (; i + 32 <= head_dim; i += 32) DIMS(8, 0);
    for (; i + 16 <= head_dim; i += 16) DIMS(4, 0);
    for (; i + 8 <= head_dim; i += 8) DIMS(2, 0);
    for (; i + 4 <= head_dim; i += 4) DIMS(1, 0);
    if (i < head_dim) DIMS(1, 1);
#undef DIMS
}

ALWAYS_INLINE void weighted_sum_neon(const float *s, int n_q, const void *v, int n,
                                     int64_t head_dim, float *acc, const int f32) {
    for (; n_q >= 4; n_q -= 4, s += 4 * SLOTS, acc += 4 * head_dim)
        weighted_sum_rows_neon(s, 4, v, n, head_dim, acc, f32);
    if (n_q >= 2) {
        weighted_sum_rows_neon(s, 2, v, n, head_dim, acc, f32);
        n_q -= 2, s += 2 * SLOTS, acc += 2 * head_dim;
    }
    if (n_q) weighted_sum_rows_neon(s, 1, v, n, head_dim, acc, f32);
}

#define WEIGHTED_SUM_NEON(d) weighted_sum_neon(s, n_q, v, n, d, acc, f32)
ALWAYS_INLINE void weighted_sum_any_neon(const float *s, int n_q, const void *v, int n,
                                         int64_t head_dim, float *acc, const int f32) {
    BY_HEAD_DIM_NEON(WEIGHTED_SUM_NEON)
}
#undef WEIGHTED_SUM_NEON

static void weighted_sum_f16_neon(const float *s, int n_q, const void *v, int n, int64_t head_dim,
                                  float *acc) {
    weighted_sum_any_neon(s, n_q, v, n, head_dim, acc, 0);
}

static void weighted_sum_f32_neon(const float *s, int n_q, const void *v, int n, int64_t head_dim,
                                  float *acc) {
    weighted_sum_any_neon(s, n_q, v, n, head_dim, acc, 1);
}

static void to_f32_neon(const f16_t *x, int64_t n, float *out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const float32x4x2_t both = load_8_neon(x, i, 0);
        vst1q_f32(out + i, both.val[0]);
        vst1q_f32(out + i + 4, both.val[1]);
    }
    for (; i < n; i += 4) store_up_to_neon(out, i, n, load_up_to_neon(x, i, n, 0, 0));
}

static void use_attention_neon(kernels_t *k) {
    k->rotate_back = rotate_back_neon;
    k->scores[0][C_F16] = scores_roped_f16_neon;
    k->scores[0][C_F32] = scores_roped_f32_neon;
    k->scores[1][C_F16] = scores_raw_f16_neon;
    k->scores[1][C_F32] = scores_raw_f32_neon;
    k->keys[C_F16] = keys_f16_neon;
    k->keys[C_F32] = keys_f32_neon;
    k->tile_scores = tile_scores_neon;
    k->softmax_block = softmax_block_neon;
    k->weighted_sum[C_F16] = weighted_sum_f16_neon;
    k->weighted_sum[C_F32] = weighted_sum_f32_neon;
    k->to_f32 = to_f32_neon;
}

#endif
