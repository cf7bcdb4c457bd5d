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
#include <string.h>

#include "base/vmath.h"
#include "ops/op.h"

enum { X, WEIGHT, BIAS, SCALE_SHIFT };
enum { GROUPS, EPS, ACT };
enum { CHUNK = 128 }; /* pixels */

static int64_t num_chunks(const boot_tensor *x) { return (x->h * x->w + CHUNK - 1) / CHUNK; }

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
    node->scratch_floats = x->n * num_chunks(x) * 2 * x->c + x->n * 7 * x->c;
    return boot_expect_size(node, &node->out);
}

/* Sums of x - origin and its square over `pixels` pixels; x: (pixels, C), sums: (2, C). */
BOOT_INLINE void moments_body(int64_t pixels, int64_t C, const float *restrict x, int64_t ld,
                              const float *restrict origin, float *restrict sums) {
    float *restrict s1 = sums, *restrict s2 = sums + C;
    memset(sums, 0, 2 * C * sizeof(float));
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < C; c++) {
            const float d = x[p * ld + c] - origin[c];
            s1[c] += d;
            s2[c] += d * d;
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
    switch (act) {
    case BOOT_ACT_SILU:
        APPLY(BOOT_ACT_SILU) break;
    case BOOT_ACT_GELU:
        APPLY(BOOT_ACT_GELU) break;
    case BOOT_ACT_MISH:
        APPLY(BOOT_ACT_MISH) break;
    case BOOT_ACT_RELU:
        APPLY(BOOT_ACT_RELU) break;
    default:
        APPLY(BOOT_ACT_NONE) break;
    }
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
    const float *stats = call->saved + 2 * n * G;
    const float *ss = call->in[SCALE_SHIFT].data ? call->in[SCALE_SHIFT].data + n * 2 * C : NULL;
    for (int64_t c = 0; c < C; c++) {
        const float mean = stats[2 * (c / D)], rstd = stats[2 * (c / D) + 1];
        const float weight = call->in[WEIGHT].data[c], bias = call->in[BIAS].data[c];
        t.rstd[c] = rstd;
        t.offset[c] = -mean * rstd;
        t.gain[c] = ss ? weight * (1.0f + ss[c]) : weight;
        t.bias[c] = ss ? bias * (1.0f + ss[c]) + ss[C + c] : bias;
    }
}

/* Mean and 1/sqrt(var + eps) of every group of image n, from its chunk sums. */
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
            const double m = s1 / P;
            mean += origin[c] + m;
            square += s2 / P - m * m; /* this channel's variance about its own mean */
        }
        mean /= D;
        square /= D;
        for (int64_t c = g * D; c < (g + 1) * D;
             c++) { /* spread of the channel means about the group's */
            double s1 = 0;
            for (int64_t k = 0; k < num_chunks(x); k++) s1 += sums[k * 2 * C + c];
            const double d = origin[c] + s1 / P - mean;
            square += d * d / D;
        }
        call->saved[2 * (n * G + g)] = (float)mean;
        call->saved[2 * (n * G + g) + 1] =
            (float)(1.0 / sqrt((square > 0 ? square : 0) + node->attr[EPS]));
    }
}

/* x, y: (N, H, W, C); weight, bias: (C); scale_shift: (N, 2C) */
static boot_status group_norm_forward(const boot_node *node, const boot_call *call) {
    const boot_tensor *x = &call->in[X], *y = &call->out;
    const int64_t C = x->c, P = x->h * x->w, K = num_chunks(x), N = x->n;
    float *sums = call->scratch, *terms = call->scratch + N * K * 2 * C;
#pragma omp parallel if (N * P * C > 8192)
    {
        if (!call->again) {
#pragma omp for collapse(2) schedule(static)
            for (int64_t n = 0; n < N; n++)
                for (int64_t k = 0; k < K; k++) {
                    const float *image = x->data + n * P * x->ld;
                    moments(P - k * CHUNK < CHUNK ? P - k * CHUNK : CHUNK, C,
                            image + k * CHUNK * x->ld, x->ld, image, sums + (n * K + k) * 2 * C);
                }
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const channel_terms t = terms_of(terms + n * 7 * C, C);
            if (!call->again) finish_stats(node, call, n, sums + n * K * 2 * C);
            fill_terms(node, call, n, t);
            for (int64_t c = 0; c < C; c++) { /* fold both affine maps: z = p x + q */
                t.p[c] = t.gain[c] * t.rstd[c];
                t.q[c] = t.gain[c] * t.offset[c] + t.bias[c];
            }
        }
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < N; n++)
            for (int64_t k = 0; k < K; k++) {
                const channel_terms t = terms_of(terms + n * 7 * C, C);
                const int64_t at = n * P + k * CHUNK;
                apply((boot_act)node->attr[ACT], P - k * CHUNK < CHUNK ? P - k * CHUNK : CHUNK, C,
                      x->data + at * x->ld, x->ld, t.p, t.q, y->data + at * y->ld, y->ld);
            }
    }
    return BOOT_OK;
}

/* S1 and S2 of one chunk; x, dy: (pixels, C), sums: (2, C). */
BOOT_INLINE void grad_sums_body(boot_act act, int64_t pixels, int64_t C, const float *restrict x,
                                int64_t ldx, const float *restrict dy, int64_t ldy,
                                const channel_terms *t, float *restrict sums) {
    float *restrict s1 = sums, *restrict s2 = sums + C;
    const float *restrict rstd = t->rstd, *restrict offset = t->offset;
    const float *restrict gain = t->gain, *restrict bias = t->bias;
    memset(sums, 0, 2 * C * sizeof(float));
#define SUMS(A)                                                                                    \
    for (int64_t p = 0; p < pixels; p++)                                                           \
        for (int64_t c = 0; c < C; c++) {                                                          \
            const float xh = rstd[c] * x[p * ldx + c] + offset[c];                                 \
            const float dz = dy[p * ldy + c] * boot_act_slope(A, gain[c] * xh + bias[c]);          \
            s1[c] += dz;                                                                           \
            s2[c] += dz * xh;                                                                      \
        }
    switch (act) {
    case BOOT_ACT_SILU:
        SUMS(BOOT_ACT_SILU) break;
    case BOOT_ACT_GELU:
        SUMS(BOOT_ACT_GELU) break;
    case BOOT_ACT_MISH:
        SUMS(BOOT_ACT_MISH) break;
    case BOOT_ACT_RELU:
        SUMS(BOOT_ACT_RELU) break;
    default:
        SUMS(BOOT_ACT_NONE) break;
    }
#undef SUMS
}
BOOT_MULTI_ISA(grad_sums,
               (boot_act act, int64_t pixels, int64_t C, const float *x, int64_t ldx,
                const float *dy, int64_t ldy, const channel_terms *t, float *sums),
               (act, pixels, C, x, ldx, dy, ldy, t, sums))

/* dx = p dz + q xh + r */
BOOT_INLINE void grad_apply_body(boot_act act, int64_t pixels, int64_t C, const float *restrict x,
                                 int64_t ldx, const float *restrict dy, int64_t ldy,
                                 const channel_terms *t, float keep, float *restrict dx,
                                 int64_t ldd) {
    const float *restrict rstd = t->rstd, *restrict offset = t->offset;
    const float *restrict gain = t->gain, *restrict bias = t->bias;
    const float *restrict P = t->p, *restrict Q = t->q, *restrict R = t->r;
#define GRAD(A, OLD)                                                                               \
    for (int64_t p = 0; p < pixels; p++)                                                           \
        for (int64_t c = 0; c < C; c++) {                                                          \
            const float xh = rstd[c] * x[p * ldx + c] + offset[c];                                 \
            const float dz = dy[p * ldy + c] * boot_act_slope(A, gain[c] * xh + bias[c]);          \
            dx[p * ldd + c] = OLD + (P[c] * dz + Q[c] * xh + R[c]);                                \
        }
#define GRADS(A)                                                                                   \
    if (keep != 0.0f) {                                                                            \
        GRAD(A, dx[p * ldd + c])                                                                   \
    } else {                                                                                       \
        GRAD(A, 0.0f)                                                                              \
    }
    switch (act) {
    case BOOT_ACT_SILU:
        GRADS(BOOT_ACT_SILU) break;
    case BOOT_ACT_GELU:
        GRADS(BOOT_ACT_GELU) break;
    case BOOT_ACT_MISH:
        GRADS(BOOT_ACT_MISH) break;
    case BOOT_ACT_RELU:
        GRADS(BOOT_ACT_RELU) break;
    default:
        GRADS(BOOT_ACT_NONE) break;
    }
#undef GRADS
#undef GRAD
}
BOOT_MULTI_ISA(grad_apply,
               (boot_act act, int64_t pixels, int64_t C, const float *x, int64_t ldx,
                const float *dy, int64_t ldy, const channel_terms *t, float keep,
                float *restrict dx, int64_t ldd),
               (act, pixels, C, x, ldx, dy, ldy, t, keep, dx, ldd))

/* Adds the chunk sums of image n (into chunk 0), then p, q, r of every channel. */
static void finish_grad(const boot_node *node, int64_t n, float *sums, channel_terms t) {
    const boot_tensor *x = &node->in[X];
    const int64_t C = x->c, G = (int64_t)node->attr[GROUPS], D = C / G;
    (void)n;
    for (int64_t k = 1; k < num_chunks(x); k++)
        for (int64_t c = 0; c < 2 * C; c++) sums[c] += sums[k * 2 * C + c];
    for (int64_t g = 0; g < G; g++) {
        double a1 = 0, a2 = 0;
        for (int64_t c = g * D; c < (g + 1) * D; c++) {
            a1 += (double)t.gain[c] * sums[c];
            a2 += (double)t.gain[c] * sums[C + c];
        }
        const double m = (double)D * x->h * x->w;
        for (int64_t c = g * D; c < (g + 1) * D; c++) {
            t.p[c] = t.rstd[c] * t.gain[c];
            t.q[c] = (float)(-t.rstd[c] * a2 / m);
            t.r[c] = (float)(-t.rstd[c] * a1 / m);
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

static boot_status group_norm_backward(const boot_node *node, const boot_call *call) {
    const boot_tensor *x = &call->in[X], *dy = &call->dout, *dx = &call->din[X];
    const int64_t C = x->c, P = x->h * x->w, K = num_chunks(x), N = x->n;
    const boot_act act = (boot_act)node->attr[ACT];
    float *sums = call->scratch, *terms = call->scratch + N * K * 2 * C;
#pragma omp parallel if (N * P * C > 8192)
    {
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) fill_terms(node, call, n, terms_of(terms + n * 7 * C, C));
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < N; n++)
            for (int64_t k = 0; k < K; k++) {
                const channel_terms t = terms_of(terms + n * 7 * C, C);
                const int64_t at = n * P + k * CHUNK;
                grad_sums(act, P - k * CHUNK < CHUNK ? P - k * CHUNK : CHUNK, C,
                          x->data + at * x->ld, x->ld, dy->data + at * dy->ld, dy->ld, &t,
                          sums + (n * K + k) * 2 * C);
            }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++)
            finish_grad(node, n, sums + n * K * 2 * C, terms_of(terms + n * 7 * C, C));
        if (dx->data) {
#pragma omp for collapse(2) schedule(static)
            for (int64_t n = 0; n < N; n++)
                for (int64_t k = 0; k < K; k++) {
                    const channel_terms t = terms_of(terms + n * 7 * C, C);
                    const int64_t at = n * P + k * CHUNK;
                    grad_apply(act, P - k * CHUNK < CHUNK ? P - k * CHUNK : CHUNK, C,
                               x->data + at * x->ld, x->ld, dy->data + at * dy->ld, dy->ld, &t,
                               call->accumulate[X] ? 1.0f : 0.0f, dx->data + at * dx->ld, dx->ld);
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
