/* Types of small integers, most of all those that stand in planes of bits (matmul_k_*.h): what is alike
 * at every level.
 *
 * A weight is d (q - offset) or d q + m: q unsigned, d and m of 32 columns of a row or of 16. In the
 * K types d and m are themselves products of an f16 of 256 columns and a small integer. What is
 * inlined into a tile from here is compiled with the tile's instruction set.
 */
#ifndef LARIAT_UNPACK_H
#define LARIAT_UNPACK_H

#include "layout.h"
#include "table.h"

/* The 16 steps of IQ4_NL (ggml's kvalues_iq4nl) */
static const int8_t IQ4_NL_STEPS[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

/* One block of 16 rows and 32 columns */
typedef struct {
    const f16_t *d, *m;          /* of 16 rows; m: types with a minimum */
    const uint8_t (*scales)[16]; /* K types: packed as in the file */
    const uint8_t (*low)[64];    /* plane of 4 bits, or of 2; if `is_paired`, the pair's q */
    const uint8_t (*high)[64];   /* plane of the bit above them, or the pair's qh */
    int part;                    /* which of a super-block's 8 */
} block_x16;

/* The compilers' own vectors: at each level as many operations as it needs */
typedef uint8_t u8x64 __attribute__((vector_size(64)));

/* Factors of d and m in a super-block of a K type: [i][r] is row r, columns 32 i and up, or 16 i if
 * `is_halved`. */
typedef struct {
    _Alignas(64) int8_t d[16][16];
    int8_t m[16][16];
} factors_t;

ALWAYS_INLINE int is_super(const int type) { return type >= W_Q2_K; }
ALWAYS_INLINE int is_halved(const int type) { /* a scale for 16 columns */
    return type == W_Q2_K || type == W_Q3_K || type == W_Q6_K;
}
ALWAYS_INLINE int is_paired(const int type) { return type == W_Q4_K || type == W_Q5_K; }
ALWAYS_INLINE int low_bits(const int type) { return type == W_Q2_K || type == W_Q3_K ? 2 : 4; }
ALWAYS_INLINE int has_high_bit(const int type) {
    return type == W_Q5_0 || type == W_Q5_1 || type == W_Q3_K; /* in a plane of its own */
}
ALWAYS_INLINE int has_minimum(const int type) {
    return type == W_Q4_1 || type == W_Q5_1 || type == W_Q2_K || type == W_Q4_K || type == W_Q5_K;
}
/* What is taken off the integers; the tiles of Q8_0 see to its 128 themselves. */
ALWAYS_INLINE int offset_of(const int type) {
    switch (type) {
    case W_Q3_K: return 4;
    case W_Q4_0: return 8;
    case W_Q5_0: return 16;
    case W_Q6_K: return 32;
    case W_IQ4_NL: return 128;
    default: return 0;
    }
}

/* Bytes of a block of 16 rows and 32 columns; of a super-block's eight, on average */
ALWAYS_INLINE int block_bytes(const int type) {
    switch (type) {
    case W_Q4_0: case W_IQ4_NL: return sizeof(q4_0_x16);
    case W_Q4_1: return sizeof(q4_1_x16);
    case W_Q8_0: return sizeof(q8_0_x16);
    case W_Q5_0: return sizeof(q5_0_x16);
    case W_Q5_1: return sizeof(q5_1_x16);
    case W_Q2_K: return sizeof(q2_K_x16) / 8;
    case W_Q3_K: return sizeof(q3_K_x16) / 8;
    case W_Q4_K: return sizeof(q4_K_x16) / 8;
    case W_Q5_K: return sizeof(q5_K_x16) / 8;
    case W_Q6_K: return sizeof(q6_K_x16) / 8;
    default: return 0;
    }
}

ALWAYS_INLINE block_x16 block_of(const void *weights, int64_t b, const int type) {
    const q4_0_x16 *nibbles = (const q4_0_x16 *)weights + b;
    const q4_1_x16 *q4_1 = (const q4_1_x16 *)weights + b;
    const q5_0_x16 *q5_0 = (const q5_0_x16 *)weights + b;
    const q5_1_x16 *q5_1 = (const q5_1_x16 *)weights + b;
    const q2_K_x16 *q2_K = (const q2_K_x16 *)weights + b / 8;
    const q3_K_x16 *q3_K = (const q3_K_x16 *)weights + b / 8;
    const q4_K_x16 *q4_K = (const q4_K_x16 *)weights + b / 8;
    const q5_K_x16 *q5_K = (const q5_K_x16 *)weights + b / 8;
    const int p = (int)(b % 8);
    switch (type) {
    case W_Q5_0: return (block_x16){q5_0->d, NULL, NULL, q5_0->q, &q5_0->qh, 0};
    case W_Q5_1: return (block_x16){q5_1->d, q5_1->m, NULL, q5_1->q, &q5_1->qh, 0};
    case W_Q2_K: return (block_x16){q2_K->d, q2_K->dmin, q2_K->scales, q2_K->q[p], NULL, p};
    case W_Q3_K:
        return (block_x16){q3_K->d, NULL, q3_K->scales, q3_K->part[p].q, &q3_K->part[p].qh, p};
    case W_Q4_K:
        return (block_x16){q4_K->d, q4_K->dmin, q4_K->scales, q4_K->pair[p / 2].q, NULL, p};
    case W_Q5_K:
        return (block_x16){q5_K->d,             q5_K->dmin,          q5_K->scales,
                           q5_K->pair[p / 2].q, q5_K->pair[p / 2].qh, p};
    case W_Q4_1: return (block_x16){q4_1->d, q4_1->m, NULL, q4_1->q, NULL, 0};
    default: return (block_x16){nibbles->d, NULL, NULL, nibbles->q, NULL, 0}; /* Q4_0, IQ4_NL */
    }
}

/* Unpacks the small integers of a super-block. What a minimum gives is
 * taken off, so it gets a minus sign here.
 * Q4_K, Q5_K: 6 bits. Bytes 0..3 hold scales 0..3, bytes 4..7 minimums 0..3, each with 2 bits of
 *     number i + 4 on top; bytes 8..11 hold the low nibbles of scales and minimums 4..7.
 * Q2_K: scale and minimum are the nibbles of a byte.
 * Q3_K: 6 bits less 32. Scale i has nibble i / 8 of byte i % 8, and bits 2 (i / 4) of byte
 *     8 + i % 4 on top. */
ALWAYS_INLINE void unpack_factors(block_x16 block, const int type, factors_t *out) {
    u8x64 s[4], d[4], m[4]; /* 4 numbers of each row in a vector */
    for (int i = 0; i < (type == W_Q2_K ? 4 : 3); i++) memcpy(&s[i], block.scales[4 * i], 64);
    if (type == W_Q2_K) {
        _Pragma("GCC unroll 4")
        for (int i = 0; i < 4; i++) d[i] = s[i] & 15, m[i] = -(s[i] >> 4);
    } else if (type == W_Q3_K) {
        d[0] = ((s[0] & 15) | (s[2] & 3) << 4) - 32;
        d[1] = ((s[1] & 15) | (s[2] >> 2 & 3) << 4) - 32;
        d[2] = (s[0] >> 4 | (s[2] >> 4 & 3) << 4) - 32;
        d[3] = (s[1] >> 4 | s[2] >> 6 << 4) - 32;
    } else {
        d[0] = s[0] & 63, d[1] = (s[2] & 15) | (s[0] >> 2 & 48);
        m[0] = -(s[1] & 63), m[1] = -(s[2] >> 4 | (s[1] >> 2 & 48));
    }
    for (int i = 0; i < (is_halved(type) ? 4 : 2); i++) {
        memcpy(out->d[4 * i], &d[i], 64);
        if (has_minimum(type)) memcpy(out->m[4 * i], &m[i], 64);
    }
}

/* Of column c of the block at `at`: the sum of its half h or, if both share a scale, of all of it.
 * start: what an integer sum begins with, -offset times that. scaled: the sum of the activations
 * themselves, which m is multiplied by. Loops over columns, so that the tile only broadcasts. */
typedef struct {
    int32_t start[2][TILE_COLUMNS];
    float scaled[2][TILE_COLUMNS];
} sums_t;

ALWAYS_INLINE void block_sums(const activations_t *a, int64_t at, const int nc, const int type,
                              sums_t *out) {
    for (int h = 0; h < 1 + is_halved(type); h++)
        for (int c = 0; c < nc; c++) {
            int32_t both; /* one load, so that the loop becomes vectors */
            memcpy(&both, a->half_sum + 2 * (at + c), 4);
            const int32_t half = h ? both >> 16 : (int16_t)both, neg8 = a->neg8_sum[at + c];
            if (!has_minimum(type))
                out->start[h][c] =
                    is_halved(type) ? -offset_of(type) * half : offset_of(type) / 8 * neg8;
            else
                out->scaled[h][c] =
                    is_halved(type) ? a->scale[at + c] * (float)half
                                    : a->scale[at + c] * -0.125f * (float)neg8;
        }
}

#endif
