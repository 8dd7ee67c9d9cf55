/* Parts of blocks that every level reads alike: where they stand, factors, sums of activations.
 *
 * Functions that are inlined into a tile are compiled with the tile's instruction set.
 */
#ifndef LARIAT_UNPACK_H
#define LARIAT_UNPACK_H

#include "types.h"

/* 16 rows and 32 columns: a block, or a part of a super-block */
typedef struct {
    const void *d, *m;          /* scales of 16 rows; m: types with a minimum */
    const void *scales;         /* factors of a super-block, [i][16 rows] */
    const void *low;            /* vectors [v][64] of integers; PAIRS: those of a pair of parts */
    const void *high;           /* vectors of the bits above them */
    int part;                   /* which of a super-block's 8 */
} block_x16;

/* Vector v of some that stand in a row */
ALWAYS_INLINE const uint8_t *vector_of(const void *vectors, int v) {
    return (const uint8_t *)vectors + 64 * v;
}

/* Part p of super-block s; of types without super-blocks p is 0 and s a block. */
ALWAYS_INLINE block_x16 part_of(const void *weights, int64_t s, const int p, const int type) {
#define VIEW(...) (block_x16){__VA_ARGS__, .part = p}
#define FLOAT_TYPE(...)
#define BLOCK_TYPE(NAME, name, number, columns, bytes, pack, factors, view, ...) \
    case W_##NAME: {                                                             \
        const name##_x16 *w = (const name##_x16 *)weights + s;                   \
        return view;                                                             \
    }
    switch (type) {
#include "types.def"
    default: return (block_x16){0};
    }
#undef VIEW
}

/* Block b, counted as if the parts of super-blocks were blocks in a row */
ALWAYS_INLINE block_x16 block_of(const void *weights, int64_t b, const int type) {
    const int n_parts = WEIGHT_TYPES[type].columns / BLOCK;
    return part_of(weights, b / n_parts, (int)(b % n_parts), type);
}

/* The compilers' own vectors: at each level as many operations as it needs */
typedef uint8_t u8x64 __attribute__((vector_size(64)));

/* Factors of d and m in a super-block: [i][r] is row r, columns 32 i and up, or 16 i of types that
 * have halves. */
typedef struct {
    _Alignas(64) int8_t d[16][16];
    int8_t m[16][16];
} factors_t;

/* Each factors_<type> unpacks the bytes [i][16 rows] at `scales`, four numbers of each row at a
 * time. A minimum is taken off, so its factor gets a minus sign here. */
ALWAYS_INLINE void load_scale_bytes(const void *scales, int i, u8x64 *bytes) {
    memcpy(bytes, (const uint8_t *)scales + GROUP_ROWS * i, sizeof *bytes);
}

ALWAYS_INLINE void no_factors(const void *scales, factors_t *out) { (void)scales, (void)out; }

/* Scale and minimum are the nibbles of a byte. */
ALWAYS_INLINE void factors_q2_K(const void *scales, factors_t *out) {
    _Pragma("GCC unroll 4")
    for (int i = 0; i < 16; i += 4) {
        u8x64 s;
        load_scale_bytes(scales, i, &s);
        const u8x64 d = s & 15, m = -(s >> 4);
        memcpy(out->d[i], &d, sizeof d);
        memcpy(out->m[i], &m, sizeof m);
    }
}

/* 6 bits less 32. Scale i has nibble i / 8 of byte i % 8, and bits 2 (i / 4) of byte 8 + i % 4 on
 * top. */
ALWAYS_INLINE void factors_q3_K(const void *scales, factors_t *out) {
    u8x64 s[3], d[4];
    for (int i = 0; i < 3; i++) load_scale_bytes(scales, 4 * i, &s[i]);
    d[0] = ((s[0] & 15) | (s[2] & 3) << 4) - 32;
    d[1] = ((s[1] & 15) | (s[2] >> 2 & 3) << 4) - 32;
    d[2] = (s[0] >> 4 | (s[2] >> 4 & 3) << 4) - 32;
    d[3] = (s[1] >> 4 | s[2] >> 6 << 4) - 32;
    memcpy(out->d, d, sizeof d);
}

/* 6 bits. Bytes 0..3 hold scales 0..3, bytes 4..7 minimums 0..3, each with 2 bits of number i + 4
 * on top; bytes 8..11 hold the low nibbles of scales and minimums 4..7. */
ALWAYS_INLINE void factors_q4_K(const void *scales, factors_t *out) {
    u8x64 s[3], d[2], m[2];
    for (int i = 0; i < 3; i++) load_scale_bytes(scales, 4 * i, &s[i]);
    d[0] = s[0] & 63, d[1] = (s[2] & 15) | (s[0] >> 2 & 48);
    m[0] = -(s[1] & 63), m[1] = -(s[2] >> 4 | (s[1] >> 2 & 48));
    memcpy(out->d, d, sizeof d);
    memcpy(out->m, m, sizeof m);
}

/* 6 bits less 32; layout.h says where they stand. */
ALWAYS_INLINE void factors_iq4_xs(const void *scales, factors_t *out) {
    uint8_t bytes[2 * GROUP_ROWS], upper[4 * GROUP_ROWS];
    u8x64 low, high;
    load_scale_bytes(scales, 0, &low);
    memcpy(bytes, (const uint8_t *)scales + 4 * GROUP_ROWS, sizeof bytes);
    for (int i = 0; i < 2 * GROUP_ROWS; i++) {
        upper[i] = bytes[i] & 15;
        upper[2 * GROUP_ROWS + i] = bytes[i] >> 4;
    }
    memcpy(&high, upper, sizeof high);
    const u8x64 d[2] = {((low & 15) | (high & 3) << 4) - 32, (low >> 4 | (high >> 2) << 4) - 32};
    memcpy(out->d, d, sizeof d);
}

/* The factors of a super-block, with its first part; nothing with the others */
ALWAYS_INLINE void unpack_factors(block_x16 block, const int type, factors_t *out) {
    if (__builtin_expect(block.part != 0, 1)) return;
    switch (type) {
#define FLOAT_TYPE(...)
#define BLOCK_TYPE(NAME, name, number, columns, bytes, pack, factors, ...) \
    case W_##NAME: factors(block.scales, out); break;
#include "types.def"
    default: break;
    }
}

/* Factors of 16 rows: of half h of the block, or of all of it in types without halves. `factors`
 * are those of the super-block. */
ALWAYS_INLINE const int8_t *d_factors(block_x16 block, const factors_t *factors, int h,
                                      const int type) {
    if (WEIGHT_TYPES[type].byte_scales)
        return (const int8_t *)block.scales + (has_halves(type) ? GROUP_ROWS * h : 0);
    return factors->d[has_halves(type) ? 2 * block.part + h : block.part];
}

ALWAYS_INLINE const int8_t *m_factors(block_x16 block, const factors_t *factors, int h,
                                      const int type) {
    return factors->m[has_halves(type) ? 2 * block.part + h : block.part];
}

/* Of column c of the block at `at`: the sum of its half h or, in types without halves, of all of
 * it. start: the beginning of an integer sum, -offset times that. scaled: the sum of the
 * activations themselves, which m is multiplied by. Loops over columns, so that the tile only
 * broadcasts. */
typedef struct {
    int32_t start[2][TILE_COLUMNS];
    float scaled[2][TILE_COLUMNS];
} sums_t;

ALWAYS_INLINE void block_sums(const activations_t *a, int64_t at, const int nc, const int type,
                              sums_t *out) {
    for (int h = 0; h < 1 + has_halves(type); h++)
        for (int c = 0; c < nc; c++) {
            int32_t both; /* one load, so that the loop becomes vectors */
            memcpy(&both, a->half_sum + 2 * (at + c), 4);
            const int32_t half = h ? both >> 16 : (int16_t)both, neg8 = a->neg8_sum[at + c];
            if (!has_minimum(type))
                out->start[h][c] = has_halves(type)         ? -offset_of(type) * half
                                   : offset_of(type) % 8 == 0 ? offset_of(type) / 8 * neg8
                                                              : offset_of(type) * (neg8 >> 3);
            else
                out->scaled[h][c] =
                    has_halves(type) ? a->scale[at + c] * (float)half
                                     : a->scale[at + c] * -0.125f * (float)neg8;
        }
}

/* start[h][c], which stands among the activations already where the offset is 8 */
ALWAYS_INLINE int32_t start_of(const sums_t *sums, const activations_t *a, int64_t at, int h, int c,
                               const int type) {
    return offset_of(type) == 8 && !has_halves(type) ? a->neg8_sum[at + c] : sums->start[h][c];
}

#endif
