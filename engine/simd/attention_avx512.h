/* Attention tiles for AVX-512: keys of a prompt's tile, softmax, weighted sums of values.
 * attention_scalar.h says what each operation does; scores of keys as they are stored are in
 * scores_avx512.h.
 */
#ifndef LARIAT_ATTENTION_AVX512_H
#define LARIAT_ATTENTION_AVX512_H

#include <immintrin.h>

#include "attention_scalar.h"
#include "layout.h"
#include "scores_avx512.h"
#include "vector_avx512.h"

/* Dims i.. of 16 keys to rows of SLOTS floats, one row a dim */
ALWAYS_INLINE void store_transposed_avx512(__m512 keys_f32x16[16], int64_t n_dims, float *tile) {
    transpose_avx512(keys_f32x16);
    for (int64_t i = 0; i < n_dims; i++) _mm512_storeu_ps(tile + i * SLOTS, keys_f32x16[i]);
}

ALWAYS_INLINE void keys_avx512(const void *k, int n, int64_t head_dim, const float *row,
                               float *tile, const int f32) {
    const int64_t half = head_dim / 2;
    for (int j0 = 0; j0 < SLOTS; j0 += 16)
        for (int64_t i = 0; i < half; i += 16) {
            const int64_t n_dims = half - i < 16 ? half - i : 16;
            const __mmask16 lanes = first_lanes_avx512(n_dims);
            __m512 x[16], y[16];
            if (row)
                rotate_keys_avx512(k, j0, 16, n, head_dim, i, row, x, y, f32, 1, CACHE_FETCH_NONE,
                                   0);
            else
                for (int j = 0; j < 16; j++) {
                    const int64_t at = (j0 + j) * head_dim + i;
                    const __mmask16 here = j0 + j < n ? lanes : 0;
                    x[j] = load_lanes_avx512(k, at, here, f32);
                    y[j] = load_lanes_avx512(k, at + half, here, f32);
                }
            store_transposed_avx512(x, n_dims, tile + i * SLOTS + j0);
            store_transposed_avx512(y, n_dims, tile + (half + i) * SLOTS + j0);
        }
}

static void keys_f16_avx512(const void *k, int n, int64_t head_dim, const float *row, float *tile) {
    keys_avx512(k, n, head_dim, row, tile, 0);
}

static void keys_f32_avx512(const void *k, int n, int64_t head_dim, const float *row, float *tile) {
    keys_avx512(k, n, head_dim, row, tile, 1);
}

/* Adds the products of dim d of n_q queries and of 32 keys. */
ALWAYS_INLINE void add_dim_avx512(const float *q, const int n_q, const float *tile,
                                  int64_t head_dim, int64_t d, __m512 sum[8][2]) {
    const __m512 first = _mm512_loadu_ps(tile + d * SLOTS);
    const __m512 second = _mm512_loadu_ps(tile + d * SLOTS + 16);
    FOR_EACH_QUERY {
        const __m512 x = _mm512_set1_ps(q[r * head_dim + d]);
        sum[r][0] = _mm512_fmadd_ps(first, x, sum[r][0]);
        sum[r][1] = _mm512_fmadd_ps(second, x, sum[r][1]);
    }
}

/* n_q queries against 32 keys. Dims are added up in the order of scores_roped_avx512 or
 * scores_rotated_avx512, and of sum_16_avx512: a chain for each lane of those tiles, and the chains
 * as a tree. */
ALWAYS_INLINE void tile_rows_avx512(const float *q, const int n_q, const float *tile,
                                    int64_t head_dim, float *s, const int raw) {
    static const int LANES[16] = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
    const int64_t end = raw ? head_dim / 2 : head_dim;
    float waiting[4][8][SLOTS]; /* sums of 1, 2, 4 and 8 chains */
    for (int lane = 0; lane < 16; lane++) {
        __m512 sum[8][2];
        FOR_EACH_QUERY sum[r][0] = sum[r][1] = _mm512_setzero_ps();
        for (int64_t i = LANES[lane]; i < end; i += 16) {
            add_dim_avx512(q, n_q, tile, head_dim, i, sum);
            if (raw) add_dim_avx512(q, n_q, tile, head_dim, end + i, sum);
        }
        int level = 0;
        for (; lane >> level & 1; level++)
            FOR_EACH_QUERY {
                sum[r][0] = _mm512_add_ps(sum[r][0], _mm512_loadu_ps(waiting[level][r]));
                sum[r][1] = _mm512_add_ps(sum[r][1], _mm512_loadu_ps(waiting[level][r] + 16));
            }
        FOR_EACH_QUERY {
            float *to = lane == 15 ? s + r * SLOTS : waiting[level][r];
            _mm512_storeu_ps(to, sum[r][0]);
            _mm512_storeu_ps(to + 16, sum[r][1]);
        }
    }
}

/* The same in the order of scores_transposed_avx512: 16 dims of the first half, then 16 of the
 * second, in one chain */
ALWAYS_INLINE void tile_chain_avx512(const float *q, const int n_q, const float *tile,
                                     int64_t head_dim, float *s) {
    const int64_t half = head_dim / 2;
    __m512 sum[8][2];
    FOR_EACH_QUERY sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t i = 0; i < half; i += 16) {
        const int64_t stop = half - i < 16 ? half : i + 16;
        for (int64_t d = i; d < stop; d++) add_dim_avx512(q, n_q, tile, head_dim, d, sum);
        for (int64_t d = i; d < stop; d++) add_dim_avx512(q, n_q, tile, head_dim, half + d, sum);
    }
    FOR_EACH_QUERY {
        _mm512_storeu_ps(s + r * SLOTS, sum[r][0]);
        _mm512_storeu_ps(s + r * SLOTS + 16, sum[r][1]);
    }
}

ALWAYS_INLINE void tile_queries_avx512(const float *q, const int n_q, const float *tile,
                                       int64_t head_dim, int order, float *s) {
    if (order == TILE_ROPED) tile_rows_avx512(q, n_q, tile, head_dim, s, 0);
    else if (order == TILE_RAW) tile_rows_avx512(q, n_q, tile, head_dim, s, 1);
    else tile_chain_avx512(q, n_q, tile, head_dim, s);
}

static void tile_scores_avx512(const float *q, int n_q, const float *tile, int64_t head_dim,
                               int order, float *s) {
    for (; n_q >= 8; n_q -= 8, q += 8 * head_dim, s += 8 * SLOTS)
        tile_queries_avx512(q, 8, tile, head_dim, order, s);
    for (; n_q >= 1; n_q -= 1, q += head_dim, s += SLOTS)
        tile_queries_avx512(q, 1, tile, head_dim, order, s);
}

static void softmax_block_avx512(float *s, int n_q, int n, int n_keys, int more, float *m,
                                 float *l, float *acc, int64_t head_dim) {
    const __m512 nothing = _mm512_set1_ps(-INFINITY);
    for (int r = 0; r < n_q; r++, s += SLOTS, acc += head_dim) {
        int n_row = n_keys + r * more < n ? n_keys + r * more : n;
        n_row = n_row > 0 ? n_row : 0;
        const __mmask16 lanes0 = first_lanes_avx512(n_row);
        const __mmask16 lanes1 = n_row > 16 ? first_lanes_avx512(n_row - 16) : 0;
        const __m512 s0 = _mm512_mask_loadu_ps(nothing, lanes0, s);
        const __m512 s1 = _mm512_mask_loadu_ps(nothing, lanes1, s + 16);
        const float max = _mm512_reduce_max_ps(_mm512_max_ps(s0, s1));
        if (max > m[r]) {
            const float shrink = expf(m[r] - max);
            const __m512 factor = _mm512_set1_ps(shrink);
            m[r] = max;
            l[r] *= shrink;
            for (int64_t i = 0; i < head_dim; i += 16) {
                const __mmask16 lanes = first_lanes_avx512(head_dim - i);
                _mm512_mask_storeu_ps(
                    acc + i, lanes, _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, acc + i), factor));
            }
        }
        const __m512 base = _mm512_set1_ps(m[r]);
        /* A score of -inf has no weight; exp_avx512 would give it exp(-87). */
        const __mmask16 seen0 = _mm512_mask_cmp_ps_mask(lanes0, s0, nothing, _CMP_NEQ_UQ);
        const __mmask16 seen1 = _mm512_mask_cmp_ps_mask(lanes1, s1, nothing, _CMP_NEQ_UQ);
        const __m512 e0 = _mm512_maskz_mov_ps(seen0, exp_avx512(_mm512_sub_ps(s0, base)));
        const __m512 e1 = _mm512_maskz_mov_ps(seen1, exp_avx512(_mm512_sub_ps(s1, base)));
        _mm512_storeu_ps(s, e0);
        _mm512_storeu_ps(s + 16, e1);
        l[r] += _mm512_reduce_add_ps(_mm512_add_ps(e0, e1));
    }
}

/* n_q rows of acc, 16 * n_v dims from dim i on */
ALWAYS_INLINE void weighted_sum_dims_avx512(const float *s, const int n_q, const void *v, int n,
                                            int64_t head_dim, int64_t i, const int n_v,
                                            __mmask16 lanes, float *acc, const int f32,
                                            const int masked, const int fetch, int64_t ahead) {
    __m512 sum[4][8];
    FOR_EACH_QUERY
        FOR_EACH_VECTOR(x)
            sum[r][x] = _mm512_maskz_loadu_ps(lanes, acc + r * head_dim + i + 16 * x);
    for (int j = 0; j < n; j++) {
        if (fetch == CACHE_FETCH_BLOCKS && n_q == 4 && n_v == 4)
            fetch_blocks_ahead_avx512(v, j * head_dim + i, 16 * n_v, head_dim);
        if (fetch == CACHE_FETCH_LINES)
            fetch_f16_avx512(v, SLOTS * i + 16 * n_v * j, 16 * n_v, ahead);
        FOR_EACH_VECTOR(x) {
            const int64_t at = j * head_dim + i + 16 * x;
            const __m512 value = masked ? load_lanes_avx512(v, at, lanes, f32)
                                        : load_avx512(v, at, f32);
            FOR_EACH_QUERY
                sum[r][x] = _mm512_fmadd_ps(value, _mm512_set1_ps(s[r * SLOTS + j]), sum[r][x]);
        }
    }
    FOR_EACH_QUERY
        FOR_EACH_VECTOR(x)
            _mm512_mask_storeu_ps(acc + r * head_dim + i + 16 * x, lanes, sum[r][x]);
}

ALWAYS_INLINE void weighted_sum_rows_avx512(const float *s, const int n_q, const void *v, int n,
                                            int64_t head_dim, float *acc, const int f32,
                                            const int fetch, int64_t ahead) {
#define DIMS(n_v, lanes, masked)                                                                 \
    weighted_sum_dims_avx512(s, n_q, v, n, head_dim, i, n_v, lanes, acc, f32, masked, fetch, ahead)
    int64_t i = 0;
    if (n_q < 4)
        for (; i + 128 <= head_dim; i += 128) DIMS(8, 0xffff, 0);
    for (; i + 64 <= head_dim; i += 64) DIMS(4, 0xffff, 0);
    for (; i + 16 <= head_dim; i += 16) DIMS(1, 0xffff, 0);
    if (i < head_dim) DIMS(1, first_lanes_avx512(head_dim - i), 1);
#undef DIMS
}

ALWAYS_INLINE void weighted_sum_avx512(const float *s, int n_q, const void *v, int n,
                                       int64_t head_dim, float *acc, const int f32,
                                       const int fetch) {
    int64_t ahead = CACHE_FETCH_BYTES;
    for (; n_q >= 4; n_q -= 4, s += 4 * SLOTS, acc += 4 * head_dim, ahead = 0)
        weighted_sum_rows_avx512(s, 4, v, n, head_dim, acc, f32, fetch, ahead);
    if (n_q >= 2) {
        weighted_sum_rows_avx512(s, 2, v, n, head_dim, acc, f32, fetch, ahead);
        n_q -= 2, s += 2 * SLOTS, acc += 2 * head_dim, ahead = 0;
    }
    if (n_q) weighted_sum_rows_avx512(s, 1, v, n, head_dim, acc, f32, fetch, ahead);
}

static void weighted_sum_f16_avx512(const float *s, int n_q, const void *v, int n, int64_t head_dim,
                                    float *acc) {
    weighted_sum_avx512(s, n_q, v, n, head_dim, acc, 0, CACHE_FETCH_BLOCKS);
}

static void weighted_sum_f32_avx512(const float *s, int n_q, const void *v, int n, int64_t head_dim,
                                    float *acc) {
    weighted_sum_avx512(s, n_q, v, n, head_dim, acc, 1, CACHE_FETCH_NONE);
}

static void weighted_sum_f16_avx512_intel(const float *s, int n_q, const void *v, int n,
                                          int64_t head_dim, float *acc) {
#define WEIGHTED_SUM(d) weighted_sum_avx512(s, n_q, v, n, d, acc, 0, CACHE_FETCH_LINES)
    BY_HEAD_DIM_AVX512(WEIGHTED_SUM, weighted_sum_f16_avx512(s, n_q, v, n, head_dim, acc))
#undef WEIGHTED_SUM
}

static void to_f32_avx512(const f16_t *x, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = first_lanes_avx512(n - i);
        _mm512_mask_storeu_ps(out + i, lanes, load_lanes_avx512(x, i, lanes, 0));
    }
}

static void use_attention_avx512(kernels_t *k) {
    k->rotate_back = rotate_back_avx512;
    k->scores[0][C_F16] = scores_roped_f16_avx512;
    k->scores[0][C_F32] = scores_roped_f32_avx512;
    k->scores[1][C_F16] = scores_raw_f16_avx512;
    k->scores[1][C_F32] = scores_raw_f32_avx512;
    k->keys[C_F16] = keys_f16_avx512;
    k->keys[C_F32] = keys_f32_avx512;
    k->tile_scores = tile_scores_avx512;
    k->softmax_block = softmax_block_avx512;
    k->weighted_sum[C_F16] = weighted_sum_f16_avx512;
    k->weighted_sum[C_F32] = weighted_sum_f32_avx512;
    k->to_f32 = to_f32_avx512;
}

/* On top of use_attention_avx512 */
static void use_attention_avx512_intel(kernels_t *k) {
    k->scores[0][C_F16] = scores_roped_f16_avx512_intel;
    k->scores[1][C_F16] = scores_raw_f16_avx512_intel;
    k->weighted_sum[C_F16] = weighted_sum_f16_avx512_intel;
}

#endif
