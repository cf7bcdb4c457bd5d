/* group_norm_loops.h: the loops of group_norm.c over pixels and channels, compiled for every
 * instruction set. */
#ifndef BOOT_GROUP_NORM_LOOPS_H
#define BOOT_GROUP_NORM_LOOPS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/lanes.h"
#include "base/vmath.h"

/* Per-channel numbers of one image, each an array of C. */
typedef struct {
    float *rstd, *offset; /* xh = rstd x + offset */
    float *gain, *bias;   /* z = gain xh + bias */
    float *p, *q, *r;     /* dx = p dz + q xh + r */
} channel_terms;

/* Sums of x - origin and its square over `pixels` pixels; x: (pixels, C), sums: (2, C). */
BOOT_INLINE void moments_body(int64_t pixels, int64_t C, const float *restrict x, int64_t ld,
                              const float *restrict origin, float *restrict sums) {
    for (int64_t c = 0; c < C; c += BOOT_LANES) {
        boot_lanes o, v, s1 = {0}, s2 = {0};
        boot_load_lanes(&o, origin, c, C);
        for (int64_t p = 0; p < pixels; p++) {
            boot_load_lanes(&v, x + p * ld, c, C);
            v -= o;
            s1 += v;
            s2 += v * v;
        }
        boot_store_lanes(sums, c, C, &s1);
        boot_store_lanes(sums + C, c, C, &s2);
    }
}
BOOT_MULTI_ISA(moments,
               (int64_t pixels, int64_t C, const float *x, int64_t ld, const float *origin,
                float *sums),
               (pixels, C, x, ld, origin, sums))

/* y = act(a x + b) with per-channel a, b. */
BOOT_INLINE void apply_body(boot_act act, int64_t pixels, int64_t C, const float *restrict x,
                            int64_t ldx, const float *restrict a, const float *restrict b,
                            float *restrict y, int64_t ldy) {
#define APPLY(A)                                                                                   \
    for (int64_t p = 0; p < pixels; p++)                                                           \
        for (int64_t c = 0; c < C; c++)                                                            \
            y[p * ldy + c] = boot_act_value(A, a[c] * x[p * ldx + c] + b[c]);
    BOOT_FOR_ACT(APPLY)
#undef APPLY
}
BOOT_MULTI_ISA(apply,
               (boot_act act, int64_t pixels, int64_t C, const float *x, int64_t ldx,
                const float *a, const float *b, float *restrict y, int64_t ldy),
               (act, pixels, C, x, ldx, a, b, y, ldy))

/* dz: (pixels, C) = act'(z) dy */
BOOT_INLINE void slopes_body(boot_act act, int64_t pixels, int64_t C, const float *restrict x,
                             int64_t ldx, const float *restrict dy, int64_t ldy,
                             const channel_terms *t, float *restrict dz) {
    const float *restrict rstd = t->rstd, *restrict offset = t->offset;
    const float *restrict gain = t->gain, *restrict bias = t->bias;
#define SLOPES(A)                                                                                  \
    for (int64_t p = 0; p < pixels; p++)                                                           \
        for (int64_t c = 0; c < C; c++) {                                                          \
            const float xh = rstd[c] * x[p * ldx + c] + offset[c];                                 \
            dz[p * C + c] = dy[p * ldy + c] * boot_act_slope(A, gain[c] * xh + bias[c]);           \
        }
    BOOT_FOR_ACT(SLOPES)
#undef SLOPES
}
BOOT_MULTI_ISA(slopes,
               (boot_act act, int64_t pixels, int64_t C, const float *x, int64_t ldx,
                const float *dy, int64_t ldy, const channel_terms *t, float *restrict dz),
               (act, pixels, C, x, ldx, dy, ldy, t, dz))

/* S1 and S2 += sums over pixels; x, dz: (pixels, C), sums: (2, C). */
BOOT_INLINE void grad_sums_body(int64_t pixels, int64_t C, const float *restrict x, int64_t ldx,
                                const float *restrict dz, const channel_terms *t,
                                float *restrict sums) {
    for (int64_t c = 0; c < C; c += BOOT_LANES) {
        boot_lanes rstd, offset, v, d, s1, s2;
        boot_load_lanes(&rstd, t->rstd, c, C);
        boot_load_lanes(&offset, t->offset, c, C);
        boot_load_lanes(&s1, sums, c, C);
        boot_load_lanes(&s2, sums + C, c, C);
        for (int64_t p = 0; p < pixels; p++) {
            boot_load_lanes(&v, x + p * ldx, c, C);
            boot_load_lanes(&d, dz + p * C, c, C);
            s1 += d;
            s2 += d * (rstd * v + offset);
        }
        boot_store_lanes(sums, c, C, &s1);
        boot_store_lanes(sums + C, c, C, &s2);
    }
}
BOOT_MULTI_ISA(grad_sums,
               (int64_t pixels, int64_t C, const float *x, int64_t ldx, const float *dz,
                const channel_terms *t, float *sums),
               (pixels, C, x, ldx, dz, t, sums))

/* dx = p dz + q xh + r, or dx += */
BOOT_INLINE void grad_apply_body(int64_t pixels, int64_t C, const float *restrict x, int64_t ldx,
                                 const float *restrict dz, const channel_terms *t, bool accumulate,
                                 float *restrict dx, int64_t ldd) {
    const float *restrict rstd = t->rstd, *restrict offset = t->offset;
    const float *restrict P = t->p, *restrict Q = t->q, *restrict R = t->r;
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < C; c++) {
            const float xh = rstd[c] * x[p * ldx + c] + offset[c];
            const float own = P[c] * dz[p * C + c] + Q[c] * xh + R[c];
            dx[p * ldd + c] = accumulate ? dx[p * ldd + c] + own : own;
        }
}
BOOT_MULTI_ISA(grad_apply,
               (int64_t pixels, int64_t C, const float *x, int64_t ldx, const float *dz,
                const channel_terms *t, bool accumulate, float *restrict dx, int64_t ldd),
               (pixels, C, x, ldx, dz, t, accumulate, dx, ldd))

#endif
