/* activation.c: y = act(x) element by element; dx = act'(x) dy. */
#include "base/vmath.h"
#include "ops/op.h"

enum { X };
enum { ACT };

static boot_status activation_infer(boot_node *node) {
    const double act = node->attr[ACT];
    if (!(act >= 0 && act < BOOT_NUM_ACTS) || act != (int)act)
        return boot_fail(BOOT_ERR_VALUE,
                         "activation (%s): act is %g, expected a whole number in [0, %d]",
                         node->name, act, BOOT_NUM_ACTS - 1);
    node->out = boot_shape(node->in[X].n, node->in[X].h, node->in[X].w, node->in[X].c);
    return boot_expect_size(node, &node->out);
}

/* One row of `count` contiguous floats. */
BOOT_INLINE void act_row_body(boot_act act, int64_t count, const float *x, float *y) {
#define VALUE(A)                                                                                   \
    for (int64_t i = 0; i < count; i++) y[i] = boot_act_value(A, x[i]);
    BOOT_FOR_ACT(VALUE)
#undef VALUE
}
BOOT_MULTI_ISA(act_row, (boot_act act, int64_t count, const float *x, float *y), (act, count, x, y))

BOOT_INLINE void act_grad_row_body(boot_act act, int64_t count, const float *x, const float *dy,
                                   bool add, float *dx) {
#define SLOPE(A)                                                                                   \
    if (add)                                                                                       \
        for (int64_t i = 0; i < count; i++) dx[i] += dy[i] * boot_act_slope(A, x[i]);              \
    else                                                                                           \
        for (int64_t i = 0; i < count; i++) dx[i] = dy[i] * boot_act_slope(A, x[i]);
    BOOT_FOR_ACT(SLOPE)
#undef SLOPE
}
BOOT_MULTI_ISA(act_grad_row,
               (boot_act act, int64_t count, const float *x, const float *dy, bool add, float *dx),
               (act, count, x, dy, add, dx))

/* x, y: (N, H, W, C) */
static boot_status activation_forward(const boot_node *node, const boot_call *call) {
    const boot_tensor *x = &call->in[X], *y = &call->out;
    const int64_t rows = boot_pixels(x);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        act_row((boot_act)node->attr[ACT], x->c, x->data + r * x->ld, y->data + r * y->ld);
    return BOOT_OK;
}

static boot_status activation_backward(const boot_node *node, const boot_call *call) {
    const boot_tensor *x = &call->in[X], *dy = &call->dout, *dx = &call->din[X];
    const int64_t rows = boot_pixels(x);
    if (!dx->data) return BOOT_OK;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        act_grad_row((boot_act)node->attr[ACT], x->c, x->data + r * x->ld, dy->data + r * dy->ld,
                     call->accumulate[X], dx->data + r * dx->ld);
    return BOOT_OK;
}

const boot_op boot_op_activation = {
    .name = "activation",
    .inputs = "x",
    .attrs = "act",
    .doc = "y = act(x); act: 0 none, 1 SiLU, 2 GELU (exact), 3 Mish, 4 ReLU. x, y: (N, H, W, C).",
    .flags = BOOT_OP_RECOMPUTE,
    .backward_reads = 1u << X,
    .infer = activation_infer,
    .forward = activation_forward,
    .backward = activation_backward,
};
