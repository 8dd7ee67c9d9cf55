/* Interleaves one group of up to 16 rows as a GGUF file stores them into the layouts of layout.h.
 *
 * Runs once, at load, and is bound by memory, so there is one portable version. Rows that are
 * missing in the last group (source NULL) become zero weights.
 * Source formats: ggml's block_q4_0, block_q4_1, block_q8_0, block_q6_K.
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

/* ggml's block_q6_K: ql[128], qh[64], int8 scales[16], f16 d. Of each half of 128 columns, column
 * 32 p + l (p = 0..3) has its low bits in nibble p / 2 of ql[64 half + 32 (p % 2) + l] and its high
 * bits at 2 p of qh[32 half + l]. */
static void pack_q6_K(const uint8_t *const rows[16], int64_t n_cols, void *out) {
    q6_K_x16 *w = out;
    for (int64_t b = 0; b < n_cols / 256; b++, w++) {
        memset(w, 0, sizeof *w);
        for (int r = 0; r < 16; r++) {
            if (!rows[r]) continue;
            const uint8_t *ql = rows[r] + b * 210, *qh = ql + 128, *scales = qh + 64;
            memcpy(&w->d[r], scales + 16, 2);
            for (int part = 0; part < 8; part++) {
                int half = part / 4, p = part % 4;
                w->part[part].scale[0][r] = (int8_t)scales[2 * part];
                w->part[part].scale[1][r] = (int8_t)scales[2 * part + 1];
                for (int l = 0; l < 32; l++) {
                    uint8_t low = ql[64 * half + 32 * (p % 2) + l] >> (4 * (p / 2)) & 15;
                    uint8_t high = qh[32 * half + l] >> (2 * p) & 3;
                    int v = l / 4, j = l % 4;
                    w->part[part].ql[v % 4][4 * r + j] |= (uint8_t)(low << (4 * (v / 4)));
                    w->part[part].qh[v % 2][4 * r + j] |= (uint8_t)(high << (2 * (v / 2)));
                }
            }
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
