/* The table of tiles: one signature an operation, whatever the instruction set. */
#ifndef LARIAT_TABLE_H
#define LARIAT_TABLE_H

#include "layout.h"

/* Numbers of the weight types, in the order of types.def */
enum {
#define TYPE(NAME, name) W_##NAME,
#define LOADED_TYPE(NAME, ...) W_##NAME,
#include "types.def"
    N_WEIGHT_TYPES
};
/* Types of cached keys and values; those from C_Q8_CH on are quantized by channel. */
enum { C_F16, C_F32, N_FLOAT_TYPES };
enum { C_Q8_0 = N_FLOAT_TYPES, C_Q4_0, C_Q8_CH, C_Q4_CH, N_CACHE_TYPES };

/* The order in which tile_scores adds up: that of scores[0], that of scores[1], and that of
 * scores[1] for eight queries at once. So a query has the same bits alone and in a tile. */
enum { TILE_ROPED, TILE_RAW, TILE_RAW_8 };

/* out [n_cols][out_stride] = n_rows rows of weights times n_cols columns from `col` on; out += with
 * `add` */
typedef void (*matmul_fn)(const void *weights, const activations_t *a, int64_t col, int n_cols,
                          float *out, int64_t out_stride, int n_rows, int add);
/* A matmul_fn of one type and target: the tile of its level, compiled for both */
#define MATMUL(name, tile, type, tuning)                                                   \
    static void name(const void *weights, const activations_t *a, int64_t col, int n_cols, \
                     float *out, int64_t out_stride, int n_rows, int add) {                \
        tile(weights, a, col, n_cols, out, out_stride, n_rows, add, type, tuning);         \
    }
typedef void (*scores_fn)(const float *q, int n_q, const void *k, int n, int64_t head_dim,
                          const rope_t *rope, float *s);
typedef void (*keys_fn)(const void *k, int n, int64_t head_dim, const float *row, float *tile);
typedef void (*weighted_sum_fn)(const float *s, int n_q, const void *v, int n, int64_t head_dim,
                                float *acc);
/* `block`: quantized keys or values of a block's slots, of one KV head; those of n slots from
 * `first` on are read. */
typedef void (*block_scores_fn)(const float *q, const void *block, int first, int n,
                                int64_t head_dim, const rope_t *rope, float *s);
typedef void (*block_weighted_sum_fn)(const float *s, const void *block, int first, int n,
                                      int64_t head_dim, float *acc);
typedef void (*dequantize_fn)(const void *block, int first, int n, int64_t head_dim, float *out);
typedef void (*quantize_fn)(const float *x, int slot, int64_t head_dim, void *block);

enum { FEW_COLUMNS = 4 }; /* so few that reading the weights takes longer than the products */

typedef struct {
    int8_t widths[TILE_COLUMNS + 1]; /* columns of the next tile when so many, or more, are left */
    matmul_fn matmul[N_WEIGHT_TYPES]; /* of types that have tiles; n_cols is a `tile_width` */
    matmul_fn matmul_few[N_WEIGHT_TYPES]; /* the same for up to FEW_COLUMNS; set by fill_table */
    /* Tiles of 16 columns in a row, up to MANY_COLUMNS; NULL where `matmul` is as good */
    matmul_fn matmul_many[N_WEIGHT_TYPES];
    void (*rms_norm)(const float *x, const float *weight, float eps, int64_t n, float *out);
    void (*quantize_column)(const float *x, int64_t n_k, int64_t width, int8_t *q, float *scale,
                            int32_t *neg8_sum, int16_t *half_sum);
    void (*rope_head)(float *x, const float *row, int64_t half, float scale);
    void (*silu_mul)(float *gate, const float *up, int64_t n);
    void (*gelu_mul)(float *gate, const float *up, int64_t n);
    void (*soft_cap)(float *x, int64_t n, float cap);
    void (*hadamard)(float *x, int64_t n);
    void (*to_f16)(const float *x, int64_t n, f16_t *out);
    void (*to_f32)(const f16_t *x, int64_t n, float *out);
    void (*rotate_back)(const float *x, int n, const float *row, int64_t half, float *out);
    scores_fn scores[2][N_FLOAT_TYPES]; /* [roped, raw] */
    keys_fn keys[N_FLOAT_TYPES];
    void (*tile_scores)(const float *q, int n_q, const float *tile, int64_t head_dim, int order,
                        float *s);
    void (*softmax_block)(float *s, int n_q, int n, int n_keys, int more, float *m, float *l,
                          float *acc, int64_t head_dim);
    weighted_sum_fn weighted_sum[N_FLOAT_TYPES];
    block_scores_fn block_scores[2][N_CACHE_TYPES]; /* quantized types only, as all below */
    block_weighted_sum_fn block_weighted_sum[N_CACHE_TYPES];
    dequantize_fn dequantize[N_CACHE_TYPES];
    quantize_fn quantize[N_CACHE_TYPES]; /* a position, or (by channel) all of a block's */
} kernels_t;

/* Columns of the next tile of a matmul, of which n_left are left */
static inline int64_t tile_width(const kernels_t *k, int64_t n_left) {
    return k->widths[n_left < TILE_COLUMNS ? n_left : TILE_COLUMNS];
}

/* The kernel for the next columns of a matmul, of which n_left are left, and how many it takes */
static inline matmul_fn matmul_of(const kernels_t *k, int type, int64_t n_k, int64_t n_left,
                                  int64_t *width) {
    const int64_t many = (n_left < MANY_COLUMNS ? n_left : MANY_COLUMNS) & -TILE_COLUMNS;
    if (k->matmul_many[type] && many > TILE_COLUMNS && many * n_k >= MANY_ACTIVATIONS) {
        *width = many;
        return k->matmul_many[type];
    }
    *width = tile_width(k, n_left);
    return *width <= FEW_COLUMNS ? k->matmul_few[type] : k->matmul[type];
}

/* Bytes of a cached position of one KV head, without scales */
static inline int64_t cache_row_bytes(int type, int64_t head_dim) {
    switch (type) {
    case C_F32: return 4 * head_dim;
    case C_F16: return 2 * head_dim;
    case C_Q8_0:
    case C_Q8_CH: return head_dim;
    default: return head_dim / 2;
    }
}

/* Bytes of what stands behind the rows of a block of one KV head: see cache_q_scalar.h */
static inline int64_t cache_scale_bytes(int type, int64_t head_dim) {
    switch (type) {
    case C_Q8_0:
    case C_Q4_0: return 2 * SLOTS * (head_dim / BLOCK);
    case C_Q8_CH:
    case C_Q4_CH: return 2 * head_dim;
    default: return 0;
    }
}

/* Bytes of a block's SLOTS positions of one KV head */
static inline int64_t cache_block_bytes(int type, int64_t head_dim) {
    return SLOTS * cache_row_bytes(type, head_dim) + cache_scale_bytes(type, head_dim);
}

/* Asks for a cache line of the next head's block, which is read next: a block of one head is too
 * short for the processor to see by itself that a run goes on. Into the L2 cache; the L1 cache has
 * no room for it. */
static inline void prefetch_next(const void *p, int64_t block_bytes) {
    __builtin_prefetch((const char *)p + block_bytes, 0, 2);
}

#endif
