/* group_norm_loops.h: the loops of group_norm.c over pixels and channels, compiled for every
 * instruction set. */
#ifndef BOOT_GROUP_NORM_LOOPS_H
#define BOOT_GROUP_NORM_LOOPS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/lanes.h"
#include "base/vmath.h"

/* Per-channel numbers of one image, each an array of C. */
typedef struct {
    float *rstd, *offset; /* xh = rstd x + offset */
    float *gain;          /* of xh in z */
    float *slope, *shift; /* z = slope x + shift */
    float *q, *r;         /* dx = slope dz + q x + r */
} channel_terms;

/* Sums over pixels run in two, of even and of odd ones, and of two vectors at a time: an addition
   takes three or four cycles, and two may begin in each. */
enum { PAIR = 2 * BOOT_LANES };

/* Sums of x - origin and its square of channels [c, c + 16) and, where there are two vectors, the
   16 after them, which all exist then. */
BOOT_INLINE void moments_of(const int vectors, int64_t pixels, int64_t C, int64_t c, const float *x,
                            int64_t ld, const float *origin, float *sums) {
    boot_lanes v, o[2], s1[4] = {{0}}, s2[4] = {{0}};
    for (int i = 0; i < vectors; i++) {
        boot_load_part(&v, vectors == 2, origin, c + i * BOOT_LANES, C);
        o[i] = v;
    }
    for (int64_t p = 0; p < pixels; p++) {
#define ADD(AT)                                                                                    \
    for (int i = 0; i < vectors; i++) {                                                            \
        boot_load_part(&v, vectors == 2, x + p * ld, c + i * BOOT_LANES, C);                       \
        v -= o[i];                                                                                 \
        s1[AT + i] += v;                                                                           \
        s2[AT + i] += v * v;                                                                       \
    }
        ADD(0)
        if (++p == pixels) break;
        ADD(2)
#undef ADD
    }
    for (int i = 0; i < vectors; i++) {
        v = s1[i] + s1[2 + i];
        boot_store_lanes(sums, c + i * BOOT_LANES, C, &v);
        v = s2[i] + s2[2 + i];
        boot_store_lanes(sums + C, c + i * BOOT_LANES, C, &v);
    }
}

/* Sums of x - origin and its square over `pixels` pixels; x: (pixels, C), sums: (2, C). */
BOOT_INLINE void moments_body(int64_t pixels, int64_t C, const float *restrict x, int64_t ld,
                              const float *restrict origin, float *restrict sums) {
    int64_t c = 0;
    for (; c + PAIR <= C; c += PAIR) moments_of(2, pixels, C, c, x, ld, origin, sums);
    for (; c < C; c += BOOT_LANES) moments_of(1, pixels, C, c, x, ld, origin, sums);
}
BOOT_MULTI_ISA(moments,
               (int64_t pixels, int64_t C, const float *x, int64_t ld, const float *origin,
                float *sums),
               (pixels, C, x, ld, origin, sums))

/* Mean of x - origin and variance of `count` channels from the sums of all chunks: (chunks, 2,
   width). */
BOOT_INLINE void channel_stats_body(int64_t count, int64_t chunks, int64_t width, int64_t pixels,
                                    const float *restrict sums, double *restrict mean,
                                    double *restrict variance) {
    const double part = 1.0 / (double)pixels;
    for (int64_t c = 0; c < count; c++) mean[c] = sums[c], variance[c] = sums[width + c];
    for (int64_t k = 1; k < chunks; k++) {
        const float *more = sums + k * 2 * width;
        for (int64_t c = 0; c < count; c++) mean[c] += more[c], variance[c] += more[width + c];
    }
    for (int64_t c = 0; c < count; c++) {
        mean[c] *= part;
        variance[c] = variance[c] * part - mean[c] * mean[c];
    }
}
BOOT_MULTI_ISA(channel_stats,
               (int64_t count, int64_t chunks, int64_t width, int64_t pixels, const float *sums,
                double *mean, double *variance),
               (count, chunks, width, pixels, sums, mean, variance))

/* stats: (groups, 2), of which the second becomes 1/sqrt(variance + eps). */
BOOT_INLINE void finish_rstd_body(int64_t groups, const double *restrict variance, double eps,
                                  float *restrict stats) {
    for (int64_t g = 0; g < groups; g++)
        stats[2 * g + 1] = (float)(1.0 / sqrt((variance[g] > 0 ? variance[g] : 0) + eps));
}
BOOT_MULTI_ISA(finish_rstd,
               (int64_t groups, const double *variance, double eps, float *restrict stats),
               (groups, variance, eps, stats))

/* gain, slope and shift of channels [c, end) from rstd and offset; s, shift: of them, or NULL. */
BOOT_INLINE void fold_terms_body(int64_t c, int64_t end, const float *restrict weight,
                                 const float *restrict bias, const float *restrict s,
                                 const float *restrict shift, const channel_terms *t) {
    float *restrict gain = t->gain, *restrict slope_x = t->slope, *restrict shift_x = t->shift;
    const float *restrict rstd = t->rstd, *restrict offset = t->offset;
    for (; c < end; c++) {
        const float one_s = s ? 1.0f + s[c] : 1.0f, b = s ? bias[c] * one_s + shift[c] : bias[c];
        gain[c] = weight[c] * one_s;
        slope_x[c] = gain[c] * rstd[c];
        shift_x[c] = gain[c] * offset[c] + b;
    }
}
BOOT_MULTI_ISA(fold_terms,
               (int64_t c, int64_t end, const float *weight, const float *bias, const float *s,
                const float *shift, const channel_terms *t),
               (c, end, weight, bias, s, shift, t))

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
    const float *restrict slope = t->slope, *restrict shift = t->shift;
#define SLOPES(A)                                                                                  \
    for (int64_t p = 0; p < pixels; p++)                                                           \
        for (int64_t c = 0; c < C; c++)                                                            \
            dz[p * C + c] =                                                                        \
                dy[p * ldy + c] * boot_act_slope(A, slope[c] * x[p * ldx + c] + shift[c]);
    BOOT_FOR_ACT(SLOPES)
#undef SLOPES
}
BOOT_MULTI_ISA(slopes,
               (boot_act act, int64_t pixels, int64_t C, const float *x, int64_t ldx,
                const float *dy, int64_t ldy, const channel_terms *t, float *restrict dz),
               (act, pixels, C, x, ldx, dy, ldy, t, dz))

/* S1 and S2 += sums over pixels of channels [c, c + 16) and, of two vectors, the 16 after them. */
BOOT_INLINE void grad_sums_of(const int vectors, int64_t pixels, int64_t C, int64_t c,
                              const float *x, int64_t ldx, const float *dz, const channel_terms *t,
                              float *sums) {
    boot_lanes v, d, rstd[2], offset[2], s1[4] = {{0}}, s2[4] = {{0}};
    for (int i = 0; i < vectors; i++) {
        boot_load_part(&v, vectors == 2, t->rstd, c + i * BOOT_LANES, C);
        boot_load_part(&d, vectors == 2, t->offset, c + i * BOOT_LANES, C);
        rstd[i] = v, offset[i] = d;
    }
    for (int64_t p = 0; p < pixels; p++) {
#define ADD(AT)                                                                                    \
    for (int i = 0; i < vectors; i++) {                                                            \
        boot_load_part(&v, vectors == 2, x + p * ldx, c + i * BOOT_LANES, C);                      \
        boot_load_part(&d, vectors == 2, dz + p * C, c + i * BOOT_LANES, C);                       \
        s1[AT + i] += d;                                                                           \
        s2[AT + i] += d * (rstd[i] * v + offset[i]);                                               \
    }
        ADD(0)
        if (++p == pixels) break;
        ADD(2)
#undef ADD
    }
    for (int i = 0; i < vectors; i++) {
        boot_load_part(&v, vectors == 2, sums, c + i * BOOT_LANES, C);
        boot_load_part(&d, vectors == 2, sums + C, c + i * BOOT_LANES, C);
        v += s1[i] + s1[2 + i], d += s2[i] + s2[2 + i];
        boot_store_lanes(sums, c + i * BOOT_LANES, C, &v);
        boot_store_lanes(sums + C, c + i * BOOT_LANES, C, &d);
    }
}

/* S1 and S2 += sums over pixels; x, dz: (pixels, C), sums: (2, C). */
BOOT_INLINE void grad_sums_body(int64_t pixels, int64_t C, const float *restrict x, int64_t ldx,
                                const float *restrict dz, const channel_terms *t,
                                float *restrict sums) {
    int64_t c = 0;
    for (; c + PAIR <= C; c += PAIR) grad_sums_of(2, pixels, C, c, x, ldx, dz, t, sums);
    for (; c < C; c += BOOT_LANES) grad_sums_of(1, pixels, C, c, x, ldx, dz, t, sums);
}
BOOT_MULTI_ISA(grad_sums,
               (int64_t pixels, int64_t C, const float *x, int64_t ldx, const float *dz,
                const channel_terms *t, float *sums),
               (pixels, C, x, ldx, dz, t, sums))

/* dx = slope dz + q x + r, or dx += */
BOOT_INLINE void grad_apply_body(int64_t pixels, int64_t C, const float *restrict x, int64_t ldx,
                                 const float *restrict dz, const channel_terms *t, bool accumulate,
                                 float *restrict dx, int64_t ldd) {
    const float *restrict slope = t->slope, *restrict q = t->q, *restrict r = t->r;
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < C; c++) {
            const float own = slope[c] * dz[p * C + c] + (q[c] * x[p * ldx + c] + r[c]);
            dx[p * ldd + c] = accumulate ? dx[p * ldd + c] + own : own;
        }
}
BOOT_MULTI_ISA(grad_apply,
               (int64_t pixels, int64_t C, const float *x, int64_t ldx, const float *dz,
                const channel_terms *t, bool accumulate, float *restrict dx, int64_t ldd),
               (pixels, C, x, ldx, dz, t, accumulate, dx, ldd))

#endif
