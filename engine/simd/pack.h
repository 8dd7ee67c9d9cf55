/* Interleaves one group of up to 16 rows as a GGUF file stores them into the layouts of layout.h.
 *
 * Runs once, at load, and is bound by memory, so there is one version for any x86-64 processor and
 * one for others. Rows that are missing in the last group (source NULL) become zero weights.
 * Source formats: ggml's block_q4_0 and so on (src/ggml-common.h).
 */
#ifndef LARIAT_PACK_H
#define LARIAT_PACK_H

#include "layout.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* Asks the system to map all pages of n bytes at once before they are read: one fault a page costs
 * more than reading it. Where the system refuses, each page is mapped when it is read. */
static inline void map_pages(const uint8_t *p, int64_t n) {
#if defined(__linux__)
    enum { POPULATE_READ = 22 }; /* MADV_POPULATE_READ, from Linux 5.14 on */
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)p & ~(page - 1);
    madvise((void *)start, (uintptr_t)p + (uintptr_t)n - start, POPULATE_READ);
#else
    (void)p, (void)n;
#endif
}

/* Interleaves rows of n_cols weights each. */
typedef void (*pack_fn)(const uint8_t *const rows[16], int64_t n_cols, void *out);

/* 16 bytes of a row, which are 4 columns each of 4 vectors */
typedef uint8_t bytes16_t __attribute__((vector_size(16)));

static inline bytes16_t load16(const void *src) {
    bytes16_t x;
    memcpy(&x, src, 16);
    return x;
}

/* Bytes 4v.. of x[r] to row r of vector v */
static inline void put_vectors(const bytes16_t x[16], uint8_t q[4][64]) {
#ifdef __SSE2__
    for (int r = 0; r < 16; r += 4) {
        const __m128i *row = (const __m128i *)x + r;
        const __m128i low01 = _mm_unpacklo_epi32(row[0], row[1]);
        const __m128i low23 = _mm_unpacklo_epi32(row[2], row[3]);
        const __m128i high01 = _mm_unpackhi_epi32(row[0], row[1]);
        const __m128i high23 = _mm_unpackhi_epi32(row[2], row[3]);
        _mm_storeu_si128((__m128i *)&q[0][4 * r], _mm_unpacklo_epi64(low01, low23));
        _mm_storeu_si128((__m128i *)&q[1][4 * r], _mm_unpackhi_epi64(low01, low23));
        _mm_storeu_si128((__m128i *)&q[2][4 * r], _mm_unpacklo_epi64(high01, high23));
        _mm_storeu_si128((__m128i *)&q[3][4 * r], _mm_unpackhi_epi64(high01, high23));
    }
#else
    for (int r = 0; r < 16; r++)
        for (int v = 0; v < 4; v++) memcpy(&q[v][4 * r], (const uint8_t *)&x[r] + 4 * v, 4);
#endif
}

/* Rows of a group follow each other in the file, and so do groups. Asks for the bytes of the next
 * group that stand where the block, of n_bytes for all rows, stands in this one. */
static inline void fetch_next_group(const uint8_t *const rows[16], int64_t row_bytes, int64_t block,
                                    int n_bytes) {
    if (!rows[15]) return;
    const uint8_t *next = rows[15] + row_bytes + block * n_bytes;
    for (int i = 0; i < n_bytes; i += 64) __builtin_prefetch(next + i, 0, 2);
}

static void pack_q4_0(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    static const uint8_t nothing[18] = {0, 0, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88,
                                        0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88};
    q4_0_x16 *w = out;
    for (int64_t b = 0; b < n_cols / BLOCK; b++, w++) {
        bytes16_t x[16];
        fetch_next_group(rows, n_cols / BLOCK * 18, b, 16 * 18);
        for (int r = 0; r < 16; r++) {
            const uint8_t *src = rows[r] ? rows[r] + b * 18 : nothing;
            memcpy(&w->d[r], src, 2);
            x[r] = load16(src + 2);
        }
        put_vectors(x, w->q);
    }
}

static void pack_q4_1(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q4_1_x16 *w = out;
    for (int64_t b = 0; b < n_cols / BLOCK; b++, w++) {
        bytes16_t x[16];
        fetch_next_group(rows, n_cols / BLOCK * 20, b, 16 * 20);
        for (int r = 0; r < 16; r++) {
            static const uint8_t nothing[20];
            const uint8_t *src = rows[r] ? rows[r] + b * 20 : nothing;
            memcpy(&w->d[r], src, 2);
            memcpy(&w->m[r], src + 2, 2);
            x[r] = load16(src + 4);
        }
        put_vectors(x, w->q);
    }
}

/* block_mxfp4: a byte d, nibbles as Q4_0's */
static void pack_mxfp4(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    static const uint8_t nothing[17];
    mxfp4_x16 *w = out;
    for (int64_t b = 0; b < n_cols / BLOCK; b++, w++) {
        bytes16_t x[16];
        fetch_next_group(rows, n_cols / BLOCK * 17, b, 16 * 17);
        for (int r = 0; r < 16; r++) {
            const uint8_t *src = rows[r] ? rows[r] + b * 17 : nothing;
            w->d[r] = src[0];
            x[r] = load16(src + 1);
        }
        put_vectors(x, w->q);
    }
}

static void pack_q8_0(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q8_0_x16 *w = out;
    for (int64_t b = 0; b < n_cols / BLOCK; b++, w++) {
        bytes16_t x[2][16];
        fetch_next_group(rows, n_cols / BLOCK * 34, b, 16 * 34);
        for (int r = 0; r < 16; r++) {
            static const uint8_t nothing[34];
            const uint8_t *src = rows[r] ? rows[r] + b * 34 : nothing;
            memcpy(&w->d[r], src, 2);
            x[0][r] = load16(src + 2) ^ 0x80;
            x[1][r] = load16(src + 18) ^ 0x80;
        }
        put_vectors(x[0], w->q);
        put_vectors(x[1], w->q + 4);
    }
}

/* Bits 2 p and 2 p + 1 of 32 bytes to row r of a plane of 2 bits */
static inline void put_pairs(const uint8_t *src, int p, int r, uint8_t q[2][64]) {
    uint64_t eight[4], both = 0;
    memcpy(eight, src, 32);
    for (int i = 0; i < 4; i++) both |= (eight[i] >> (2 * p) & 0x0303030303030303u) << (2 * i);
    memcpy(&q[0][4 * r], &both, 4);
    memcpy(&q[1][4 * r], (const uint8_t *)&both + 4, 4);
}

/* Bit `part` of 32 bytes to row r of a plane of 1 bit */
static inline void put_bits(const uint8_t *src, int part, int r, uint8_t q[64]) {
    uint32_t four[8], all = 0;
    memcpy(four, src, 32);
    for (int v = 0; v < 8; v++) all |= (four[v] >> part & 0x01010101u) << v;
    memcpy(&q[4 * r], &all, 4);
}

/* Row r has byte i of `src` at [i][r] */
static inline void put_scales(uint8_t scales[][16], int n, int r, const uint8_t *src) {
    for (int i = 0; i < n; i++) scales[i][r] = src[i];
}

/* block_q5_0 and block_q5_1: f16 d, f16 m unless `m` is NULL, bits 4 of 32 columns, nibbles as
 * Q4_0's */
static inline void pack_5_bits(const uint8_t *const rows[16], int64_t b, int n_bytes, f16_t *d,
                               f16_t *m, uint8_t q[4][64], uint8_t qh[64]) {
    static const uint8_t nothing[24];
    bytes16_t x[16];
    for (int r = 0; r < 16; r++) {
        const uint8_t *block = rows[r] ? rows[r] + b * n_bytes : nothing;
        memcpy(&d[r], block, 2);
        if (m) memcpy(&m[r], block + 2, 2);
        uint32_t bits, high = 0;
        memcpy(&bits, block + (m ? 4 : 2), 4);
        for (int v = 0; v < 8; v++) /* bits 4v to 4v + 3 to bytes 0 to 3 */
            high |= ((bits >> (4 * v) & 15) * 0x204081u & 0x01010101u) << v;
        memcpy(&qh[4 * r], &high, 4);
        x[r] = load16(block + (m ? 8 : 6));
    }
    put_vectors(x, q);
}

static void pack_q5_0(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q5_0_x16 *w = out;
    for (int64_t b = 0; b < n_cols / BLOCK; b++, w++) {
        fetch_next_group(rows, n_cols / BLOCK * 22, b, 16 * 22);
        pack_5_bits(rows, b, 22, w->d, NULL, w->q, w->qh);
    }
}

static void pack_q5_1(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q5_1_x16 *w = out;
    for (int64_t b = 0; b < n_cols / BLOCK; b++, w++) {
        fetch_next_group(rows, n_cols / BLOCK * 24, b, 16 * 24);
        pack_5_bits(rows, b, 24, w->d, w->m, w->q, w->qh);
    }
}

/* block_q2_K: scales[16], qs[64], f16 d, f16 dmin. Of each half of 128 columns, column 32 p + l
 * has bits 2 p of qs[32 half + l]; Q3_K's low bits and Q6_K's high ones stand the same way. */
static void pack_q2_K(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    static const uint8_t nothing[84];
    q2_K_x16 *w = out;
    for (int64_t b = 0; b < n_cols / 256; b++, w++) {
        fetch_next_group(rows, n_cols / 256 * 84, b, 16 * 84);
        for (int r = 0; r < 16; r++) {
            const uint8_t *block = rows[r] ? rows[r] + b * 84 : nothing;
            memcpy(&w->d[r], block + 80, 2);
            memcpy(&w->m[r], block + 82, 2);
            put_scales(w->scales, 16, r, block);
            for (int part = 0; part < 8; part++)
                put_pairs(block + 16 + 32 * (part / 4), part % 4, r, w->q[part]);
        }
    }
}

/* block_q3_K: hmask[32], qs[64], scales[12], f16 d. Bit `part` of hmask[l] is the high bit. */
static void pack_q3_K(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    static const uint8_t nothing[110];
    q3_K_x16 *w = out;
    for (int64_t b = 0; b < n_cols / 256; b++, w++) {
        fetch_next_group(rows, n_cols / 256 * 110, b, 16 * 110);
        for (int r = 0; r < 16; r++) {
            const uint8_t *block = rows[r] ? rows[r] + b * 110 : nothing;
            memcpy(&w->d[r], block + 108, 2);
            put_scales(w->scales, 12, r, block + 96);
            for (int part = 0; part < 8; part++) {
                put_pairs(block + 32 + 32 * (part / 4), part % 4, r, w->part[part].q);
                put_bits(block, part, r, w->part[part].qh);
            }
        }
    }
}

/* block_q4_K: f16 d, f16 dmin, scales[12], qs[128]. Column 32 part + l is nibble part % 2 of
 * qs[32 (part / 2) + l]. */
static void pack_q4_K(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    static const uint8_t nothing[144];
    q4_K_x16 *w = out;
    for (int64_t b = 0; b < n_cols / 256; b++, w++) {
        const uint8_t *block[16];
        fetch_next_group(rows, n_cols / 256 * 144, b, 16 * 144);
        for (int r = 0; r < 16; r++) {
            block[r] = rows[r] ? rows[r] + b * 144 : nothing;
            memcpy(&w->d[r], block[r], 2);
            memcpy(&w->m[r], block[r] + 2, 2);
            put_scales(w->scales, 12, r, block[r] + 4);
        }
        for (int i = 0; i < 8; i++) { /* half a pair */
            bytes16_t x[16];
            for (int r = 0; r < 16; r++) x[r] = load16(block[r] + 16 + 16 * i);
            put_vectors(x, w->pair[i / 2].q + i % 2 * 4);
        }
    }
}

/* block_q5_K: f16 d, f16 dmin, scales[12], qh[32], qs[128]. As Q4_K; bit `part` of qh[l] on top. */
static void put_half_pair(const uint8_t *const block[16], int i, uint8_t q[4][64], uint8_t qh[64]) {
    bytes16_t x[16];
    for (int r = 0; r < 16; r++) {
        const bytes16_t nibbles = load16(block[r] + 48 + 16 * i);
        const bytes16_t bits = load16(block[r] + 16 + i % 2 * 16) >> (uint8_t)(i / 2 * 2);
        const bytes16_t lower_2 = nibbles >> 4 & 3;
        uint32_t four[4];
        memcpy(four, &lower_2, 16);
        four[0] |= four[1] << 2 | four[2] << 4 | four[3] << 6;
        memcpy(&qh[4 * r], four, 4);
        x[r] = (nibbles & 15) | (bits & 1) << 4 | nibbles >> 6 << 5 | (bits & 2) << 6;
    }
    put_vectors(x, q);
}

static void pack_q5_K(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    static const uint8_t nothing[176];
    q5_K_x16 *w = out;
    for (int64_t b = 0; b < n_cols / 256; b++, w++) {
        const uint8_t *block[16];
        fetch_next_group(rows, n_cols / 256 * 176, b, 16 * 176);
        for (int r = 0; r < 16; r++) {
            block[r] = rows[r] ? rows[r] + b * 176 : nothing;
            memcpy(&w->d[r], block[r], 2);
            memcpy(&w->m[r], block[r] + 2, 2);
            put_scales(w->scales, 12, r, block[r] + 4);
        }
        for (int i = 0; i < 8; i++)
            put_half_pair(block, i, w->pair[i / 2].q + i % 2 * 4, w->pair[i / 2].qh[i % 2]);
    }
}

/* block_iq4_xs: f16 d, uint16 scales_h, scales_l[4], qs[128]. Scale i has nibble i % 2 of
 * scales_l[i / 2], and bits 2 i of scales_h on top; each 16 bytes of qs are the nibbles of a part,
 * as Q4_0's. */
static void put_iq4_xs_scales(const uint8_t *block, int r, uint8_t scales[6][16]) {
    const unsigned high = block[2] | (unsigned)block[3] << 8;
    const uint8_t *low = block + 4;
    for (int i = 0; i < 4; i++)
        scales[i][r] = (uint8_t)((low[i / 2] >> i % 2 * 4 & 15) |
                                 (low[2 + i / 2] >> i % 2 * 4 & 15) << 4);
    for (int i = 0; i < 2; i++)
        scales[4 + i][r] = (uint8_t)((high >> 2 * i & 3) | (high >> (2 * i + 8) & 3) << 2 |
                                     (high >> (2 * i + 4) & 3) << 4 |
                                     (high >> (2 * i + 12) & 3) << 6);
}

static void pack_iq4_xs(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    static const uint8_t nothing[136];
    iq4_xs_x16 *w = out;
    for (int64_t b = 0; b < n_cols / 256; b++, w++) {
        const uint8_t *block[16];
        fetch_next_group(rows, n_cols / 256 * 136, b, 16 * 136);
        for (int r = 0; r < 16; r++) {
            block[r] = rows[r] ? rows[r] + b * 136 : nothing;
            memcpy(&w->d[r], block[r], 2);
            put_iq4_xs_scales(block[r], r, w->scales);
        }
        for (int part = 0; part < 8; part++) {
            bytes16_t x[16];
            for (int r = 0; r < 16; r++) x[r] = load16(block[r] + 8 + 16 * part);
            put_vectors(x, w->q[part]);
        }
    }
}

/* block_q6_K: ql[128], qh[64], int8 scales[16], f16 d. Of each half of 128 columns, column
 * 32 p + l (p = 0..3) has its low bits in nibble p / 2 of ql[64 half + 32 (p % 2) + l] and its high
 * bits at 2 p of qh[32 half + l]. */
static void put_half_part(const uint8_t *const block[16], int half, int p, int h,
                          uint8_t q[3][64]) {
    bytes16_t x[16];
    uint8_t vectors[4][64];
    for (int r = 0; r < 16; r++) {
        const bytes16_t low = load16(block[r] + 64 * half + p % 2 * 32 + 16 * h);
        const bytes16_t high = load16(block[r] + 128 + 32 * half + 16 * h) >> (uint8_t)(2 * p);
        x[r] = (p < 2 ? low & 15 : low >> 4) | (high & 3) << 4;
        uint32_t four[4];
        memcpy(four, &x[r], 16);
        for (int k = 0; k < 3; k++) four[k] |= (four[3] >> (4 - 2 * k) & 0x03030303u) << 6;
        memcpy(&x[r], four, 16);
    }
    put_vectors(x, vectors);
    memcpy(q, vectors, sizeof vectors[0] * 3);
}

static void pack_q6_K(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    static const uint8_t nothing[210];
    q6_K_x16 *w = out;
    for (int64_t b = 0; b < n_cols / 256; b++, w++) {
        const uint8_t *block[16];
        fetch_next_group(rows, n_cols / 256 * 210, b, 16 * 210);
        for (int r = 0; r < 16; r++) {
            block[r] = rows[r] ? rows[r] + b * 210 : nothing;
            memcpy(&w->d[r], block[r] + 208, 2);
            for (int i = 0; i < 16; i++)
                w->part[i / 2].scale[i % 2][r] = (int8_t)block[r][192 + i];
        }
        for (int i = 0; i < 16; i++) /* halves of parts */
            put_half_part(block, i / 8, i / 2 % 4, i % 2, w->part[i / 2].q[i % 2]);
    }
}

/* Float types: [n_cols][16 rows], 32 columns at a time, which stay in the L1 cache. */
static void pack_16bit(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    uint16_t *w = out;
    for (int64_t k0 = 0; k0 < n_cols; k0 += 32) {
        const int64_t end = k0 + 32 < n_cols ? k0 + 32 : n_cols;
        fetch_next_group(rows, 2 * n_cols, k0 / 32, 16 * 64);
        for (int r = 0; r < 16; r++)
            for (int64_t k = k0; k < end; k++) {
                if (rows[r]) memcpy(&w[16 * k + r], rows[r] + 2 * k, 2);
                else w[16 * k + r] = 0;
            }
    }
}

static void pack_32bit(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    uint32_t *w = out;
    for (int64_t k0 = 0; k0 < n_cols; k0 += 32) {
        const int64_t end = k0 + 32 < n_cols ? k0 + 32 : n_cols;
        fetch_next_group(rows, 4 * n_cols, k0 / 32, 16 * 128);
        for (int r = 0; r < 16; r++)
            for (int64_t k = k0; k < end; k++) {
                if (rows[r]) memcpy(&w[16 * k + r], rows[r] + 4 * k, 4);
                else w[16 * k + r] = 0;
            }
    }
}

#endif
