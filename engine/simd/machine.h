/* Probes of the best that this processor can do: reading memory, multiplying bytes, multiplying
 * floats.
 *
 * Decoding reads every weight once a token, so the rate of plain reading is its ceiling. A prompt
 * multiplies 8-bit activations with weights of up to 8 bits, so the rate of those products, from
 * registers, is its ceiling; that of attention and of float weights is the rate of float products.
 * Each instruction set has its probes, with the instructions of its kernels. A probe returns a sum
 * that depends on all of its work, so that no compiler drops any and a test can check it.
 */
#ifndef LARIAT_MACHINE_H
#define LARIAT_MACHINE_H

#include "layout.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifdef LARIAT_X86
#include <immintrin.h>
#define TARGET_AVX2 __attribute__((target("avx2,fma")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512vnni")))
#endif

/* Loops over a count known when compiling, so that what they index stays in registers */
#define UNROLL _Pragma("GCC unroll 16") for

enum {
    READ_STEP = 256,      /* bytes: four vectors of 64 into four sums, to hide their latency */
    MULTIPLY_STEP = 8192, /* products of one step of `multiply` and `multiply_floats` */
    WEIGHT = 3            /* the weight byte of all products; the activation is 1 to 100 */
};

typedef struct {
    /* Sum of the n bytes at p as 64-bit words, modulo 2^64; n is a multiple of READ_STEP */
    uint64_t (*read)(const uint8_t *p, int64_t n);
    /* Sum of n_steps * MULTIPLY_STEP products WEIGHT * activation, modulo 2^32 */
    uint32_t (*multiply)(int64_t n_steps, int activation);
    /* Sum of n_steps * MULTIPLY_STEP products 1 * x, each rounded to float */
    float (*multiply_floats)(int64_t n_steps, float x);
} probes_t;

/* ---- plain C ---- */

static uint64_t read_scalar(const uint8_t *p, int64_t n) {
    uint64_t sum[4] = {0};
    for (int64_t i = 0; i < n; i += 32) {
        uint64_t words[4];
        memcpy(words, p + i, 32);
        for (int j = 0; j < 4; j++) sum[j] += words[j];
    }
    return sum[0] + sum[1] + sum[2] + sum[3];
}

/* Two runs of bytes from the L1 cache: a dot product as the compiler translates it */
static uint32_t multiply_scalar(int64_t n_steps, int activation) {
    enum { N = 1024 };
    uint8_t w[N];
    int8_t q[N];
    memset(w, WEIGHT, N);
    memset(q, activation, N);
    uint32_t sum = 0;
    for (int64_t i = 0; i < n_steps * (MULTIPLY_STEP / N); i++) {
        int32_t dot = 0;
        for (int j = 0; j < N; j++) dot += (int32_t)w[j] * q[j];
        sum += (uint32_t)dot;
        __asm__ volatile("" : : "r"(w), "r"(q) : "memory"); /* or it would be computed once */
    }
    return sum;
}

/* Sixteen sums, so that no product waits for the one before it */
static float multiply_floats_scalar(int64_t n_steps, float x) {
    enum { N = 16 };
    float sum[N] = {0};
    for (int64_t i = 0; i < n_steps * (MULTIPLY_STEP / N); i++) {
        float one = 1;
        __asm__ volatile("" : "+m"(one));
        for (int j = 0; j < N; j++) sum[j] += one * x;
    }
    for (int j = 1; j < N; j++) sum[0] += sum[j];
    return sum[0];
}

#ifdef LARIAT_X86

/* ---- AVX2 ---- */

TARGET_AVX2 static uint64_t read_avx2(const uint8_t *p, int64_t n) {
    __m256i sum[8];
    UNROLL (int j = 0; j < 8; j++) sum[j] = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i += 256) {
        UNROLL (int j = 0; j < 8; j++)
            sum[j] = _mm256_add_epi64(
                sum[j], _mm256_loadu_si256((const __m256i *)(p + i + 32 * j)));
    }
    UNROLL (int j = 1; j < 8; j++) sum[0] = _mm256_add_epi64(sum[0], sum[j]);
    uint64_t lanes[4];
    memcpy(lanes, &sum[0], 32);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

/* Without a dot product instruction: vpmaddubsw multiplies and adds pairs in int16. A nibble times
 * an activation allows eight of them before the sum must be widened, so widening hardly counts. */
TARGET_AVX2 static uint32_t multiply_avx2(int64_t n_steps, int activation) {
    enum { CHAINS = 4, DEPTH = 8 };
    const __m256i ones = _mm256_set1_epi16(1), q = _mm256_set1_epi8((char)activation);
    __m256i w = _mm256_set1_epi8(WEIGHT), wide[CHAINS];
    UNROLL (int c = 0; c < CHAINS; c++) wide[c] = _mm256_setzero_si256();
    for (int64_t i = 0; i < n_steps * (MULTIPLY_STEP / (CHAINS * DEPTH * 32)); i++) {
        __m256i narrow[CHAINS];
        UNROLL (int c = 0; c < CHAINS; c++) narrow[c] = _mm256_setzero_si256();
        UNROLL (int d = 0; d < DEPTH; d++) {
            UNROLL (int c = 0; c < CHAINS; c++) {
                narrow[c] = _mm256_add_epi16(narrow[c], _mm256_maddubs_epi16(w, q));
                /* or equal products would be computed once, and all of them before the sums */
                __asm__ volatile("" : "+x"(w), "+x"(narrow[c]));
            }
        }
        UNROLL (int c = 0; c < CHAINS; c++)
            wide[c] = _mm256_add_epi32(wide[c], _mm256_madd_epi16(narrow[c], ones));
    }
    uint32_t sum = 0, lanes[8];
    UNROLL (int c = 0; c < CHAINS; c++) {
        memcpy(lanes, &wide[c], 32);
        for (int j = 0; j < 8; j++) sum += lanes[j];
    }
    return sum;
}

TARGET_AVX2 static float multiply_floats_avx2(int64_t n_steps, float x) {
    /* A multiply-add takes 4 cycles, and two start in each; 16 sums would leave no register for x.
     */
    enum { CHAINS = 12, VECTORS = MULTIPLY_STEP / 8 };
    const __m256 one = _mm256_set1_ps(1), x_f32x8 = _mm256_set1_ps(x);
    __m256 sum[CHAINS];
    UNROLL (int c = 0; c < CHAINS; c++) sum[c] = _mm256_setzero_ps();
    for (int64_t step = 0; step < n_steps; step++) {
        for (int i = 0; i < VECTORS / CHAINS; i++) {
            UNROLL (int c = 0; c < CHAINS; c++) {
                sum[c] = _mm256_fmadd_ps(one, x_f32x8, sum[c]);
                __asm__ volatile("" : "+x"(sum[c]));
            }
        }
        UNROLL (int c = 0; c < VECTORS % CHAINS; c++)
            sum[c] = _mm256_fmadd_ps(one, x_f32x8, sum[c]);
    }
    float lanes[8], total = 0;
    UNROLL (int c = 1; c < CHAINS; c++) sum[0] = _mm256_add_ps(sum[0], sum[c]);
    memcpy(lanes, &sum[0], 32);
    for (int j = 0; j < 8; j++) total += lanes[j];
    return total;
}

/* ---- AVX-512 with VNNI ---- */

TARGET_AVX512 static uint64_t read_avx512(const uint8_t *p, int64_t n) {
    __m512i sum[4];
    UNROLL (int j = 0; j < 4; j++) sum[j] = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += 256) {
        UNROLL (int j = 0; j < 4; j++)
            sum[j] = _mm512_add_epi64(sum[j], _mm512_loadu_si512(p + i + 64 * j));
    }
    sum[0] = _mm512_add_epi64(_mm512_add_epi64(sum[0], sum[1]),
                              _mm512_add_epi64(sum[2], sum[3]));
    return (uint64_t)_mm512_reduce_add_epi64(sum[0]);
}

TARGET_AVX512 static uint32_t multiply_avx512(int64_t n_steps, int activation) {
    enum { CHAINS = 16 }; /* vpdpbusd takes 4 to 5 cycles, and up to two start in each */
    const __m512i w_u8x64 = _mm512_set1_epi8(WEIGHT);
    const __m512i q_i8x64 = _mm512_set1_epi8((char)activation);
    __m512i sum[CHAINS];
    UNROLL (int c = 0; c < CHAINS; c++) sum[c] = _mm512_setzero_si512();
    for (int64_t i = 0; i < n_steps * (MULTIPLY_STEP / (CHAINS * 64)); i++) {
        UNROLL (int c = 0; c < CHAINS; c++) {
            sum[c] = _mm512_dpbusd_epi32(sum[c], w_u8x64, q_i8x64);
            __asm__ volatile("" : "+v"(sum[c]));
        }
    }
    UNROLL (int c = 1; c < CHAINS; c++) sum[0] = _mm512_add_epi32(sum[0], sum[c]);
    return (uint32_t)_mm512_reduce_add_epi32(sum[0]);
}

TARGET_AVX512 static float multiply_floats_avx512(int64_t n_steps, float x) {
    enum { CHAINS = 16 };
    const __m512 one = _mm512_set1_ps(1), x_f32x16 = _mm512_set1_ps(x);
    __m512 sum[CHAINS];
    UNROLL (int c = 0; c < CHAINS; c++) sum[c] = _mm512_setzero_ps();
    for (int64_t i = 0; i < n_steps * (MULTIPLY_STEP / (CHAINS * 16)); i++) {
        UNROLL (int c = 0; c < CHAINS; c++) {
            sum[c] = _mm512_fmadd_ps(one, x_f32x16, sum[c]);
            __asm__ volatile("" : "+v"(sum[c]));
        }
    }
    UNROLL (int c = 1; c < CHAINS; c++) sum[0] = _mm512_add_ps(sum[0], sum[c]);
    return _mm512_reduce_add_ps(sum[0]);
}

/* ---- AMX ---- */

/* As the kernels multiply: 16 columns and 16 rows of a block of 32, a step for each instruction.
 * Tiles of 64 would have twice the products in the same time, but no two blocks share a scale. */
TARGET_AVX512 static uint32_t multiply_amx(int64_t n_steps, int activation) {
    enum { K = 32 };
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    uint8_t w[K * 16];
    int8_t q[16 * K];
    uint32_t sums[256];
    memset(w, WEIGHT, sizeof w);
    memset(q, activation, sizeof q);
    for (int i = 0; i < 6; i++) { /* 0 to 3: sums, 4: activations, 5: weights */
        shapes.rows[i] = i == 5 ? K / 4 : 16;
        shapes.row_bytes[i] = i == 4 ? K : 64;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
    __asm__ volatile("tileloadd (%0,%2,1), %%tmm4; tileloadd (%1,%3,1), %%tmm5"
                     : : "r"(q), "r"(w), "r"((int64_t)K), "r"((int64_t)64) : "memory");
    __asm__ volatile("tilezero %%tmm0; tilezero %%tmm1; tilezero %%tmm2; tilezero %%tmm3" : :);
    int64_t i = 0;
    for (; i + 4 <= n_steps; i += 4)
        __asm__ volatile("tdpbssd %%tmm5, %%tmm4, %%tmm0; tdpbssd %%tmm5, %%tmm4, %%tmm1;"
                         "tdpbssd %%tmm5, %%tmm4, %%tmm2; tdpbssd %%tmm5, %%tmm4, %%tmm3" : :);
    for (; i < n_steps; i++) __asm__ volatile("tdpbssd %%tmm5, %%tmm4, %%tmm0" : :);
    uint32_t sum = 0;
#define ADD_TILE(n)                                                                        \
    __asm__ volatile("tilestored %%tmm" #n ", (%0,%1,1)" : : "r"(sums), "r"((int64_t)64)  \
                     : "memory");                                                          \
    for (int j = 0; j < 256; j++) sum += sums[j];
    ADD_TILE(0)
    ADD_TILE(1)
    ADD_TILE(2)
    ADD_TILE(3)
#undef ADD_TILE
    __asm__ volatile("tilerelease" : :);
    return sum;
}

#endif

static const probes_t PROBES_scalar = {read_scalar, multiply_scalar, multiply_floats_scalar};
#ifdef LARIAT_X86
static const probes_t PROBES_avx2 = {read_avx2, multiply_avx2, multiply_floats_avx2};
static const probes_t PROBES_avx512 = {read_avx512, multiply_avx512, multiply_floats_avx512};
static const probes_t PROBES_amx = {read_avx512, multiply_amx, multiply_floats_avx512};
#endif

/* The probes of an instruction set by its name in targets.def; NULL if there is none of that name.
 * The caller knows that the processor has it. */
static const probes_t *probes_of(const char *name) {
#define TARGET(target, isa, core, below, supported, probes) \
    if (!strcmp(name, isa)) return &PROBES_##probes;
#include "targets.def"
    return NULL;
}

/* The system's number of the calling thread, 0 where it has none */
static int64_t thread_number(void) {
#if defined(__linux__)
    return syscall(SYS_gettid);
#else
    return 0;
#endif
}

#endif
