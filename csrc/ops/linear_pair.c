/* linear_pair.c: two linears with nothing in between, multiplied into one beforehand.
 *
 *   y = x W^T + b      W = L R,  b = L b_R + b_L      R = right (M, I),  L = left (O, M)
 *   dx = dy W      dW = dy^T x,  db = sum of dy over rows
 *   dR = L^T dW,  db_R = L^T db      dL = dW R^T + db b_R^T,  db_L = db
 *
 * Attention with one head consists of such pairs. Its rows of P sum to one, so to_out may be
 * applied to v before P. And q k^T is (x R^T + b_R) left x^T, with left = to_k's weight as it is
 * stored
 * (`transposed`: L = left^T), but for a term that is the same for all keys, which softmax drops:
 * to_k's bias has no effect and no gradient. */
#include <string.h>

#include "base/gemm.h"
#include "base/memory.h"
#include "ops/op.h"

enum { X, RIGHT, LEFT, RIGHT_BIAS, LEFT_BIAS };
enum { TRANSPOSED };

/* Sizes, and strides that make A(o,m) = left[o * so + m * sm] the matrix L. */
typedef struct {
    int64_t rows, I, M, O, so, sm;
    bool transposed;
} sizes;

static sizes sizes_of(const boot_node *node) {
    const boot_tensor *left = &node->in[LEFT];
    sizes s = {.rows = boot_pixels(&node->in[X]),
               .I = boot_row(&node->in[RIGHT]),
               .M = node->in[RIGHT].n,
               .transposed = node->attr[TRANSPOSED] != 0};
    s.O = s.transposed ? boot_row(left) : left->n;
    s.so = s.transposed ? 1 : s.M, s.sm = s.transposed ? s.O : 1;
    return s;
}

/* Where scratch holds what: W or W^T and b, then dW, a transposed matrix, and db. */
static int64_t dw_at(const sizes *s) { return s->O * s->I + s->O; }
static int64_t turned_at(const sizes *s) { return dw_at(s) + s->O * s->I; }
static int64_t db_at(const sizes *s) {
    return turned_at(s) + s->O * s->I + s->M * (s->O > s->I ? s->O : s->I);
}

static boot_status linear_pair_infer(boot_node *node) {
    const boot_tensor *x = &node->in[X], *left = &node->in[LEFT];
    const sizes s = sizes_of(node);
    if (x->c != s.I || (s.transposed ? left->n : boot_row(left)) != s.M)
        return boot_fail(
            BOOT_ERR_VALUE,
            "linear_pair (%s): x has %lld channels, right is %lld to %lld, left is %lld by %lld",
            node->name, (long long)x->c, (long long)s.I, (long long)s.M, (long long)left->n,
            (long long)boot_row(left));
    if (node->in[RIGHT_BIAS].n) BOOT_TRY(boot_expect_count(node, RIGHT_BIAS, "right_bias", s.M));
    if (node->in[LEFT_BIAS].n)
        BOOT_TRY(boot_expect_count(node, LEFT_BIAS, "left_bias", s.transposed ? s.M : s.O));
    node->out = boot_shape(x->n, x->h, x->w, s.O);
    node->scratch_floats = db_at(&s) + s.O;
    node->packs[0] = (boot_pack_need){&boot_op_linear_pair, s.I * s.O + s.O, false};
    return boot_expect_size(node, &node->out);
}

/* to (cols, rows) = transpose of from (rows, cols), shared out. */
static void turn(int64_t rows, int64_t cols, const float *from, float *to) {
    const int64_t block = 64;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r += block)
        boot_transpose(rows - r < block ? rows - r : block, cols, from + r * cols, cols, to + r,
                       rows);
}

/* wt: (I, O) = W^T, and behind it b: (O). turned: (M, O), for L^T if it is not `left` itself. */
static void multiply(const boot_call *call, const sizes *s, float *turned, float *wt) {
    const float *right_bias = call->in[RIGHT_BIAS].data;
    const float *left_bias = s->transposed ? NULL : call->in[LEFT_BIAS].data;
    const float *lt = s->transposed ? call->in[LEFT].data : turned;
    float *b = wt + s->I * s->O;
    if (!s->transposed) turn(s->O, s->M, call->in[LEFT].data, turned);
    boot_gemm_team(s->I, s->O, s->M, call->in[RIGHT].data, 1, s->I, lt, s->O, NULL, wt, s->O,
                   false);
#pragma omp single
    boot_gemm(1, s->O, right_bias ? s->M : 0, right_bias, s->M, 1, lt, s->O, left_bias, b, s->O,
              false);
}

static boot_status linear_pair_pack(const boot_node *node, const boot_call *call) {
    const sizes s = sizes_of(node);
    float *wt;
    bool fresh;
    BOOT_TRY(boot_packs_get(call->packs, call->in[RIGHT].data, &boot_op_linear_pair,
                            node->packs[0].floats, &wt, &fresh));
    if (fresh) return BOOT_OK;
    float *turned = NULL;
    BOOT_TRY(boot_alloc((void **)&turned, s.M * s.O * sizeof(float), false, "linear_pair"));
#pragma omp parallel num_threads(1) /* nodes are shared out among threads already */
    multiply(call, &s, turned, wt);
    boot_free(turned);
    boot_packs_filled(call->packs, call->in[RIGHT].data, &boot_op_linear_pair,
                      node->packs[0].floats);
    return BOOT_OK;
}

/* x: (rows, I), right: (M, I), left: (O, M) or (M, O), y: (rows, O) */
static boot_status linear_pair_forward(const boot_node *node, const boot_call *call) {
    const boot_tensor *x = &call->in[X], *y = &call->out;
    const sizes s = sizes_of(node);
    const float *wt = !call->packs ? NULL
                                   : boot_packs_find(call->packs, call->in[RIGHT].data,
                                                     &boot_op_linear_pair, node->packs[0].floats);
    if (!wt) {
        multiply(call, &s, call->scratch + turned_at(&s), call->scratch);
        wt = call->scratch;
    }
    boot_gemm_team(s.rows, s.O, s.I, x->data, x->ld, 1, wt, s.O, wt + s.I * s.O, y->data, y->ld,
                   false);
    return BOOT_OK;
}

/* dleft, (O, M) or (M, O), from dW: (O, I) and db: (O). */
static void left_grad(const boot_call *call, const sizes *s, const float *dw, const float *db,
                      float *turned) {
    const float *right = call->in[RIGHT].data, *right_bias = call->in[RIGHT_BIAS].data;
    float *dleft = call->din[LEFT].data;
    if (s->transposed) { /* R dW^T + b_R db^T */
        turn(s->O, s->I, dw, turned);
        boot_gemm_team(s->M, s->O, s->I, right, s->I, 1, turned, s->O, NULL, dleft, s->O, false);
        if (right_bias)
            boot_gemm_team(s->M, s->O, 1, right_bias, 1, 1, db, s->O, NULL, dleft, s->O, true);
        return;
    }
    turn(s->M, s->I, right, turned);
    boot_gemm_team(s->O, s->M, s->I, dw, s->I, 1, turned, s->M, NULL, dleft, s->M, false);
    if (right_bias)
        boot_gemm_team(s->O, s->M, 1, db, 1, 1, right_bias, s->M, NULL, dleft, s->M, true);
}

/* Gradients of both weights and biases. dw: (O, I), turned: scratch for a transposed matrix. */
static void parameter_grads(const boot_call *call, const sizes *s, float *dw, float *turned,
                            float *db) {
    const boot_tensor *x = &call->in[X], *dy = &call->dout;
    const float *left = call->in[LEFT].data;
    float *dright = call->din[RIGHT].data, *dright_bias = call->din[RIGHT_BIAS].data;
    float *dleft_bias = call->din[LEFT_BIAS].data;
    boot_gemm_team(s->O, s->I, s->rows, dy->data, 1, dy->ld, x->data, x->ld, NULL, dw, s->I, false);
    boot_column_sums_team(s->rows, s->O, dy->data, dy->ld, db);
#pragma omp single
    {
        if (dleft_bias && s->transposed) memset(dleft_bias, 0, s->M * sizeof(float));
        if (dleft_bias && !s->transposed) memcpy(dleft_bias, db, s->O * sizeof(float));
        if (dright_bias)
            boot_gemm(s->M, 1, s->O, left, s->sm, s->so, db, 1, NULL, dright_bias, 1, false);
    }
    if (dright)
        boot_gemm_team(s->M, s->I, s->O, left, s->sm, s->so, dw, s->I, NULL, dright, s->I, false);
    if (call->din[LEFT].data) left_grad(call, s, dw, db, turned);
}

static boot_status linear_pair_backward(const boot_node *node, const boot_call *call) {
    const boot_tensor *dy = &call->dout, *dx = &call->din[X];
    const sizes s = sizes_of(node);
    float *w = call->scratch;
    if (dx->data) {
        boot_gemm_team(s.O, s.I, s.M, call->in[LEFT].data, s.so, s.sm, call->in[RIGHT].data, s.I,
                       NULL, w, s.I, false);
        boot_gemm_team(s.rows, s.I, s.O, dy->data, dy->ld, 1, w, s.I, NULL, dx->data, dx->ld,
                       call->accumulate[X]);
    }
    parameter_grads(call, &s, w + dw_at(&s), w + turned_at(&s), w + db_at(&s));
    return BOOT_OK;
}

const boot_op boot_op_linear_pair = {
    .name = "linear_pair",
    .inputs = "x right left right_bias? left_bias?",
    .attrs = "transposed",
    .doc = "y = (x R^T + b_R) L^T + b_L by one product with L R. x: (N, H, W, I), right: (M, I), "
           "left: (O, M); transposed: left is (M, O) and left_bias (M) has no effect.",
    .flags = 0,
    .backward_reads = 1u << X | 1u << RIGHT | 1u << LEFT | 1u << RIGHT_BIAS,
    .infer = linear_pair_infer,
    .pack = linear_pair_pack,
    .forward = linear_pair_forward,
    .backward = linear_pair_backward,
};
