/* group_norm.c: group normalisation, optional scale and shift, and activation in one operation.
 *
 *   xh = (x - mean) rstd                      mean, variance over one group of C/G channels and all
 * pixels z  = g xh + b,   g = weight (1 + s),  b = bias (1 + s) + shift,   (s, shift) = scale_shift
 * or 0 y  = act(z) dz = act'(z) dy,  S1 = sum_p dz,  S2 = sum_p dz xh   (per image and channel) dx
 * = rstd (g dz - A1 - xh A2),  A1, A2 = means over the group of g S1, g S2     (Wu and He 2018)
 *   dbias = sum_n (1+s) S1   dweight = sum_n (1+s) S2   ds = weight S2 + bias S1   dshift = S1
 *
 * The channels may come in two arrays, x and `more`: a concatenation that nobody has to make.
 * Pixels are cut into chunks of fixed size and the partial sums added in order: the same bits for
 * any number of threads. Sums are taken about the first pixel's value, so a large mean costs no
 * precision. */
#include <omp.h>
#include <string.h>

#include "base/lanes.h"
#include "ops/group_norm_loops.h"
#include "ops/op.h"

enum { X, WEIGHT, BIAS, SCALE_SHIFT, MORE };
enum { GROUPS, EPS, ACT };
enum { CHUNK = 128, STRIP = 16 }; /* pixels */
enum { KEEP = 32768 }; /* floats that the second-level cache has room for beside others */

static int64_t num_chunks(const boot_tensor *x) { return (x->h * x->w + CHUNK - 1) / CHUNK; }

static bool image_fits(const boot_tensor *y) { return y->h * y->w * y->c <= KEEP; }

/* Pixels whose dz a thread keeps: those of an image, or a strip of a large one. y: like the output.
 */
static int64_t dz_pixels(const boot_tensor *y) { return image_fits(y) ? y->h * y->w : STRIP; }

/* Pixels to the next image, if this thread reads it and there is room for it until then; else 0. */
static int64_t pixels_ahead(const boot_tensor *y) {
    return y->n >= omp_get_num_threads() && image_fits(y) ? y->h * y->w : 0;
}

/* Floats of the terms of an image; whole cache lines. */
static int64_t terms_floats(int64_t C) { return (11 * C + 15) / 16 * 16; }
static int64_t all_sums_floats(const boot_tensor *y) {
    return (y->n * num_chunks(y) * 2 * y->c + 15) / 16 * 16;
}

static boot_status group_norm_infer(boot_node *node) {
    const boot_tensor *x = &node->in[X], *more = &node->in[MORE];
    const int64_t G = (int64_t)node->attr[GROUPS], C = x->c + more->c;
    const double act = node->attr[ACT];
    if (G < 1 || C % G)
        return boot_fail(BOOT_ERR_VALUE,
                         "group_norm (%s): %lld channels in %lld groups, expected a divisor",
                         node->name, (long long)C, (long long)G);
    if (more->n) BOOT_TRY(boot_expect_pixels(node, X, "x", MORE, "more"));
    if (!(act >= 0 && act < BOOT_NUM_ACTS) || !(node->attr[EPS] >= 0))
        return boot_fail(BOOT_ERR_VALUE,
                         "group_norm (%s): act %g, eps %g, expected act in [0, %d], eps >= 0",
                         node->name, act, node->attr[EPS], BOOT_NUM_ACTS - 1);
    BOOT_TRY(boot_expect_count(node, WEIGHT, "weight", C));
    BOOT_TRY(boot_expect_count(node, BIAS, "bias", C));
    if (node->in[SCALE_SHIFT].n)
        BOOT_TRY(boot_expect_count(node, SCALE_SHIFT, "scale_shift", x->n * 2 * C));
    node->out = boot_shape(x->n, x->h, x->w, C);
    node->saved_floats = 2 * x->n * G;
    node->scratch_floats = all_sums_floats(&node->out) + x->n * terms_floats(C) +
                           omp_get_max_threads() * dz_pixels(&node->out) * C;
    return boot_expect_size(node, &node->out);
}

/* Those of image n, and their parts from channel c. */
static channel_terms terms_of(float *all, int64_t n, int64_t C) {
    float *block = all + n * terms_floats(C);
    return (channel_terms){.mean = (double *)(void *)block,
                           .square = (double *)(void *)(block + 2 * C),
                           .rstd = block + 4 * C,
                           .offset = block + 5 * C,
                           .gain = block + 6 * C,
                           .slope = block + 7 * C,
                           .shift = block + 8 * C,
                           .q = block + 9 * C,
                           .r = block + 10 * C};
}

static channel_terms terms_from(const channel_terms *t, int64_t c) {
    return (channel_terms){.mean = t->mean + c,
                           .square = t->square + c,
                           .rstd = t->rstd + c,
                           .offset = t->offset + c,
                           .gain = t->gain + c,
                           .slope = t->slope + c,
                           .shift = t->shift + c,
                           .q = t->q + c,
                           .r = t->r + c};
}

/* The channels of whole groups of one image: groups [group, end), channels [first, first + width).
   `sums` of it: (chunks, 2, width). */
typedef struct {
    int64_t n, group, end, first, width;
} slice;

/* Part `part` of `parts` of image n. */
static slice slice_of(const boot_node *node, int64_t n, int64_t part, int64_t parts) {
    const int64_t G = (int64_t)node->attr[GROUPS], D = node->out.c / G;
    const int64_t group = G * part / parts, end = G * (part + 1) / parts;
    return (slice){n, group, end, group * D, (end - group) * D};
}

static float *sums_of(const boot_node *node, float *sums, const slice *s) {
    const boot_tensor *y = &node->out;
    return sums + num_chunks(y) * 2 * (s->n * y->c + s->first);
}

/* Channels [first, first + width) of a slice, all those that lie in one input: X, or MORE. */
typedef struct {
    int64_t first, width, input;
} piece;

/* Writes the pieces of a slice, and returns how many there are. */
static int pieces_of(const boot_node *node, const slice *s, piece pieces[2]) {
    const int64_t seam = node->in[X].c, end = s->first + s->width;
    int count = 0;
    if (s->first < seam) pieces[count++] = (piece){s->first, boot_least(end, seam) - s->first, X};
    if (end > seam) {
        const int64_t first = s->first > seam ? s->first : seam;
        pieces[count++] = (piece){first, end - first, MORE};
    }
    return count;
}

/* Where a piece begins at a pixel; t: x or its gradient. */
static float *piece_at(const boot_tensor *t, const piece *p, int64_t seam, int64_t pixel) {
    return t[p->input].data + pixel * t[p->input].ld + p->first - (p->input == X ? 0 : seam);
}

static void fill_terms(const boot_node *node, const boot_call *call, const slice *s,
                       channel_terms t) {
    const int64_t n = s->n, C = node->out.c, G = (int64_t)node->attr[GROUPS], D = C / G;
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
   taken about the slice's first number: the variance of a group is the mean of the channels' mean
   squares, less the squared mean. */
static void finish_stats(const boot_node *node, const boot_call *call, const slice *s,
                         const float *sums, channel_terms t) {
    const boot_tensor *y = &node->out;
    const int64_t G = (int64_t)node->attr[GROUPS], P = y->h * y->w, seam = node->in[X].c;
    double about = 0;
    piece pieces[2];
    for (int i = 0, count = pieces_of(node, s, pieces); i < count; i++) {
        const piece *p = &pieces[i];
        const int64_t at = p->first - s->first;
        const float *origin = piece_at(call->in, p, seam, s->n * P);
        if (i == 0) about = origin[0];
        channel_means(p->width, num_chunks(y), s->width, P, sums + at, origin, about,
                      t.mean + p->first, t.square + p->first);
    }
    group_stats(s->end - s->group, y->c / G, node->attr[EPS], about, t.mean + s->first,
                t.square + s->first, call->saved + 2 * (s->n * G + s->group));
}

/* What group_norm_forward does for chunk k of a slice, and between its two passes over it. */
static void forward_moments(const boot_node *node, const boot_call *call, const slice *s, int64_t k,
                            float *sums) {
    const int64_t P = node->out.h * node->out.w, rest = P - k * CHUNK, seam = node->in[X].c;
    piece pieces[2];
    for (int i = 0, count = pieces_of(node, s, pieces); i < count; i++) {
        const piece *p = &pieces[i];
        moments(boot_least(rest, CHUNK), p->width,
                piece_at(call->in, p, seam, s->n * P + k * CHUNK), call->in[p->input].ld,
                piece_at(call->in, p, seam, s->n * P),
                sums_of(node, sums, s) + k * 2 * s->width + p->first - s->first, s->width);
    }
}

static void forward_terms(const boot_node *node, const boot_call *call, const slice *s, float *sums,
                          channel_terms t) {
    if (!call->again) finish_stats(node, call, s, sums_of(node, sums, s), t);
    fill_terms(node, call, s, t);
}

static void forward_apply(const boot_node *node, const boot_call *call, const slice *s, int64_t k,
                          channel_terms t) {
    const boot_tensor *y = &call->out;
    const int64_t P = y->h * y->w, at = s->n * P + k * CHUNK, rest = P - k * CHUNK;
    piece pieces[2];
    for (int i = 0, count = pieces_of(node, s, pieces); i < count; i++) {
        const piece *p = &pieces[i];
        apply((boot_act)node->attr[ACT], boot_least(rest, CHUNK), p->width,
              piece_at(call->in, p, node->in[X].c, at), call->in[p->input].ld, t.slope + p->first,
              t.shift + p->first, y->data + at * y->ld + p->first, y->ld, pixels_ahead(y));
    }
}

/* In how many slices images are shared out: 0 if there are fewer images than threads, and too few
   channels to give each thread whole cache lines of whole groups. */
static int64_t slices(const boot_node *node, int64_t threads) {
    const int64_t C = node->out.c, G = (int64_t)node->attr[GROUPS];
    if (node->out.n >= threads) return 1;
    return G % threads == 0 && C / threads % BOOT_LANES == 0 ? threads : 0;
}

/* x and more, y: (N, H, W, C); weight, bias: (C); scale_shift: (N, 2C) */
static boot_status group_norm_forward(const boot_node *node, const boot_call *call) {
    const boot_tensor *y = &node->out;
    const int64_t C = y->c, K = num_chunks(y), N = y->n;
    const int64_t parts = slices(node, omp_get_num_threads());
    float *sums = call->scratch, *terms = call->scratch + all_sums_floats(y);
    if (parts) { /* a slice after the other: its second pass finds it cached */
#pragma omp for schedule(static)
        for (int64_t i = 0; i < N * parts; i++) {
            const slice s = slice_of(node, i / parts, i % parts, parts);
            const channel_terms t = terms_of(terms, s.n, C);
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
        forward_terms(node, call, &s, sums, terms_of(terms, n, C));
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < N * K; i++) {
        const slice s = slice_of(node, i / K, 0, 1);
        forward_apply(node, call, &s, i % K, terms_of(terms, i / K, C));
    }
    return BOOT_OK;
}

/* q and r of every channel from the chunk sums of an image, which are added into chunk 0. */
static void finish_grad(const boot_node *node, float *sums, channel_terms t) {
    const boot_tensor *y = &node->out;
    const int64_t C = y->c, G = (int64_t)node->attr[GROUPS], D = C / G;
    for (int64_t k = 1; k < num_chunks(y); k++)
        for (int64_t c = 0; c < 2 * C; c++) sums[c] += sums[k * 2 * C + c];
    for (int64_t g = 0; g < G; g++) {
        double a1 = 0, a2 = 0;
        for (int64_t c = g * D; c < (g + 1) * D; c++) {
            a1 += (double)t.gain[c] * sums[c];
            a2 += (double)t.gain[c] * sums[C + c];
        }
        const double rstd = t.rstd[g * D], m = (double)D * y->h * y->w;
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
    const int64_t C = node->out.c, N = node->out.n;
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

/* One of the two passes over pixels of image n from its pixel p on: sums, or dx. `strip`: their dz,
   which is there already if not `fresh`. */
static void backward_strip(const boot_node *node, const boot_call *call, int64_t n, int64_t p,
                           int64_t pixels, const channel_terms *all, float *sums, float *strip,
                           bool fresh) {
    const boot_tensor *dy = &call->dout;
    const int64_t C = node->out.c, at = n * node->out.h * node->out.w + p, seam = node->in[X].c;
    const slice s = slice_of(node, n, 0, 1);
    piece pieces[2];
    for (int i = 0, count = pieces_of(node, &s, pieces); i < count; i++) {
        const piece *own = &pieces[i];
        const int64_t c = own->first, ldx = call->in[own->input].ld;
        const float *x = piece_at(call->in, own, seam, at);
        const channel_terms t = terms_from(all, c);
        float *dz = strip + c;
        if (fresh)
            slopes((boot_act)node->attr[ACT], pixels, own->width, x, ldx,
                   dy->data + at * dy->ld + c, dy->ld, &t, dz, C, pixels_ahead(&node->out));
        if (sums)
            grad_sums(pixels, own->width, x, ldx, dz, C, &t, sums + c, C);
        else if (call->din[own->input].data)
            grad_apply(pixels, own->width, x, ldx, dz, C, &t, call->accumulate[own->input],
                       piece_at(call->din, own, seam, at), call->din[own->input].ld);
    }
}

/* One of the two passes over chunk k of image n: its sums (`sums` not NULL), or its dx. dz: of the
   whole image where `kept`, then the second pass finds it; else of a strip. */
static void backward_chunk(const boot_node *node, const boot_call *call, int64_t n, int64_t k,
                           const channel_terms *t, float *sums, float *dz, bool kept) {
    const int64_t C = node->out.c, P = node->out.h * node->out.w;
    const int64_t end = boot_least(P, (k + 1) * CHUNK);
    if (sums) memset(sums, 0, 2 * C * sizeof(float));
    for (int64_t p = k * CHUNK; p < end; p += STRIP)
        backward_strip(node, call, n, p, boot_least(end - p, STRIP), t, sums,
                       kept ? dz + p * C : dz, sums || !kept);
}

static boot_status group_norm_backward(const boot_node *node, const boot_call *call) {
    const boot_tensor *y = &node->out;
    const int64_t C = y->c, K = num_chunks(y), N = y->n;
    const bool wanted = call->din[X].data || call->din[MORE].data;
    float *sums = call->scratch, *terms = call->scratch + all_sums_floats(y);
    float *dz = terms + N * terms_floats(C) + omp_get_thread_num() * dz_pixels(y) * C;
    if (N >= omp_get_num_threads()) {
        const bool kept = dz_pixels(y) == y->h * y->w;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const channel_terms t = terms_of(terms, n, C);
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
            fill_terms(node, call, &s, terms_of(terms, n, C));
        }
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < N; n++)
            for (int64_t k = 0; k < K; k++) {
                const channel_terms t = terms_of(terms, n, C);
                backward_chunk(node, call, n, k, &t, sums + (n * K + k) * 2 * C, dz, false);
            }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++)
            finish_grad(node, sums + n * K * 2 * C, terms_of(terms, n, C));
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < N; n++)
            for (int64_t k = 0; k < K; k++) {
                const channel_terms t = terms_of(terms, n, C);
                if (wanted) backward_chunk(node, call, n, k, &t, NULL, dz, false);
            }
    }
#pragma omp single
    parameter_grads(node, call, sums, K * 2 * C);
    return BOOT_OK;
}

const boot_op boot_op_group_norm = {
    .name = "group_norm",
    .inputs = "x weight bias scale_shift? more?",
    .attrs = "num_groups eps act",
    .doc = "act(GN([x, more]) (1 + s) + shift). x: (N, H, W, Cx), more: (N, H, W, C - Cx), weight, "
           "bias: (C), scale_shift: (N, 2C).",
    .flags = BOOT_OP_RECOMPUTE,
    .backward_reads = 1u << X | 1u << WEIGHT | 1u << BIAS | 1u << SCALE_SHIFT | 1u << MORE,
    .infer = group_norm_infer,
    .forward = group_norm_forward,
    .backward = group_norm_backward,
};
