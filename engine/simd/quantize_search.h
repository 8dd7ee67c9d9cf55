/* Searches for scales: which one makes the steps of a group of weights fit best.
 *
 * The groups of a super-block are searched together: group g is lane g of every vector, so each sum
 * is made in the order of ggml's reference (src/ggml-quants.c) while all lanes are busy. A lane
 * that takes no part in a choice keeps what it has.
 */
#ifndef LARIAT_QUANTIZE_SEARCH_H
#define LARIAT_QUANTIZE_SEARCH_H

#include "layout.h"

enum { MAX_GROUP = 32, MAX_GROUPS = 16 };

#define FOR_EACH_GROUP for (int g = 0; g < n_groups; g++)
#define TINY 1e-15f /* groups without a larger weight are zeros */

ALWAYS_INLINE uint32_t bits_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

ALWAYS_INLINE float float_of(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* To the nearest whole number, ties to even, for |f| < 2^22: the sum has no bits for a fraction. */
ALWAYS_INLINE int32_t nearest(float f) {
    return (int32_t)(bits_of(f + 12582912.0f) & 0x7fffffu) - 0x400000;
}

ALWAYS_INLINE int32_t clamped(int32_t i, int32_t low, int32_t high) {
    return i < low ? low : i > high ? high : i;
}

/* Numbers of up to 16 groups of up to 32 weights: [weight of the group][group] */
typedef float lanes_t[MAX_GROUP][MAX_GROUPS];
typedef int32_t steps_t[MAX_GROUP][MAX_GROUPS];

/* x [n_groups][n] */
ALWAYS_INLINE void to_lanes(const float *x, const int n, const int n_groups, lanes_t lanes) {
    for (int i = 0; i < n; i++) FOR_EACH_GROUP lanes[i][g] = x[n * g + i];
}

/* weight = scale q, q from -n_max to n_max - 1: among 19 scales around -n_max for the largest
 * weight, the one of least squared error; `worth` multiplies each error. */
ALWAYS_INLINE void search_scale(const lanes_t x, const lanes_t worth, const int n,
                                const int n_groups, const int n_max, steps_t q, float *scale) {
    float max[MAX_GROUPS], factor[MAX_GROUPS], best[MAX_GROUPS];
    FOR_EACH_GROUP max[g] = factor[g] = best[g] = scale[g] = 0;
    for (int i = 0; i < n; i++)
        FOR_EACH_GROUP max[g] = fabsf(x[i][g]) > fabsf(max[g]) ? x[i][g] : max[g];
    for (int attempt = 0; attempt < 19; attempt++) {
        /* First the scale itself, then those around it: ggml's -9 to 9 without 0 */
        const int shift = attempt == 0 ? 0 : attempt <= 9 ? attempt - 10 : attempt - 9;
        float tried[MAX_GROUPS], sum_xq[MAX_GROUPS], sum_qq[MAX_GROUPS];
        FOR_EACH_GROUP {
            tried[g] = -((float)n_max + 0.1f * (float)shift) / max[g];
            sum_xq[g] = sum_qq[g] = 0;
        }
        for (int i = 0; i < n; i++) {
            FOR_EACH_GROUP {
                const float step = (float)clamped(nearest(tried[g] * x[i][g]), -n_max, n_max - 1);
                sum_xq[g] += worth[i][g] * x[i][g] * step;
                sum_qq[g] += worth[i][g] * step * step;
            }
        }
        FOR_EACH_GROUP {
            const int better = attempt == 0 || (sum_qq[g] > 0 &&
                                                sum_xq[g] * sum_xq[g] > best[g] * sum_qq[g]);
            const float fit = sum_qq[g] != 0 ? sum_xq[g] / sum_qq[g] : 0.0f;
            factor[g] = better ? tried[g] : factor[g];
            scale[g] = better ? fit : scale[g];
            best[g] = better ? fit * sum_xq[g] : best[g];
        }
    }
    for (int i = 0; i < n; i++)
        FOR_EACH_GROUP q[i][g] = fabsf(max[g]) < TINY
                                     ? 0
                                     : clamped(nearest(factor[g] * x[i][g]), -n_max, n_max - 1) +
                                           n_max;
    FOR_EACH_GROUP scale[g] = fabsf(max[g]) < TINY ? 0.0f : scale[g];
}

/* As before, but one scale is tried, and then steps are changed one by one, five times round, if
 * the error becomes less; errors are multiplied by the square of their weight. */
ALWAYS_INLINE void search_steps(const lanes_t x, const int n, const int n_groups, const int n_max,
                                steps_t q, float *scale) {
    float max[MAX_GROUPS], sum_xq[MAX_GROUPS], sum_qq[MAX_GROUPS];
    FOR_EACH_GROUP max[g] = sum_xq[g] = sum_qq[g] = 0;
    for (int i = 0; i < n; i++)
        FOR_EACH_GROUP max[g] = fabsf(x[i][g]) > fabsf(max[g]) ? x[i][g] : max[g];
    for (int i = 0; i < n; i++) {
        FOR_EACH_GROUP {
            const float worth = x[i][g] * x[i][g], factor = -(float)n_max / max[g];
            q[i][g] = clamped(nearest(factor * x[i][g]), -n_max, n_max - 1);
            sum_xq[g] += worth * x[i][g] * (float)q[i][g];
            sum_qq[g] += worth * (float)q[i][g] * (float)q[i][g];
        }
    }
    for (int round = 0, n_changed = 1; round < 5 && n_changed; round++) {
        n_changed = 0;
        for (int i = 0; i < n; i++) {
            FOR_EACH_GROUP {
                const float worth = x[i][g] * x[i][g], old = (float)q[i][g];
                float xq = sum_xq[g] - worth * x[i][g] * old;
                float qq = sum_qq[g] - worth * old * old;
                const int may_change = xq > 0;
                const int32_t step = clamped(nearest(x[i][g] * qq / xq), -n_max, n_max - 1);
                xq += worth * x[i][g] * (float)step;
                qq += worth * (float)step * (float)step;
                const int better = may_change && step != q[i][g] && qq > 0 &&
                                   xq * xq * sum_qq[g] > sum_xq[g] * sum_xq[g] * qq;
                q[i][g] = better ? step : q[i][g];
                sum_xq[g] = better ? xq : sum_xq[g];
                sum_qq[g] = better ? qq : sum_qq[g];
                n_changed += better;
            }
        }
    }
    for (int i = 0; i < n; i++)
        FOR_EACH_GROUP q[i][g] = fabsf(max[g]) < TINY ? 0 : q[i][g] + n_max;
    FOR_EACH_GROUP scale[g] = fabsf(max[g]) < TINY || !(sum_qq[g] > 0) ? 0.0f
                                                                        : sum_xq[g] / sum_qq[g];
}

/* How many scales `search_affine` tries, and which: (n_max + first + i step) / range */
typedef struct {
    float first, step;
    int n;
    int absolute; /* the error counts, not its square */
} attempts_t;

/* weight = scale q - minimum, q from 0 to n_max, minimum >= 0. Each attempt rounds to steps, then
 * fits scale and minimum to them; the best is kept, and the next begin at its minimum. */
ALWAYS_INLINE void search_affine(const lanes_t x, const lanes_t worth, const int n,
                                 const int n_groups, const int n_max, const attempts_t attempts,
                                 steps_t q, float *scale, float *minimum) {
    float min[MAX_GROUPS], max[MAX_GROUPS], sum_w[MAX_GROUPS], sum_x[MAX_GROUPS];
    float best[MAX_GROUPS];
    int32_t is_flat[MAX_GROUPS];
    FOR_EACH_GROUP {
        min[g] = max[g] = x[0][g];
        sum_w[g] = worth[0][g];
        sum_x[g] = sum_w[g] * x[0][g];
    }
    for (int i = 1; i < n; i++) {
        FOR_EACH_GROUP {
            min[g] = x[i][g] < min[g] ? x[i][g] : min[g];
            max[g] = x[i][g] > max[g] ? x[i][g] : max[g];
            sum_w[g] += worth[i][g];
            sum_x[g] += worth[i][g] * x[i][g];
        }
    }
    FOR_EACH_GROUP {
        min[g] = min[g] > 0 ? 0.0f : min[g];
        is_flat[g] = max[g] <= min[g];
        scale[g] = 1 / ((float)n_max / (max[g] - min[g]));
        best[g] = 0;
    }
    for (int i = 0; i < n; i++) {
        FOR_EACH_GROUP {
            const float factor = (float)n_max / (max[g] - min[g]);
            q[i][g] = clamped(nearest(factor * (x[i][g] - min[g])), 0, n_max);
            const float off = scale[g] * (float)q[i][g] + min[g] - x[i][g];
            best[g] += worth[i][g] * (attempts.absolute ? fabsf(off) : off * off);
        }
    }
    for (int attempt = 0; attempt <= attempts.n; attempt++) {
        steps_t tried;
        float sum_q[MAX_GROUPS], sum_qq[MAX_GROUPS], sum_xq[MAX_GROUPS];
        float new_scale[MAX_GROUPS], new_min[MAX_GROUPS], error[MAX_GROUPS];
        int32_t better[MAX_GROUPS];
        const float top = attempts.first + attempts.step * (float)attempt + (float)n_max;
        FOR_EACH_GROUP sum_q[g] = sum_qq[g] = sum_xq[g] = error[g] = 0;
        for (int i = 0; i < n; i++) {
            FOR_EACH_GROUP {
                const float factor = top / (max[g] - min[g]);
                tried[i][g] = clamped(nearest(factor * (x[i][g] - min[g])), 0, n_max);
                const float step = (float)tried[i][g], w = worth[i][g];
                sum_q[g] += w * step;
                sum_qq[g] += w * step * step;
                sum_xq[g] += w * step * x[i][g];
            }
        }
        FOR_EACH_GROUP {
            const float d = sum_w[g] * sum_qq[g] - sum_q[g] * sum_q[g];
            const float fit = (sum_w[g] * sum_xq[g] - sum_x[g] * sum_q[g]) / d;
            const float low = (sum_qq[g] * sum_x[g] - sum_q[g] * sum_xq[g]) / d;
            new_scale[g] = low > 0 ? sum_xq[g] / sum_qq[g] : fit;
            new_min[g] = low > 0 ? 0.0f : low;
            better[g] = d > 0;
        }
        for (int i = 0; i < n; i++) {
            FOR_EACH_GROUP {
                const float off = new_scale[g] * (float)tried[i][g] + new_min[g] - x[i][g];
                error[g] += worth[i][g] * (attempts.absolute ? fabsf(off) : off * off);
            }
        }
        FOR_EACH_GROUP {
            better[g] = better[g] && error[g] < best[g];
            best[g] = better[g] ? error[g] : best[g];
            scale[g] = better[g] ? new_scale[g] : scale[g];
            min[g] = better[g] ? new_min[g] : min[g];
        }
        for (int i = 0; i < n; i++) FOR_EACH_GROUP q[i][g] = better[g] ? tried[i][g] : q[i][g];
    }
    FOR_EACH_GROUP {
        scale[g] = is_flat[g] ? 0.0f : scale[g];
        minimum[g] = -min[g];
    }
    for (int i = 0; i < n; i++) FOR_EACH_GROUP q[i][g] = is_flat[g] ? 0 : q[i][g];
}

/* Scales of a super-block, none below 0, as whole numbers q up to n_max times one scale, which is
 * returned; `worth` multiplies squared errors. */
ALWAYS_INLINE float search_factors(const float *x, const float *worth, const int n,
                                   const int n_max, uint8_t *q) {
    float max = 0, sum_xq = 0, sum_qq = 0, best = 0;
    for (int i = 0; i < n; i++) max = max > x[i] ? max : x[i];
    memset(q, 0, (size_t)n);
    if (max < TINY) return 0;
    float factor = (float)n_max / max;
    const float scale = 1 / factor;
    for (int i = 0; i < n; i++) {
        const float off = x[i] - scale * (float)nearest(factor * x[i]);
        best += worth[i] * off * off;
    }
    for (int shift = -4; shift <= 4; shift++) {
        if (shift == 0) continue;
        const float tried = (0.1f * (float)shift + (float)n_max) / max, scale_of_it = 1 / tried;
        float error = 0;
        for (int i = 0; i < n; i++) {
            const int32_t step = nearest(tried * x[i]);
            const float off = x[i] - scale_of_it * (float)(step < n_max ? step : n_max);
            error += worth[i] * off * off;
        }
        if (error < best) best = error, factor = tried;
    }
    for (int i = 0; i < n; i++) {
        const int32_t step = nearest(factor * x[i]);
        q[i] = (uint8_t)(step < n_max ? step : n_max);
        sum_xq += worth[i] * x[i] * (float)q[i];
        sum_qq += worth[i] * (float)q[i] * (float)q[i];
    }
    for (int round = 0, n_changed = 1; round < 5 && n_changed; round++) {
        n_changed = 0;
        for (int i = 0; i < n; i++) {
            const float w = worth[i];
            float xq = sum_xq - w * x[i] * (float)q[i], qq = sum_qq - w * (float)q[i] * (float)q[i];
            if (!(xq > 0 && qq > 0)) continue;
            int32_t step = nearest(x[i] * qq / xq);
            step = step < n_max ? step : n_max;
            if (step == q[i]) continue;
            xq += w * x[i] * (float)step;
            qq += w * (float)step * (float)step;
            if (!(xq * xq * sum_qq > sum_xq * sum_xq * qq)) continue;
            q[i] = (uint8_t)step;
            sum_xq = xq, sum_qq = qq;
            n_changed++;
        }
    }
    return sum_qq > 0 ? sum_xq / sum_qq : 0.0f;
}

#endif
