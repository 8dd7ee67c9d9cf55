/* The kernels of every instruction set, and the table of those in use.
 *
 * Everything between push and pop may use its instruction set; nothing outside may, so that the
 * module loads and runs on any x86-64 or AArch64 processor.
 */
#ifndef LARIAT_KERNELS_H
#define LARIAT_KERNELS_H

#include "layout.h"
#include "pack.h"
#include "scalar.h"
#include "table.h"

#ifdef LARIAT_X86
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#include "avx2.h"
#pragma clang attribute pop
#pragma clang attribute push(                                                              \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,fma,f16c"))), \
    apply_to = function)
#include "avx512.h"
#include "matmul_amx.h" /* its own instructions are assembler */
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include "avx2.h"
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,fma,f16c")
#include "avx512.h"
#include "matmul_amx.h"
#pragma GCC pop_options
#endif
#endif

#ifdef LARIAT_ARM
#include <arm_neon.h>
#include "neon.h" /* every AArch64 processor has it */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#include "dotprod.h"
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("dotprod,i8mm"))), apply_to = function)
#include "i8mm.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#include "dotprod.h"
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#include "i8mm.h"
#pragma GCC pop_options
#endif
#endif

#include "registry.h"

static kernels_t KERNELS;

#endif
