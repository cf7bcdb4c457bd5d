/* concat.c: y = [a, b] along channels; da and db are the two slices of dy. */
#include <string.h>

#include "ops/op.h"

enum { A, B };

static boot_status concat_infer(boot_node *node) {
    const boot_tensor *a = &node->in[A], *b = &node->in[B];
    BOOT_TRY(boot_expect_pixels(node, A, "a", B, "b"));
    node->out = boot_shape(a->n, a->h, a->w, a->c + b->c);
    return boot_expect_size(node, &node->out);
}

/* a: (N, H, W, Ca), b: (N, H, W, Cb), y: (N, H, W, Ca + Cb) */
static boot_status concat_forward(const boot_node *node, const boot_call *call) {
    (void)node;
    const boot_tensor *y = &call->out;
    const int64_t rows = boot_pixels(y);
    for (int i = A; i <= B; i++) {
        const boot_tensor *x = &call->in[i];
        float *dst = y->data + (i == A ? 0 : call->in[A].c);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            memcpy(dst + r * y->ld, x->data + r * x->ld, x->c * sizeof(float));
    }
    return BOOT_OK;
}

static boot_status concat_backward(const boot_node *node, const boot_call *call) {
    const boot_tensor *dy = &call->dout;
    const int64_t rows = boot_pixels(dy);
    for (int i = A; i <= B; i++) {
        const boot_tensor *dx = &call->din[i];
        if (!dx->data) continue;
        const float *src = dy->data + (i == A ? 0 : node->in[A].c);
        const bool add = call->accumulate[i];
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *d = dx->data + r * dx->ld;
            const float *s = src + r * dy->ld;
            if (add)
                for (int64_t c = 0; c < dx->c; c++) d[c] += s[c];
            else
                memcpy(d, s, dx->c * sizeof(float));
        }
    }
    return BOOT_OK;
}

const boot_op boot_op_concat = {
    .name = "concat",
    .inputs = "a b",
    .attrs = "",
    .doc = "y = [a, b] along channels. a: (N, H, W, Ca), b: (N, H, W, Cb).",
    .flags = BOOT_OP_RECOMPUTE,
    .backward_reads = 0,
    .infer = concat_infer,
    .forward = concat_forward,
    .backward = concat_backward,
};
