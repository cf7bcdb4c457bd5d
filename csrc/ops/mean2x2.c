/* mean2x2.c: y[i, j] = mean of the 2x2 block of x; dx spreads dy / 4 over the block. */
#include "ops/op.h"

enum { X };

static boot_status mean2x2_infer(boot_node *node) {
    const boot_tensor *x = &node->in[X];
    node->out =
        boot_shape(x->n, x->h / 2, x->w / 2, x->c); /* an odd last row or column is dropped */
    return boot_expect_size(node, &node->out);
}

/* x: (N, H, W, C), y: (N, H/2, W/2, C) */
static boot_status mean2x2_forward(const boot_node *node, const boot_call *call) {
    (void)node;
    const boot_tensor *x = &call->in[X], *y = &call->out;
    const int64_t rows = y->n * y->h, W = y->w, C = y->c;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const int64_t n = r / y->h, i = r % y->h;
        for (int64_t j = 0; j < W; j++) {
            const float *s = x->data + ((n * x->h + 2 * i) * x->w + 2 * j) * x->ld;
            const float *below = s + x->w * x->ld;
            float *d = y->data + (r * W + j) * y->ld;
            for (int64_t c = 0; c < C; c++)
                d[c] = 0.25f * ((s[c] + s[c + x->ld]) + (below[c] + below[c + x->ld]));
        }
    }
    return BOOT_OK;
}

static boot_status mean2x2_backward(const boot_node *node, const boot_call *call) {
    (void)node;
    const boot_tensor *dx = &call->din[X], *dy = &call->dout;
    const int64_t rows = dx->n * dx->h, W = dx->w, C = dx->c;
    const bool add = call->accumulate[X];
    if (!dx->data) return BOOT_OK;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const int64_t n = r / dx->h, i = r % dx->h / 2;
        for (int64_t j = 0; j < W; j++) {
            const bool inside = i < dy->h && j / 2 < dy->w;
            const float *s = dy->data + ((n * dy->h + i) * dy->w + j / 2) * dy->ld;
            float *d = dx->data + (r * W + j) * dx->ld;
            for (int64_t c = 0; c < C; c++) {
                const float part = inside ? 0.25f * s[c] : 0.0f;
                d[c] = add ? d[c] + part : part;
            }
        }
    }
    return BOOT_OK;
}

const boot_op boot_op_mean2x2 = {
    .name = "mean2x2",
    .inputs = "x",
    .attrs = "",
    .doc = "Mean over 2x2 blocks. x: (N, H, W, C), y: (N, H/2, W/2, C).",
    .flags = BOOT_OP_RECOMPUTE,
    .backward_reads = 0,
    .infer = mean2x2_infer,
    .forward = mean2x2_forward,
    .backward = mean2x2_backward,
};
