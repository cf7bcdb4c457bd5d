/* conv2d.c: two-dimensional convolution with everything that a residual block adds to it.
 *
 *   y = scale (conv(x, weight) + bias + temb + residual)   temb: added to every pixel of its image
 *   dx = conv^T(scale dy, weight)     dweight = scale x * dy     dresidual = scale dy
 *   dbias, dtemb = scale sums of dy over pixels
 * Which kernel runs is decided per shape and direction when the node is planned: pinned by
 * attribute or tuner, else the fastest of those that apply. */
#include <omp.h>
#include <string.h>

#include "base/gemm.h"
#include "base/memory.h"
#include "base/vmath.h"
#include "ops/conv2d.h"
#include "ops/op.h"
#include "ops/tuner.h"

enum { X, WEIGHT, BIAS, TEMB, RESIDUAL };
enum { STRIDE, PAD_BEGIN, PAD_END, SCALE, KERNEL, UPSAMPLED };

typedef struct {
    boot_conv_shape shape;
    const boot_conv_kernel *kernel[BOOT_CONV_DIRECTIONS];
    void *state[BOOT_CONV_DIRECTIONS];
    int64_t sums_at; /* scratch offset of (N, O) channel sums, behind the kernels' own */
    int64_t scaled_at;
    bool alone; /* the weight gradient runs on one thread: oneDNN shares its sums out by threads */
} conv2d_state;

static boot_conv_shape shape_of(const boot_node *node) {
    const boot_tensor *x = &node->in[X], *weight = &node->in[WEIGHT];
    const int64_t k = weight->w, stride = (int64_t)node->attr[STRIDE];
    const int64_t begin = (int64_t)node->attr[PAD_BEGIN], end = (int64_t)node->attr[PAD_END];
    const bool upsampled = node->attr[UPSAMPLED] != 0;
    const int64_t H = upsampled ? 2 * x->h : x->h, W = upsampled ? 2 * x->w : x->w;
    return (boot_conv_shape){.N = x->n,
                             .H = H,
                             .W = W,
                             .I = x->c,
                             .O = weight->n,
                             .k = k,
                             .Ho = stride ? (H + begin + end - k) / stride + 1 : 0,
                             .Wo = stride ? (W + begin + end - k) / stride + 1 : 0,
                             .stride = stride,
                             .pad_begin = begin,
                             .pad_end = end,
                             .has_bias = node->in[BIAS].n > 0,
                             .upsampled = upsampled};
}

static boot_status conv2d_infer(boot_node *node) {
    const boot_tensor *x = &node->in[X], *weight = &node->in[WEIGHT];
    const boot_conv_shape s = shape_of(node);
    if (weight->h != x->c || weight->w != weight->c)
        return boot_fail(
            BOOT_ERR_VALUE,
            "conv2d (%s): weight is (%lld, %lld, %lld, %lld), expected (O, %lld, k, k)", node->name,
            (long long)weight->n, (long long)weight->h, (long long)weight->w, (long long)weight->c,
            (long long)x->c);
    if ((s.k != 1 && s.k != 3) || (s.stride != 1 && s.stride != 2) || s.pad_begin < 0 ||
        s.pad_begin > 1 || s.pad_end < 0 || s.pad_end > 1 || s.Ho < 1 || s.Wo < 1 ||
        s.H + s.pad_begin + s.pad_end < s.k || s.W + s.pad_begin + s.pad_end < s.k)
        return boot_fail(
            BOOT_ERR_VALUE,
            "conv2d (%s): kernel %lld, stride %lld, padding %lld and %lld on %lld x %lld pixels, "
            "expected kernel 1 or 3, stride 1 or 2, padding 0 or 1, and room for one output",
            node->name, (long long)s.k, (long long)s.stride, (long long)s.pad_begin,
            (long long)s.pad_end, (long long)s.H, (long long)s.W);
    const double kernel = node->attr[KERNEL];
    if (!(kernel >= 0 && kernel < BOOT_NUM_CONV_KERNELS) || kernel != (int)kernel)
        return boot_fail(BOOT_ERR_VALUE,
                         "conv2d (%s): kernel is %g, expected a whole number in [0, %d]",
                         node->name, kernel, BOOT_NUM_CONV_KERNELS - 1);
    node->out = boot_shape(s.N, s.Ho, s.Wo, s.O);
    if (node->in[BIAS].n) BOOT_TRY(boot_expect_count(node, BIAS, "bias", s.O));
    if (node->in[TEMB].n) BOOT_TRY(boot_expect_count(node, TEMB, "temb", s.N * s.O));
    if (node->in[RESIDUAL].n)
        BOOT_TRY(boot_expect_count(node, RESIDUAL, "residual", boot_count(&node->out)));
    if (node->in[RESIDUAL].n && node->attr[SCALE] == 1.0) node->grad_alias = RESIDUAL;
    return boot_expect_size(node, &node->out);
}

static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

static void conv2d_release(boot_node *node) {
    conv2d_state *state = node->state;
    for (int d = 0; state && d < BOOT_CONV_DIRECTIONS; d++)
        if (state->kernel[d] && state->state[d]) state->kernel[d]->destroy(state->state[d]);
    boot_free(state);
    node->state = NULL;
}

/* Sets one thread for what must not depend on their number; returns what to set afterwards. */
static int limit_threads(bool alone) {
    const int threads = omp_get_max_threads();
    if (alone) omp_set_num_threads(1);
    return threads;
}

/* Whether a node has a pass in direction d. */
static bool goes(const boot_node *node, int d) {
    if (d == BOOT_CONV_FORWARD) return true;
    return node->training && (d != BOOT_CONV_DATA || node->wants_grad[X]);
}

static boot_status conv2d_look(const boot_node *node, void *context, int look) {
    const boot_conv_shape shape = shape_of(node);
    for (int d = 0; d < BOOT_CONV_DIRECTIONS; d++)
        if (goes(node, d))
            BOOT_TRY(boot_conv_look((int)node->attr[KERNEL], &shape, d, context, look));
    return BOOT_OK;
}

static boot_status conv2d_plan(boot_node *node, void *context) {
    boot_plan_context *plan = context;
    BOOT_TRY(boot_alloc(&node->state, sizeof(conv2d_state), true, "conv2d"));
    conv2d_state *state = node->state;
    int64_t scratch = 0;
    state->shape = shape_of(node);
    for (int d = 0; d < BOOT_CONV_DIRECTIONS; d++) {
        int64_t floats = 0;
        if (!goes(node, d)) continue;
        BOOT_TRY(boot_conv_choose(node->name, (int)node->attr[KERNEL], &state->shape, d, plan,
                                  &state->kernel[d]));
        if (d == BOOT_CONV_WEIGHTS)
            state->alone = plan->thread_independent && !state->kernel[d]->fused;
        const int threads = limit_threads(d == BOOT_CONV_WEIGHTS && state->alone);
        const boot_status status =
            state->kernel[d]->create(&state->shape, d, plan->dnnl, &state->state[d], &floats);
        omp_set_num_threads(threads);
        BOOT_TRY(status);
        scratch = max64(scratch, floats);
        if (!state->kernel[d]->team)
            node->outside |= d == BOOT_CONV_FORWARD ? BOOT_OUTSIDE_FORWARD : BOOT_OUTSIDE_BACKWARD;
        if (plan->packed && d != BOOT_CONV_WEIGHTS && state->kernel[d]->pack_need)
            node->packs[d] = state->kernel[d]->pack_need(state->state[d], &state->shape, d);
    }
    state->sums_at = (scratch + 15) / 16 * 16;
    node->scratch_floats = state->sums_at;
    if (node->training) {
        const int64_t ny = boot_count(&node->out);
        node->scratch_floats += state->shape.N * state->shape.O + 16;
        state->scaled_at = (node->scratch_floats + 15) / 16 * 16;
        if (node->attr[SCALE] != 1.0) node->scratch_floats = state->scaled_at + ny;
    }
    return BOOT_OK;
}

/* y = scale (y + temb + residual) for kernels that do not do it along the way; some pixels at a
 * time.
 */
BOOT_INLINE void finish_rows_body(int64_t pixels, const boot_conv_shape *s, const boot_conv_args *t,
                                  int64_t n, int64_t first) {
    for (int64_t p = first; p < first + pixels; p++) {
        float *y = t->y + p * t->ldy;
        const float *residual = t->residual ? t->residual + p * t->ldr : NULL;
        const float *temb = t->temb ? t->temb + n * t->ldt : NULL;
        if (temb)
            for (int64_t o = 0; o < s->O; o++) y[o] += temb[o];
        if (residual)
            for (int64_t o = 0; o < s->O; o++) y[o] += residual[o];
        if (t->scale != 1.0f)
            for (int64_t o = 0; o < s->O; o++) y[o] *= t->scale;
    }
}
BOOT_MULTI_ISA(finish_rows,
               (int64_t pixels, const boot_conv_shape *s, const boot_conv_args *t, int64_t n,
                int64_t first),
               (pixels, s, t, n, first))

void boot_conv_finish_rows(int64_t pixels, const boot_conv_shape *s, const boot_conv_args *t,
                           int64_t n, int64_t first) {
    if (t->temb || t->residual || t->scale != 1.0f) finish_rows(pixels, s, t, n, first);
}

static boot_status conv2d_pack(const boot_node *node, const boot_call *call) {
    const conv2d_state *state = node->state;
    const boot_conv_args args = {.weight = call->in[WEIGHT].data, .packs = call->packs};
    for (int d = 0; d <= BOOT_CONV_DATA; d++)
        if (state->kernel[d] && state->kernel[d]->pack)
            BOOT_TRY(state->kernel[d]->pack(state->state[d], &state->shape, d, &args));
    return BOOT_OK;
}

/* x: (N, H, W, I), weight: (O, I, k, k), bias: (O), temb: (N, O), residual, y: (N, Ho, Wo, O) */
static boot_status conv2d_forward(const boot_node *node, const boot_call *call) {
    const conv2d_state *state = node->state;
    const boot_conv_shape *s = &state->shape;
    const boot_conv_kernel *kernel = state->kernel[BOOT_CONV_FORWARD];
    const boot_conv_args args = {.x = call->in[X].data,
                                 .weight = call->in[WEIGHT].data,
                                 .bias = call->in[BIAS].data,
                                 .temb = call->in[TEMB].data,
                                 .residual = call->in[RESIDUAL].data,
                                 .y = call->out.data,
                                 .ldx = call->in[X].ld,
                                 .ldy = call->out.ld,
                                 .ldr = call->in[RESIDUAL].ld,
                                 .ldt = s->O,
                                 .scale = (float)node->attr[SCALE],
                                 .scratch = call->scratch,
                                 .packs = call->packs};
    BOOT_TRY(kernel->run(state->state[BOOT_CONV_FORWARD], s, BOOT_CONV_FORWARD, &args));
    if (kernel->fused || (!args.temb && !args.residual && args.scale == 1.0f)) return BOOT_OK;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < s->N * s->Ho; i++)
        boot_conv_finish_rows(s->Wo, s, &args, i / s->Ho, i * s->Wo);
    return BOOT_OK;
}

static bool wants_sums(const boot_call *call) {
    return call->din[BIAS].data || call->din[TEMB].data;
}

/* Whether the kernel of the weight gradient makes the pixel sums. */
static bool sums_come_along(const conv2d_state *state, const boot_call *call) {
    return call->din[WEIGHT].data && state->kernel[BOOT_CONV_WEIGHTS]->sums;
}

/* dbias (O) and dtemb (N, O) from the pixel sums of dy: (N, O). */
static void sum_grads(const boot_conv_shape *s, const boot_call *call, const float *sums) {
    float *dbias = call->din[BIAS].data, *dtemb = call->din[TEMB].data;
    if (!dbias && !dtemb) return;
#pragma omp single
    {
        if (dbias) memset(dbias, 0, s->O * sizeof(float));
        for (int64_t n = 0; n < s->N; n++)
            for (int64_t o = 0; o < s->O; o++) {
                const float v = sums[n * s->O + o];
                if (dbias) dbias[o] += v;
                if (dtemb)
                    dtemb[n * s->O + o] = call->accumulate[TEMB] ? dtemb[n * s->O + o] + v : v;
            }
    }
}

/* dst (+)= scale src over all pixels. */
static void scale_rows(const boot_tensor *src, const boot_tensor *dst, float scale, bool add) {
    const int64_t rows = boot_pixels(src);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < src->c; c++) {
            const float v = scale * src->data[r * src->ld + c];
            dst->data[r * dst->ld + c] = add ? dst->data[r * dst->ld + c] + v : v;
        }
}

/* What comes before the kernels, on a team: *dy = scale dout, and its pixel sums. */
static void before_kernels(const boot_node *node, const boot_call *call, boot_tensor *dy) {
    const conv2d_state *state = node->state;
    const boot_conv_shape *s = &state->shape;
    float *sums = call->scratch + state->sums_at;
    if (node->attr[SCALE] != 1.0) scale_rows(&call->dout, dy, (float)node->attr[SCALE], false);
    if (!wants_sums(call) || sums_come_along(state, call)) return;
#pragma omp for schedule(static)
    for (int64_t n = 0; n < s->N; n++)
        boot_column_sums(s->Ho * s->Wo, s->O, dy->data + n * s->Ho * s->Wo * dy->ld, dy->ld,
                         sums + n * s->O);
}

static void after_kernels(const boot_node *node, const boot_call *call, const boot_tensor *dy) {
    const conv2d_state *state = node->state;
    const boot_tensor *dr = &call->din[RESIDUAL];
    sum_grads(&state->shape, call, call->scratch + state->sums_at);
    if (dr->data && dr->data != call->dout.data)
        scale_rows(dy, dr, 1.0f, call->accumulate[RESIDUAL]);
}

/* One direction's kernel. outside: there is no team yet. */
static boot_status run_kernel(const conv2d_state *state, boot_conv_direction d, bool outside,
                              const boot_conv_args *args) {
    const boot_conv_kernel *kernel = state->kernel[d];
    boot_status status = BOOT_OK;
    if (!outside || !kernel->team) return kernel->run(state->state[d], &state->shape, d, args);
#pragma omp parallel
    {
        const boot_status own = kernel->run(state->state[d], &state->shape, d, args);
        if (omp_get_thread_num() == 0) status = own;
    }
    return status;
}

static boot_status conv2d_backward(const boot_node *node, const boot_call *call) {
    const conv2d_state *state = node->state;
    const bool outside = node->outside & BOOT_OUTSIDE_BACKWARD;
    boot_tensor dy = call->dout;
    if (node->attr[SCALE] != 1.0) dy.data = call->scratch + state->scaled_at, dy.ld = dy.c;
    if (outside) {
#pragma omp parallel
        before_kernels(node, call, &dy);
    } else {
        before_kernels(node, call, &dy);
    }
    boot_conv_args args = {.x = call->in[X].data,
                           .weight = call->in[WEIGHT].data,
                           .dy = dy.data,
                           .dx = call->din[X].data,
                           .dweight = call->din[WEIGHT].data,
                           .ldx = call->in[X].ld,
                           .ldy = dy.ld,
                           .scale = 1,
                           .accumulate = call->accumulate[X],
                           .pixel_sums = wants_sums(call) ? call->scratch + state->sums_at : NULL,
                           .scratch = call->scratch,
                           .packs = call->packs};
    if (args.dweight) {
        const int threads = limit_threads(state->alone);
        const boot_status status = run_kernel(state, BOOT_CONV_WEIGHTS, outside, &args);
        if (state->alone) omp_set_num_threads(threads);
        BOOT_TRY(status);
    }
    args.ldx = call->din[X].ld;
    if (args.dx) BOOT_TRY(run_kernel(state, BOOT_CONV_DATA, outside, &args));
    if (outside) {
#pragma omp parallel
        after_kernels(node, call, &dy);
    } else {
        after_kernels(node, call, &dy);
    }
    return BOOT_OK;
}

const boot_op boot_op_conv2d = {
    .name = "conv2d",
    .inputs = "x weight bias? temb? residual?",
    .attrs = "stride pad_begin pad_end scale kernel? upsampled?",
    .doc = "y = scale (conv(x) + bias + temb + residual). x: (N, H, W, I), weight: (O, I, k, k), "
           "bias: (O), temb: (N, O), residual, y: (N, Ho, Wo, O). upsampled: x is (N, H/2, W/2, "
           "I), and each of its pixels stands for 2x2.",
    .backward_reads = 1u << X | 1u << WEIGHT,
    .overwrites = 1u << X,
    .infer = conv2d_infer,
    .look = conv2d_look,
    .plan = conv2d_plan,
    .pack = conv2d_pack,
    .forward = conv2d_forward,
    .backward = conv2d_backward,
    .release = conv2d_release,
};
