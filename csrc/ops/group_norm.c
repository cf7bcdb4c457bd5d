/* group_norm.c: group normalisation, optional scale and shift, and activation in one operation.
 *
 *   xh = (x - mean) rstd                      mean, variance over one group of C/G channels and all
 * pixels z  = g xh + b,   g = weight (1 + s),  b = bias (1 + s) + shift,   (s, shift) = scale_shift
 * or 0 y  = act(z) dz = act'(z) dy,  S1 = sum_p dz,  S2 = sum_p dz xh   (per image and channel) dx
 * = rstd (g dz - A1 - xh A2),  A1, A2 = means over the group of g S1, g S2     (Wu and He 2018)
 *   dbias = sum_n (1+s) S1   dweight = sum_n (1+s) S2   ds = weight S2 + bias S1   dshift = S1
 *
 * Pixels are cut into chunks of fixed size and the partial sums added in order: the same bits for
 * any number of threads. Sums are taken about the first pixel's value, so a large mean costs no
 * precision. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/lanes.h"
#include "base/vmath.h"
#include "ops/op.h"

enum { X, WEIGHT, BIAS, SCALE_SHIFT };
enum { GROUPS, EPS, ACT };
enum { CHUNK = 128, STRIP = 16 }; /* pixels */
enum { KEEP = 32768 };            /* floats of dz that the second-level cache has room for */

static int64_t num_chunks(const boot_tensor *x) { return (x->h * x->w + CHUNK - 1) / CHUNK; }

/* Pixels whose dz a thread keeps: those of an image, or a strip of a large one. */
static int64_t dz_pixels(const boot_tensor *x) {
    return x->h * x->w * x->c <= KEEP ? x->h * x->w : STRIP;
}

static boot_status group_norm_infer(boot_node *node) {
    const boot_tensor *x = &node->in[X];
    const int64_t G = (int64_t)node->attr[GROUPS];
    const double act = node->attr[ACT];
    if (G < 1 || x->c % G)
        return boot_fail(BOOT_ERR_VALUE,
                         "group_norm (%s): %lld channels in %lld groups, expected a divisor",
                         node->name, (long long)x->c, (long long)G);
    if (!(act >= 0 && act < BOOT_NUM_ACTS) || !(node->attr[EPS] >= 0))
        return boot_fail(BOOT_ERR_VALUE,
                         "group_norm (%s): act %g, eps %g, expected act in [0, %d], eps >= 0",
                         node->name, act, node->attr[EPS], BOOT_NUM_ACTS - 1);
    BOOT_TRY(boot_expect_count(node, WEIGHT, "weight", x->c));
    BOOT_TRY(boot_expect_count(node, BIAS, "bias", x->c));
    if (node->in[SCALE_SHIFT].n)
        BOOT_TRY(boot_expect_count(node, SCALE_SHIFT, "scale_shift", x->n * 2 * x->c));
    node->out = boot_shape(x->n, x->h, x->w, x->c);
    node->saved_floats = 2 * x->n * G;
    node->scratch_floats = x->n * num_chunks(x) * 2 * x->c + x->n * 7 * x->c +
                           omp_get_max_threads() * dz_pixels(x) * x->c;
    return boot_expect_size(node, &node->out);
}

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

/* Per-channel numbers of one image, each an array of C. */
typedef struct {
    float *rstd, *offset; /* xh = rstd x + offset */
    float *gain, *bias;   /* z = gain xh + bias */
    float *p, *q, *r;     /* dx = p dz + q xh + r */
} channel_terms;

static channel_terms terms_of(float *block, int64_t C) {
    return (channel_terms){block,         block + C,     block + 2 * C, block + 3 * C,
                           block + 4 * C, block + 5 * C, block + 6 * C};
}

static void fill_terms(const boot_node *node, const boot_call *call, int64_t n, channel_terms t) {
    const int64_t C = node->in[X].c, G = (int64_t)node->attr[GROUPS], D = C / G;
    const float *stats = call->saved + 2 * n * G, *weight = call->in[WEIGHT].data;
    const float *bias = call->in[BIAS].data;
    const float *ss = call->in[SCALE_SHIFT].data ? call->in[SCALE_SHIFT].data + n * 2 * C : NULL;
    for (int64_t g = 0; g < G; g++)
        for (int64_t c = g * D; c < (g + 1) * D; c++) {
            t.rstd[c] = stats[2 * g + 1];
            t.offset[c] = -stats[2 * g] * stats[2 * g + 1];
        }
    for (int64_t c = 0; c < C; c++) {
        t.gain[c] = ss ? weight[c] * (1.0f + ss[c]) : weight[c];
        t.bias[c] = ss ? bias[c] * (1.0f + ss[c]) + ss[C + c] : bias[c];
    }
}

/* Mean and 1/sqrt(var + eps) of every group of image n, from its chunk sums. Channel means are
   taken about the first pixel of the group's first channel: the variance is the mean of the
   channels' own variances and squared means, less the squared mean. */
static void finish_stats(const boot_node *node, const boot_call *call, int64_t n,
                         const float *sums) {
    const boot_tensor *x = &call->in[X];
    const int64_t C = x->c, G = (int64_t)node->attr[GROUPS], D = C / G, P = x->h * x->w;
    const float *origin = x->data + n * P * x->ld;
    for (int64_t g = 0; g < G; g++) {
        double mean = 0, square = 0;
        for (int64_t c = g * D; c < (g + 1) * D; c++) {
            double s1 = 0, s2 = 0;
            for (int64_t k = 0; k < num_chunks(x); k++) {
                s1 += sums[k * 2 * C + c];
                s2 += sums[k * 2 * C + C + c];
            }
            const double own = s1 / P, m = (double)origin[c] - origin[g * D] + own;
            mean += m;
            square += s2 / P - own * own + m * m;
        }
        mean /= D;
        const double variance = square / D - mean * mean;
        call->saved[2 * (n * G + g)] = (float)(origin[g * D] + mean);
        call->saved[2 * (n * G + g) + 1] =
            (float)(1.0 / sqrt((variance > 0 ? variance : 0) + node->attr[EPS]));
    }
}

/* What group_norm_forward does for one chunk, and between its two passes over an image. */
static void forward_moments(const boot_call *call, int64_t n, int64_t k, float *sums) {
    const boot_tensor *x = &call->in[X];
    const int64_t P = x->h * x->w, rest = P - k * CHUNK;
    const float *image = x->data + n * P * x->ld;
    moments(rest < CHUNK ? rest : CHUNK, x->c, image + k * CHUNK * x->ld, x->ld, image,
            sums + (n * num_chunks(x) + k) * 2 * x->c);
}

static void forward_terms(const boot_node *node, const boot_call *call, int64_t n,
                          const float *sums, channel_terms t) {
    const boot_tensor *x = &call->in[X];
    if (!call->again) finish_stats(node, call, n, sums + n * num_chunks(x) * 2 * x->c);
    fill_terms(node, call, n, t);
    for (int64_t c = 0; c < x->c; c++) { /* fold both affine maps: z = p x + q */
        t.p[c] = t.gain[c] * t.rstd[c];
        t.q[c] = t.gain[c] * t.offset[c] + t.bias[c];
    }
}

static void forward_apply(const boot_node *node, const boot_call *call, int64_t n, int64_t k,
                          channel_terms t) {
    const boot_tensor *x = &call->in[X], *y = &call->out;
    const int64_t P = x->h * x->w, at = n * P + k * CHUNK, rest = P - k * CHUNK;
    apply((boot_act)node->attr[ACT], rest < CHUNK ? rest : CHUNK, x->c, x->data + at * x->ld, x->ld,
          t.p, t.q, y->data + at * y->ld, y->ld);
}

/* x, y: (N, H, W, C); weight, bias: (C); scale_shift: (N, 2C) */
static boot_status group_norm_forward(const boot_node *node, const boot_call *call) {
    const boot_tensor *x = &call->in[X];
    const int64_t C = x->c, K = num_chunks(x), N = x->n;
    float *sums = call->scratch, *terms = call->scratch + N * K * 2 * C;
#pragma omp parallel if (boot_count(x) > 8192)
    if (N >=
        omp_get_num_threads()) { /* an image after the other: its second pass finds it cached */
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const channel_terms t = terms_of(terms + n * 7 * C, C);
            for (int64_t k = 0; k < K && !call->again; k++) forward_moments(call, n, k, sums);
            forward_terms(node, call, n, sums, t);
            for (int64_t k = 0; k < K; k++) forward_apply(node, call, n, k, t);
        }
    } else {
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < N; n++)
            for (int64_t k = 0; k < K; k++)
                if (!call->again) forward_moments(call, n, k, sums);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++)
            forward_terms(node, call, n, sums, terms_of(terms + n * 7 * C, C));
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < N; n++)
            for (int64_t k = 0; k < K; k++)
                forward_apply(node, call, n, k, terms_of(terms + n * 7 * C, C));
    }
    return BOOT_OK;
}

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

/* p, q, r of every channel from the chunk sums of an image, which are added into chunk 0. */
static void finish_grad(const boot_node *node, float *sums, channel_terms t) {
    const boot_tensor *x = &node->in[X];
    const int64_t C = x->c, G = (int64_t)node->attr[GROUPS], D = C / G;
    for (int64_t k = 1; k < num_chunks(x); k++)
        for (int64_t c = 0; c < 2 * C; c++) sums[c] += sums[k * 2 * C + c];
    for (int64_t g = 0; g < G; g++) {
        double a1 = 0, a2 = 0;
        for (int64_t c = g * D; c < (g + 1) * D; c++) {
            a1 += (double)t.gain[c] * sums[c];
            a2 += (double)t.gain[c] * sums[C + c];
        }
        const double rstd = t.rstd[g * D], m = (double)D * x->h * x->w;
        const float q = (float)(-rstd * a2 / m), r = (float)(-rstd * a1 / m);
        for (int64_t c = g * D; c < (g + 1) * D; c++) {
            t.p[c] = t.rstd[c] * t.gain[c];
            t.q[c] = q;
            t.r[c] = r;
        }
    }
}

/* Gradients of weight, bias and scale_shift from S1, S2 of every image; `stride` floats apart. */
static void parameter_grads(const boot_node *node, const boot_call *call, const float *sums,
                            int64_t stride) {
    const int64_t C = node->in[X].c, N = node->in[X].n;
    const float *ss = call->in[SCALE_SHIFT].data;
    float *dweight = call->din[WEIGHT].data, *dbias = call->din[BIAS].data,
          *dss = call->din[SCALE_SHIFT].data;
    if (dweight) memset(dweight, 0, C * sizeof(float));
    if (dbias) memset(dbias, 0, C * sizeof(float));
    for (int64_t n = 0; n < N; n++)
        for (int64_t c = 0; c < C; c++) {
            const float s1 = sums[n * stride + c], s2 = sums[n * stride + C + c];
            const float one_s = ss ? 1.0f + ss[n * 2 * C + c] : 1.0f;
            if (dweight) dweight[c] += one_s * s2;
            if (dbias) dbias[c] += one_s * s1;
            if (!dss) continue;
            float *ds = dss + n * 2 * C;
            const float part = call->in[WEIGHT].data[c] * s2 + call->in[BIAS].data[c] * s1;
            ds[c] = call->accumulate[SCALE_SHIFT] ? ds[c] + part : part;
            ds[C + c] = call->accumulate[SCALE_SHIFT] ? ds[C + c] + s1 : s1;
        }
}

/* One of the two passes over chunk k of image n: its sums (`sums` not NULL), or its dx. dz: of the
   whole image where `kept`, then the second pass finds it; else of a strip. */
static void backward_chunk(const boot_node *node, const boot_call *call, int64_t n, int64_t k,
                           const channel_terms *t, float *sums, float *dz, bool kept) {
    const boot_tensor *x = &call->in[X], *dy = &call->dout, *dx = &call->din[X];
    const int64_t C = x->c, P = x->h * x->w, end = P - k * CHUNK < CHUNK ? P : (k + 1) * CHUNK;
    if (sums) memset(sums, 0, 2 * C * sizeof(float));
    for (int64_t p = k * CHUNK; p < end; p += STRIP) {
        const int64_t pixels = end - p < STRIP ? end - p : STRIP, at = n * P + p;
        const float *from = x->data + at * x->ld;
        float *strip = kept ? dz + p * C : dz;
        if (sums || !kept)
            slopes((boot_act)node->attr[ACT], pixels, C, from, x->ld, dy->data + at * dy->ld,
                   dy->ld, t, strip);
        if (sums)
            grad_sums(pixels, C, from, x->ld, strip, t, sums);
        else
            grad_apply(pixels, C, from, x->ld, strip, t, call->accumulate[X],
                       dx->data + at * dx->ld, dx->ld);
    }
}

static boot_status group_norm_backward(const boot_node *node, const boot_call *call) {
    const boot_tensor *x = &call->in[X];
    const int64_t C = x->c, K = num_chunks(x), N = x->n;
    const bool wanted = call->din[X].data != NULL;
    float *sums = call->scratch, *terms = call->scratch + N * K * 2 * C;
#pragma omp parallel if (boot_count(x) > 8192)
    {
        float *dz = terms + N * 7 * C + omp_get_thread_num() * dz_pixels(x) * C;
        if (N >= omp_get_num_threads()) {
            const bool kept = dz_pixels(x) == x->h * x->w;
#pragma omp for schedule(static)
            for (int64_t n = 0; n < N; n++) {
                const channel_terms t = terms_of(terms + n * 7 * C, C);
                float *own = sums + n * K * 2 * C;
                fill_terms(node, call, n, t);
                for (int64_t k = 0; k < K; k++)
                    backward_chunk(node, call, n, k, &t, own + k * 2 * C, dz, kept);
                finish_grad(node, own, t);
                for (int64_t k = 0; k < K && wanted; k++)
                    backward_chunk(node, call, n, k, &t, NULL, dz, kept);
            }
        } else {
#pragma omp for schedule(static)
            for (int64_t n = 0; n < N; n++)
                fill_terms(node, call, n, terms_of(terms + n * 7 * C, C));
#pragma omp for collapse(2) schedule(static)
            for (int64_t n = 0; n < N; n++)
                for (int64_t k = 0; k < K; k++) {
                    const channel_terms t = terms_of(terms + n * 7 * C, C);
                    backward_chunk(node, call, n, k, &t, sums + (n * K + k) * 2 * C, dz, false);
                }
#pragma omp for schedule(static)
            for (int64_t n = 0; n < N; n++)
                finish_grad(node, sums + n * K * 2 * C, terms_of(terms + n * 7 * C, C));
#pragma omp for collapse(2) schedule(static)
            for (int64_t n = 0; n < N; n++)
                for (int64_t k = 0; k < K; k++) {
                    const channel_terms t = terms_of(terms + n * 7 * C, C);
                    if (wanted) backward_chunk(node, call, n, k, &t, NULL, dz, false);
                }
        }
    }
    parameter_grads(node, call, sums, K * 2 * C);
    return BOOT_OK;
}

const boot_op boot_op_group_norm = {
    .name = "group_norm",
    .inputs = "x weight bias scale_shift?",
    .attrs = "num_groups eps act",
    .doc = "act(GN(x) (1 + s) + shift). x: (N, H, W, C), weight, bias: (C), scale_shift: (N, 2C).",
    .flags = BOOT_OP_RECOMPUTE,
    .backward_reads = 1u << X | 1u << WEIGHT | 1u << BIAS | 1u << SCALE_SHIFT,
    .infer = group_norm_infer,
    .forward = group_norm_forward,
    .backward = group_norm_backward,
};
