/* Attention tiles in plain C: queries against one block of up to 32 cached positions.
 *
 * The operations have the same signature in every instruction set. head_dim is that of keys or of
 * values.
 *   scores_*        s[r][j] = q[r] . k[j], for up to SCORE_ROWS queries, k as it is stored.
 *                   The raw ones take queries that are rotated back by the position of the first
 *                   key, and rotate key j by row j of the table.
 *   keys_*          keys as float, rotated if they are raw, transposed to a tile [head_dim][32]
 *   tile_scores     s[r][j] from such a tile, for any number of queries, with the bits that scores_*
 *                   give one token (see TILE_ROPED)
 *   softmax_block   one block of the online softmax (arXiv 1805.02867): s becomes weights, and m, l
 *                   and acc are brought up to date
 *   weighted_sum_*  acc[r] += sum over j of s[r][j] v[j]
 *   rotate_back     a head rotated by minus the angles of a table row
 *   to_f32          f16 to float
 * A row of scores has room for 32.
 */
#ifndef LARIAT_ATTENTION_SCALAR_H
#define LARIAT_ATTENTION_SCALAR_H

#include "layout.h"
#include "table.h"

ALWAYS_INLINE float load_scalar(const void *p, int64_t i, const int f32) {
    return f32 ? ((const float *)p)[i] : f16_to_f32(((const f16_t *)p)[i]);
}

/* out = n heads x, rotated by minus the angles of one table row */
static void rotate_back_scalar(const float *x, int n, const float *row, int64_t half, float *out) {
    for (int h = 0; h < n; h++, x += 2 * half, out += 2 * half)
        for (int64_t i = 0; i < half; i++) {
            const float a = x[i], b = x[half + i];
            out[i] = a * row[i] + b * row[half + i];
            out[half + i] = b * row[i] - a * row[half + i];
        }
}

ALWAYS_INLINE void scores_in_c(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                               const rope_t *rope, float *s, const int raw, const int f32) {
    const int64_t half = head_dim / 2;
    for (int r = 0; r < n_q; r++)
        for (int j = 0; j < n; j++) {
            const float *row = raw ? rope->rows + j * head_dim : NULL;
            float sum = 0;
            for (int64_t i = 0; i < half; i++) {
                float a = load_scalar(k, j * head_dim + i, f32);
                float b = load_scalar(k, j * head_dim + half + i, f32);
                if (raw) {
                    const float rotated = a * row[i] - b * row[half + i];
                    b = a * row[half + i] + b * row[i];
                    a = rotated;
                }
                sum += a * q[r * head_dim + i] + b * q[r * head_dim + half + i];
            }
            s[r * SLOTS + j] = sum;
        }
}

static void scores_roped_f16_scalar(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                    const rope_t *rope, float *s) {
    scores_in_c(q, n_q, k, n, head_dim, rope, s, 0, 0);
}

static void scores_roped_f32_scalar(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                    const rope_t *rope, float *s) {
    scores_in_c(q, n_q, k, n, head_dim, rope, s, 0, 1);
}

static void scores_raw_f16_scalar(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                  const rope_t *rope, float *s) {
    scores_in_c(q, n_q, k, n, head_dim, rope, s, 1, 0);
}

static void scores_raw_f32_scalar(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                                  const rope_t *rope, float *s) {
    scores_in_c(q, n_q, k, n, head_dim, rope, s, 1, 1);
}

/* `row` is the table row of the first key, NULL for keys that are rotated already. */
ALWAYS_INLINE void keys_in_c(const void *k, int n, int64_t head_dim, const float *row, float *tile,
                             const int f32) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i++)
        for (int j = 0; j < SLOTS; j++) {
            float a = 0, b = 0;
            if (j < n) {
                a = load_scalar(k, j * head_dim + i, f32);
                b = load_scalar(k, j * head_dim + half + i, f32);
                if (row) {
                    const float *t = row + j * head_dim;
                    const float rotated = a * t[i] - b * t[half + i];
                    b = a * t[half + i] + b * t[i];
                    a = rotated;
                }
            }
            tile[i * SLOTS + j] = a;
            tile[(half + i) * SLOTS + j] = b;
        }
}

static void keys_f16_scalar(const void *k, int n, int64_t head_dim, const float *row, float *tile) {
    keys_in_c(k, n, head_dim, row, tile, 0);
}

static void keys_f32_scalar(const void *k, int n, int64_t head_dim, const float *row, float *tile) {
    keys_in_c(k, n, head_dim, row, tile, 1);
}

static void tile_scores_scalar(const float *q, int n_q, const float *tile, int64_t head_dim,
                               int order, float *s) {
    const int64_t half = head_dim / 2;
    (void)order; /* scores_in_c knows one */
    for (int r = 0; r < n_q; r++, q += head_dim) {
        float sum[SLOTS] = {0};
        for (int64_t i = 0; i < half; i++)
            for (int j = 0; j < SLOTS; j++)
                sum[j] += tile[i * SLOTS + j] * q[i] + tile[(half + i) * SLOTS + j] * q[half + i];
        memcpy(s + r * SLOTS, sum, sizeof sum);
    }
}

/* Row r attends to the first `n_keys + r * more` positions of the block, which holds n, but to none
 * whose score is -inf. m: largest score so far, of a position of the block at least; l: sum of
 * exp(score - m); acc [n_q][head_dim]: weighted sum of values. */
static void softmax_block_scalar(float *s, int n_q, int n, int n_keys, int more, float *m, float *l,
                                 float *acc, int64_t head_dim) {
    for (int r = 0; r < n_q; r++, s += SLOTS, acc += head_dim) {
        const int n_row = n_keys + r * more < n ? n_keys + r * more : n;
        float max = m[r], sum = 0;
        for (int j = 0; j < n_row; j++) max = s[j] > max ? s[j] : max;
        if (max > m[r]) {
            const float shrink = expf(m[r] - max);
            m[r] = max;
            l[r] *= shrink;
            for (int64_t i = 0; i < head_dim; i++) acc[i] *= shrink;
        }
        for (int j = 0; j < SLOTS; j++) {
            s[j] = j < n_row ? expf(s[j] - max) : 0.0f;
            sum += s[j];
        }
        l[r] += sum;
    }
}

ALWAYS_INLINE void weighted_sum_in_c(const float *s, int n_q, const void *v, int n,
                                     int64_t head_dim, float *acc, const int f32) {
    for (int r = 0; r < n_q; r++)
        for (int j = 0; j < n; j++) {
            const float weight = s[r * SLOTS + j];
            for (int64_t i = 0; i < head_dim; i++)
                acc[r * head_dim + i] += weight * load_scalar(v, j * head_dim + i, f32);
        }
}

static void weighted_sum_f16_scalar(const float *s, int n_q, const void *v, int n, int64_t head_dim,
                                    float *acc) {
    weighted_sum_in_c(s, n_q, v, n, head_dim, acc, 0);
}

static void weighted_sum_f32_scalar(const float *s, int n_q, const void *v, int n, int64_t head_dim,
                                    float *acc) {
    weighted_sum_in_c(s, n_q, v, n, head_dim, acc, 1);
}

static void to_f32_scalar(const f16_t *x, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = f16_to_f32(x[i]);
}

static void use_attention_scalar(kernels_t *k) {
    k->rotate_back = rotate_back_scalar;
    k->scores[0][C_F16] = scores_roped_f16_scalar;
    k->scores[0][C_F32] = scores_roped_f32_scalar;
    k->scores[1][C_F16] = scores_raw_f16_scalar;
    k->scores[1][C_F32] = scores_raw_f32_scalar;
    k->keys[C_F16] = keys_f16_scalar;
    k->keys[C_F32] = keys_f32_scalar;
    k->tile_scores = tile_scores_scalar;
    k->softmax_block = softmax_block_scalar;
    k->weighted_sum[C_F16] = weighted_sum_f16_scalar;
    k->weighted_sum[C_F32] = weighted_sum_f32_scalar;
    k->to_f32 = to_f32_scalar;
}

#endif
