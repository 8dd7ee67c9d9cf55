/* Weights to blocks, rounded as ggml's reference quantizers round them, bit for bit
 * (https://github.com/ggml-org/ggml, src/ggml-quants.c).
 *
 * The algorithms are plain C over arrays of a fixed length, which compilers turn into vectors of
 * the caller's instruction set. The levels differ in nothing else, so they give the same bits. Sums
 * are made in the order of the reference, and a product and a sum must not be contracted to one
 * rounding: this header is compiled with -ffp-contract=off. Blocks of 256 weights, and those whose
 * integers point into a table, are in quantize_k.h.
 */
#ifndef LARIAT_QUANTIZE_H
#define LARIAT_QUANTIZE_H

#include "quantize_k.h"

#ifdef LARIAT_X86
#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#endif

enum { FROM_F32, FROM_F16, FROM_BF16 };
enum {
    TO_F16, TO_Q4_0, TO_Q4_1, TO_Q5_0, TO_Q5_1, TO_Q8_0, TO_Q2_K, TO_Q3_K, TO_Q4_K, TO_Q5_K, TO_Q6_K,
    TO_IQ4_NL, TO_IQ4_XS, TO_MXFP4
};

/* See quantize_weights */
typedef int (*quantize_weights_fn)(const uint8_t *weights, int from, int64_t n, int to,
                                   uint8_t *out, const float *importance, int64_t n_cols);

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

/* ---- blocks of 32 ---- */

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

/* Nibbles of 32 numbers: low ones are the first 16 */
ALWAYS_INLINE void store_nibbles(const uint8_t q[BLOCK], uint8_t out[16]) {
    for (int i = 0; i < 16; i++) out[i] = (uint8_t)((q[i] & 15) | (q[16 + i] & 15) << 4);
}

/* Bit 4 of 32 numbers */
ALWAYS_INLINE void store_bit_4(const uint8_t q[BLOCK], uint8_t out[4]) {
    uint32_t bits = 0;
    for (int i = 0; i < BLOCK; i++) bits |= (uint32_t)(q[i] >> 4) << i;
    memcpy(out, &bits, 4);
}

/* f16 d, 4 bytes of bit 4, nibbles: weight = d (q - 16); rounded as Q4_0 */
ALWAYS_INLINE int block_q5_0(const float *x, uint8_t *out) {
    const uint32_t max = largest(x, BLOCK);
    int first = 0;
    uint8_t q[BLOCK];
    while ((bits_of(x[first]) & 0x7fffffffu) != max) first++;
    const float d = (x[first] + 0.0f) / -16.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
    for (int i = 0; i < BLOCK; i++) {
        const int32_t rounded = (int32_t)(x[i] * inverse + 16.5f);
        q[i] = (uint8_t)(rounded < 31 ? rounded : 31);
    }
    store_bit_4(q, out + 2);
    store_nibbles(q, out + 6);
    return store_scale(d, out);
}

/* f16 d, f16 m, nibbles (Q5_1: 4 bytes of bit 4 before them): weight = d q + m; the steps go from
 * the smallest weight to the largest. */
ALWAYS_INLINE int block_of_range(const float *x, const int n_max, uint8_t *out) {
    float min = x[0], max = x[0];
    uint8_t q[BLOCK];
    for (int i = 1; i < BLOCK; i++) {
        min = x[i] < min ? x[i] : min;
        max = x[i] > max ? x[i] : max;
    }
    const float d = (max - min) / (float)n_max, inverse = d != 0 ? 1.0f / d : 0.0f;
    for (int i = 0; i < BLOCK; i++) {
        const int32_t rounded = (int32_t)((x[i] - min) * inverse + 0.5f);
        q[i] = (uint8_t)(rounded < n_max ? rounded : n_max);
    }
    if (n_max > 15) store_bit_4(q, out + 4);
    store_nibbles(q, out + (n_max > 15 ? 8 : 4));
    return store_scale(d, out) | store_scale(min, out + 2);
}

/* ---- blocks of 32, with an importance for each weight and the mean square of the row ---- */

/* Q4_0 and Q5_0 */
ALWAYS_INLINE int weighted_block(const float *x, const float *importance, float mean_square,
                                 const int n_max, uint8_t *out) {
    lanes_t x_t, worth_t;
    steps_t q_t;
    float worth[BLOCK], d;
    uint8_t q[BLOCK];
    worth_of(x, importance, mean_square, BLOCK, worth);
    to_lanes(x, BLOCK, 1, x_t);
    to_lanes(worth, BLOCK, 1, worth_t);
    search_scale(x_t, worth_t, BLOCK, 1, n_max, q_t, &d);
    for (int i = 0; i < BLOCK; i++) q[i] = (uint8_t)q_t[i][0];
    if (n_max == 16) store_bit_4(q, out + 2);
    store_nibbles(q, out + (n_max == 16 ? 6 : 2));
    return store_scale(d, out);
}

/* Q4_1 and Q5_1 */
ALWAYS_INLINE int weighted_block_of_range(const float *x, const float *importance,
                                          float mean_square, const int n_max, uint8_t *out) {
    lanes_t x_t, worth_t;
    steps_t q_t;
    float worth[BLOCK], d, m;
    uint8_t q[BLOCK];
    worth_of(x, importance, mean_square, BLOCK, worth);
    to_lanes(x, BLOCK, 1, x_t);
    to_lanes(worth, BLOCK, 1, worth_t);
    search_affine(x_t, worth_t, BLOCK, 1, n_max, (attempts_t){-0.9f, 0.05f, 36, 0}, q_t, &d, &m);
    for (int i = 0; i < BLOCK; i++) q[i] = (uint8_t)q_t[i][0];
    if (n_max > 15) store_bit_4(q, out + 4);
    store_nibbles(q, out + (n_max > 15 ? 8 : 4));
    return store_scale(d, out) | store_scale(-m, out + 2);
}

ALWAYS_INLINE int values_f16(const float *x, int n, uint8_t *out) {
    int status = 0;
    for (int i = 0; i < n; i++) status |= store_scale(x[i], out + 2 * i);
    return status;
}

/* ---- instruction sets ---- */

ALWAYS_INLINE int load_floats(const uint8_t *weights, int from, float *x, int n) {
    return from == FROM_F32   ? load_f32(weights, x, n)
           : from == FROM_F16 ? load_f16(weights, x, n)
                              : load_bf16(weights, x, n);
}

/* Bytes of a block of a type */
ALWAYS_INLINE int target_bytes(int to) {
    static const int BYTES_OF[] = {2, 18, 20, 22, 24, 34, 84, 110, 144, 176, 210, 18, 136, 17};
    return BYTES_OF[to];
}

ALWAYS_INLINE int block_of_32(const float *x, const float *importance, float mean_square, int to,
                              uint8_t *out) {
    switch (to) {
    case TO_Q4_0:
    case TO_Q5_0:
        if (importance)
            return weighted_block(x, importance, mean_square, to == TO_Q5_0 ? 16 : 8, out);
        return to == TO_Q5_0 ? block_q5_0(x, out) : block_q4_0(x, out);
    case TO_Q4_1:
    case TO_Q5_1:
        if (importance)
            return weighted_block_of_range(x, importance, mean_square, to == TO_Q5_1 ? 31 : 15,
                                           out);
        return block_of_range(x, to == TO_Q5_1 ? 31 : 15, out);
    case TO_IQ4_NL: return block_iq4_nl(x, importance, out);
    case TO_MXFP4: return block_mxfp4(x, out);
    default: return block_q8_0(x, out);
    }
}

ALWAYS_INLINE int block_of_256(const float *x, const float *importance, int to, uint8_t *out) {
    switch (to) {
    case TO_Q2_K: return block_q2_K(x, importance, out);
    case TO_Q3_K: return block_q3_K(x, importance, out);
    case TO_Q4_K:
    case TO_Q5_K: return block_pairs(x, importance, to == TO_Q5_K, out);
    case TO_Q6_K: return block_q6_K(x, importance, out);
    default: return block_iq4_xs(x, importance, out);
    }
}

/* The mean of the squares of a row, summed up in one run */
ALWAYS_INLINE float mean_square_of(const uint8_t *row, int from, int64_t n_cols) {
    float x[BLOCK], sum = 0;
    for (int64_t i = 0; i < n_cols; i += BLOCK) {
        load_floats(row + i * (from == FROM_F32 ? 4 : 2), from, x, BLOCK);
        for (int k = 0; k < BLOCK; k++) sum += x[k] * x[k];
    }
    return sum / (float)n_cols;
}

/* Rounds n weights of type `from`, whole blocks of type `to`, and returns the flags of their
 * faults. With `importance`, float [n_cols] of each column, they are whole rows of n_cols. */
ALWAYS_INLINE int quantize_weights(const uint8_t *weights, int from, int64_t n, int to,
                                   uint8_t *out, const float *importance, int64_t n_cols) {
    float x[SUPER], mean_square = 0;
    int status = 0;
    const int is_small = to != TO_F16 && (to < TO_Q2_K || to == TO_IQ4_NL || to == TO_MXFP4);
    for (int64_t at = 0; at < n;) {
        const int64_t left = importance ? n_cols - at % n_cols : n - at;
        const int n_here = left < SUPER ? (int)left : SUPER;
        const float *here = importance ? importance + at % n_cols : NULL;
        if (here == importance && importance && is_small)
            mean_square = mean_square_of(weights, from, n_cols);
        status |= load_floats(weights, from, x, n_here);
        weights += n_here * (from == FROM_F32 ? 4 : 2);
        at += n_here;
        if (to == TO_F16) {
            status |= values_f16(x, n_here, out);
            out += 2 * n_here;
        } else if (is_small) {
            for (int b = 0; b < n_here; b += BLOCK, out += target_bytes(to))
                status |= block_of_32(x + b, here ? here + b : NULL, mean_square, to, out);
        } else {
            status |= block_of_256(x, here, to, out);
            out += target_bytes(to);
        }
    }
    return status;
}

static int quantize_scalar(const uint8_t *weights, int from, int64_t n, int to, uint8_t *out,
                           const float *importance, int64_t n_cols) {
    return quantize_weights(weights, from, n, to, out, importance, n_cols);
}

#ifdef LARIAT_X86
TARGET_AVX2 static int quantize_avx2(const uint8_t *weights, int from, int64_t n, int to,
                                     uint8_t *out, const float *importance, int64_t n_cols) {
    return quantize_weights(weights, from, n, to, out, importance, n_cols);
}

TARGET_AVX512 static int quantize_avx512(const uint8_t *weights, int from, int64_t n, int to,
                                         uint8_t *out, const float *importance, int64_t n_cols) {
    return quantize_weights(weights, from, n, to, out, importance, n_cols);
}

#define quantize_amx quantize_avx512 /* tiles have no use in it */
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
