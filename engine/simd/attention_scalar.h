/* Attention tiles in plain C: queries against one block of up to 32 cached positions.
 *
 * The operations, with the same signature at every level (head_dim stands for that of K or V):
 *   scores_*   s[r][j] = q[r] . k[j], for up to SCORE_ROWS queries and keys as they are stored.
 *              The raw ones get queries rotated back by the position of the block's first key, and
 *              turn key j by j more: see `rope_t`. Without its `step`, by the angles of row j.
 *   keys_*     keys of a block to float, rotated if raw, transposed to [head_dim][32]
 *   tile_scores  s[r][j] from such a tile, for any number of queries
 *   softmax_block  one step of the online softmax: s becomes weights, m, l and acc follow
 *   weigh_*    acc[r] += sum over j of s[r][j] v[j]
 * Scores stand in rows of 32.
 */
#ifndef LARIAT_ATTENTION_SCALAR_H
#define LARIAT_ATTENTION_SCALAR_H

#include "layout.h"

ALWAYS_INLINE float load_scalar(const void *p, int64_t i, const int f32) {
    return f32 ? ((const float *)p)[i] : f16_to_f32(((const f16_t *)p)[i]);
}

/* Four queries or more compute so much for a block that the hardware's prefetch falls behind. So
 * they ask for numbers of two blocks further on, into the L2 cache: the L1 has no room for them.
 * With one query the same is slower. */
ALWAYS_INLINE void fetch_blocks_ahead(const void *p_f16, int64_t at, int64_t n, int64_t head_dim) {
    const f16_t *from = (const f16_t *)p_f16 + at + 2 * SLOTS * head_dim;
    for (int64_t i = 0; i < n; i += 32) __builtin_prefetch(from + i, 0, 2);
}

/* out = n heads x rotated by minus the angles of one table row */
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
                    const float turned = a * row[i] - b * row[half + i];
                    b = a * row[half + i] + b * row[i];
                    a = turned;
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
                    const float turned = a * t[i] - b * t[half + i];
                    b = a * t[half + i] + b * t[i];
                    a = turned;
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
                               float *s) {
    for (int r = 0; r < n_q; r++) {
        float sum[SLOTS] = {0};
        for (int64_t i = 0; i < head_dim; i++)
            for (int j = 0; j < SLOTS; j++) sum[j] += q[r * head_dim + i] * tile[i * SLOTS + j];
        memcpy(s + r * SLOTS, sum, sizeof sum);
    }
}

/* Row r sees the first `n_visible + r * more` of the block's n positions (never over n).
 * m: maximum so far, l: sum of exp(score - m), acc [n_q][head_dim]: weighted sum of values. */
static void softmax_block_scalar(float *s, int n_q, int n, int n_visible, int more, float *m,
                                 float *l, float *acc, int64_t head_dim) {
    for (int r = 0; r < n_q; r++, s += SLOTS, acc += head_dim) {
        const int see = n_visible + r * more < n ? n_visible + r * more : n;
        float most = m[r], sum = 0;
        for (int j = 0; j < see; j++) most = s[j] > most ? s[j] : most;
        if (most > m[r]) {
            const float shrink = expf(m[r] - most);
            m[r] = most;
            l[r] *= shrink;
            for (int64_t i = 0; i < head_dim; i++) acc[i] *= shrink;
        }
        for (int j = 0; j < SLOTS; j++) {
            s[j] = j < see ? expf(s[j] - most) : 0.0f;
            sum += s[j];
        }
        l[r] += sum;
    }
}

ALWAYS_INLINE void weigh_in_c(const float *s, int n_q, const void *v, int n, int64_t head_dim,
                              float *acc, const int f32) {
    for (int r = 0; r < n_q; r++)
        for (int j = 0; j < n; j++) {
            const float weight = s[r * SLOTS + j];
            for (int64_t i = 0; i < head_dim; i++)
                acc[r * head_dim + i] += weight * load_scalar(v, j * head_dim + i, f32);
        }
}

static void weigh_f16_scalar(const float *s, int n_q, const void *v, int n, int64_t head_dim,
                             float *acc) {
    weigh_in_c(s, n_q, v, n, head_dim, acc, 0);
}

static void weigh_f32_scalar(const float *s, int n_q, const void *v, int n, int64_t head_dim,
                             float *acc) {
    weigh_in_c(s, n_q, v, n, head_dim, acc, 1);
}

static void to_f32_scalar(const f16_t *x, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = f16_to_f32(x[i]);
}

#endif
