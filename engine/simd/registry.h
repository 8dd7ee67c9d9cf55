/* The registry of targets, and the ladder that fills the table of kernels.
 *
 * A target starts with the kernels of the target below it and then sets its own, so that a new
 * instruction set may begin with a single kernel. Rows: targets.def.
 */
#ifndef LARIAT_REGISTRY_H
#define LARIAT_REGISTRY_H

#include "table.h"
#include "test_target.h"

#ifdef LARIAT_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#if defined(LARIAT_ARM) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(LARIAT_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

enum {
    TARGET_none = -1,
#define TARGET(target, ...) TARGET_##target,
#include "targets.def"
    N_TARGETS
};

typedef struct {
    const char *isa, *core;
    int below;                   /* number of a target, or TARGET_none */
    int (*supported)(void);
    void (*use)(kernels_t *k);   /* sets the kernels that the target has itself */
} target_t;

static int always(void) { return 1; }

#ifdef LARIAT_X86
/* Each reads CPUID, and XCR0 for the registers that the operating system saves. */
static int has_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
}

/* Linux saves the tiles of a process only after it has asked for that (Documentation/arch/x86/
 * xstate.rst). It refuses where a thread's stack for signals would be too small for them. */
static int has_amx(void) {
#if defined(__linux__) && defined(__x86_64__)
    enum { TILE = 1 << 24, INT8 = 1 << 25, XSAVE_IN_USE = 1 << 27 };
    enum { SAVED = 3 << 17, ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned a, b, c, d, high;
    if (!has_avx512() || !__get_cpuid(1, &a, &b, &c, &d) || !(c & XSAVE_IN_USE) ||
        !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (TILE | INT8)) != (TILE | INT8))
        return 0;
    __asm__("xgetbv" : "=a"(a), "=d"(high) : "c"(0));
    return (a & SAVED) == SAVED &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}
#endif

#ifdef LARIAT_ARM
#if defined(__linux__)
/* Bits of Linux's hardware capabilities (arch/arm64/include/uapi/asm/hwcap.h), which older headers
 * do not name: dot products of bytes, and products of 2 x 8 and 8 x 2 bytes. */
enum { DOTPROD_OF_HWCAP = 1 << 20, I8MM_OF_HWCAP2 = 1 << 13 };

static int has_dotprod(void) { return (getauxval(AT_HWCAP) & DOTPROD_OF_HWCAP) != 0; }
static int has_i8mm(void) {
    return has_dotprod() && (getauxval(AT_HWCAP2) & I8MM_OF_HWCAP2) != 0;
}
#elif defined(__APPLE__)
static int has_feature(const char *name) {
    int value = 0;
    size_t n = sizeof value;
    return !sysctlbyname(name, &value, &n, NULL, 0) && value;
}

static int has_dotprod(void) { return has_feature("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return has_dotprod() && has_feature("hw.optional.arm.FEAT_I8MM"); }
#else /* nobody to ask */
static int has_dotprod(void) { return 0; }
static int has_i8mm(void) { return 0; }
#endif
#endif

/* The kind of core at hand, by the maker of the processor */
static const char *core_at_hand(void) {
#ifdef LARIAT_X86
    __builtin_cpu_init();
    return __builtin_cpu_is("intel") ? "intel" : "other";
#else
    return "other";
#endif
}

static const target_t TARGETS[N_TARGETS] = {
#define TARGET(target, isa, core, below, supported, probes) \
    {isa, core, TARGET_##below, supported, use_##target},
#include "targets.def"
};

static void use_target(int target, kernels_t *k) {
    if (TARGETS[target].below != TARGET_none) use_target(TARGETS[target].below, k);
    TARGETS[target].use(k);
}

/* Fills the table with the kernels of a target that this machine supports. */
static void fill_table(int target, kernels_t *k) {
    use_target(target, k);
    for (int type = 0; type < N_WEIGHT_TYPES; type++) k->matmul_few[type] = k->matmul[type];
}

#endif
