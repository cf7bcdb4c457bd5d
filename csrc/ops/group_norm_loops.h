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
    double *mean, *square; /* on the way to rstd */
    float *rstd, *offset;  /* xh = rstd x + offset */
    float *gain;           /* of xh in z */
    float *slope, *shift;  /* z = slope x + shift */
    float *q, *r;          /* dx = slope dz + q x + r */
} channel_terms;

/* Sums over pixels run in two, of even and of odd ones, and of two vectors at a time: an addition
   takes three or four cycles, and two may begin in each. */
enum { PAIR = 2 * BOOT_LANES };
enum { MANY = 128 }; /* channels from which memory is rather read in its order */

/* BODY for every pixel p and channel c, two vectors of channels at a time: numbers that belong to
   channels stay in registers meanwhile.
   FETCH: before each two vectors of the first kind, from channel `first` on. */
#define EACH_PIXEL(FETCH, BODY)                                                                    \
    do {                                                                                           \
        int64_t first = 0;                                                                         \
        for (; C < MANY && first + PAIR <= C; first += PAIR)                                       \
            for (int64_t p = 0; p < pixels; p++) {                                                 \
                FETCH;                                                                             \
                for (int64_t c = first; c < first + PAIR; c++) BODY;                               \
            }                                                                                      \
        for (int64_t p = 0; first < C && p < pixels; p++)                                          \
            for (int64_t c = first; c < C; c++) BODY;                                              \
    } while (0)

/* Fetches two vectors `ahead` rows of ld floats below x, unless that is 0. */
BOOT_INLINE void fetch_pair(const float *x, int64_t ahead, int64_t ld) {
    if (ahead == 0) return;
    __builtin_prefetch(x + ahead * ld);
    __builtin_prefetch(x + ahead * ld + BOOT_LANES);
}

/* Sums of x - origin and, `apart` floats after them, of its square of channels [c, c + 16) and,
   where there are two vectors, the 16 after them, which all exist then. */
BOOT_INLINE void moments_of(const int vectors, int64_t pixels, int64_t C, int64_t c, const float *x,
                            int64_t ld, const float *origin, float *sums, int64_t apart) {
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
        boot_store_lanes(sums + apart, c + i * BOOT_LANES, C, &v);
    }
}

/* Sums of x - origin and its square over `pixels` pixels; x: (pixels, C), sums: (2, C) with rows of
   `apart` floats. */
BOOT_INLINE void moments_body(int64_t pixels, int64_t C, const float *restrict x, int64_t ld,
                              const float *restrict origin, float *restrict sums, int64_t apart) {
    int64_t c = 0;
    for (; c + PAIR <= C; c += PAIR) moments_of(2, pixels, C, c, x, ld, origin, sums, apart);
    for (; c < C; c += BOOT_LANES) moments_of(1, pixels, C, c, x, ld, origin, sums, apart);
}
BOOT_MULTI_ISA(moments,
               (int64_t pixels, int64_t C, const float *x, int64_t ld, const float *origin,
                float *sums, int64_t apart),
               (pixels, C, x, ld, origin, sums, apart))

/* Means of x - about and its square of `count` channels from the sums of all chunks: (chunks, 2)
   rows of `apart` floats. */
BOOT_INLINE void channel_means_body(int64_t count, int64_t chunks, int64_t apart, int64_t pixels,
                                    const float *restrict sums, const float *restrict origin,
                                    double about, double *restrict mean, double *restrict square) {
    const double part = 1.0 / (double)pixels;
    for (int64_t c = 0; c < count; c++) mean[c] = sums[c], square[c] = sums[apart + c];
    for (int64_t k = 1; k < chunks; k++) {
        const float *more = sums + k * 2 * apart;
        for (int64_t c = 0; c < count; c++) mean[c] += more[c], square[c] += more[apart + c];
    }
    for (int64_t c = 0; c < count; c++) {
        const double m = mean[c] * part, variance = square[c] * part - m * m;
        mean[c] = origin[c] - about + m;
        square[c] = variance + mean[c] * mean[c];
    }
}
BOOT_MULTI_ISA(channel_means,
               (int64_t count, int64_t chunks, int64_t apart, int64_t pixels, const float *sums,
                const float *origin, double about, double *mean, double *square),
               (count, chunks, apart, pixels, sums, origin, about, mean, square))

/* stats: (groups, 2), mean and 1/sqrt(variance + eps) of groups of D channels. mean, square: of the
   channels, about `about`; those of the groups take their places. */
BOOT_INLINE void group_stats_body(int64_t groups, int64_t D, double eps, double about,
                                  double *restrict mean, double *restrict square,
                                  float *restrict stats) {
    const double part = 1.0 / (double)D;
    for (int64_t g = 0; g < groups; g++) {
        double m = 0, q = 0;
        for (int64_t c = g * D; c < (g + 1) * D; c++) m += mean[c], q += square[c];
        mean[g] = m * part, square[g] = q * part;
    }
    for (int64_t g = 0; g < groups; g++) {
        const double variance = square[g] - mean[g] * mean[g];
        stats[2 * g] = (float)(about + mean[g]);
        stats[2 * g + 1] = (float)(1.0 / sqrt((variance > 0 ? variance : 0) + eps));
    }
}
BOOT_MULTI_ISA(group_stats,
               (int64_t groups, int64_t D, double eps, double about, double *mean, double *square,
                float *stats),
               (groups, D, eps, about, mean, square, stats))

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

/* y = act(a x + b) with per-channel a, b. ahead: pixels from here to what is read
   next, which is fetched meanwhile; or 0. */
BOOT_INLINE void apply_body(boot_act act, int64_t pixels, int64_t C, const float *restrict x,
                            int64_t ldx, const float *restrict a, const float *restrict b,
                            float *restrict y, int64_t ldy, int64_t ahead) {
#define APPLY(A)                                                                                   \
    EACH_PIXEL(fetch_pair(x + p * ldx + first, ahead, ldx),                                        \
               y[p * ldy + c] = boot_act_value(A, a[c] * x[p * ldx + c] + b[c]));
    BOOT_FOR_ACT(APPLY)
#undef APPLY
}
BOOT_MULTI_ISA(apply,
               (boot_act act, int64_t pixels, int64_t C, const float *x, int64_t ldx,
                const float *a, const float *b, float *restrict y, int64_t ldy, int64_t ahead),
               (act, pixels, C, x, ldx, a, b, y, ldy, ahead))

/* dz: (pixels, C) = act'(z) dy; ahead: as above. */
BOOT_INLINE void slopes_body(boot_act act, int64_t pixels, int64_t C, const float *restrict x,
                             int64_t ldx, const float *restrict dy, int64_t ldy,
                             const channel_terms *t, float *restrict dz, int64_t ldz,
                             int64_t ahead) {
    const float *restrict slope = t->slope, *restrict shift = t->shift;
#define SLOPES(A)                                                                                  \
    EACH_PIXEL((fetch_pair(x + p * ldx + first, ahead, ldx),                                       \
                fetch_pair(dy + p * ldy + first, ahead, ldy)),                                     \
               dz[p * ldz + c] =                                                                   \
                   dy[p * ldy + c] * boot_act_slope(A, slope[c] * x[p * ldx + c] + shift[c]));
    BOOT_FOR_ACT(SLOPES)
#undef SLOPES
}
BOOT_MULTI_ISA(slopes,
               (boot_act act, int64_t pixels, int64_t C, const float *x, int64_t ldx,
                const float *dy, int64_t ldy, const channel_terms *t, float *restrict dz,
                int64_t ldz, int64_t ahead),
               (act, pixels, C, x, ldx, dy, ldy, t, dz, ldz, ahead))

/* S1 and, `apart` floats after it, S2 += sums over pixels of channels [c, c + 16) and, of two
   vectors, the 16 after them. */
BOOT_INLINE void grad_sums_of(const int vectors, int64_t pixels, int64_t C, int64_t c,
                              const float *x, int64_t ldx, const float *dz, int64_t ldz,
                              const channel_terms *t, float *sums, int64_t apart) {
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
        boot_load_part(&d, vectors == 2, dz + p * ldz, c + i * BOOT_LANES, C);                     \
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
        boot_load_part(&d, vectors == 2, sums + apart, c + i * BOOT_LANES, C);
        v += s1[i] + s1[2 + i], d += s2[i] + s2[2 + i];
        boot_store_lanes(sums, c + i * BOOT_LANES, C, &v);
        boot_store_lanes(sums + apart, c + i * BOOT_LANES, C, &d);
    }
}

/* S1 and S2 += sums over pixels; x, dz: (pixels, C), sums: (2, C) with rows of `apart` floats. */
BOOT_INLINE void grad_sums_body(int64_t pixels, int64_t C, const float *restrict x, int64_t ldx,
                                const float *restrict dz, int64_t ldz, const channel_terms *t,
                                float *restrict sums, int64_t apart) {
    int64_t c = 0;
    for (; c + PAIR <= C; c += PAIR) grad_sums_of(2, pixels, C, c, x, ldx, dz, ldz, t, sums, apart);
    for (; c < C; c += BOOT_LANES) grad_sums_of(1, pixels, C, c, x, ldx, dz, ldz, t, sums, apart);
}
BOOT_MULTI_ISA(grad_sums,
               (int64_t pixels, int64_t C, const float *x, int64_t ldx, const float *dz,
                int64_t ldz, const channel_terms *t, float *sums, int64_t apart),
               (pixels, C, x, ldx, dz, ldz, t, sums, apart))

/* dx = slope dz + q x + r, or dx += */
BOOT_INLINE void grad_apply_body(int64_t pixels, int64_t C, const float *restrict x, int64_t ldx,
                                 const float *restrict dz, int64_t ldz, const channel_terms *t,
                                 bool accumulate, float *restrict dx, int64_t ldd) {
    const float *restrict slope = t->slope, *restrict q = t->q, *restrict r = t->r;
#define OWN slope[c] * dz[p * ldz + c] + (q[c] * x[p * ldx + c] + r[c])
    if (accumulate)
        EACH_PIXEL(, dx[p * ldd + c] += OWN);
    else
        EACH_PIXEL(, dx[p * ldd + c] = OWN);
#undef OWN
}
BOOT_MULTI_ISA(grad_apply,
               (int64_t pixels, int64_t C, const float *x, int64_t ldx, const float *dz,
                int64_t ldz, const channel_terms *t, bool accumulate, float *restrict dx,
                int64_t ldd),
               (pixels, C, x, ldx, dz, ldz, t, accumulate, dx, ldd))

#endif
