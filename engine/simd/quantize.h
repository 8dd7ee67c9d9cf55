/* Weights to blocks, rounded as ggml's reference quantizers round them, bit for bit
 * (https://github.com/ggml-org/ggml, src/ggml-quants.c).
 *
 * The algorithms are plain C over arrays of a fixed length, which compilers turn into vectors of
 * the caller's instruction set. The levels differ in nothing else, so they give the same bits. Sums
 * are made in the order of the reference, and a product and a sum must not be contracted to one
 * rounding: this header is compiled with -ffp-contract=off.
 */
#ifndef LARIAT_QUANTIZE_H
#define LARIAT_QUANTIZE_H

#include "layout.h"

#ifdef LARIAT_X86
#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#endif

enum { FROM_F32, FROM_F16, FROM_BF16 };
enum { TO_F16, TO_Q4_0, TO_Q8_0, TO_Q6_K };
enum { SUPER = 256, GROUP = 16, N_GROUPS = SUPER / GROUP };
/* Faults of weights; flags of one result */
enum { NOT_FINITE = 1, TOO_LARGE = 2 };

/* See quantize_weights */
typedef int (*quantize_weights_fn)(const uint8_t *weights, int from, int64_t n, int to,
                                   uint8_t *out);

ALWAYS_INLINE uint32_t bits_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

ALWAYS_INLINE float float_of(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* To the nearest whole number, ties to even, for |f| < 2^22: the sum has no bits for a fraction. */
ALWAYS_INLINE int32_t nearest(float f) {
    return (int32_t)(bits_of(f + 12582912.0f) & 0x7fffffu) - 0x400000;
}

/* ---- to float ---- */

/* Returns NOT_FINITE if a weight is NaN or infinite, else 0. */
ALWAYS_INLINE int load_f32(const uint8_t *p, float *x, int n) {
    uint32_t max = 0;
    memcpy(x, p, 4 * n);
    for (int i = 0; i < n; i++) {
        const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        max = max > magnitude ? max : magnitude;
    }
    return max >= 0x7f800000u ? NOT_FINITE : 0;
}

ALWAYS_INLINE int load_bf16(const uint8_t *p, float *x, int n) {
    uint16_t h[SUPER];
    uint32_t max = 0;
    memcpy(h, p, 2 * n);
    for (int i = 0; i < n; i++) {
        const uint32_t magnitude = h[i] & 0x7fffu;
        max = max > magnitude ? max : magnitude;
        x[i] = float_of((uint32_t)h[i] << 16);
    }
    return max >= 0x7f80u ? NOT_FINITE : 0;
}

/* Exponent and mantissa become those of a float, which is then 2^112 times too small, subnormal or
 * not. */
ALWAYS_INLINE int load_f16(const uint8_t *p, float *x, int n) {
    uint16_t h[SUPER];
    uint32_t max = 0;
    memcpy(h, p, 2 * n);
    for (int i = 0; i < n; i++) {
        const uint32_t magnitude = h[i] & 0x7fffu, sign = (uint32_t)(h[i] & 0x8000u) << 16;
        max = max > magnitude ? max : magnitude;
        x[i] = float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
    }
    return max >= 0x7c00u ? NOT_FINITE : 0;
}

/* ---- blocks ---- */

/* The scale of a block in its first two bytes; TOO_LARGE if f16 cannot hold it, else 0 */
ALWAYS_INLINE int store_scale(float d, uint8_t *out) {
    const f16_t h = f32_to_f16(d);
    memcpy(out, &h, 2);
    return (h & 0x7c00u) == 0x7c00u ? TOO_LARGE : 0;
}

ALWAYS_INLINE uint32_t largest(const float *x, int n) {
    uint32_t max = 0;
    for (int i = 0; i < n; i++) {
        const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        max = max > magnitude ? max : magnitude;
    }
    return max;
}

/* f16 d, 16 bytes of nibbles q, weight = d (q - 8): the first weight of largest magnitude becomes
 * -8 d, so d takes its sign, negated. */
ALWAYS_INLINE int block_q4_0(const float *x, uint8_t *out) {
    const uint32_t max = largest(x, BLOCK);
    int32_t first = BLOCK;
    for (int i = 0; i < BLOCK; i++) {
        const int32_t here = (bits_of(x[i]) & 0x7fffffffu) == max ? i : BLOCK;
        first = here < first ? here : first;
    }
    /* Only zeros: ggml's largest is +0, whatever their signs. */
    const float d = (x[first] + 0.0f) / -8.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
    int32_t q[BLOCK];
    for (int i = 0; i < BLOCK; i++) {
        const int32_t rounded = (int32_t)(x[i] * inverse + 8.5f);
        q[i] = rounded < 15 ? rounded : 15;
    }
    for (int i = 0; i < BLOCK / 2; i++) out[2 + i] = (uint8_t)(q[i] | q[i + BLOCK / 2] << 4);
    return store_scale(d, out);
}

/* f16 d, 32 int8 q, weight = d q; halves are rounded away from zero. */
ALWAYS_INLINE int block_q8_0(const float *x, uint8_t *out) {
    const float d = float_of(largest(x, BLOCK)) / 127.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
    for (int i = 0; i < BLOCK; i++) {
        const float scaled = x[i] * inverse;
        const int32_t whole = (int32_t)scaled;
        const float rest = scaled - (float)whole; /* exact */
        out[2 + i] = (uint8_t)(whole + (rest >= 0.5f) - (rest <= -0.5f));
    }
    return store_scale(d, out);
}

/* The steps of a group of Q6_K are those of least squared error, each error multiplied by its
 * weight squared, among 19 scales around -32 steps for the largest weight. The 16 groups of a
 * super-block are searched together: group g is lane g of every vector, and its sums are made in
 * the order of the reference.
 *
 * x_t, q [weight of the group][group]; scale [group] */
ALWAYS_INLINE void search_q6_K(const float x_t[GROUP][N_GROUPS], int32_t q[GROUP][N_GROUPS],
                               float scale[N_GROUPS]) {
    float max[N_GROUPS], factor[N_GROUPS], best[N_GROUPS];
    float square[GROUP][N_GROUPS], cube[GROUP][N_GROUPS];
    for (int g = 0; g < N_GROUPS; g++) max[g] = 0;
    for (int i = 0; i < GROUP; i++) {
        for (int g = 0; g < N_GROUPS; g++) {
            max[g] = fabsf(x_t[i][g]) > fabsf(max[g]) ? x_t[i][g] : max[g];
            square[i][g] = x_t[i][g] * x_t[i][g];
            cube[i][g] = square[i][g] * x_t[i][g];
        }
    }
    for (int attempt = 0; attempt < 19; attempt++) {
        /* First the scale itself, then those around it: ggml's -9 to 9 without 0 */
        const int shift = attempt == 0 ? 0 : attempt <= 9 ? attempt - 10 : attempt - 9;
        float tried[N_GROUPS], sum_xq[N_GROUPS], sum_qq[N_GROUPS];
        for (int g = 0; g < N_GROUPS; g++) {
            tried[g] = -(32 + 0.1f * (float)shift) / max[g];
            sum_xq[g] = sum_qq[g] = 0;
        }
        for (int i = 0; i < GROUP; i++) {
            for (int g = 0; g < N_GROUPS; g++) {
                int32_t step = nearest(tried[g] * x_t[i][g]);
                step = step < -32 ? -32 : step > 31 ? 31 : step;
                sum_xq[g] += cube[i][g] * (float)step;
                sum_qq[g] += square[i][g] * (float)step * (float)step;
            }
        }
        for (int g = 0; g < N_GROUPS; g++) {
            const int better = attempt == 0 || (sum_qq[g] > 0 &&
                                                sum_xq[g] * sum_xq[g] > best[g] * sum_qq[g]);
            const float fit = sum_qq[g] != 0 ? sum_xq[g] / sum_qq[g] : 0.0f;
            factor[g] = better ? tried[g] : factor[g];
            scale[g] = better ? fit : scale[g];
            best[g] = better ? fit * sum_xq[g] : best[g];
        }
    }
    for (int i = 0; i < GROUP; i++) {
        for (int g = 0; g < N_GROUPS; g++) {
            int32_t step = nearest(factor[g] * x_t[i][g]);
            step = step < -32 ? -32 : step > 31 ? 31 : step;
            q[i][g] = fabsf(max[g]) < 1e-15f ? 0 : step + 32;
        }
    }
    for (int g = 0; g < N_GROUPS; g++) scale[g] = fabsf(max[g]) < 1e-15f ? 0.0f : scale[g];
}

/* 128 bytes of low nibbles, 64 bytes of high bits, 16 int8 scales, f16 d; weight = d scale (q -
 * 32). Of 128 weights, bytes l and 32 + l have the low bits of weights l, 64 + l and 32 + l, 96 +
 * l; byte l of the high bits has those of all four. */
ALWAYS_INLINE int block_q6_K(const float *x, uint8_t *out) {
    float x_t[GROUP][N_GROUPS], scale[N_GROUPS], d_group[N_GROUPS];
    int32_t q[GROUP][N_GROUPS];
    for (int i = 0; i < GROUP; i++) {
        for (int g = 0; g < N_GROUPS; g++) x_t[i][g] = x[GROUP * g + i];
    }
    search_q6_K(x_t, q, scale);
    float widest = 0;
    for (int g = 0; g < N_GROUPS; g++) {
        if (fabsf(scale[g]) > fabsf(widest)) widest = scale[g];
    }
    if (fabsf(widest) < 1e-15f) {
        memset(out, 0, 210);
        return 0;
    }
    const float inverse = -128.0f / widest;
    const int status = store_scale(1 / inverse, out + 208);
    f16_t stored;
    memcpy(&stored, out + 208, 2);
    for (int g = 0; g < N_GROUPS; g++) {
        const int32_t step = nearest(inverse * scale[g]);
        const int8_t narrow = (int8_t)(step < 127 ? step : 127);
        out[192 + g] = (uint8_t)narrow;
        d_group[g] = f16_to_f32(stored) * (float)narrow;
    }
    uint8_t steps[SUPER];
    for (int i = 0; i < GROUP; i++) {
        for (int g = 0; g < N_GROUPS; g++) {
            int32_t step = nearest(x_t[i][g] / d_group[g]);
            step = step < -32 ? -32 : step > 31 ? 31 : step;
            /* A group whose scale was rounded to zero keeps the steps of the search. */
            steps[GROUP * g + i] = (uint8_t)(d_group[g] != 0 ? step + 32 : q[i][g]);
        }
    }
    for (int half = 0; half < 2; half++) {
        const uint8_t *p = steps + 128 * half;
        for (int l = 0; l < 32; l++) {
            out[64 * half + l] = (uint8_t)((p[l] & 15) | (p[64 + l] & 15) << 4);
            out[64 * half + 32 + l] = (uint8_t)((p[32 + l] & 15) | (p[96 + l] & 15) << 4);
            out[128 + 32 * half + l] = (uint8_t)(p[l] >> 4 | p[32 + l] >> 4 << 2 |
                                                 p[64 + l] >> 4 << 4 | p[96 + l] >> 4 << 6);
        }
    }
    return status;
}

ALWAYS_INLINE int values_f16(const float *x, int n, uint8_t *out) {
    int status = 0;
    for (int i = 0; i < n; i++) status |= store_scale(x[i], out + 2 * i);
    return status;
}

/* ---- instruction sets ---- */

/* Rounds n weights of type `from`, whole blocks of type `to`, and returns the flags of their
 * faults. */
ALWAYS_INLINE int quantize_weights(const uint8_t *weights, int from, int64_t n, int to,
                                   uint8_t *out) {
    float x[SUPER];
    int status = 0;
    while (n > 0) {
        const int n_here = n < SUPER ? (int)n : SUPER;
        status |= from == FROM_F32   ? load_f32(weights, x, n_here)
                  : from == FROM_F16 ? load_f16(weights, x, n_here)
                                     : load_bf16(weights, x, n_here);
        weights += n_here * (from == FROM_F32 ? 4 : 2);
        n -= n_here;
        switch (to) {
        case TO_F16:
            status |= values_f16(x, n_here, out);
            out += 2 * n_here;
            break;
        case TO_Q6_K:
            status |= block_q6_K(x, out);
            out += 210;
            break;
        case TO_Q4_0:
            for (int b = 0; b < n_here; b += BLOCK, out += 18) status |= block_q4_0(x + b, out);
            break;
        default:
            for (int b = 0; b < n_here; b += BLOCK, out += 34) status |= block_q8_0(x + b, out);
        }
    }
    return status;
}

static int quantize_scalar(const uint8_t *weights, int from, int64_t n, int to, uint8_t *out) {
    return quantize_weights(weights, from, n, to, out);
}

#ifdef LARIAT_X86
TARGET_AVX2 static int quantize_avx2(const uint8_t *weights, int from, int64_t n, int to,
                                     uint8_t *out) {
    return quantize_weights(weights, from, n, to, out);
}

TARGET_AVX512 static int quantize_avx512(const uint8_t *weights, int from, int64_t n, int to,
                                         uint8_t *out) {
    return quantize_weights(weights, from, n, to, out);
}
#endif

/* The quantizer of an instruction set by its name in targets.def; NULL if there is none of that
 * name. The caller knows that the processor has it. */
static quantize_weights_fn quantizer_of(const char *name) {
#define TARGET(target, isa, core, below, supported, probes) \
    if (!strcmp(name, isa)) return quantize_##probes;
#include "targets.def"
    return NULL;
}

#endif
