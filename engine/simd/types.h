/* The weight types: what types.def says of each.
 *
 * A weight is d (q - offset), d q + m or d steps[q]: q an unsigned integer of a few bits, d and m
 * of 32 columns of a row or of 16. In a super-block of 256 columns, d and m are products of one
 * float for all and a small integer, the factor.
 */
#ifndef LARIAT_TYPES_H
#define LARIAT_TYPES_H

#include "layout.h"
#include "pack.h"
#include "table.h"

/* How the integers of a block stand (layout.h) */
enum { FLOATS, PLANES, BYTES, SIXES, PAIRS };

/* How d and m are stored. Each level has a function that loads 16 of them: load_scales_<level>. */
enum { SCALE_F16 };

typedef struct {
    const char *name;
    int number, columns, bytes; /* as in types.def */
    pack_fn pack;
    int layout;
    int low, high;       /* bits of an integer in block_x16.low, and above them in .high */
    int offset;          /* by how much the integers, or the steps, were raised to be unsigned */
    int minimum;         /* weights have one: m */
    int halves;          /* each half of a block has its own d and m */
    int byte_scales;     /* the factors are whole bytes: there is nothing to unpack */
    int scale;           /* how d and m are stored */
    const int8_t *steps; /* the numbers that integers stand for, if not for themselves */
} weight_type_t;

/* The 16 steps of IQ4_NL (ggml's kvalues_iq4nl) */
static const int8_t IQ4_NL_STEPS[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

static const weight_type_t WEIGHT_TYPES[N_WEIGHT_TYPES] = {
#define FLOAT_TYPE(NAME, c_name, number, bytes, pack) [W_##NAME] = {#NAME, number, 1, bytes, pack},
#define BLOCK_TYPE(NAME, c_name, number, columns, bytes, pack, factors, view, ...) \
    [W_##NAME] = {#NAME, number, columns, bytes, pack, __VA_ARGS__},
#include "types.def"
};

/* Interleaving adds no byte. */
#define FLOAT_TYPE(...)
#define BLOCK_TYPE(NAME, c_name, number, columns, bytes, ...) \
    _Static_assert(sizeof(c_name##_x16) == GROUP_ROWS * bytes, #NAME);
#include "types.def"

/* Questions to a type that is known when compiling; they cost nothing then. */
ALWAYS_INLINE int is_super(const int type) { return WEIGHT_TYPES[type].columns > BLOCK; }
ALWAYS_INLINE int has_halves(const int type) { return WEIGHT_TYPES[type].halves; }
ALWAYS_INLINE int has_minimum(const int type) { return WEIGHT_TYPES[type].minimum; }
ALWAYS_INLINE int has_steps(const int type) { return WEIGHT_TYPES[type].steps != NULL; }
ALWAYS_INLINE int layout_of(const int type) { return WEIGHT_TYPES[type].layout; }
ALWAYS_INLINE int low_bits(const int type) { return WEIGHT_TYPES[type].low; }
ALWAYS_INLINE int high_bits(const int type) { return WEIGHT_TYPES[type].high; }
ALWAYS_INLINE int offset_of(const int type) { return WEIGHT_TYPES[type].offset; }

/* Bytes of 16 rows and 32 columns; of a super-block's eight parts, on average */
ALWAYS_INLINE int block_bytes(const int type) {
    return GROUP_ROWS * WEIGHT_TYPES[type].bytes * BLOCK / WEIGHT_TYPES[type].columns;
}

#endif
