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
#include "pack_steps.h"
#include "table.h"

/* How the integers of a block stand (layout.h) */
enum { FLOATS, PLANES, BYTES, SIXES, PAIRS };

/* How d and m are stored. Each level has a function that loads 16 of them: load_scales_<level>.
 * E8M0: a byte e, half of 2^(e - 127), because the steps of MXFP4 are twice its numbers */
enum { SCALE_F16, SCALE_E8M0, SCALE_F32 };

typedef struct {
    const char *name;
    int number, columns, bytes; /* as in types.def */
    pack_fn pack;
    int loaded_as, packed; /* type of the interleaved rows; bytes of a block of it */
    int layout;
    int low, high;       /* bits of an integer in block_x16.low, and above them in .high */
    int offset;          /* by how much the integers, or the steps, were raised to be unsigned */
    int minimum;         /* weights have one: m */
    int halves;          /* each half of a block has its own d and m */
    int byte_scales;     /* the factors are whole bytes: there is nothing to unpack */
    int one_scale;       /* a super-block without factors */
    int scale;           /* how d and m are stored */
    const int8_t *steps; /* the numbers that integers stand for, if not for themselves */
    int largest;         /* of the steps, raised by the offset */
} weight_type_t;

/* The 16 steps of IQ4_NL (ggml's kvalues_iq4nl) */
static const int8_t IQ4_NL_STEPS[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

/* The 16 numbers of MXFP4, twice as large: a sign, two bits of exponent and one of mantissa (Open
 * Compute Project, Microscaling Formats v1.0) */
static const int8_t MXFP4_STEPS[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* Points of grids: magnitudes, and behind them the same with a minus sign. Those of IQ3_XXS are
 * half of ggml's, so that they fit six bits. */
static const int8_t IQ3_S_STEPS[16] = {1,  3,  5,  7,  9,  11,  13,  15,
                                       -1, -3, -5, -7, -9, -11, -13, -15};
static const int8_t IQ3_XXS_STEPS[16] = {2,  6,  10,  14,  18,  22,  26,  31,
                                         -2, -6, -10, -14, -18, -22, -26, -31};
static const int8_t IQ2_STEPS[16] = {8, 25, 43, 0, -8, -25, -43, 0};
/* Of IQ1: 8 times -1, 0 and 1, plus 1 and then minus 1 */
static const int8_t IQ1_STEPS[16] = {-7, 1, 9, 0, -9, -1, 7, 0};

static const weight_type_t WEIGHT_TYPES[N_WEIGHT_TYPES] = {
#define FLOAT_TYPE(NAME, c_name, number, bytes, pack) \
    [W_##NAME] = {#NAME, number, 1, bytes, pack, W_##NAME, bytes},
#define BLOCK_TYPE(NAME, c_name, number, columns, bytes, pack, factors, view, ...)         \
    [W_##NAME] = {#NAME, number, columns, bytes, pack, W_##NAME,                          \
                  sizeof(c_name##_x16) / GROUP_ROWS, __VA_ARGS__},
#define LOADED_TYPE(NAME, number, columns, bytes, pack, AS, as) \
    [W_##NAME] = {#NAME, number, columns, bytes, pack, W_##AS, sizeof(as##_x16) / GROUP_ROWS},
#include "types.def"
};

/* Interleaving may add bytes, but no part of one, and takes none away. */
#define FLOAT_TYPE(...)
#define BLOCK_TYPE(NAME, c_name, number, columns, bytes, ...)                \
    _Static_assert(sizeof(c_name##_x16) >= GROUP_ROWS * bytes &&            \
                   sizeof(c_name##_x16) % GROUP_ROWS == 0, #NAME);
#include "types.def"

/* Questions to a type that is known when compiling; they cost nothing then. */
ALWAYS_INLINE int is_super(const int type) { return WEIGHT_TYPES[type].columns > BLOCK; }
ALWAYS_INLINE int has_factors(const int type) {
    return is_super(type) && !WEIGHT_TYPES[type].one_scale;
}
ALWAYS_INLINE int has_halves(const int type) { return WEIGHT_TYPES[type].halves; }
ALWAYS_INLINE int has_minimum(const int type) { return WEIGHT_TYPES[type].minimum; }
ALWAYS_INLINE int has_steps(const int type) { return WEIGHT_TYPES[type].steps != NULL; }
ALWAYS_INLINE int layout_of(const int type) { return WEIGHT_TYPES[type].layout; }
ALWAYS_INLINE int low_bits(const int type) { return WEIGHT_TYPES[type].low; }
ALWAYS_INLINE int high_bits(const int type) { return WEIGHT_TYPES[type].high; }
ALWAYS_INLINE int offset_of(const int type) { return WEIGHT_TYPES[type].offset; }

/* The largest unsigned integer or raised step */
ALWAYS_INLINE int largest_of(const int type) {
    return has_steps(type) ? WEIGHT_TYPES[type].largest
                           : (1 << (low_bits(type) + high_bits(type))) - 1;
}

/* Bytes of 16 rows and 32 columns; of a super-block's eight parts, on average */
ALWAYS_INLINE int block_bytes(const int type) {
    return GROUP_ROWS * WEIGHT_TYPES[type].packed * BLOCK / WEIGHT_TYPES[type].columns;
}

#endif
