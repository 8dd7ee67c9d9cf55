/* Shared by all instruction sets: layouts of blocks, activations, small scalar helpers.
 *
 * Weights are interleaved by groups of 16 rows, so that one 64-byte vector holds the same 4
 * columns (or the same 1, for float types) of all 16 rows, and one broadcast of 4 activations
 * feeds a dot product for 16 rows at once. The bytes are those of the GGUF file in another
 * order, and nothing grows, except for types whose integers point into a table (pack_steps.h).
 */
#ifndef LARIAT_LAYOUT_H
#define LARIAT_LAYOUT_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define LARIAT_X86 1
#endif
/* Little-endian AArch64, and a compiler that knows the instruction sets of single functions. Older
 * ones get the portable kernels. */
#if defined(__aarch64__) && !defined(__AARCH64EB__) && \
    (defined(__clang__) ? __clang_major__ >= 16 : defined(__GNUC__) && __GNUC__ >= 10)
#define LARIAT_ARM 1
#endif

enum {
    GROUP_ROWS = 16,   /* rows of a group */
    BLOCK = 32,        /* weights that share a scale, and activations that do */
    SLOTS = 32,        /* positions of a cache block */
    TILE_COLUMNS = 16, /* of one matmul tile at most */
    MANY_COLUMNS = 128, /* of one call of matmul_many at most */
    /* Of one call at least, and two tiles: with fewer, to begin and to unpack costs too much. */
    MANY_ACTIVATIONS = 32768,
    MAX_HEAD_DIM = 4096, /* of quantized keys and values */
    SCORE_ROWS = 8     /* queries at most of one call that reads keys in their stored type */
};

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define UNUSED __attribute__((unused))
/* Loops over a count known when compiling, so that what they index stays in registers */
#define FOR_EACH_QUERY _Pragma("GCC unroll 8") for (int r = 0; r < n_q; r++)
#define FOR_EACH_VECTOR(i) _Pragma("GCC unroll 8") for (int i = 0; i < n_v; i++)

typedef uint16_t f16_t;

/* PLANES (see below). Vector v of the nibbles: byte 4r + j belongs to row r; its low nibble is
 * column 4v + j of the block, its high nibble column 16 + 4v + j. */
typedef struct {
    f16_t d[16];
    uint8_t q[4][64];
} q4_0_x16;

typedef q4_0_x16 iq4_nl_x16; /* the nibbles count steps */

typedef struct {
    uint8_t d[16]; /* exponents */
    uint8_t q[4][64];
} mxfp4_x16;

typedef struct {
    f16_t d[16];
    f16_t m[16];
    uint8_t q[4][64];
} q4_1_x16;

/* BYTES. Vector v: byte 4r + j is row r, column 4v + j, stored as q + 128 because the first operand
 * of the dot product instruction is unsigned. */
typedef struct {
    f16_t d[16];
    uint8_t q[8][64];
} q8_0_x16;

/* SIXES: a super-block of 256 columns in 8 parts of 32, each of two halves that have a scale. Byte
 * 4r + j of vector k of half h is column 4 (4h + k) + j of row r, in bits 0..5. Bits 6, 7 of the
 * three vectors are together the 6 bits of vector 4h + 3's column, those of vector 0 on top. */
typedef struct {
    f16_t d[16];
    struct {
        int8_t scale[2][16];
        uint8_t q[2][3][64];
    } part[8];
} q6_K_x16;

/* PLANES of 4, 2 or 1 bits. In a plane of n bits, column 4v + j of row r has its bits at n (v / n)
 * and up of byte 4r + j of vector v % n; Q4_0's nibbles are a plane of 4. `qh` is the bit above
 * those in `q`. The factors of super-blocks stay packed as in the file (unpack.h); [i][r] is byte i
 * of row r. */
typedef struct {
    f16_t d[16];
    uint8_t q[4][64];
    uint8_t qh[64];
} q5_0_x16;

typedef struct {
    f16_t d[16];
    f16_t m[16];
    uint8_t q[4][64];
    uint8_t qh[64];
} q5_1_x16;

typedef struct {
    f16_t d[16];
    f16_t m[16];
    uint8_t scales[16][16];
    uint8_t q[8][2][64];
} q2_K_x16;

typedef struct {
    f16_t d[16];
    uint8_t scales[12][16];
    struct {
        uint8_t q[2][64];
        uint8_t qh[64];
    } part[8];
} q3_K_x16;

/* PAIRS of parts: of byte 4r + j of vector v the low nibble is column 4v + j of part 2i, row r, the
 * high one that column of part 2i + 1. */
typedef struct {
    f16_t d[16];
    f16_t m[16];
    uint8_t scales[12][16];
    struct {
        uint8_t q[8][64];
    } pair[4];
} q4_K_x16;

/* As before, with 5 bits low in a byte, and above them the upper 3 of the other 5, whose lower 2
 * are bits 2 (v % 4) and up of byte 4r + j of qh[v / 4]. */
typedef struct {
    f16_t d[16];
    f16_t m[16];
    uint8_t scales[12][16];
    struct {
        uint8_t qh[2][64];
        uint8_t q[8][64];
    } pair[4];
} q5_K_x16;

/* Byte i < 4 of the scales has the low nibbles of scales i and, above, i + 4; byte 4 + i, two bits
 * each from the lowest on, the upper bits of scales i, i + 4, i + 2 and i + 6. */
typedef struct {
    f16_t d[16];
    uint8_t scales[6][16];
    uint8_t q[8][4][64];
} iq4_xs_x16;

/* PLANES of 2 bits, one scale for 256 columns */
typedef struct {
    f16_t d[16];
    uint8_t q[8][2][64];
} tq2_0_x16;

/* Types that are unpacked when they are loaded (pack_steps.h): numbers of steps, in PLANES of 2
 * bits and 1, or of 4. 3.4, 3.6 and 4.4 bits a weight, where files have 1.6 to 3.4. */
typedef struct {
    float d[16];
    struct {
        int8_t scale[1][16];
        uint8_t q[2][64];
        uint8_t qh[64];
    } part[8];
} steps3_x16;

typedef steps3_x16 iq2_xxs_x16;
typedef steps3_x16 iq1_s_x16;

typedef struct {
    float d[16];
    struct {
        int8_t scale[2][16];
        uint8_t q[2][64];
        uint8_t qh[64];
    } part[8];
} steps3_halves_x16;

typedef steps3_halves_x16 iq2_xs_x16;
typedef steps3_halves_x16 iq1_m_x16;

typedef struct {
    float d[16];
    struct {
        int8_t scale[16];
        uint8_t q[4][64];
    } part[8];
} steps4_x16;

typedef steps4_x16 iq3_xxs_x16;
typedef steps4_x16 iq3_s_x16;

/* Columns of a matmul: as float, and quantized to 8 bits a block of 32 with a float scale
 * (see activation_scale).
 *
 * The quantized columns stand in tiles of up to 16 columns (`tile_width`). A tile that starts at column c holds, from q + c * n_k on, [n_blocks][width][32]; scale and sums likewise.
 * So a tile is read in one run: with columns apart by n_k bytes, 16 of them would fight for the
 * same set of the L1 cache. */
typedef struct {
    const float *x;          /* [n_cols][n_k] */
    int8_t *q;               /* [tile][n_blocks][width][32] */
    float *scale;            /* [tile][n_blocks][width] */
    int32_t *neg8_sum;       /* [tile][n_blocks][width]: -8 times the sum of the block's q */
    int16_t *half_sum;       /* [tile][n_blocks][width][2]: sums of 16 */
    int64_t n_k;
} activations_t;

/* RoPE as a table. Pair i of a head is (x[i], x[i + half]), half = head_dim / 2. */
typedef struct {
    const float *rows; /* [n_positions][2][half]: cos and sin of position * theta[i] */
    const float *step; /* [2][half]: 2 (1 - cos theta[i]) and sin theta[i]: 0 and 0 for pairs that
                          no position changes */
    float gain;        /* scores of the pairs that are rotated are multiplied by it */
    int32_t group_n, group_window; /* of group attention; 1: none */
} rope_t;

static inline float f16_to_f32(f16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 1023u;
    uint32_t bits;
    float f;
    if (exponent == 0) { /* zero and subnormal: mantissa * 2^-24, exact in f32 */
        f = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    } else if (exponent == 31) {
        bits = sign | 0x7f800000u | mantissa << 13;
    } else {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    }
    memcpy(&f, &bits, 4);
    return f;
}

/* Rounds to nearest, ties to even, as the F16C instruction does. */
static inline f16_t f32_to_f16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (f16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x47800000u) return (f16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { /* subnormal: adding 0.5 leaves the rounded bits at the end */
        float shifted;
        memcpy(&shifted, &magnitude, 4);
        shifted += 0.5f;
        memcpy(&bits, &shifted, 4);
        return (f16_t)(sign | (bits - 0x3f000000u));
    }
    magnitude += 0xfffu + (magnitude >> 13 & 1u);
    return (f16_t)(sign | ((magnitude - 0x38000000u) >> 13));
}

/* |x| as an integer. Largest magnitudes are found among these, because NaN is the largest of them.
 * A comparison of floats would lose NaN, and the results of a damaged weight would look sound. */
static inline int32_t magnitude_bits(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits & 0x7fffffff;
}

static inline float float_of_bits(int32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* The scale of a block of activations whose largest magnitude is `max`: max / 127, rounded to the
 * 11 significant bits of f16 but not to its range. llama.cpp keeps these scales as f16. With the
 * same rounding our logits are those of llama.cpp to six digits; without it they differ by the
 * noise of 8-bit rounding (2 % of a prompt's negative log-likelihood on a tiny model). NaN where
 * the block holds infinity or NaN. */
static inline float activation_scale(float max) {
    if (!(max < INFINITY)) return NAN;
    float scale = max / 127.0f;
    uint32_t bits;
    memcpy(&bits, &scale, 4);
    bits = (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
    memcpy(&scale, &bits, 4);
    return scale;
}

/* 1 / sqrt(mean + eps) of n squares. NaN where their sum is NaN or infinite: with 1 / infinity, a
 * row that is out of range would become one of zeros. */
static inline float norm_factor(double sum, int64_t n, float eps) {
    return sum < INFINITY ? (float)(1.0 / sqrt(sum / (double)n + eps)) : NAN;
}

/* Half of 2^(e - 127); subnormal for e < 2 */
static inline float half_of_e8m0(uint8_t e) {
    uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline float bf16_to_f32(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

#endif
