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
#include <omp.h>
#include <string.h>

#include "base/lanes.h"
#include "ops/group_norm_loops.h"
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

static channel_terms terms_of(float *block, int64_t C) {
    return (channel_terms){block,         block + C,     block + 2 * C, block + 3 * C,
                           block + 4 * C, block + 5 * C, block + 6 * C};
}

/* The channels of whole groups of one image: groups [group, end), channels [first, first + width).
   `sums` of it: (chunks, 2, width). */
typedef struct {
    int64_t n, group, end, first, width;
} slice;

/* Part `part` of `parts` of image n. */
static slice slice_of(const boot_node *node, int64_t n, int64_t part, int64_t parts) {
    const int64_t G = (int64_t)node->attr[GROUPS], D = node->in[X].c / G;
    const int64_t group = G * part / parts, end = G * (part + 1) / parts;
    return (slice){n, group, end, group * D, (end - group) * D};
}

static float *sums_of(const boot_node *node, float *sums, const slice *s) {
    const boot_tensor *x = &node->in[X];
    return sums + num_chunks(x) * 2 * (s->n * x->c + s->first);
}

static void fill_terms(const boot_node *node, const boot_call *call, const slice *s,
                       channel_terms t) {
    const int64_t n = s->n, C = node->in[X].c, G = (int64_t)node->attr[GROUPS], D = C / G;
    const float *stats = call->saved + 2 * n * G;
    const float *ss = call->in[SCALE_SHIFT].data ? call->in[SCALE_SHIFT].data + n * 2 * C : NULL;
    for (int64_t g = s->group; g < s->end; g++)
        for (int64_t c = g * D; c < (g + 1) * D; c++) {
            t.rstd[c] = stats[2 * g + 1];
            t.offset[c] = -stats[2 * g] * stats[2 * g + 1];
        }
    fold_terms(s->first, s->first + s->width, call->in[WEIGHT].data, call->in[BIAS].data, ss,
               ss ? ss + C : NULL, &t);
}

/* Mean and 1/sqrt(var + eps) of every group of a slice, from its chunk sums. Channel means are
   taken about the first pixel of the group's first channel: the variance is the mean of the
   channels' own variances and squared means, less the squared mean. */
static void finish_stats(const boot_node *node, const boot_call *call, const slice *s,
                         const float *sums) {
    enum { BLOCK = 64 };
    const boot_tensor *x = &call->in[X];
    const int64_t n = s->n, G = (int64_t)node->attr[GROUPS], D = x->c / G, P = x->h * x->w;
    const int64_t chunks = num_chunks(x), end = s->first + s->width;
    const float *origin = x->data + n * P * x->ld;
    float *stats = call->saved + 2 * n * G;
    const double part = 1.0 / (double)D;
    double mean = 0, square = 0, own[BLOCK], variance[BLOCK], whole[BLOCK];
    int64_t waiting = 0; /* groups whose variances lie in `whole`, the last of them g - 1 */
    int64_t g = s->group, first = s->first; /* of the group */
    for (int64_t c = s->first; c < end; c++) {
        const int64_t at = (c - s->first) % BLOCK;
        if (at == 0)
            channel_stats(end - c < BLOCK ? end - c : BLOCK, chunks, s->width, P,
                          sums + c - s->first, own, variance);
        const double m = (double)origin[c] - origin[first] + own[at];
        mean += m;
        square += variance[at] + m * m;
        if (c + 1 < first + D) continue;
        mean *= part;
        stats[2 * g] = (float)(origin[first] + mean);
        whole[waiting++] = square * part - mean * mean;
        mean = square = 0;
        g++, first = c + 1;
        if (waiting < BLOCK && g < s->end) continue;
        finish_rstd(waiting, whole, node->attr[EPS], stats + 2 * (g - waiting));
        waiting = 0;
    }
}

/* What group_norm_forward does for chunk k of a slice, and between its two passes over it. */
static void forward_moments(const boot_node *node, const boot_call *call, const slice *s, int64_t k,
                            float *sums) {
    const boot_tensor *x = &call->in[X];
    const int64_t P = x->h * x->w, rest = P - k * CHUNK;
    const float *image = x->data + s->n * P * x->ld + s->first;
    moments(rest < CHUNK ? rest : CHUNK, s->width, image + k * CHUNK * x->ld, x->ld, image,
            sums_of(node, sums, s) + k * 2 * s->width);
}

static void forward_terms(const boot_node *node, const boot_call *call, const slice *s, float *sums,
                          channel_terms t) {
    if (!call->again) finish_stats(node, call, s, sums_of(node, sums, s));
    fill_terms(node, call, s, t);
}

static void forward_apply(const boot_node *node, const boot_call *call, const slice *s, int64_t k,
                          channel_terms t) {
    const boot_tensor *x = &call->in[X], *y = &call->out;
    const int64_t P = x->h * x->w, at = s->n * P + k * CHUNK, rest = P - k * CHUNK, c = s->first;
    apply((boot_act)node->attr[ACT], rest < CHUNK ? rest : CHUNK, s->width,
          x->data + at * x->ld + c, x->ld, t.slope + c, t.shift + c, y->data + at * y->ld + c,
          y->ld);
}

/* In how many slices images are shared out: 0 if there are fewer images than threads, and too few
   channels to give each thread whole cache lines of whole groups. */
static int64_t slices(const boot_node *node, int64_t threads) {
    const int64_t C = node->in[X].c, G = (int64_t)node->attr[GROUPS];
    if (node->in[X].n >= threads) return 1;
    return G % threads == 0 && C / threads % BOOT_LANES == 0 ? threads : 0;
}

/* x, y: (N, H, W, C); weight, bias: (C); scale_shift: (N, 2C) */
static boot_status group_norm_forward(const boot_node *node, const boot_call *call) {
    const boot_tensor *x = &call->in[X];
    const int64_t C = x->c, K = num_chunks(x), N = x->n;
    const int64_t parts = slices(node, omp_get_num_threads());
    float *sums = call->scratch, *terms = call->scratch + N * K * 2 * C;
    if (parts) { /* a slice after the other: its second pass finds it cached */
#pragma omp for schedule(static)
        for (int64_t i = 0; i < N * parts; i++) {
            const slice s = slice_of(node, i / parts, i % parts, parts);
            const channel_terms t = terms_of(terms + s.n * 7 * C, C);
            for (int64_t k = 0; k < K && !call->again; k++)
                forward_moments(node, call, &s, k, sums);
            forward_terms(node, call, &s, sums, t);
            for (int64_t k = 0; k < K; k++) forward_apply(node, call, &s, k, t);
        }
        return BOOT_OK;
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < N * K; i++) {
        const slice s = slice_of(node, i / K, 0, 1);
        if (!call->again) forward_moments(node, call, &s, i % K, sums);
    }
#pragma omp for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const slice s = slice_of(node, n, 0, 1);
        forward_terms(node, call, &s, sums, terms_of(terms + n * 7 * C, C));
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < N * K; i++) {
        const slice s = slice_of(node, i / K, 0, 1);
        forward_apply(node, call, &s, i % K, terms_of(terms + i / K * 7 * C, C));
    }
    return BOOT_OK;
}

/* q and r of every channel from the chunk sums of an image, which are added into chunk 0. */
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
            t.q[c] = q * t.rstd[c];
            t.r[c] = q * t.offset[c] + r;
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
    float *dz = terms + N * 7 * C + omp_get_thread_num() * dz_pixels(x) * C;
    if (N >= omp_get_num_threads()) {
        const bool kept = dz_pixels(x) == x->h * x->w;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const channel_terms t = terms_of(terms + n * 7 * C, C);
            float *own = sums + n * K * 2 * C;
            const slice s = slice_of(node, n, 0, 1);
            fill_terms(node, call, &s, t);
            for (int64_t k = 0; k < K; k++)
                backward_chunk(node, call, n, k, &t, own + k * 2 * C, dz, kept);
            finish_grad(node, own, t);
            for (int64_t k = 0; k < K && wanted; k++)
                backward_chunk(node, call, n, k, &t, NULL, dz, kept);
        }
    } else {
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const slice s = slice_of(node, n, 0, 1);
            fill_terms(node, call, &s, terms_of(terms + n * 7 * C, C));
        }
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
#pragma omp single
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
