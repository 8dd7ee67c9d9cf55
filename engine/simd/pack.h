/* Interleaves one group of up to 16 rows as a GGUF file stores them into the layouts of layout.h.
 *
 * Runs once, at load, and is bound by memory, so there is one portable version. Rows that are
 * missing in the last group (source NULL) become zero weights.
 * Source formats: ggml's block_q4_0 and so on (src/ggml-common.h).
 */
#ifndef LARIAT_PACK_H
#define LARIAT_PACK_H

#include "layout.h"

static void pack_q4_0(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q4_0_x16 *w = out;
    for (int64_t b = 0; b < n_cols / BLOCK; b++, w++)
        for (int r = 0; r < 16; r++) {
            const uint8_t *src = rows[r] ? rows[r] + b * 18 : NULL;
            if (src) memcpy(&w->d[r], src, 2);
            else w->d[r] = 0;
            for (int v = 0; v < 4; v++) {
                if (src) memcpy(&w->q[v][4 * r], src + 2 + 4 * v, 4);
                else memset(&w->q[v][4 * r], 0x88, 4);
            }
        }
}

static void pack_q4_1(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q4_1_x16 *w = out;
    for (int64_t b = 0; b < n_cols / BLOCK; b++, w++)
        for (int r = 0; r < 16; r++) {
            static const uint8_t nothing[20];
            const uint8_t *src = rows[r] ? rows[r] + b * 20 : nothing;
            memcpy(&w->d[r], src, 2);
            memcpy(&w->m[r], src + 2, 2);
            for (int v = 0; v < 4; v++) memcpy(&w->q[v][4 * r], src + 4 + 4 * v, 4);
        }
}

static void pack_q8_0(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q8_0_x16 *w = out;
    for (int64_t b = 0; b < n_cols / BLOCK; b++, w++)
        for (int r = 0; r < 16; r++) {
            static const uint8_t nothing[34];
            const uint8_t *src = rows[r] ? rows[r] + b * 34 : nothing;
            memcpy(&w->d[r], src, 2);
            for (int v = 0; v < 8; v++)
                for (int j = 0; j < 4; j++) w->q[v][4 * r + j] = src[2 + 4 * v + j] ^ 0x80;
        }
}

/* 4 columns of a row at once: 4 bytes of the file, of which some bits are wanted. */
static inline uint32_t four_bytes(const uint8_t *src) {
    uint32_t four;
    memcpy(&four, src, 4);
    return four;
}

/* Puts 4 numbers of `bits` bits, each in a byte, to vector v of row r in a plane of zeros. */
static inline void put(uint8_t plane[][64], int bits, int v, int r, uint32_t four) {
    uint32_t word = four_bytes(&plane[v % bits][4 * r]) | four << (bits * (v / bits));
    memcpy(&plane[v % bits][4 * r], &word, 4);
}

/* Row r has byte i of `src` at [i][r] */
static inline void put_scales(uint8_t scales[][16], int n, int r, const uint8_t *src) {
    for (int i = 0; i < n; i++) scales[i][r] = src[i];
}

enum { FOUR_1 = 0x01010101, FOUR_2 = 0x03030303, FOUR_4 = 0x0f0f0f0f };

/* block_q5_0 and block_q5_1: f16 d, f16 m if `w_m`, bits 4 of 32 columns, nibbles as Q4_0's */
static inline void pack_5_bits(const uint8_t *block, int r, f16_t *d, f16_t *m, uint8_t q[4][64],
                               uint8_t qh[64]) {
    memcpy(&d[r], block, 2);
    if (m) memcpy(&m[r], block + 2, 2);
    const uint8_t *high = block + (m ? 4 : 2), *nibbles = high + 4;
    for (int v = 0; v < 8; v++) {
        put(q, 4, v, r, four_bytes(nibbles + 4 * (v % 4)) >> (4 * (v / 4)) & FOUR_4);
        /* bits 0..3 to bytes 0..3 */
        put((uint8_t(*)[64])qh, 1, v, r, (high[v / 2] >> (4 * (v % 2)) & 15) * 0x204081u & FOUR_1);
    }
}

static void pack_q5_0(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q5_0_x16 *w = out;
    memset(w, 0, n_cols / BLOCK * sizeof *w);
    for (int64_t b = 0; b < n_cols / BLOCK; b++, w++)
        for (int r = 0; r < 16; r++)
            if (rows[r]) pack_5_bits(rows[r] + b * 22, r, w->d, NULL, w->q, w->qh);
}

static void pack_q5_1(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q5_1_x16 *w = out;
    memset(w, 0, n_cols / BLOCK * sizeof *w);
    for (int64_t b = 0; b < n_cols / BLOCK; b++, w++)
        for (int r = 0; r < 16; r++)
            if (rows[r]) pack_5_bits(rows[r] + b * 24, r, w->d, w->m, w->q, w->qh);
}

/* block_q2_K: scales[16], qs[64], f16 d, f16 dmin. Of each half of 128 columns, column 32 p + l
 * has bits 2 p of qs[32 half + l]; Q3_K's low bits and Q6_K's high ones stand the same way. */
static void pack_q2_K(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q2_K_x16 *w = out;
    memset(w, 0, n_cols / 256 * sizeof *w);
    for (int64_t b = 0; b < n_cols / 256; b++, w++)
        for (int r = 0; r < 16; r++) {
            if (!rows[r]) continue;
            const uint8_t *scales = rows[r] + b * 84, *qs = scales + 16;
            memcpy(&w->d[r], qs + 64, 2);
            memcpy(&w->dmin[r], qs + 66, 2);
            put_scales(w->scales, 16, r, scales);
            for (int i = 0; i < 64; i++) {
                const int part = i / 8, v = i % 8;
                const uint32_t four = four_bytes(qs + 32 * (part / 4) + 4 * v);
                put(w->q[part], 2, v, r, four >> (2 * (part % 4)) & FOUR_2);
            }
        }
}

/* block_q3_K: hmask[32], qs[64], scales[12], f16 d. Bit `part` of hmask[l] is the high bit. */
static void pack_q3_K(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q3_K_x16 *w = out;
    memset(w, 0, n_cols / 256 * sizeof *w);
    for (int64_t b = 0; b < n_cols / 256; b++, w++)
        for (int r = 0; r < 16; r++) {
            if (!rows[r]) continue;
            const uint8_t *hmask = rows[r] + b * 110, *qs = hmask + 32;
            memcpy(&w->d[r], qs + 76, 2);
            put_scales(w->scales, 12, r, qs + 64);
            for (int i = 0; i < 64; i++) {
                const int part = i / 8, v = i % 8;
                const uint32_t four = four_bytes(qs + 32 * (part / 4) + 4 * v);
                put(w->part[part].q, 2, v, r, four >> (2 * (part % 4)) & FOUR_2);
                put(&w->part[part].qh, 1, v, r, four_bytes(hmask + 4 * v) >> part & FOUR_1);
            }
        }
}

/* block_q4_K: f16 d, f16 dmin, scales[12], qs[128]. Column 32 part + l is nibble part % 2 of
 * qs[32 (part / 2) + l]. */
static void pack_q4_K(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q4_K_x16 *w = out;
    memset(w, 0, n_cols / 256 * sizeof *w);
    for (int64_t b = 0; b < n_cols / 256; b++, w++)
        for (int r = 0; r < 16; r++) {
            if (!rows[r]) continue;
            const uint8_t *block = rows[r] + b * 144, *qs = block + 16;
            memcpy(&w->d[r], block, 2);
            memcpy(&w->dmin[r], block + 2, 2);
            put_scales(w->scales, 12, r, block + 4);
            for (int i = 0; i < 64; i++) {
                const int part = i / 8, v = i % 8;
                const uint32_t four = four_bytes(qs + 32 * (part / 2) + 4 * v);
                put(w->q[part], 4, v, r, four >> (4 * (part % 2)) & FOUR_4);
            }
        }
}

/* block_q5_K: f16 d, f16 dmin, scales[12], qh[32], qs[128]. As Q4_K; bit `part` of qh[l] on top. */
static void pack_q5_K(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q5_K_x16 *w = out;
    memset(w, 0, n_cols / 256 * sizeof *w);
    for (int64_t b = 0; b < n_cols / 256; b++, w++)
        for (int r = 0; r < 16; r++) {
            if (!rows[r]) continue;
            const uint8_t *block = rows[r] + b * 176, *qh = block + 16, *qs = qh + 32;
            memcpy(&w->d[r], block, 2);
            memcpy(&w->dmin[r], block + 2, 2);
            put_scales(w->scales, 12, r, block + 4);
            for (int i = 0; i < 64; i++) {
                const int part = i / 8, v = i % 8;
                const uint32_t four = four_bytes(qs + 32 * (part / 2) + 4 * v);
                put(w->part[part].q, 4, v, r, four >> (4 * (part % 2)) & FOUR_4);
                put(&w->part[part].qh, 1, v, r, four_bytes(qh + 4 * v) >> part & FOUR_1);
            }
        }
}

/* block_q6_K: ql[128], qh[64], int8 scales[16], f16 d. Of each half of 128 columns, column
 * 32 p + l (p = 0..3) has its low bits in nibble p / 2 of ql[64 half + 32 (p % 2) + l] and its high
 * bits at 2 p of qh[32 half + l]. */
static void pack_q6_K(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q6_K_x16 *w = out;
    memset(w, 0, n_cols / 256 * sizeof *w);
    for (int64_t b = 0; b < n_cols / 256; b++, w++)
        for (int r = 0; r < 16; r++) {
            if (!rows[r]) continue;
            const uint8_t *ql = rows[r] + b * 210, *qh = ql + 128, *scales = qh + 64;
            memcpy(&w->d[r], scales + 16, 2);
            for (int i = 0; i < 64; i++) {
                const int part = i / 8, v = i % 8, half = part / 4, p = part % 4;
                const uint32_t low = four_bytes(ql + 64 * half + 32 * (p % 2) + 4 * v);
                const uint32_t high = four_bytes(qh + 32 * half + 4 * v);
                put(w->part[part].ql, 4, v, r, low >> (4 * (p / 2)) & FOUR_4);
                put(w->part[part].qh, 2, v, r, high >> (2 * p) & FOUR_2);
                w->part[part].scale[v / 4][r] = (int8_t)scales[2 * part + v / 4];
            }
        }
}

/* Float types: [n_cols][16 rows]. */
static void pack_16bit(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    uint16_t *w = out;
    for (int r = 0; r < 16; r++)
        for (int64_t k = 0; k < n_cols; k++) {
            if (rows[r]) memcpy(&w[16 * k + r], rows[r] + 2 * k, 2);
            else w[16 * k + r] = 0;
        }
}

static void pack_32bit(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    uint32_t *w = out;
    for (int r = 0; r < 16; r++)
        for (int64_t k = 0; k < n_cols; k++) {
            if (rows[r]) memcpy(&w[16 * k + r], rows[r] + 4 * k, 4);
            else w[16 * k + r] = 0;
        }
}

#endif
