/* upsample_nearest.c: y[2i+a, 2j+b] = x[i, j]; dx is the sum of dy over each 2x2 block. */
#include <string.h>

#include "ops/op.h"

enum { X };

static boot_status upsample_nearest_infer(boot_node *node) {
    const boot_tensor *x = &node->in[X];
    node->out = boot_shape(x->n, 2 * x->h, 2 * x->w, x->c);
    return boot_expect_size(node, &node->out);
}

/* x: (N, H, W, C), y: (N, 2H, 2W, C) */
static boot_status upsample_nearest_forward(const boot_node *node, const boot_call *call) {
    (void)node;
    const boot_tensor *x = &call->in[X], *y = &call->out;
    const int64_t rows = x->n * x->h, W = x->w, C = x->c;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < W; j++) {
            const float *src = x->data + (r * W + j) * x->ld;
            float *dst = y->data + (4 * r * W + 2 * j) * y->ld;
            for (int q = 0; q < 4; q++)
                memcpy(dst + ((q >> 1) * 2 * W + (q & 1)) * y->ld, src, C * sizeof(float));
        }
    return BOOT_OK;
}

static boot_status upsample_nearest_backward(const boot_node *node, const boot_call *call) {
    (void)node;
    const boot_tensor *dx = &call->din[X], *dy = &call->dout;
    const int64_t rows = dx->n * dx->h, W = dx->w, C = dx->c;
    const float keep = call->accumulate[X] ? 1.0f : 0.0f;
    if (!dx->data) return BOOT_OK;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < W; j++) {
            float *d = dx->data + (r * W + j) * dx->ld;
            const float *s = dy->data + (4 * r * W + 2 * j) * dy->ld, *below = s + 2 * W * dy->ld;
            for (int64_t c = 0; c < C; c++) {
                const float sum = (s[c] + s[c + dy->ld]) + (below[c] + below[c + dy->ld]);
                d[c] = keep != 0.0f ? d[c] + sum : sum;
            }
        }
    return BOOT_OK;
}

const boot_op boot_op_upsample_nearest = {
    .name = "upsample_nearest",
    .inputs = "x",
    .attrs = "",
    .doc = "Nearest-neighbour upsampling by two. x: (N, H, W, C), y: (N, 2H, 2W, C).",
    .flags = BOOT_OP_RECOMPUTE,
    .backward_reads = 0,
    .infer = upsample_nearest_infer,
    .forward = upsample_nearest_forward,
    .backward = upsample_nearest_backward,
};
