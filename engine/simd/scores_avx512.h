/* Scores for AVX-512: queries against up to 32 keys of a block as they are stored.
 * attention_scalar.h says what each operation does.
 *
 * A raw key is rotated by its offset in the block, by rows 0 to 31 of the table, which stay in the
 * L1 cache; the query was rotated back by the position of the block's first key. So the key is
 * rotated alike for all queries, of one token or of many, and every score has the same bits.
 */
#ifndef LARIAT_SCORES_AVX512_H
#define LARIAT_SCORES_AVX512_H

#include <immintrin.h>

#include "attention_scalar.h"
#include "fetch.h"
#include "layout.h"
#include "vector_avx512.h"

ALWAYS_INLINE __m512 load_avx512(const void *p, int64_t i, const int f32) {
    return f32 ? _mm512_loadu_ps((const float *)p + i)
               : _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const f16_t *)p + i)));
}

ALWAYS_INLINE __m512 load_lanes_avx512(const void *p, int64_t i, __mmask16 lanes, const int f32) {
    return f32 ? _mm512_maskz_loadu_ps(lanes, (const float *)p + i)
               : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, (const f16_t *)p + i));
}

/* How a tile asks for f16 keys and values before it reads them. Always into the L2 cache: the L1
 * cache has no room for them. */
enum {
    CACHE_FETCH_NONE,
    /* Four queries or more compute so much for a block that the processor's own prefetch falls
     * behind, so they ask for numbers two blocks further on. Fewer queries are slower with it. */
    CACHE_FETCH_BLOCKS,
    /* Intel's cores read half again as fast with this: each step asks for a line or a few, `ahead`
     * bytes further on, in the order of memory. Many lines at once would take all the places for
     * misses of the L1 cache, and a key that stands in the L2 cache would wait behind them. */
    CACHE_FETCH_LINES
};
/* `ahead` of the queries that read a block first. Those after them have 0: the block is there. */
enum { CACHE_FETCH_BYTES = 6144 };

ALWAYS_INLINE void fetch_blocks_ahead_avx512(const void *p_f16, int64_t at, int64_t n,
                                             int64_t head_dim) {
    const f16_t *from = (const f16_t *)p_f16 + at + 2 * SLOTS * head_dim;
    for (int64_t i = 0; i < n; i += 32) __builtin_prefetch(from + i, 0, 2);
}

/* Ask for n numbers from `at` on. */
ALWAYS_INLINE void fetch_f16_avx512(const void *p_f16, int64_t at, const int n, int64_t ahead) {
    fetch_to_l2((const f16_t *)p_f16 + at, 2 * n, ahead);
}

/* Lane i of the result is the sum of the lanes of p[i]. */
ALWAYS_INLINE __m512 sum_16_avx512(const __m512 p_f32x16[16]) {
    __m512 pairs[8], fours[4];
    for (int i = 0; i < 8; i++)
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(p_f32x16[2 * i], p_f32x16[2 * i + 1]),
                                 _mm512_unpackhi_ps(p_f32x16[2 * i], p_f32x16[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    /* fours[i]: each 128-bit quarter holds a part of the sums 4i..4i+3; add the quarters */
    const __m512 left = _mm512_add_ps(_mm512_shuffle_f32x4(fours[0], fours[1], 0x88),
                                      _mm512_shuffle_f32x4(fours[0], fours[1], 0xdd));
    const __m512 right = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2], fours[3], 0x88),
                                       _mm512_shuffle_f32x4(fours[2], fours[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(left, right, 0x88),
                         _mm512_shuffle_f32x4(left, right, 0xdd));
}

/* Lane j of the new vector i is lane i of the old vector j. */
ALWAYS_INLINE void transpose_avx512(__m512 rows_f32x16[16]) {
    __m512 *r = rows_f32x16, t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
        const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    /* r[4 g + i]: quarter h has lanes 4 h + i of the four vectors from 4 g on */
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
        r[4 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88);
        r[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
        r[12 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

static void rotate_back_avx512(const float *x, int n, const float *row, int64_t half, float *out) {
    for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 lanes = first_lanes_avx512(half - i);
        const __m512 cosine = _mm512_maskz_loadu_ps(lanes, row + i);
        const __m512 sine = _mm512_maskz_loadu_ps(lanes, row + half + i);
        for (int h = 0; h < n; h++) {
            const float *from = x + 2 * half * h + i;
            float *to = out + 2 * half * h + i;
            const __m512 a = _mm512_maskz_loadu_ps(lanes, from);
            const __m512 b = _mm512_maskz_loadu_ps(lanes, from + half);
            _mm512_mask_storeu_ps(to, lanes, _mm512_fmadd_ps(a, cosine, _mm512_mul_ps(b, sine)));
            _mm512_mask_storeu_ps(to + half, lanes,
                                  _mm512_fmsub_ps(b, cosine, _mm512_mul_ps(a, sine)));
        }
    }
}

/* Keys that are rotated already: each of n_q queries keeps one sum of 16 lanes a key. */
ALWAYS_INLINE void scores_roped_avx512(const float *q, const int n_q, const void *k, int n,
                                       int64_t head_dim, float *s, const int f32,
                                       const int fetch, int64_t ahead) {
    const int64_t whole = head_dim & ~(int64_t)15;
    const __mmask16 rest = first_lanes_avx512(head_dim - whole);
    for (int j0 = 0; j0 < n; j0 += 16) {
        __m512 partial[4][16];
        for (int j = 0; j < 16; j++) {
            __m512 sum[4];
            FOR_EACH_QUERY sum[r] = _mm512_setzero_ps();
            if (j0 + j < n) {
                const int64_t at = (j0 + j) * head_dim;
                if (fetch == CACHE_FETCH_BLOCKS && n_q == 4)
                    fetch_blocks_ahead_avx512(k, at, head_dim, head_dim);
                if (fetch == CACHE_FETCH_LINES) fetch_f16_avx512(k, at, (int)head_dim, ahead);
                for (int64_t i = 0; i < whole; i += 16) {
                    const __m512 key = load_avx512(k, at + i, f32);
                    FOR_EACH_QUERY
                        sum[r] =
                            _mm512_fmadd_ps(key, _mm512_loadu_ps(q + r * head_dim + i), sum[r]);
                }
                if (rest) {
                    const __m512 key = load_lanes_avx512(k, at + whole, rest, f32);
                    FOR_EACH_QUERY
                        sum[r] = _mm512_fmadd_ps(
                            key, _mm512_maskz_loadu_ps(rest, q + r * head_dim + whole), sum[r]);
                }
            }
            FOR_EACH_QUERY partial[r][j] = sum[r];
        }
        FOR_EACH_QUERY
            _mm512_storeu_ps(s + r * SLOTS + j0, sum_16_avx512(partial[r]));
    }
}

/* Keys j to j + n_k - 1, rotated by their offsets: x has dims i.. of the first half, y those of the
 * second. Keys beyond n are 0. */
ALWAYS_INLINE void rotate_keys_avx512(const void *k, int j, const int n_k, int n,
                                      int64_t head_dim, int64_t i, const float *rows, __m512 *x,
                                      __m512 *y, const int f32, const int masked, const int fetch,
                                      int64_t ahead) {
    const int64_t half = head_dim / 2;
    const __mmask16 lanes = masked ? first_lanes_avx512(half - i) : (__mmask16)0xffff;
    for (int o = 0; o < n_k; o++) {
        x[o] = y[o] = _mm512_setzero_ps();
        if (j + o >= n) continue;
        if (fetch == CACHE_FETCH_LINES)
            fetch_f16_avx512(k, j * head_dim + 2 * n_k * i + 32 * o, 32, ahead);
        const int64_t at = (j + o) * head_dim + i;
        const __m512 a = masked ? load_lanes_avx512(k, at, lanes, f32) : load_avx512(k, at, f32);
        const __m512 b = masked ? load_lanes_avx512(k, at + half, lanes, f32)
                                : load_avx512(k, at + half, f32);
        const __m512 cosine = _mm512_maskz_loadu_ps(lanes, rows + at);
        const __m512 sine = _mm512_maskz_loadu_ps(lanes, rows + at + half);
        x[o] = _mm512_fmsub_ps(a, cosine, _mm512_mul_ps(b, sine));
        y[o] = _mm512_fmadd_ps(a, sine, _mm512_mul_ps(b, cosine));
    }
}

/* Adds the products of dims i.. of both halves to the sums of each query and of keys j to j + 3. */
ALWAYS_INLINE void add_rotated_avx512(const float *q, const int n_q, const void *k, int j, int n,
                                      int64_t head_dim, int64_t i, const float *rows,
                                      __m512 sum[4][4], const int f32, const int masked,
                                      const int fetch, int64_t ahead) {
    const int64_t half = head_dim / 2;
    const __mmask16 lanes = masked ? first_lanes_avx512(half - i) : (__mmask16)0xffff;
    __m512 x[4], y[4];
    rotate_keys_avx512(k, j, 4, n, head_dim, i, rows, x, y, f32, masked, fetch, ahead);
    FOR_EACH_QUERY {
        const float *qr = q + r * head_dim + i;
        const __m512 qx = _mm512_maskz_loadu_ps(lanes, qr);
        const __m512 qy = _mm512_maskz_loadu_ps(lanes, qr + half);
        for (int o = 0; o < 4; o++) sum[r][o] = _mm512_fmadd_ps(x[o], qx, sum[r][o]);
        for (int o = 0; o < 4; o++) sum[r][o] = _mm512_fmadd_ps(y[o], qy, sum[r][o]);
    }
}

/* Key j is rotated by row j of the table, then as above, but four keys at a time, so that a query's
 * numbers are loaded once for four. */
ALWAYS_INLINE void scores_rotated_avx512(const float *q, const int n_q, const void *k, int n,
                                         int64_t head_dim, const float *rows, float *s,
                                         const int f32, const int fetch, int64_t ahead) {
    const int64_t half = head_dim / 2, whole = half & ~(int64_t)15;
    for (int j0 = 0; j0 < n; j0 += 16) {
        __m512 partial[4][16];
        for (int j = 0; j < 16; j += 4) {
            __m512 sum[4][4];
            FOR_EACH_QUERY for (int o = 0; o < 4; o++) sum[r][o] = _mm512_setzero_ps();
            if (j0 + j < n) {
                if (fetch == CACHE_FETCH_BLOCKS && n_q == 4)
                    fetch_blocks_ahead_avx512(k, (j0 + j) * head_dim, 4 * head_dim, head_dim);
                for (int64_t i = 0; i < whole; i += 16)
                    add_rotated_avx512(q, n_q, k, j0 + j, n, head_dim, i, rows, sum, f32, 0, fetch,
                                       ahead);
                if (whole < half)
                    add_rotated_avx512(q, n_q, k, j0 + j, n, head_dim, whole, rows, sum, f32, 1,
                                       fetch, ahead);
            }
            FOR_EACH_QUERY for (int o = 0; o < 4; o++) partial[r][j + o] = sum[r][o];
        }
        FOR_EACH_QUERY
            _mm512_storeu_ps(s + r * SLOTS + j0, sum_16_avx512(partial[r]));
    }
}

/* Adds the products of n_dims dims from i on, of both halves, to the sums of 8 queries. A lane is a
 * key. */
ALWAYS_INLINE void add_transposed_avx512(const float *q, const void *k, int j0, int n,
                                         int64_t head_dim, int64_t i, const int64_t n_dims,
                                         const float *rows, __m512 sum[8], const int f32,
                                         const int masked, const int fetch, int64_t ahead) {
    enum { n_q = 8 };
    __m512 x[16], y[16];
    if (fetch == CACHE_FETCH_BLOCKS)
        fetch_blocks_ahead_avx512(k, j0 * head_dim + 32 * i, 32 * n_dims, head_dim);
    rotate_keys_avx512(k, j0, 16, n, head_dim, i, rows, x, y, f32, masked, fetch, ahead);
    transpose_avx512(x);
    _Pragma("GCC unroll 16")
    for (int64_t d = 0; d < n_dims; d++)
        FOR_EACH_QUERY
            sum[r] = _mm512_fmadd_ps(x[d], _mm512_set1_ps(q[r * head_dim + i + d]), sum[r]);
    transpose_avx512(y);
    q += head_dim / 2;
    _Pragma("GCC unroll 16")
    for (int64_t d = 0; d < n_dims; d++)
        FOR_EACH_QUERY
            sum[r] = _mm512_fmadd_ps(y[d], _mm512_set1_ps(q[r * head_dim + i + d]), sum[r]);
}

/* Eight queries: 16 keys are rotated and transposed, so that a lane is a key. That costs less than
 * adding up the lanes for each query and key, and a key is rotated once for all eight (16 ns a key
 * of 64 dims, a roped key 15 ns; rotated for four queries and again for the others: 23 ns). */
ALWAYS_INLINE void scores_transposed_avx512(const float *q, const void *k, int n, int64_t head_dim,
                                            const float *rows, float *s, const int f32,
                                            const int fetch, int64_t ahead) {
    enum { n_q = 8 };
    const int64_t half = head_dim / 2;
    for (int j0 = 0; j0 < n; j0 += 16) {
        __m512 sum[n_q];
        int64_t i = 0;
        FOR_EACH_QUERY sum[r] = _mm512_setzero_ps();
        for (; i + 16 <= half; i += 16)
            add_transposed_avx512(q, k, j0, n, head_dim, i, 16, rows, sum, f32, 0, fetch, ahead);
        if (i < half)
            add_transposed_avx512(q, k, j0, n, head_dim, i, half - i, rows, sum, f32, 1, fetch,
                                  ahead);
        FOR_EACH_QUERY _mm512_storeu_ps(s + r * SLOTS + j0, sum[r]);
    }
}

/* Queries by fours, twos and ones. Each is compiled on its own: so its sums stay in registers. */
#define BY_QUERIES_AVX512(four, two, one)                                                  \
    for (; n_q >= 4; n_q -= 4, q += 4 * head_dim, s += 4 * SLOTS, ahead = 0) four;         \
    if (n_q >= 2) {                                                                        \
        two;                                                                               \
        n_q -= 2, q += 2 * head_dim, s += 2 * SLOTS, ahead = 0;                            \
    }                                                                                      \
    if (n_q) one;

ALWAYS_INLINE void scores_avx512(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                 const rope_t *rope, float *s, const int raw, const int f32,
                                 const int fetch) {
    int64_t ahead = CACHE_FETCH_BYTES;
    if (!raw) {
        BY_QUERIES_AVX512(scores_roped_avx512(q, 4, k, n, head_dim, s, f32, fetch, ahead),
                          scores_roped_avx512(q, 2, k, n, head_dim, s, f32, fetch, ahead),
                          scores_roped_avx512(q, 1, k, n, head_dim, s, f32, fetch, ahead))
        return;
    }
    const float *rows = rope->rows;
    for (; n_q >= 8; n_q -= 8, q += 8 * head_dim, s += 8 * SLOTS, ahead = 0)
        scores_transposed_avx512(q, k, n, head_dim, rows, s, f32, fetch, ahead);
    BY_QUERIES_AVX512(scores_rotated_avx512(q, 4, k, n, head_dim, rows, s, f32, fetch, ahead),
                      scores_rotated_avx512(q, 2, k, n, head_dim, rows, s, f32, fetch, ahead),
                      scores_rotated_avx512(q, 1, k, n, head_dim, rows, s, f32, fetch, ahead))
}
#undef BY_QUERIES_AVX512

/* A usual head_dim is known when compiling: known(64) or known(128). `another` is for the rest. */
#define BY_HEAD_DIM_AVX512(known, another) \
    if (head_dim == 128) known(128);       \
    else if (head_dim == 64) known(64);    \
    else another;

static void scores_roped_f16_avx512(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                    const rope_t *rope, float *s) {
    scores_avx512(q, n_q, k, n, head_dim, rope, s, 0, 0, CACHE_FETCH_BLOCKS);
}

static void scores_roped_f32_avx512(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                    const rope_t *rope, float *s) {
    scores_avx512(q, n_q, k, n, head_dim, rope, s, 0, 1, CACHE_FETCH_NONE);
}

static void scores_raw_f16_avx512(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                  const rope_t *rope, float *s) {
    scores_avx512(q, n_q, k, n, head_dim, rope, s, 1, 0, CACHE_FETCH_BLOCKS);
}

static void scores_raw_f32_avx512(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                  const rope_t *rope, float *s) {
    scores_avx512(q, n_q, k, n, head_dim, rope, s, 1, 1, CACHE_FETCH_NONE);
}

static void scores_roped_f16_avx512_intel(const float *q, int n_q, const void *k, int n,
                                          int64_t head_dim, const rope_t *rope, float *s) {
#define SCORES(d) scores_avx512(q, n_q, k, n, d, rope, s, 0, 0, CACHE_FETCH_LINES)
    BY_HEAD_DIM_AVX512(SCORES, scores_roped_f16_avx512(q, n_q, k, n, head_dim, rope, s))
#undef SCORES
}

static void scores_raw_f16_avx512_intel(const float *q, int n_q, const void *k, int n,
                                        int64_t head_dim, const rope_t *rope, float *s) {
#define SCORES(d) scores_avx512(q, n_q, k, n, d, rope, s, 1, 0, CACHE_FETCH_LINES)
    BY_HEAD_DIM_AVX512(SCORES, scores_raw_f16_avx512(q, n_q, k, n, head_dim, rope, s))
#undef SCORES
}

#endif
