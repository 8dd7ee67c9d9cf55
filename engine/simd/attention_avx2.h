/* Attention tiles for AVX2 with FMA and F16C: queries against one block of up to 32 positions.
 * attention_scalar.h says what each operation does, scores_avx512.h how raw keys are rotated. A row
 * that does not divide by 8 ends in a vector padded with zeros.
 */
#ifndef LARIAT_ATTENTION_AVX2_H
#define LARIAT_ATTENTION_AVX2_H

#include <immintrin.h>

#include "attention_scalar.h"
#include "layout.h"
#include "vector_avx2.h"

#define FOR_EACH_KEY(o) _Pragma("GCC unroll 8") for (int o = 0; o < n_k; o++)

ALWAYS_INLINE __m256 load_avx2(const void *p, int64_t i, const int f32) {
    return f32 ? _mm256_loadu_ps((const float *)p + i)
               : _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const f16_t *)p + i)));
}

/* The first n < 8 elements from i on, zeros after them */
static inline __m256 load_some_avx2(const void *p, int64_t i, int64_t n, const int f32) {
    uint8_t padded[32] = {0};
    if (f32) memcpy(padded, (const float *)p + i, 4 * (size_t)n);
    else memcpy(padded, (const f16_t *)p + i, 2 * (size_t)n);
    return load_avx2(padded, 0, f32);
}

/* 8 elements from i on, or with `some` the n that are left */
ALWAYS_INLINE __m256 load_lanes_avx2(const void *p, int64_t i, int64_t n, const int f32,
                                     const int some) {
    return some ? load_some_avx2(p, i, n, f32) : load_avx2(p, i, f32);
}

/* 8 elements from i on, or what a row of `end` elements has left */
ALWAYS_INLINE __m256 load_up_to_avx2(const void *p, int64_t i, int64_t end, int64_t base,
                                     const int f32) {
    return i + 8 <= end ? load_avx2(p, base + i, f32) : load_some_avx2(p, base + i, end - i, f32);
}

static inline void store_up_to_avx2(float *p, int64_t i, int64_t end, __m256 x) {
    if (i + 8 <= end) {
        _mm256_storeu_ps(p + i, x);
        return;
    }
    float lanes[8];
    _mm256_storeu_ps(lanes, x);
    memcpy(p + i, lanes, sizeof(float) * (size_t)(end - i));
}

/* Lane i of the result is the sum of the lanes of p[i]. */
ALWAYS_INLINE __m256 sum_8_avx2(const __m256 p_f32x8[8]) {
    __m256 pairs[4], fours[2];
    for (int i = 0; i < 4; i++)
        pairs[i] = _mm256_add_ps(_mm256_unpacklo_ps(p_f32x8[2 * i], p_f32x8[2 * i + 1]),
                                 _mm256_unpackhi_ps(p_f32x8[2 * i], p_f32x8[2 * i + 1]));
    for (int i = 0; i < 2; i++) {
        const __m256d a = _mm256_castps_pd(pairs[2 * i]), b = _mm256_castps_pd(pairs[2 * i + 1]);
        fours[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                                 _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    return _mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                         _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
}

/* How many bytes ahead of its use a key or value is asked for, into the L2 cache: some 8 KB, whole
 * blocks of a head. A block is not walked in the order of memory, and the processor's own prefetch
 * follows the walk badly; so lines are asked for in the order of memory, a few at each step. That
 * halves the time of a key from memory. All at once, or in the order of the walk, lines bring a
 * third of that gain. */
ALWAYS_INLINE int64_t ahead_avx2(int64_t block_bytes) {
    return block_bytes * (block_bytes >= 8192 ? 1 : block_bytes >= 4096 ? 2 : 4);
}

/* Ask for n_lines lines from byte `byte` of a block on. */
ALWAYS_INLINE void fetch_lines_avx2(const void *p_f16, int64_t head_dim, int64_t byte,
                                    const int n_lines) {
    const char *from = (const char *)p_f16 + ahead_avx2(2 * SLOTS * head_dim) + byte;
    _Pragma("GCC unroll 16") for (int i = 0; i < n_lines; i++)
        __builtin_prefetch(from + 64 * i, 0, 2);
}

/* Lane j of the new vector i is lane i of the old vector j. */
ALWAYS_INLINE void transpose_8_avx2(__m256 rows_f32x8[8]) {
    __m256 *r = rows_f32x8, t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20);
        t[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

static void rotate_back_avx2(const float *x, int n, const float *row, int64_t half, float *out) {
    int64_t i = 0;
    for (; i + 8 <= half; i += 8) {
        const __m256 cosine = _mm256_loadu_ps(row + i), sine = _mm256_loadu_ps(row + half + i);
        for (int h = 0; h < n; h++) {
            const float *from = x + 2 * half * h + i;
            float *to = out + 2 * half * h + i;
            const __m256 a = _mm256_loadu_ps(from), b = _mm256_loadu_ps(from + half);
            _mm256_storeu_ps(to, _mm256_fmadd_ps(a, cosine, _mm256_mul_ps(b, sine)));
            _mm256_storeu_ps(to + half, _mm256_fmsub_ps(b, cosine, _mm256_mul_ps(a, sine)));
        }
    }
    for (; i < half; i++)
        for (int h = 0; h < n; h++) {
            const float a = x[2 * half * h + i], b = x[2 * half * h + half + i];
            out[2 * half * h + i] = a * row[i] + b * row[half + i];
            out[2 * half * h + half + i] = b * row[i] - a * row[half + i];
        }
}

/* Adds the products of dims i.. with the keys that begin at at[] to n_q x n_k sums, [query][key].
 * Raw keys are rotated by `rows`, and dims i.. are those of both halves. With `some`, the dims are
 * the last ones, fewer than 8. */
ALWAYS_INLINE void add_products_avx2(const float *q, const int n_q, const void *k,
                                     const int64_t *at, const int n_k, int64_t head_dim, int64_t i,
                                     const float *rows, __m256 *sum, const int raw, const int f32,
                                     const int some) {
    const int64_t half = head_dim / 2, left = (raw ? half : head_dim) - i;
    __m256 x[8], y[8];
    FOR_EACH_KEY(o) {
        x[o] = load_lanes_avx2(k, at[o] + i, left, f32, some);
        if (raw) {
            const __m256 a = x[o], b = load_lanes_avx2(k, at[o] + half + i, left, f32, some);
            const __m256 cosine = load_lanes_avx2(rows, at[o] + i, left, 1, some);
            const __m256 sine = load_lanes_avx2(rows, at[o] + half + i, left, 1, some);
            x[o] = _mm256_fmsub_ps(a, cosine, _mm256_mul_ps(b, sine));
            y[o] = _mm256_fmadd_ps(a, sine, _mm256_mul_ps(b, cosine));
        }
        if (n_q > 1) continue; /* one query: no key waits in a register for another */
        sum[o] = _mm256_fmadd_ps(x[o], load_lanes_avx2(q, i, left, 1, some), sum[o]);
        if (raw) sum[o] = _mm256_fmadd_ps(y[o], load_lanes_avx2(q, half + i, left, 1, some), sum[o]);
    }
    if (n_q == 1) return;
    FOR_EACH_QUERY {
        const __m256 qx = load_lanes_avx2(q, r * head_dim + i, left, 1, some);
        FOR_EACH_KEY(o) sum[r * n_k + o] = _mm256_fmadd_ps(x[o], qx, sum[r * n_k + o]);
        if (!raw) continue;
        const __m256 qy = load_lanes_avx2(q, r * head_dim + half + i, left, 1, some);
        FOR_EACH_KEY(o) sum[r * n_k + o] = _mm256_fmadd_ps(y[o], qy, sum[r * n_k + o]);
    }
}

/* Keys as they are; if they are raw, key j rotated by row j of the table. n_q is 1, 2 or 4. Eight
 * sums at once hide the latency of a multiply-add. */
ALWAYS_INLINE void scores_rows_avx2(const float *q, const int n_q, const void *k, int n,
                                    int64_t head_dim, const float *rows, float *s, const int raw,
                                    const int f32) {
    const int n_k = 8 / n_q, n_lines = raw ? n_k : n_k / 2; /* of 16 dims of n_k keys */
    const int64_t end = raw ? head_dim / 2 : head_dim;
    for (int j = 0; j < n; j += n_k) {
        __m256 sum[8];
        int64_t at[8], i = 0;
        for (int o = 0; o < 8; o++) sum[o] = _mm256_setzero_ps();
        FOR_EACH_KEY(o) at[o] = (j + o < n ? j + o : n - 1) * head_dim;
        for (; i + 16 <= end; i += 16) {
            if (!f32) fetch_lines_avx2(k, head_dim, 2 * at[0] + 4 * n_lines * i, n_lines);
            add_products_avx2(q, n_q, k, at, n_k, head_dim, i, rows, sum, raw, f32, 0);
            add_products_avx2(q, n_q, k, at, n_k, head_dim, i + 8, rows, sum, raw, f32, 0);
        }
        for (; i + 8 <= end; i += 8)
            add_products_avx2(q, n_q, k, at, n_k, head_dim, i, rows, sum, raw, f32, 0);
        if (i < end) add_products_avx2(q, n_q, k, at, n_k, head_dim, i, rows, sum, raw, f32, 1);
        float sums[8];
        _mm256_storeu_ps(n_q == 1 ? s + j : sums, sum_8_avx2(sum));
        if (n_q > 1)
            FOR_EACH_QUERY memcpy(s + r * SLOTS + j, sums + r * n_k, sizeof(float) * (size_t)n_k);
    }
}

ALWAYS_INLINE void scores_avx2(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                               const rope_t *rope, float *s, const int raw, const int f32) {
    const float *rows = raw ? rope->rows : NULL;
    for (; n_q >= 4; n_q -= 4, q += 4 * head_dim, s += 4 * SLOTS)
        scores_rows_avx2(q, 4, k, n, head_dim, rows, s, raw, f32);
    if (n_q >= 2) {
        scores_rows_avx2(q, 2, k, n, head_dim, rows, s, raw, f32);
        n_q -= 2, q += 2 * head_dim, s += 2 * SLOTS;
    }
    if (n_q) scores_rows_avx2(q, 1, k, n, head_dim, rows, s, raw, f32);
}

/* If head_dim is known when compiling, there are few addresses, and they need few registers. */
#define BY_HEAD_DIM_AVX2(of)                  \
    if (head_dim == 128) of(128);             \
    else if (head_dim == 64) of(64);          \
    else of(head_dim);

#define SCORES_AVX2(d) scores_avx2(q, n_q, k, n, d, rope, s, raw, f32)
ALWAYS_INLINE void scores_any_avx2(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                   const rope_t *rope, float *s, const int raw, const int f32) {
    BY_HEAD_DIM_AVX2(SCORES_AVX2)
}
#undef SCORES_AVX2

static void scores_roped_f16_avx2(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                  const rope_t *rope, float *s) {
    scores_any_avx2(q, n_q, k, n, head_dim, rope, s, 0, 0);
}

static void scores_roped_f32_avx2(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                  const rope_t *rope, float *s) {
    scores_any_avx2(q, n_q, k, n, head_dim, rope, s, 0, 1);
}

static void scores_raw_f16_avx2(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                const rope_t *rope, float *s) {
    scores_any_avx2(q, n_q, k, n, head_dim, rope, s, 1, 0);
}

static void scores_raw_f32_avx2(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                const rope_t *rope, float *s) {
    scores_any_avx2(q, n_q, k, n, head_dim, rope, s, 1, 1);
}

/* Dims i..i + 7 of both halves of 8 keys, rotated if there are rows, into 8 columns of the tile */
ALWAYS_INLINE void keys_8_avx2(const void *k, int64_t head_dim, int64_t i, const float *rows,
                               float *tile, const int f32) {
    const int64_t half = head_dim / 2;
    __m256 x[8], y[8];
    for (int o = 0; o < 8; o++) {
        x[o] = load_avx2(k, o * head_dim + i, f32);
        y[o] = load_avx2(k, o * head_dim + half + i, f32);
        if (!rows) continue;
        const __m256 a = x[o], b = y[o];
        const __m256 cosine = _mm256_loadu_ps(rows + o * head_dim + i);
        const __m256 sine = _mm256_loadu_ps(rows + o * head_dim + half + i);
        x[o] = _mm256_fmsub_ps(a, cosine, _mm256_mul_ps(b, sine));
        y[o] = _mm256_fmadd_ps(a, sine, _mm256_mul_ps(b, cosine));
    }
    transpose_8_avx2(x);
    for (int d = 0; d < 8; d++) _mm256_storeu_ps(tile + (i + d) * SLOTS, x[d]);
    transpose_8_avx2(y);
    for (int d = 0; d < 8; d++) _mm256_storeu_ps(tile + (half + i + d) * SLOTS, y[d]);
}

ALWAYS_INLINE void keys_avx2(const void *k, int n, int64_t head_dim, const float *row, float *tile,
                             const int f32) {
    const int64_t half = head_dim / 2;
    int j = 0;
    if (n < SLOTS) memset(tile, 0, sizeof(float) * SLOTS * (size_t)head_dim);
    for (; j + 8 <= n && half % 8 == 0; j += 8)
        for (int64_t i = 0; i < half; i += 8)
            keys_8_avx2((const char *)k + (f32 ? 4 : 2) * j * head_dim, head_dim, i,
                        row ? row + j * head_dim : NULL, tile + j, f32);
    for (; j < n; j++)
        for (int64_t i = 0; i < half; i += 8) {
            const int64_t at = j * head_dim;
            __m256 a = load_up_to_avx2(k, i, half, at, f32);
            __m256 b = load_up_to_avx2(k, i, half, at + half, f32);
            if (row) {
                const __m256 cosine = load_up_to_avx2(row, i, half, at, 1);
                const __m256 sine = load_up_to_avx2(row, i, half, at + half, 1);
                const __m256 x = _mm256_fmsub_ps(a, cosine, _mm256_mul_ps(b, sine));
                b = _mm256_fmadd_ps(a, sine, _mm256_mul_ps(b, cosine));
                a = x;
            }
            float x[8], y[8];
            _mm256_storeu_ps(x, a);
            _mm256_storeu_ps(y, b);
            for (int64_t d = 0; d < 8 && i + d < half; d++) {
                tile[(i + d) * SLOTS + j] = x[d];
                tile[(half + i + d) * SLOTS + j] = y[d];
            }
        }
}

static void keys_f16_avx2(const void *k, int n, int64_t head_dim, const float *row, float *tile) {
    keys_avx2(k, n, head_dim, row, tile, 0);
}

static void keys_f32_avx2(const void *k, int n, int64_t head_dim, const float *row, float *tile) {
    keys_avx2(k, n, head_dim, row, tile, 1);
}

/* n_q queries against the 16 keys from j on. Dims are added up in the order of scores_rows_avx2 and
 * sum_8_avx2: a chain for each lane of that tile, and the chains as a tree. */
ALWAYS_INLINE void tile_rows_avx2(const float *q, const int n_q, const float *tile,
                                  int64_t head_dim, int j, float *s, const int raw) {
    static const int LANES[8] = {0, 2, 1, 3, 4, 6, 5, 7};
    const int64_t half = raw ? head_dim / 2 : head_dim;
    __m256 waiting[3][4][2]; /* sums of 1, 2 and 4 chains */
    for (int lane = 0; lane < 8; lane++) {
        __m256 sum[4][2];
        FOR_EACH_QUERY sum[r][0] = sum[r][1] = _mm256_setzero_ps();
        for (int64_t i = LANES[lane]; i < half; i += 8)
            _Pragma("GCC unroll 2") for (int y = 0; y <= raw; y++) {
                const int64_t d = i + y * half;
                const __m256 first = _mm256_loadu_ps(tile + d * SLOTS + j);
                const __m256 second = _mm256_loadu_ps(tile + d * SLOTS + j + 8);
                FOR_EACH_QUERY {
                    const __m256 x = _mm256_set1_ps(q[r * head_dim + d]);
                    sum[r][0] = _mm256_fmadd_ps(first, x, sum[r][0]);
                    sum[r][1] = _mm256_fmadd_ps(second, x, sum[r][1]);
                }
            }
        int level = 0;
        for (; lane >> level & 1; level++)
            FOR_EACH_QUERY {
                sum[r][0] = _mm256_add_ps(sum[r][0], waiting[level][r][0]);
                sum[r][1] = _mm256_add_ps(sum[r][1], waiting[level][r][1]);
            }
        FOR_EACH_QUERY {
            float *to = lane == 7 ? s + r * SLOTS + j : (float *)waiting[level][r];
            _mm256_storeu_ps(to, sum[r][0]);
            _mm256_storeu_ps(to + 8, sum[r][1]);
        }
    }
}

static void tile_scores_avx2(const float *q, int n_q, const float *tile, int64_t head_dim,
                             int order, float *s) {
    for (; n_q >= 4; n_q -= 4, q += 4 * head_dim, s += 4 * SLOTS)
        for (int j = 0; j < SLOTS; j += 16)
            if (order == TILE_ROPED) tile_rows_avx2(q, 4, tile, head_dim, j, s, 0);
            else tile_rows_avx2(q, 4, tile, head_dim, j, s, 1);
    for (; n_q >= 1; n_q -= 1, q += head_dim, s += SLOTS)
        for (int j = 0; j < SLOTS; j += 16)
            if (order == TILE_ROPED) tile_rows_avx2(q, 1, tile, head_dim, j, s, 0);
            else tile_rows_avx2(q, 1, tile, head_dim, j, s, 1);
}

static void softmax_block_avx2(float *s, int n_q, int n, int n_keys, int more, float *m, float *l,
                               float *acc, int64_t head_dim) {
    for (int r = 0; r < n_q; r++, s += SLOTS, acc += head_dim) {
        int n_row = n_keys + r * more < n ? n_keys + r * more : n;
        n_row = n_row > 0 ? n_row : 0;
        for (int j = n_row; j < SLOTS; j++) s[j] = -INFINITY;
        __m256 max_f32x8 = _mm256_loadu_ps(s);
        for (int j = 8; j < SLOTS; j += 8)
            max_f32x8 = _mm256_max_ps(max_f32x8, _mm256_loadu_ps(s + j));
        const float max = max_lanes_avx2(max_f32x8);
        if (max > m[r]) {
            const float shrink = expf(m[r] - max);
            m[r] = max;
            l[r] *= shrink;
            for (int64_t i = 0; i < head_dim; i += 8)
                store_up_to_avx2(acc, i, head_dim,
                                 _mm256_mul_ps(load_up_to_avx2(acc, i, head_dim, 0, 1),
                                               _mm256_set1_ps(shrink)));
        }
        __m256 sum = _mm256_setzero_ps();
        for (int j = 0; j < SLOTS; j += 8) {
            const __m256 score = _mm256_loadu_ps(s + j);
            const __m256 masked =
                _mm256_cmp_ps(score, _mm256_set1_ps(-INFINITY), _CMP_EQ_OQ);
            const __m256 e = _mm256_andnot_ps(
                masked, exp_avx2(_mm256_sub_ps(score, _mm256_set1_ps(m[r]))));
            _mm256_storeu_ps(s + j, e);
            sum = _mm256_add_ps(sum, e);
        }
        l[r] += sum_lanes_avx2(sum);
    }
}

/* n_q rows of acc, 8 * n_v dims from dim i on. With `some`, the dims are the last ones, fewer than
 * 8. */
ALWAYS_INLINE void weighted_sum_dims_avx2(const float *s, const int n_q, const void *v, int n,
                                          int64_t head_dim, int64_t i, const int n_v, float *acc,
                                          const int f32, const int some) {
    __m256 sum[8];
    FOR_EACH_QUERY
        FOR_EACH_VECTOR(x)
            sum[r * n_v + x] =
                load_lanes_avx2(acc, r * head_dim + i + 8 * x, head_dim - i, 1, some);
    for (int j = 0; j < n; j++) {
        __m256 value[8];
        if (!f32 && (n_v >= 4 || j % 2 == 0))
            fetch_lines_avx2(v, head_dim, 64 * i + 16 * n_v * j, n_v < 4 ? 1 : n_v / 4);
        FOR_EACH_VECTOR(x)
            value[x] = load_lanes_avx2(v, j * head_dim + i + 8 * x, head_dim - i, f32, some);
        FOR_EACH_QUERY {
            const __m256 weight = _mm256_set1_ps(s[r * SLOTS + j]);
            FOR_EACH_VECTOR(x)
                sum[r * n_v + x] = _mm256_fmadd_ps(value[x], weight, sum[r * n_v + x]);
        }
    }
    FOR_EACH_QUERY
        FOR_EACH_VECTOR(x)
            store_up_to_avx2(acc + r * head_dim, i + 8 * x, some ? head_dim : INT64_MAX,
                             sum[r * n_v + x]);
}

ALWAYS_INLINE void weighted_sum_rows_avx2(const float *s, const int n_q, const void *v, int n,
                                          int64_t head_dim, float *acc, const int f32) {
#define DIMS(n_v, some) \
    weighted_sum_dims_avx2(s, n_q, v, n, head_dim, i, n_v, acc, f32, some)
    int64_t i = 0;
    if (n_q == 1)
        for (; i + 64 <= head_dim; i += 64) DIMS(8, 0);
    if (n_q <= 2)
        for (; i + 32 <= head_dim; i += 32) DIMS(4, 0);
    for (; i + 16 <= head_dim; i += 16) DIMS(2, 0);
    for (; i + 8 <= head_dim; i += 8) DIMS(1, 0);
    if (i < head_dim) DIMS(1, 1);
#undef DIMS
}

ALWAYS_INLINE void weighted_sum_avx2(const float *s, int n_q, const void *v, int n,
                                     int64_t head_dim, float *acc, const int f32) {
    for (; n_q >= 4; n_q -= 4, s += 4 * SLOTS, acc += 4 * head_dim)
        weighted_sum_rows_avx2(s, 4, v, n, head_dim, acc, f32);
    for (; n_q >= 2; n_q -= 2, s += 2 * SLOTS, acc += 2 * head_dim)
        weighted_sum_rows_avx2(s, 2, v, n, head_dim, acc, f32);
    if (n_q) weighted_sum_rows_avx2(s, 1, v, n, head_dim, acc, f32);
}

#define WEIGHTED_SUM_AVX2(d) weighted_sum_avx2(s, n_q, v, n, d, acc, f32)
ALWAYS_INLINE void weighted_sum_any_avx2(const float *s, int n_q, const void *v, int n,
                                         int64_t head_dim, float *acc, const int f32) {
    BY_HEAD_DIM_AVX2(WEIGHTED_SUM_AVX2)
}
#undef WEIGHTED_SUM_AVX2

static void weighted_sum_f16_avx2(const float *s, int n_q, const void *v, int n, int64_t head_dim,
                                  float *acc) {
    weighted_sum_any_avx2(s, n_q, v, n, head_dim, acc, 0);
}

static void weighted_sum_f32_avx2(const float *s, int n_q, const void *v, int n, int64_t head_dim,
                                  float *acc) {
    weighted_sum_any_avx2(s, n_q, v, n, head_dim, acc, 1);
}

static void to_f32_avx2(const f16_t *x, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += 8)
        store_up_to_avx2(out, i, n, load_up_to_avx2(x, i, n, 0, 0));
}

static void use_attention_avx2(kernels_t *k) {
    k->rotate_back = rotate_back_avx2;
    k->scores[0][C_F16] = scores_roped_f16_avx2;
    k->scores[0][C_F32] = scores_roped_f32_avx2;
    k->scores[1][C_F16] = scores_raw_f16_avx2;
    k->scores[1][C_F32] = scores_raw_f32_avx2;
    k->keys[C_F16] = keys_f16_avx2;
    k->keys[C_F32] = keys_f32_avx2;
    k->tile_scores = tile_scores_avx2;
    k->softmax_block = softmax_block_avx2;
    k->weighted_sum[C_F16] = weighted_sum_f16_avx2;
    k->weighted_sum[C_F32] = weighted_sum_f32_avx2;
    k->to_f32 = to_f32_avx2;
}

#endif
