/* Interleaves types that are unpacked when they are loaded: grids (IQ1, IQ2, IQ3) and powers of
 * three (TQ1_0).
 *
 * Their integers are indices of points of 4 or 8 weights. Looking these up while multiplying would
 * take a load for each 4 weights of a row; unpacked once, they are numbers of steps of 2 to 4 bits,
 * which tiles read like those of other types, for 1.1 to 2.1 times the memory (layout.h). Rows that
 * are missing become zero weights, since their scale is zero.
 * Source formats: ggml's block_iq2_xxs and so on (src/ggml-common.h).
 */
#ifndef LARIAT_PACK_STEPS_H
#define LARIAT_PACK_STEPS_H

#include "grids.h"
#include "pack.h"

enum { SUPER_COLUMNS = 256, SUPER_PARTS = 8 };

/* A super-block of one row */
typedef struct {
    float d;
    int8_t factor[16];            /* of d, for each part, or for each half */
    uint8_t index[SUPER_COLUMNS]; /* numbers of steps */
} stepped_t;

typedef void (*read_super_fn)(const uint8_t *block, stepped_t *out);

static inline uint16_t load_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static inline uint32_t load_u32(const uint8_t *p) {
    return load_u16(p) | (uint32_t)load_u16(p + 2) << 16;
}

/* Bit i of `bits` to byte i */
static inline uint64_t spread_bits(uint64_t bits) {
    const uint64_t alone = bits * 0x0101010101010101u & 0x8040201008040201u;
    return (alone + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
}

/* Eight digits, and above them at bit `at` a bit of each from `bits` */
static inline void put_8_steps(uint8_t out[8], const uint8_t digits[8], unsigned bits, int at) {
    uint64_t eight;
    memcpy(&eight, digits, 8);
    eight |= spread_bits(bits) << at;
    memcpy(out, &eight, 8);
}

/* Two points of four digits */
static inline void put_4_and_4_steps(uint8_t out[8], const uint8_t first[4],
                                     const uint8_t second[4], unsigned signs) {
    uint8_t digits[8];
    memcpy(digits, first, 4);
    memcpy(digits + 4, second, 4);
    put_8_steps(out, digits, signs, 3);
}

/* Seven signs and an eighth that makes the number of minus signs even */
static inline unsigned even_signs(unsigned seven) {
    seven &= 127;
    return seven | (unsigned)__builtin_parity(seven) << 7;
}

/* Nibble i */
static inline int nibble_of(const uint8_t *bytes, int i) { return bytes[i / 2] >> i % 2 * 4 & 15; }

/* ---- source formats ---- */

/* f16 d; of each part 4 indices of points, then 28 bits of signs and 4 of a factor. A weight is
 * d / 8 (2 factor + 1) times 8, 25 or 43. */
static void read_iq2_xxs(const uint8_t *block, stepped_t *out) {
    out->d = f16_to_f32(load_u16(block)) * 0.125f;
    for (int p = 0; p < SUPER_PARTS; p++) {
        const uint8_t *points = block + 2 + 8 * p;
        const uint32_t rest = load_u32(points + 4);
        out->factor[p] = (int8_t)(2 * (rest >> 28) + 1);
        for (int i = 0; i < 4; i++)
            put_8_steps(out->index + 32 * p + 8 * i, GRID_IQ2_XXS[points[i]],
                        even_signs(rest >> 7 * i), 2);
    }
}

/* f16 d, 32 times 9 bits of a point and 7 of signs, 16 nibbles of factors for halves of parts;
 * weights as before */
static void read_iq2_xs(const uint8_t *block, stepped_t *out) {
    out->d = f16_to_f32(load_u16(block)) * 0.125f;
    for (int i = 0; i < 16; i++) out->factor[i] = (int8_t)(2 * nibble_of(block + 66, i) + 1);
    for (int i = 0; i < 32; i++) {
        const unsigned both = load_u16(block + 2 + 2 * i);
        put_8_steps(out->index + 8 * i, GRID_IQ2_XS[both & 511], even_signs(both >> 9), 2);
    }
}

/* f16 d, 32 bytes of points, 32 of signs, 8 with 2 bits on top of each point, 16 nibbles of factors
 * for halves of parts; weights as before */
static void read_iq2_s(const uint8_t *block, stepped_t *out) {
    out->d = f16_to_f32(load_u16(block)) * 0.125f;
    for (int i = 0; i < 16; i++) out->factor[i] = (int8_t)(2 * nibble_of(block + 74, i) + 1);
    for (int i = 0; i < 32; i++) {
        const unsigned point = block[2 + i] | (block[66 + i / 4] >> i % 4 * 2 & 3u) << 8;
        put_8_steps(out->index + 8 * i, GRID_IQ2_S[point], block[34 + i], 2);
    }
}

/* f16 d, 64 points, of each part 28 bits of signs and 4 of a factor. A weight is d / 2 (2 factor +
 * 1) times 2, 6, 10, 14, 18, 22, 26 or 31. */
static void read_iq3_xxs(const uint8_t *block, stepped_t *out) {
    out->d = f16_to_f32(load_u16(block)) * 0.5f;
    for (int p = 0; p < SUPER_PARTS; p++) {
        const uint8_t *points = block + 2 + 8 * p;
        const uint32_t rest = load_u32(block + 66 + 4 * p);
        out->factor[p] = (int8_t)(2 * (rest >> 28) + 1);
        for (int i = 0; i < 4; i++)
            put_4_and_4_steps(out->index + 32 * p + 8 * i, GRID_IQ3_XXS[points[2 * i]],
                              GRID_IQ3_XXS[points[2 * i + 1]], even_signs(rest >> 7 * i));
    }
}

/* f16 d, 64 bytes of points, 8 with a bit on top of each, 32 of signs, 8 nibbles of factors. A
 * weight is d (2 factor + 1) times 1, 3, 5 to 15. */
static void read_iq3_s(const uint8_t *block, stepped_t *out) {
    out->d = f16_to_f32(load_u16(block));
    for (int p = 0; p < SUPER_PARTS; p++) {
        const uint8_t *points = block + 2 + 8 * p;
        const unsigned high = block[66 + p];
        out->factor[p] = (int8_t)(2 * nibble_of(block + 106, p) + 1);
        for (int i = 0; i < 4; i++)
            put_4_and_4_steps(out->index + 32 * p + 8 * i,
                              GRID_IQ3_S[points[2 * i] | (high >> 2 * i & 1u) << 8],
                              GRID_IQ3_S[points[2 * i + 1] | (high >> (2 * i + 1) & 1u) << 8],
                              block[74 + 4 * p + i]);
    }
}

/* f16 d, 32 bytes of points, of each part 4 times 3 bits on top of a point, 3 of a factor and a
 * sign of delta. A weight is d / 8 (2 factor + 1) times 8 (digit - 1) + 1, or - 1. */
static void read_iq1_s(const uint8_t *block, stepped_t *out) {
    out->d = f16_to_f32(load_u16(block)) * 0.125f;
    for (int p = 0; p < SUPER_PARTS; p++) {
        const unsigned high = load_u16(block + 34 + 2 * p);
        out->factor[p] = (int8_t)(2 * (high >> 12 & 7) + 1);
        for (int i = 0; i < 4; i++) {
            const unsigned point = block[2 + 4 * p + i] | (high >> 3 * i & 7) << 8;
            put_8_steps(out->index + 32 * p + 8 * i, GRID_IQ1_S[point], high & 0x8000 ? 255 : 0, 2);
        }
    }
}

/* 32 bytes of points, 32 nibbles with 3 bits on top of a point and a sign of delta, 4 times 4
 * factors of 3 bits for halves of parts and a quarter of the f16 d; weights as before */
static void read_iq1_m(const uint8_t *block, stepped_t *out) {
    unsigned d = 0;
    for (int i = 0; i < 4; i++) d |= (load_u16(block + 48 + 2 * i) & 0xf000u) >> (12 - 4 * i);
    out->d = f16_to_f32((f16_t)d) * 0.125f;
    for (int i = 0; i < 16; i++)
        out->factor[i] = (int8_t)(2 * (load_u16(block + 48 + i / 4 * 2) >> i % 4 * 3 & 7) + 1);
    for (int i = 0; i < 32; i++) {
        const unsigned high = (unsigned)nibble_of(block + 32, i);
        put_8_steps(out->index + 8 * i, GRID_IQ1_S[block[i] | (high & 7) << 8], high & 8 ? 255 : 0,
                    2);
    }
}

/* Digits of base 3, five in a byte or four: digit n is the whole part of 3 f, f being the fraction
 * of 3^n byte / 256. 48 bytes, then 4, and f16 d; a weight is d (digit - 1). */
static void read_tq1_0(const uint8_t *block, stepped_t *out) {
    static const uint8_t POWERS[5] = {1, 3, 9, 27, 81};
    uint8_t *index = out->index;
    for (int n = 0; n < 5; n++)
        for (int i = 0; i < 32; i++) *index++ = (uint8_t)(block[i] * POWERS[n]) * 3 >> 8;
    for (int n = 0; n < 5; n++)
        for (int i = 32; i < 48; i++) *index++ = (uint8_t)(block[i] * POWERS[n]) * 3 >> 8;
    for (int n = 0; n < 4; n++)
        for (int i = 48; i < 52; i++) *index++ = (uint8_t)(block[i] * POWERS[n]) * 3 >> 8;
}

/* ---- layouts ---- */

static const stepped_t NO_STEPS;

/* steps3_x16, with a factor of d for each part, or steps3_halves_x16 with one for each half */
static inline void pack_steps3(const uint8_t *const rows[16], int64_t n_cols, int n_bytes,
                               read_super_fn read, const int n_factors, uint8_t *out) {
    const int part_bytes = GROUP_ROWS * n_factors + 3 * 64;
    for (int64_t b = 0; b < n_cols / SUPER_COLUMNS; b++) {
        fetch_next_group(rows, n_cols / SUPER_COLUMNS * n_bytes, b, 16 * n_bytes);
        for (int r = 0; r < 16; r++) {
            stepped_t steps = NO_STEPS;
            if (rows[r]) read(rows[r] + b * n_bytes, &steps);
            memcpy(out + 4 * r, &steps.d, 4);
            uint8_t *part = out + 4 * GROUP_ROWS;
            for (int p = 0; p < SUPER_PARTS; p++, part += part_bytes) {
                uint8_t *q = part + GROUP_ROWS * n_factors;
                for (int i = 0; i < n_factors; i++)
                    part[GROUP_ROWS * i + r] = (uint8_t)steps.factor[n_factors * p + i];
                put_pairs(steps.index + 32 * p, 0, r, (uint8_t(*)[64])q);
                put_bits(steps.index + 32 * p, 2, r, q + 2 * 64);
            }
        }
        out += 4 * GROUP_ROWS + SUPER_PARTS * part_bytes;
    }
}

static inline void pack_steps4(const uint8_t *const rows[16], int64_t n_cols, int n_bytes,
                               read_super_fn read, steps4_x16 *w) {
    for (int64_t b = 0; b < n_cols / SUPER_COLUMNS; b++, w++) {
        bytes16_t x[SUPER_PARTS][16];
        fetch_next_group(rows, n_cols / SUPER_COLUMNS * n_bytes, b, 16 * n_bytes);
        for (int r = 0; r < 16; r++) {
            stepped_t steps = NO_STEPS;
            if (rows[r]) read(rows[r] + b * n_bytes, &steps);
            w->d[r] = steps.d;
            for (int p = 0; p < SUPER_PARTS; p++) {
                w->part[p].scale[r] = steps.factor[p];
                x[p][r] = load16(steps.index + 32 * p) | load16(steps.index + 32 * p + 16) << 4;
            }
        }
        for (int p = 0; p < SUPER_PARTS; p++) put_vectors(x[p], w->part[p].q);
    }
}

#define PACK_STEPS3(name, n_bytes, n_factors)                                               \
    static void pack_##name(const uint8_t *const rows[16], int64_t n_cols, void *out) {     \
        pack_steps3(rows, n_cols, n_bytes, read_##name, n_factors, out);                    \
    }
#define PACK_STEPS4(name, n_bytes)                                                          \
    static void pack_##name(const uint8_t *const rows[16], int64_t n_cols, void *out) {     \
        pack_steps4(rows, n_cols, n_bytes, read_##name, out);                               \
    }
PACK_STEPS3(iq2_xxs, 66, 1)
PACK_STEPS3(iq2_xs, 74, 2)
PACK_STEPS3(iq2_s, 82, 2)
PACK_STEPS3(iq1_s, 50, 1)
PACK_STEPS3(iq1_m, 56, 2)
PACK_STEPS4(iq3_xxs, 98)
PACK_STEPS4(iq3_s, 110)

/* block_tq2_0: qs[64], f16 d; bits as Q2_K's */
static void pack_tq2_0(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    static const uint8_t nothing[66];
    tq2_0_x16 *w = out;
    for (int64_t b = 0; b < n_cols / SUPER_COLUMNS; b++, w++) {
        fetch_next_group(rows, n_cols / SUPER_COLUMNS * 66, b, 16 * 66);
        for (int r = 0; r < 16; r++) {
            const uint8_t *block = rows[r] ? rows[r] + b * 66 : nothing;
            memcpy(&w->d[r], block + 64, 2);
            for (int p = 0; p < SUPER_PARTS; p++)
                put_pairs(block + 32 * (p / 4), p % 4, r, w->q[p]);
        }
    }
}

static void pack_tq1_0(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    static const uint8_t nothing[54];
    tq2_0_x16 *w = out;
    for (int64_t b = 0; b < n_cols / SUPER_COLUMNS; b++, w++) {
        fetch_next_group(rows, n_cols / SUPER_COLUMNS * 54, b, 16 * 54);
        for (int r = 0; r < 16; r++) {
            const uint8_t *block = rows[r] ? rows[r] + b * 54 : nothing;
            stepped_t steps;
            read_tq1_0(block, &steps);
            memcpy(&w->d[r], block + 52, 2);
            for (int p = 0; p < SUPER_PARTS; p++) put_pairs(steps.index + 32 * p, 0, r, w->q[p]);
        }
    }
}

#endif
