/* add.c: y = (a + b) * scale, the residual connection; da = db = scale * dy. */
#include <string.h>

#include "base/isa.h"
#include "ops/op.h"

enum { A, B };
enum { SCALE };

static boot_status add_infer(boot_node *node) {
    const boot_tensor *a = &node->in[A], *b = &node->in[B];
    if (a->n != b->n || a->h != b->h || a->w != b->w || a->c != b->c)
        return boot_fail(
            BOOT_ERR_VALUE,
            "add (%s): a is (%lld, %lld, %lld, %lld), b is (%lld, %lld, %lld, %lld), expected "
            "equal shapes",
            node->name, (long long)a->n, (long long)a->h, (long long)a->w, (long long)a->c,
            (long long)b->n, (long long)b->h, (long long)b->w, (long long)b->c);
    node->out = boot_shape(a->n, a->h, a->w, a->c);
    if (node->attr[SCALE] == 1.0) node->grad_alias = A;
    return boot_expect_size(node, &node->out);
}

BOOT_INLINE void add_row_body(int64_t count, float scale, const float *a, const float *b,
                              float *y) {
    for (int64_t i = 0; i < count; i++) y[i] = (a[i] + b[i]) * scale;
}
BOOT_MULTI_ISA(add_row, (int64_t count, float scale, const float *a, const float *b, float *y),
               (count, scale, a, b, y))

BOOT_INLINE void scale_row_body(int64_t count, float scale, const float *dy, bool add, float *dx) {
    if (add)
        for (int64_t i = 0; i < count; i++) dx[i] += scale * dy[i];
    else
        for (int64_t i = 0; i < count; i++) dx[i] = scale * dy[i];
}
BOOT_MULTI_ISA(scale_row, (int64_t count, float scale, const float *dy, bool add, float *dx),
               (count, scale, dy, add, dx))

/* a, b, y: (N, H, W, C) */
static boot_status add_forward(const boot_node *node, const boot_call *call) {
    const boot_tensor *a = &call->in[A], *b = &call->in[B], *y = &call->out;
    const int64_t rows = boot_pixels(y);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        add_row(y->c, (float)node->attr[SCALE], a->data + r * a->ld, b->data + r * b->ld,
                y->data + r * y->ld);
    return BOOT_OK;
}

static boot_status add_backward(const boot_node *node, const boot_call *call) {
    const boot_tensor *dy = &call->dout;
    const int64_t rows = boot_pixels(dy);
    for (int i = A; i <= B; i++) {
        const boot_tensor *dx = &call->din[i];
        if (!dx->data || dx->data == dy->data) continue; /* not wanted, or shares dy's memory */
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            scale_row(dy->c, (float)node->attr[SCALE], dy->data + r * dy->ld, call->accumulate[i],
                      dx->data + r * dx->ld);
    }
    return BOOT_OK;
}

const boot_op boot_op_add = {
    .name = "add",
    .inputs = "a b",
    .attrs = "scale",
    .doc = "y = (a + b) * scale. a, b, y: (N, H, W, C).",
    .flags = 0,
    .backward_reads = 0,
    .infer = add_infer,
    .forward = add_forward,
    .backward = add_backward,
};
