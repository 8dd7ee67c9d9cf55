/* Matmul tiles of float weights for NEON. */
#ifndef LARIAT_MATMUL_FLOAT_NEON_H
#define LARIAT_MATMUL_FLOAT_NEON_H

#include "integers_neon.h"

#define FOR_EACH_COLUMN _Pragma("GCC unroll 4") for (int c = 0; c < nc; c++)
#define FOR_EACH_GROUP _Pragma("GCC unroll 4") for (int g = 0; g < ng; g++)

/* ng groups of 4 rows, 2 or 4, from weight i on */
ALWAYS_INLINE void load_weights_neon(const void *w, int64_t i, const int ng, const int type,
                                     float32x4_t out[4]) {
    _Pragma("GCC unroll 2")
    for (int g = 0; g < ng; g += 2) {
        if (type == W_F32) {
            out[g] = vld1q_f32((const float *)w + i + 4 * g);
            out[g + 1] = vld1q_f32((const float *)w + i + 4 * g + 4);
            continue;
        }
        const uint16x8_t bits = vld1q_u16((const uint16_t *)w + i + 4 * g);
        if (type == W_F16) {
            out[g] = vcvt_f32_f16(vget_low_f16(vreinterpretq_f16_u16(bits)));
            out[g + 1] = vcvt_high_f32_f16(vreinterpretq_f16_u16(bits));
        } else {
            out[g] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16));
            out[g + 1] = vreinterpretq_f32_u32(vshll_high_n_u16(bits, 16));
        }
    }
}

/* Sums of a column: of even k and of odd k, to hide the latency of adding */
typedef struct {
    float32x4_t even[4], odd[4];
} float_sums_neon_t;

/* sums += nc columns at k = from .. to - 1, both even; of ng groups of rows from the first on */
ALWAYS_INLINE void float_columns_neon(const void *w, const float *x, int64_t n_k, int64_t from,
                                      int64_t to, const int nc, const int first, const int ng,
                                      float_sums_neon_t *sums, const int type) {
    float32x4_t even[4][4], odd[4][4];
    FOR_EACH_COLUMN FOR_EACH_GROUP {
        even[c][g] = sums[c].even[first + g];
        odd[c][g] = sums[c].odd[first + g];
    }
    for (int64_t k = from; k < to; k += 2) {
        float32x4_t w0[4], w1[4];
        load_weights_neon(w, 16 * k + 4 * first, ng, type, w0);
        load_weights_neon(w, 16 * k + 16 + 4 * first, ng, type, w1);
        FOR_EACH_COLUMN {
            const float32x2_t x2 = vld1_f32(x + c * n_k + k);
            FOR_EACH_GROUP {
                even[c][g] = vfmaq_lane_f32(even[c][g], w0[g], x2, 0);
                odd[c][g] = vfmaq_lane_f32(odd[c][g], w1[g], x2, 1);
            }
        }
    }
    FOR_EACH_COLUMN FOR_EACH_GROUP {
        sums[c].even[first + g] = even[c][g];
        sums[c].odd[first + g] = odd[c][g];
    }
}

/* Four columns take half of the rows at a time, and more columns take the weights in pieces, which
 * stay in the L1 cache for all of them. */
ALWAYS_INLINE void float_tile_neon(const void *w, const activations_t *a, int64_t col, int n_cols,
                                   float *out, int64_t out_stride, int n_rows, int add,
                                   const int type) {
    enum { PIECE = 256, ng = 4 };
    const int64_t n_k = a->n_k, even_k = n_k / 2 * 2;
    const float *x = a->x + col * n_k;
    float_sums_neon_t sums[TILE_COLUMNS];
    memset(sums, 0, sizeof(sums[0]) * (size_t)n_cols);
    if (n_cols == 1) float_columns_neon(w, x, n_k, 0, even_k, 1, 0, 4, sums, type);
    else if (n_cols == 2) float_columns_neon(w, x, n_k, 0, even_k, 2, 0, 4, sums, type);
    else
        for (int64_t from = 0; from < even_k; from += PIECE) {
            const int64_t to = from + PIECE < even_k ? from + PIECE : even_k;
            for (int c = 0; c < n_cols; c += 4)
                for (int first = 0; first < 4; first += 2)
                    float_columns_neon(w, x + c * n_k, n_k, from, to, 4, first, 2, sums + c, type);
        }
    for (int c = 0; c < n_cols; c++) {
        float rows[16], *o = out + c * out_stride;
        float32x4_t last[4];
        if (n_k > even_k) load_weights_neon(w, 16 * even_k, ng, type, last);
        FOR_EACH_GROUP {
            float32x4_t sum = sums[c].even[g];
            if (n_k > even_k) sum = vfmaq_n_f32(sum, last[g], x[c * n_k + even_k]);
            vst1q_f32(rows + 4 * g, vaddq_f32(sum, sums[c].odd[g]));
        }
        for (int r = 0; r < n_rows; r++) o[r] = add ? o[r] + rows[r] : rows[r];
    }
}

#undef FOR_EACH_GROUP
#undef FOR_EACH_COLUMN
#endif
