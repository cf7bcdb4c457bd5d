/* linear.c: y = x W^T + b over the rows of x; also the 1x1 convolution, whose weight is (O, I, 1,
 * 1).
 *
 *   dx = dy W      dW = dy^T x      db = sum of dy over rows
 *
 * Every product keeps one order of summation, so results do not depend on the number of threads. */
#include <string.h>

#include "base/gemm.h"
#include "ops/op.h"

enum { X, WEIGHT, BIAS };

static boot_status linear_infer(boot_node *node) {
    const boot_tensor *x = &node->in[X], *weight = &node->in[WEIGHT];
    const int64_t O = weight->n, I = boot_row(weight);
    if (x->c != I)
        return boot_fail(BOOT_ERR_VALUE, "linear (%s): x has %lld channels, weight expects %lld",
                         node->name, (long long)x->c, (long long)I);
    if (node->in[BIAS].n) BOOT_TRY(boot_expect_count(node, BIAS, "bias", O));
    node->out = boot_shape(x->n, x->h, x->w, O);
    node->scratch_floats = O * I; /* W^T */
    node->packs[0] = (boot_pack_need){&boot_op_linear, O * I, false};
    return boot_expect_size(node, &node->out);
}

/* *transposed = W^T (I, O): kept in call->packs, or made in scratch. */
static boot_status transposed_weight(const boot_call *call, int64_t O, int64_t I,
                                     float **transposed) {
    const float *weight = call->in[WEIGHT].data;
    const int64_t block = 64;
    bool fresh = false;
    *transposed = call->scratch;
    if (call->packs)
        BOOT_TRY(boot_packs_get(call->packs, weight, &boot_op_linear, O * I, transposed, &fresh));
    if (fresh) return BOOT_OK;
#pragma omp parallel for schedule(static) if (O * I > 16384)
    for (int64_t o = 0; o < O; o += block)
        boot_transpose(O - o < block ? O - o : block, I, weight + o * I, I, *transposed + o, O);
    return BOOT_OK;
}

static boot_status linear_pack(const boot_node *node, const boot_call *call) {
    float *transposed;
    return transposed_weight(call, node->out.c, node->in[X].c, &transposed);
}

/* x: (M, I) with row stride ld, weight: (O, I), bias: (O), y: (M, O) */
static boot_status linear_forward(const boot_node *node, const boot_call *call) {
    (void)node;
    const boot_tensor *x = &call->in[X], *y = &call->out;
    const int64_t M = boot_pixels(x), I = x->c, O = y->c;
    float *transposed;
    BOOT_TRY(transposed_weight(call, O, I, &transposed));
    boot_gemm_parallel(M, O, I, x->data, x->ld, 1, transposed, O, call->in[BIAS].data, y->data,
                       y->ld, false);
    return BOOT_OK;
}

/* sum: (O) = sum of the M rows of dy, a block of columns to a thread. */
static void sum_rows(int64_t M, int64_t O, const float *dy, int64_t ld, float *sum) {
    enum { COLUMNS = 64 };
#pragma omp parallel for schedule(static) if (M * O > 65536)
    for (int64_t o = 0; o < O; o += COLUMNS)
        boot_column_sums(M, O - o < COLUMNS ? O - o : COLUMNS, dy + o, ld, sum + o);
}

static boot_status linear_backward(const boot_node *node, const boot_call *call) {
    (void)node;
    const boot_tensor *x = &call->in[X], *dy = &call->dout, *dx = &call->din[X];
    const int64_t M = boot_pixels(dy), I = x->c, O = dy->c;
    float *db = call->din[BIAS].data;
    if (dx->data)
        boot_gemm_parallel(M, I, O, dy->data, dy->ld, 1, call->in[WEIGHT].data, I, NULL, dx->data,
                           dx->ld, call->accumulate[X]);
    if (call->din[WEIGHT].data)
        boot_gemm_parallel(O, I, M, dy->data, 1, dy->ld, x->data, x->ld, NULL,
                           call->din[WEIGHT].data, I, false);
    if (db) sum_rows(M, O, dy->data, dy->ld, db);
    return BOOT_OK;
}

const boot_op boot_op_linear = {
    .name = "linear",
    .inputs = "x weight bias?",
    .attrs = "",
    .doc = "y = x W^T + b. x: (N, H, W, I), weight: (O, I) or (O, I, 1, 1), bias: (O), y: (N, H, "
           "W, O).",
    .flags = 0,
    .backward_reads = 1u << X | 1u << WEIGHT,
    .infer = linear_infer,
    .pack = linear_pack,
    .forward = linear_forward,
    .backward = linear_backward,
};
