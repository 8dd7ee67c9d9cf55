/* Matmul tiles of many columns for AMX (TILE, INT8): 16 rows times tiles of 16 columns.
 *
 * A tile instruction multiplies 16 columns of a block, 16 x 32 signed bytes, with the block's
 * weights as they are interleaved already, 8 x 64 bytes: row v has 4 columns of 16 rows. Integer
 * sums of a block are exact in any order. All floats are made of them by the operations of
 * matmul_avx512.h and matmul_super_avx512.h in their order, so a column has the same bits here and
 * there, and tiles of few columns stay with AVX-512. Where AVX-512 starts a sum at minus the offset
 * times the sum of the activations, weights lose their offset when they are unpacked.
 *
 * Weights are unpacked for 8 blocks, a super-block, at a time, into the L1 cache, and are used
 * there for all columns. The sums of 8 blocks and 16 columns, a unit, go through the L1 cache too. While
 * tile instructions run, a core starts one 512-bit multiplication a cycle instead of two, so floats
 * bound the speed: those of a unit are made between the products of the next. Types whose halves
 * have scales of their own need twice the sums and tiles, and stay with AVX-512, which is as fast.
 */
#ifndef LARIAT_MATMUL_AMX_H
#define LARIAT_MATMUL_AMX_H

#include "matmul_super_avx512.h"

#define FOR_EACH_COLUMN _Pragma("GCC unroll 16") for (int c = 0; c < TILE_COLUMNS; c++)

enum { UNIT_BLOCKS = 8, UNIT_TILES = MANY_COLUMNS / TILE_COLUMNS };

/* Tiles 0 to 3 are sums, 4 and 5 activations, 6 and 7 weights. By assembler: what compilers offer
 * needs options that older ones lack, and does not say that a tile load reads memory. */
#define TILE_ZERO(n) __asm__ volatile("tilezero %%tmm" #n : :)
/* Rows stand 32 bytes apart, times `scale`: so one register holds the distance of all. */
#define TILE_LOAD(n, p, scale)                                       \
    __asm__ volatile("tileloadd (%0,%1," #scale "), %%tmm" #n : : "r"(p), "r"((int64_t)32) \
                     : "memory")
#define TILE_STORE(n, p) \
    __asm__ volatile("tilestored %%tmm" #n ", (%0,%1,2)" : : "r"(p), "r"((int64_t)32) : "memory")
#define TILE_ADD_PRODUCTS(instruction, sum, x, w) \
    __asm__ volatile(instruction " %%tmm" #w ", %%tmm" #x ", %%tmm" #sum : :)

/* The operand of `ldtilecfg`: bytes of a row, and rows, of each tile */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes_t;

typedef struct {
    _Alignas(64) uint8_t w[UNIT_BLOCKS][8][64]; /* integers of 8 blocks */
    float d[2][UNIT_BLOCKS][16];                /* of two units in turns: [block][row] */
    float m[2][UNIT_BLOCKS][16];
    float super_d[2][16], super_m[2][16];
    int32_t dot[2][UNIT_BLOCKS][TILE_COLUMNS][16]; /* sums of two units in turns */
    float acc[UNIT_TILES][TILE_COLUMNS][16];
} amx_work_t;

/* 8 blocks at most, and the columns that they are multiplied with */
typedef struct {
    int64_t block;
    int n_blocks, tile, turn; /* turn: which of two d, m */
} unit_t;

/* Types whose parts are summed before their scale is used: total += scale (f dot) */
ALWAYS_INLINE int sums_parts(const int type) { return layout_of(type) == PAIRS; }

ALWAYS_INLINE void shape_tiles_amx(void) {
    tile_shapes_t shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.rows[i] = i < 6 ? TILE_COLUMNS : BLOCK / 4;
        shapes.row_bytes[i] = i == 4 || i == 5 ? BLOCK : 64;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
}

/* The integers of a block: signed, or unsigned in types with a minimum */
ALWAYS_INLINE void unpack_block_amx(block_x16 block, const int type, uint8_t (*out)[64]) {
    __m512i w_u8x64[8];
    if (layout_of(type) == PAIRS)
        for (int v = 0; v < 8; v++) w_u8x64[v] = pairs_avx512(block, type, block.part % 2, v);
    else integers_avx512(block, type, w_u8x64);
    const __m512i offset = _mm512_set1_epi8((char)offset_of(type));
    _Pragma("GCC unroll 8")
    for (int v = 0; v < 8; v++)
        _mm512_store_si512(out[v], has_minimum(type) ? w_u8x64[v]
                                                     : _mm512_sub_epi8(w_u8x64[v], offset));
}

/* Integers and scales of a unit's blocks, as columns_avx512 and paired_columns_avx512 make them */
ALWAYS_INLINE void unpack_unit_amx(const void *weights, unit_t unit, const int type,
                                   const tuning_t *tuning, amx_work_t *work) {
    float(*d)[16] = work->d[unit.turn], (*m)[16] = work->m[unit.turn];
    factors_t factors;
    for (int i = 0; i < unit.n_blocks; i++) {
        const block_x16 block = block_of(weights, unit.block + i, type);
        fetch_block_avx512(weights, unit.block + i, block, TILE_COLUMNS, type, tuning);
        unpack_block_amx(block, type, work->w[i]);
        unpack_factors(block, type, &factors);
        const int8_t *f = d_factors(block, &factors, 0, type);
        const int8_t *g = m_factors(block, &factors, 0, type);
        if (sums_parts(type)) {
            _mm512_store_ps(d[i], _mm512_cvtepi32_ps(load_factors_avx512(f)));
            _mm512_store_ps(m[i], _mm512_cvtepi32_ps(load_factors_avx512(g)));
            if (i > 0) continue;
            _mm512_store_ps(work->super_d[unit.turn], load_scales_avx512(block.d, type));
            _mm512_store_ps(work->super_m[unit.turn], load_scales_avx512(block.m, type));
        } else {
            _mm512_store_ps(d[i], scaled_avx512(block.d, f, type));
            if (has_minimum(type)) _mm512_store_ps(m[i], scaled_avx512(block.m, g, type));
        }
    }
}

/* The sums of a block, in tile `n` */
ALWAYS_INLINE void multiply_amx(const int n, const int8_t *x, const uint8_t *w, const int type) {
    const int is_signed = !has_minimum(type);
#define MULTIPLY(sum, x_tile, w_tile)                                      \
    TILE_ZERO(sum);                                                        \
    TILE_LOAD(x_tile, x, 1);                                               \
    TILE_LOAD(w_tile, w, 2);                                               \
    if (is_signed) TILE_ADD_PRODUCTS("tdpbssd", sum, x_tile, w_tile);      \
    else TILE_ADD_PRODUCTS("tdpbsud", sum, x_tile, w_tile);                \
    break;
    switch (n) {
    case 0: MULTIPLY(0, 4, 6)
    case 1: MULTIPLY(1, 5, 7)
    case 2: MULTIPLY(2, 4, 6)
    default: MULTIPLY(3, 5, 7)
    }
#undef MULTIPLY
}

ALWAYS_INLINE void store_sums_amx(const int n, int32_t (*out)[16]) {
    switch (n) {
    case 0: TILE_STORE(0, out); break;
    case 1: TILE_STORE(1, out); break;
    case 2: TILE_STORE(2, out); break;
    default: TILE_STORE(3, out);
    }
}

/* acc += a block times 16 columns, as add_block_avx512 and add_part_avx512 do */
ALWAYS_INLINE void add_sums_amx(__m512 *acc_f32x16, const int32_t (*dot)[16], const float *d,
                                const float *m, const float *scale, const float *sum,
                                const int type) {
    const __m512 d_f32x16 = _mm512_load_ps(d);
    FOR_EACH_COLUMN
        add_scaled_avx512(acc_f32x16 + c, _mm512_load_si512(dot[c]), d_f32x16, scale[c]);
    if (!has_minimum(type) || sums_parts(type)) return;
    const __m512 m_f32x16 = _mm512_load_ps(m);
    FOR_EACH_COLUMN acc_f32x16[c] =
        _mm512_fmadd_ps(m_f32x16, _mm512_set1_ps(sum[c]), acc_f32x16[c]);
}

/* acc += the sum of a super-block's parts, `total`, times its scale; and its minimums times `sum`,
 * the scaled sums of the activations [part][column] */
ALWAYS_INLINE void add_super_amx(float (*acc)[16], const __m512 *total, const amx_work_t *work,
                                 int turn, const float *sum) {
    const __m512 d = _mm512_load_ps(work->super_d[turn]);
    FOR_EACH_COLUMN _mm512_store_ps(acc[c],
                                    _mm512_fmadd_ps(d, total[c], _mm512_load_ps(acc[c])));
    const __m512 dmin = _mm512_load_ps(work->super_m[turn]);
    __m512 least[TILE_COLUMNS];
    FOR_EACH_COLUMN least[c] = _mm512_setzero_ps();
    for (int p = 0; p < 8; p++) {
        const __m512 m = _mm512_load_ps(work->m[turn][p]);
        FOR_EACH_COLUMN least[c] =
            _mm512_fmadd_ps(m, _mm512_set1_ps(sum[p * TILE_COLUMNS + c]), least[c]);
    }
    FOR_EACH_COLUMN _mm512_store_ps(acc[c],
                                    _mm512_fmadd_ps(dmin, least[c], _mm512_load_ps(acc[c])));
}

/* Where the first block of a unit stands among the activations */
ALWAYS_INLINE int64_t place_of(const activations_t *a, int64_t col, unit_t unit) {
    return (col + unit.tile * TILE_COLUMNS) * (a->n_k / BLOCK) + unit.block * TILE_COLUMNS;
}

/* Of the blocks of a unit and 16 columns: scales, and scaled sums, as block_sums and
 * part_scales_avx512 make them. Returns where the scales are. */
ALWAYS_INLINE const float *unit_scales_amx(const activations_t *a, int64_t at, int n_blocks,
                                           const int type, float *scale, float *sum) {
    const __m512 odd = _mm512_set1_ps(high_bits(type) ? 0x1p-3f : 0x1p-4f);
    for (int i = 0; i < n_blocks; i++) {
        const __m512 s = _mm512_loadu_ps(a->scale + at + i * TILE_COLUMNS);
        const __m512i neg8 = _mm512_loadu_si512(a->neg8_sum + at + i * TILE_COLUMNS);
        _mm512_store_ps(sum + i * TILE_COLUMNS,
                        _mm512_mul_ps(_mm512_mul_ps(s, _mm512_set1_ps(-0.125f)),
                                      _mm512_cvtepi32_ps(neg8)));
        if (layout_of(type) == PAIRS)
            _mm512_store_ps(scale + i * TILE_COLUMNS, i % 2 ? _mm512_mul_ps(s, odd) : s);
    }
    __asm__("" : : "r"(scale), "r"(sum) : "memory"); /* from memory a broadcast is a load */
    return layout_of(type) == PAIRS ? scale : a->scale + at;
}

/* The products of unit `next` and the floats of unit `now`, which may have no blocks. `dot`: the
 * sums of both, those of `now` second. */
ALWAYS_INLINE void step_amx(const activations_t *a, int64_t col, unit_t next, unit_t now,
                            int32_t (*dot[2])[TILE_COLUMNS][16], const int type, amx_work_t *work) {
    const int64_t at_next = place_of(a, col, next), at = place_of(a, col, now);
    const int n = next.n_blocks > now.n_blocks ? next.n_blocks : now.n_blocks;
    float(*acc)[16] = work->acc[now.tile];
    __m512 acc_f32x16[TILE_COLUMNS];
    FOR_EACH_COLUMN acc_f32x16[c] =
        sums_parts(type) ? _mm512_setzero_ps() : _mm512_load_ps(acc[c]);
    const float *scale = a->scale + at;
    _Alignas(64) float of_parts[UNIT_BLOCKS * TILE_COLUMNS], sum[UNIT_BLOCKS * TILE_COLUMNS];
    if (has_minimum(type))
        scale = unit_scales_amx(a, at, now.n_blocks, type, of_parts, sum);
    _Pragma("GCC unroll 1")
    for (int first = 0; first < n; first += 4) {
        _Pragma("GCC unroll 4")
        for (int t = 0; t < 4; t++) {
            const int i = first + t;
            if (i < next.n_blocks)
                multiply_amx(t, a->q + (at_next + i * TILE_COLUMNS) * BLOCK, work->w[i][0], type);
            if (i < now.n_blocks)
                add_sums_amx(acc_f32x16, dot[1][i], work->d[now.turn][i], work->m[now.turn][i],
                             scale + i * TILE_COLUMNS, sum + i * TILE_COLUMNS, type);
            /* Two tiles later, so that nothing waits for the products */
            if (t >= 2 && i - 2 < next.n_blocks) store_sums_amx(t - 2, dot[0][i - 2]);
        }
        if (first + 2 < next.n_blocks) store_sums_amx(2, dot[0][first + 2]);
        if (first + 3 < next.n_blocks) store_sums_amx(3, dot[0][first + 3]);
    }
    if (!now.n_blocks) return;
    if (sums_parts(type)) add_super_amx(acc, acc_f32x16, work, now.turn, sum);
    else FOR_EACH_COLUMN _mm512_store_ps(acc[c], acc_f32x16[c]);
}

ALWAYS_INLINE void many_amx(const void *weights, const activations_t *a, int64_t col, int n_cols,
                            float *out, int64_t out_stride, int n_rows, int add, const int type,
                            const tuning_t *tuning) {
    const int64_t n_blocks = a->n_k / BLOCK;
    const int n_tiles = n_cols / TILE_COLUMNS;
    amx_work_t work;
    memset(work.acc, 0, n_tiles * sizeof work.acc[0]);
    shape_tiles_amx();
    unit_t now = {0}, next = {.tile = n_tiles, .block = -UNIT_BLOCKS};
    for (int turn = 0; next.block < n_blocks; turn ^= 1) {
        if (++next.tile >= n_tiles) {
            next.tile = 0, next.block += UNIT_BLOCKS, next.turn ^= 1;
            const int64_t left = n_blocks - next.block;
            next.n_blocks = (int)(left < 0 ? 0 : left < UNIT_BLOCKS ? left : UNIT_BLOCKS);
            unpack_unit_amx(weights, next, type, tuning, &work);
        }
        int32_t(*dot[2])[TILE_COLUMNS][16] = {work.dot[turn], work.dot[turn ^ 1]};
        step_amx(a, col, next, now, dot, type, &work);
        now = next;
    }
    __asm__ volatile("tilerelease" : :);
    for (int tile = 0; tile < n_tiles; tile++) {
        __m512 acc_f32x16[TILE_COLUMNS];
        FOR_EACH_COLUMN acc_f32x16[c] = _mm512_load_ps(work.acc[tile][c]);
        store_columns_avx512(acc_f32x16, TILE_COLUMNS, out + tile * TILE_COLUMNS * out_stride,
                             out_stride, n_rows, add);
    }
}

#define FLOAT_TYPE(...)
#define BLOCK_TYPE(NAME, name, ...) \
    MATMUL(matmul_##name##_amx, many_amx, W_##NAME, &TUNING_avx512_intel)
#include "types.def"

static void use_amx(kernels_t *k) {
#define FLOAT_TYPE(...)
#define BLOCK_TYPE(NAME, name, ...) \
    if (!has_halves(W_##NAME)) k->matmul_many[W_##NAME] = matmul_##name##_amx;
#include "types.def"
}

static void use_amx_intel(kernels_t *k) { use_amx(k); }

#undef FOR_EACH_COLUMN
#endif
