/* to_nchw.c: the network's output as (N, C, H, W), divided by t where the config says so; dx = dy /
 * t. */
#include "ops/op.h"

enum { X, T };

/* An NCHW image uses the four numbers of its tensor in that order: n = N, h = C, w = H, c = W. */
static boot_status to_nchw_infer(boot_node *node) {
    const boot_tensor *x = &node->in[X];
    node->out = boot_shape(x->n, x->c, x->h, x->w);
    if (node->in[T].n) BOOT_TRY(boot_expect_count(node, T, "t", x->n));
    return boot_expect_size(node, &node->out);
}

/* x: (N, H, W, C), t: (N) or absent, y: (N, C, H, W) */
static boot_status to_nchw_forward(const boot_node *node, const boot_call *call) {
    (void)node;
    const boot_tensor *x = &call->in[X];
    const int64_t P = x->h * x->w;
#pragma omp for schedule(static)
    for (int64_t n = 0; n < x->n; n++)
        for (int64_t c = 0; c < x->c; c++)
            for (int64_t p = 0; p < P; p++) {
                const float v = x->data[(n * P + p) * x->ld + c];
                call->out.data[(n * x->c + c) * P + p] =
                    call->in[T].data ? v / call->in[T].data[n] : v;
            }
    return BOOT_OK;
}

static boot_status to_nchw_backward(const boot_node *node, const boot_call *call) {
    (void)node;
    const boot_tensor *dx = &call->din[X];
    const int64_t P = dx->h * dx->w;
    if (!dx->data) return BOOT_OK;
#pragma omp for schedule(static)
    for (int64_t n = 0; n < dx->n; n++)
        for (int64_t c = 0; c < dx->c; c++)
            for (int64_t p = 0; p < P; p++) {
                const float v = call->dout.data[(n * dx->c + c) * P + p];
                const float part = call->in[T].data ? v / call->in[T].data[n] : v;
                float *d = dx->data + (n * P + p) * dx->ld + c;
                *d = call->accumulate[X] ? *d + part : part;
            }
    return BOOT_OK;
}

const boot_op boot_op_to_nchw = {
    .name = "to_nchw",
    .inputs = "x t?",
    .attrs = "",
    .doc = "Layout change at the network's exit. x: (N, H, W, C), y = x (or x / t): (N, C, H, W).",
    .flags = 0,
    .backward_reads = 1u << T,
    .constants = 1u << T,
    .infer = to_nchw_infer,
    .forward = to_nchw_forward,
    .backward = to_nchw_backward,
};
