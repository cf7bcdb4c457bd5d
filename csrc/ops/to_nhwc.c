/* to_nhwc.c: images come in as (N, C, H, W); y = scale * x + shift as (N, H, W, C). dx = scale *
 * dy. */
#include "ops/op.h"

enum { X };
enum { SCALE, SHIFT };

/* An NCHW image uses the four numbers of its tensor in that order: n = N, h = C, w = H, c = W. */
static boot_status to_nhwc_infer(boot_node *node) {
    const boot_tensor *x = &node->in[X];
    node->out = boot_shape(x->n, x->w, x->c, x->h);
    return boot_expect_size(node, &node->out);
}

/* x: (N, C, H, W), y: (N, H, W, C) */
static boot_status to_nhwc_forward(const boot_node *node, const boot_call *call) {
    const boot_tensor *y = &call->out;
    const float *x = call->in[X].data, scale = (float)node->attr[SCALE],
                shift = (float)node->attr[SHIFT];
    const int64_t P = y->h * y->w;
#pragma omp for schedule(static)
    for (int64_t n = 0; n < y->n; n++)
        for (int64_t p = 0; p < P; p++)
            for (int64_t c = 0; c < y->c; c++)
                y->data[(n * P + p) * y->ld + c] = scale * x[(n * y->c + c) * P + p] + shift;
    return BOOT_OK;
}

static boot_status to_nhwc_backward(const boot_node *node, const boot_call *call) {
    const boot_tensor *dy = &call->dout;
    float *dx = call->din[X].data;
    const float scale = (float)node->attr[SCALE];
    const int64_t P = dy->h * dy->w;
    if (!dx) return BOOT_OK;
#pragma omp for schedule(static)
    for (int64_t n = 0; n < dy->n; n++)
        for (int64_t p = 0; p < P; p++)
            for (int64_t c = 0; c < dy->c; c++) {
                float *d = dx + (n * dy->c + c) * P + p;
                const float part = scale * dy->data[(n * P + p) * dy->ld + c];
                *d = call->accumulate[X] ? *d + part : part;
            }
    return BOOT_OK;
}

const boot_op boot_op_to_nhwc = {
    .name = "to_nhwc",
    .inputs = "x",
    .attrs = "scale shift",
    .doc =
        "Layout change at the network's door. x: (N, C, H, W), y = scale x + shift: (N, H, W, C).",
    .flags = 0,
    .backward_reads = 0,
    .infer = to_nhwc_infer,
    .forward = to_nhwc_forward,
    .backward = to_nhwc_backward,
};
