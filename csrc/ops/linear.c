/* linear.c: y = [x, more] W^T + b + residual over the rows of x; also the 1x1 convolution, whose
 * weight is (O, I, 1, 1). `more`: further columns, of a concatenation that nobody has to make.
 *
 *   dx = dy W      dW = dy^T x      db = sum of dy over rows      dresidual = dy
 *
 * Every product keeps one order of summation, so results do not depend on the number of threads. */
#include <string.h>

#include "base/gemm.h"
#include "ops/op.h"

enum { X, WEIGHT, BIAS, MORE, RESIDUAL };

static boot_status linear_infer(boot_node *node) {
    const boot_tensor *x = &node->in[X], *weight = &node->in[WEIGHT], *more = &node->in[MORE];
    const int64_t O = weight->n, I = boot_row(weight);
    if (x->c + more->c != I)
        return boot_fail(BOOT_ERR_VALUE, "linear (%s): x has %lld channels, weight expects %lld",
                         node->name, (long long)(x->c + more->c), (long long)I);
    if (more->n) BOOT_TRY(boot_expect_pixels(node, X, "x", MORE, "more"));
    if (node->in[BIAS].n) BOOT_TRY(boot_expect_count(node, BIAS, "bias", O));
    node->out = boot_shape(x->n, x->h, x->w, O);
    if (node->in[RESIDUAL].n) {
        BOOT_TRY(boot_expect_count(node, RESIDUAL, "residual", boot_count(&node->out)));
        node->grad_alias = RESIDUAL;
    }
    node->scratch_floats = O * I; /* W^T */
    node->packs[0] = (boot_pack_need){&boot_op_linear, O * I, false};
    return boot_expect_size(node, &node->out);
}

/* W^T (I, O): kept in call->packs, or made in scratch. */
static const float *transposed_weight(const boot_call *call, int64_t O, int64_t I) {
    const float *weight = call->in[WEIGHT].data;
    const int64_t block = 64;
    const float *kept =
        call->packs ? boot_packs_find(call->packs, weight, &boot_op_linear, O * I) : NULL;
    if (kept) return kept;
#pragma omp for schedule(static)
    for (int64_t o = 0; o < O; o += block)
        boot_transpose(O - o < block ? O - o : block, I, weight + o * I, I, call->scratch + o, O);
    return call->scratch;
}

static boot_status linear_pack(const boot_node *node, const boot_call *call) {
    const int64_t O = node->out.c, I = node->in[X].c + node->in[MORE].c;
    float *transposed;
    bool fresh;
    BOOT_TRY(boot_packs_get(call->packs, call->in[WEIGHT].data, &boot_op_linear, O * I, &transposed,
                            &fresh));
    if (fresh) return BOOT_OK;
    boot_transpose(O, I, call->in[WEIGHT].data, I, transposed, O);
    boot_packs_filled(call->packs, call->in[WEIGHT].data, &boot_op_linear, O * I);
    return BOOT_OK;
}

/* x, more: (M, I) together, each with row stride ld, weight: (O, I), bias: (O), y: (M, O) */
static boot_status linear_forward(const boot_node *node, const boot_call *call) {
    (void)node;
    const boot_tensor *x = &call->in[X], *more = &call->in[MORE], *y = &call->out;
    const int64_t M = boot_pixels(x), I = x->c + more->c, O = y->c;
    boot_gemm_team_more(M, O, x->c, x->data, x->ld, 1, transposed_weight(call, O, I), O,
                        call->in[BIAS].data, y->data, y->ld, false,
                        &(boot_gemm_more){more->c, more->data, more->ld, call->in[RESIDUAL].data,
                                          call->in[RESIDUAL].ld});
    return BOOT_OK;
}

static boot_status linear_backward(const boot_node *node, const boot_call *call) {
    (void)node;
    const boot_tensor *dy = &call->dout;
    const int64_t M = boot_pixels(dy), I = call->in[X].c + call->in[MORE].c, O = dy->c;
    float *db = call->din[BIAS].data, *dw = call->din[WEIGHT].data;
    for (int i = X; i <= MORE; i += MORE) {
        const boot_tensor *x = &call->in[i], *dx = &call->din[i];
        const int64_t first = i == X ? 0 : call->in[X].c;
        if (dx->data)
            boot_gemm_team(M, x->c, O, dy->data, dy->ld, 1, call->in[WEIGHT].data + first, I, NULL,
                           dx->data, dx->ld, call->accumulate[i]);
        if (dw && x->data)
            boot_gemm_team(O, x->c, M, dy->data, 1, dy->ld, x->data, x->ld, NULL, dw + first, I,
                           false);
    }
    if (db) boot_column_sums_team(M, O, dy->data, dy->ld, db);
    if (call->din[RESIDUAL].data && call->din[RESIDUAL].data != dy->data)
        boot_copy_rows_team(M, O, dy->data, dy->ld, call->din[RESIDUAL].data,
                            call->din[RESIDUAL].ld, call->accumulate[RESIDUAL]);
    return BOOT_OK;
}

const boot_op boot_op_linear = {
    .name = "linear",
    .inputs = "x weight bias? more? residual?",
    .attrs = "",
    .doc = "y = [x, more] W^T + b + residual. x: (N, H, W, Ix), more: (N, H, W, I - Ix), weight: "
           "(O, I) or (O, I, 1, 1), bias: (O), residual, y: (N, H, W, O).",
    .flags = 0,
    .backward_reads = 1u << X | 1u << WEIGHT | 1u << MORE,
    .infer = linear_infer,
    .pack = linear_pack,
    .forward = linear_forward,
    .backward = linear_backward,
};
