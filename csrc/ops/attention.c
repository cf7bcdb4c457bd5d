/* attention.c: softmax attention over the pixels of each image, with heads (Vaswani et al. 2017).
 *
 *   S = q k^T / sqrt(d),  P = softmax(S),  o = P v        per image and head, d = C / heads
 *   dv = P^T do,  dP = do v^T,  dS = P (dP - rowsum(do o)),  dq = dS k / sqrt(d),  dk = dS^T q /
 * sqrt(d)
 *
 * S is made for a block of queries at a time and dropped again: no S x S matrix is stored. It is
 * made transposed, a query to a column, so that maxima and sums over keys need no sums across a
 * vector. Backward remakes it from the largest number and the sum of each query (Dao et al. 2022).
 * One image and head is one unit of parallel work, its sums always in the same order. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/gemm.h"
#include "base/lanes.h"
#include "base/vmath.h"
#include "ops/op.h"

enum { Q, K, V };
enum { HEADS };
enum { MOST_BLOCK = 64, MIN_PART = 16 }; /* queries: in a block, and worth a thread */

/* Queries in one block: two matrices of it and all keys are to stay in the second-level cache. */
static int64_t block_of(int64_t T) {
    const int64_t most = T <= 1024 ? MOST_BLOCK : MOST_BLOCK / 2;
    return boot_whole_lanes(T) < most ? boot_whole_lanes(T) : most;
}

/* Floats of scratch of a thread: q^T and do^T of a block (d x block), S^T and dP^T (T x block), and
   a gap: products fetch some rows beyond their operands, which another thread may be writing. */
static int64_t scratch_of(int64_t T, int64_t d) {
    return (2 * (d + T) + BOOT_GEMM_AHEAD) * block_of(T);
}

static boot_status attention_infer(boot_node *node) {
    const boot_tensor *q = &node->in[Q];
    const int64_t heads = (int64_t)node->attr[HEADS], T = q->h * q->w;
    if (heads < 1 || q->c % heads)
        return boot_fail(BOOT_ERR_VALUE,
                         "attention (%s): %lld channels in %lld heads, expected a divisor",
                         node->name, (long long)q->c, (long long)heads);
    BOOT_TRY(boot_expect_count(node, K, "k", boot_count(q)));
    BOOT_TRY(boot_expect_count(node, V, "v", boot_count(q)));
    node->out = boot_shape(q->n, q->h, q->w, q->c);
    node->saved_floats = 2 * q->n * heads * T;
    node->scratch_floats = omp_get_max_threads() * scratch_of(T, q->c / heads);
    return boot_expect_size(node, &node->out);
}

/* Exponentials of softmax(scale s), a query to a column, in whole vectors; s: (T, columns). Of each
   query, `top` is the largest scale s and `inverse` 1 over the sum, by which o is multiplied later.
 */
BOOT_INLINE void softmax_columns_body(int64_t T, int64_t columns, int64_t ld, float scale, float *s,
                                      float *top, float *inverse) {
    enum { PART = 64 }; /* keys added up by themselves: long sums would lose digits */
    for (int64_t c = 0; c < columns; c += BOOT_LANES) {
        boot_lanes most[2], sum = {0}, v;
        most[0] = most[1] = (boot_lanes){0} - INFINITY;
        for (int64_t j = 0; j < T; j++) {
            v = *(const boot_lanes *)(s + j * ld + c);
            const boot_lane_bits more = v > most[0]; /* a NaN is left out */
            v = (boot_lanes)((more & (boot_lane_bits)v) | (~more & (boot_lane_bits)most[0]));
            most[0] = most[1], most[1] = v; /* of even and of odd keys */
        }
        const boot_lane_bits more = most[0] > most[1];
        most[0] =
            (boot_lanes)((more & (boot_lane_bits)most[0]) | (~more & (boot_lane_bits)most[1]));
        most[0] *= scale;
        boot_store_lanes(top, c, c + BOOT_LANES, &most[0]);
        for (int64_t first = 0; first < T; first += PART) {
            boot_lanes part = {0};
            for (int64_t j = first; j < T && j < first + PART; j++) {
                float *row = s + j * ld + c;
                for (int l = 0; l < BOOT_LANES; l++) row[l] = boot_exp(row[l] * scale - top[c + l]);
                part += *(const boot_lanes *)row;
            }
            sum += part;
        }
        sum = 1.0f / sum;
        boot_store_lanes(inverse, c, c + BOOT_LANES, &sum);
    }
}
BOOT_MULTI_ISA(softmax_columns,
               (int64_t T, int64_t columns, int64_t ld, float scale, float *s, float *top,
                float *inverse),
               (T, columns, ld, scale, s, top, inverse))

/* o: (rows, d), row r times factor[r]. */
BOOT_INLINE void scale_rows_body(int64_t rows, int64_t d, const float *restrict factor,
                                 float *restrict o, int64_t ld) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < d; c++) o[r * ld + c] *= factor[r];
}
BOOT_MULTI_ISA(scale_rows,
               (int64_t rows, int64_t d, const float *factor, float *restrict o, int64_t ld),
               (rows, d, factor, o, ld))

/* sum: (rows), of a * b along rows of d. */
BOOT_INLINE void row_products_body(int64_t rows, int64_t d, const float *a, int64_t lda,
                                   const float *b, int64_t ldb, float *sum) {
    for (int64_t r = 0; r < rows; r++) sum[r] = boot_row_product(a + r * lda, b + r * ldb, d);
}
BOOT_MULTI_ISA(row_products,
               (int64_t rows, int64_t d, const float *a, int64_t lda, const float *b, int64_t ldb,
                float *sum),
               (rows, d, a, lda, b, ldb, sum))

/* s -> P = exp(scale s - top) inverse, then dp -> dS = scale P (dp - delta). s, dp: (T, columns),
   top, inverse, delta: (columns). */
BOOT_INLINE void softmax_grad_body(int64_t T, int64_t columns, int64_t ld, float scale,
                                   const float *restrict top, const float *restrict inverse,
                                   const float *restrict delta, float *restrict s,
                                   float *restrict dp) {
    for (int64_t j = 0; j < T; j++) {
        float *restrict p = s + j * ld, *restrict g = dp + j * ld;
        for (int64_t c = 0; c < columns; c++) {
            const float part = boot_exp(p[c] * scale - top[c]) * inverse[c];
            p[c] = part;
            g[c] = scale * part * (g[c] - delta[c]);
        }
    }
}
BOOT_MULTI_ISA(softmax_grad,
               (int64_t T, int64_t columns, int64_t ld, float scale, const float *top,
                const float *inverse, const float *delta, float *restrict s, float *restrict dp),
               (T, columns, ld, scale, top, inverse, delta, s, dp))

/* One image and head, and a thread's blocks of scratch. */
typedef struct {
    int64_t T, d, block; /* block: floats from row to row of the blocks */
    float scale;
    float *qt, *gt, *s, *dp;
    float *top, *inverse; /* (T) */
} head;

static head head_of(const boot_node *node, const boot_call *call, int64_t n, int64_t h) {
    const boot_tensor *q = &node->in[Q];
    const int64_t heads = (int64_t)node->attr[HEADS], T = q->h * q->w, d = q->c / heads;
    const int64_t block = block_of(T);
    float *base = call->scratch + omp_get_thread_num() * scratch_of(T, d);
    float *saved = call->saved + 2 * (n * heads + h) * T;
    return (head){.T = T,
                  .d = d,
                  .block = block,
                  .scale = (float)(1.0 / sqrt((double)d)),
                  .qt = base,
                  .gt = base + d * block,
                  .s = base + 2 * d * block,
                  .dp = base + (2 * d + T) * block,
                  .top = saved,
                  .inverse = saved + T};
}

/* Row 0 of a head of image n. */
static float *head_data(const boot_tensor *x, const head *w, int64_t n, int64_t h) {
    return x->data + n * w->T * x->ld + h * w->d;
}

/* Transposes queries [i, i + rows) of x into `to` and clears the unused columns of a vector. */
static void transpose_queries(const head *w, int64_t rows, const float *x, int64_t ld, float *to) {
    if (rows % BOOT_LANES) memset(to, 0, w->d * w->block * sizeof(float));
    boot_transpose(rows, w->d, x, ld, to, w->block);
}

/* Queries [from, to) of one image and head. */
static void forward_queries(const boot_node *node, const boot_call *call, int64_t n, int64_t h,
                            int64_t from, int64_t to) {
    const boot_tensor *q = &call->in[Q], *k = &call->in[K], *v = &call->in[V], *o = &call->out;
    const head w = head_of(node, call, n, h);
    const float *qh = head_data(q, &w, n, h), *kh = head_data(k, &w, n, h);
    const float *vh = head_data(v, &w, n, h);
    float *oh = head_data(o, &w, n, h);
    for (int64_t i = from; i < to; i += w.block) {
        const int64_t rows = to - i < w.block ? to - i : w.block, columns = boot_whole_lanes(rows);
        float top[MOST_BLOCK], inverse[MOST_BLOCK];
        transpose_queries(&w, rows, qh + i * q->ld, q->ld, w.qt);
        boot_gemm(w.T, columns, w.d, kh, k->ld, 1, w.qt, w.block, NULL, w.s, w.block, false);
        softmax_columns(w.T, columns, w.block, w.scale, w.s, top, inverse);
        boot_gemm(rows, w.d, w.T, w.s, 1, w.block, vh, v->ld, NULL, oh + i * o->ld, o->ld, false);
        scale_rows(rows, w.d, inverse, oh + i * o->ld, o->ld);
        memcpy(w.top + i, top, rows * sizeof(float));
        memcpy(w.inverse + i, inverse, rows * sizeof(float));
    }
}

/* q, k, v, o: (N, H, W, C) */
static boot_status attention_forward(const boot_node *node, const boot_call *call) {
    const boot_tensor *q = &call->in[Q];
    const int64_t heads = (int64_t)node->attr[HEADS], T = q->h * q->w;
    const int64_t units = q->n * heads, threads = omp_get_num_threads();
    /* Images and heads that do not go round are cut by their queries too, whose sums stay whole. */
    const bool uneven = units % threads && units < 4 * threads && T >= threads * MIN_PART;
    const int64_t parts = uneven ? threads : 1;
#pragma omp for collapse(2) schedule(static)
    for (int64_t unit = 0; unit < units; unit++)
        for (int64_t part = 0; part < parts; part++)
            forward_queries(node, call, unit / heads, unit % heads, part * T / parts,
                            (part + 1) * T / parts);
    return BOOT_OK;
}

static void attention_backward_head(const boot_node *node, const boot_call *call, int64_t n,
                                    int64_t h) {
    const boot_tensor *q = &call->in[Q], *k = &call->in[K], *v = &call->in[V], *o = &call->out,
                      *g = &call->dout;
    const boot_tensor *dq = &call->din[Q], *dk = &call->din[K], *dv = &call->din[V];
    const head w = head_of(node, call, n, h);
    const float *qh = head_data(q, &w, n, h), *kh = head_data(k, &w, n, h);
    const float *vh = head_data(v, &w, n, h), *gh = head_data(g, &w, n, h);
    const float *oh = head_data(o, &w, n, h);
    for (int64_t i = 0; i < w.T; i += w.block) {
        const int64_t rows = w.T - i < w.block ? w.T - i : w.block,
                      columns = boot_whole_lanes(rows);
        const float *qi = qh + i * q->ld, *gi = gh + i * g->ld;
        float top[MOST_BLOCK] = {0}, inverse[MOST_BLOCK] = {0}, delta[MOST_BLOCK] = {0};
        memcpy(top, w.top + i, rows * sizeof(float));
        memcpy(inverse, w.inverse + i, rows * sizeof(float));
        row_products(rows, w.d, gi, g->ld, oh + i * o->ld, o->ld, delta);
        transpose_queries(&w, rows, qi, q->ld, w.qt);
        transpose_queries(&w, rows, gi, g->ld, w.gt);
        boot_gemm(w.T, columns, w.d, kh, k->ld, 1, w.qt, w.block, NULL, w.s, w.block, false);
        boot_gemm(w.T, columns, w.d, vh, v->ld, 1, w.gt, w.block, NULL, w.dp, w.block, false);
        softmax_grad(w.T, columns, w.block, w.scale, top, inverse, delta, w.s, w.dp);
        if (dv->data)
            boot_gemm(w.T, w.d, rows, w.s, w.block, 1, gi, g->ld, NULL, head_data(dv, &w, n, h),
                      dv->ld, i > 0 || call->accumulate[V]);
        if (dq->data)
            boot_gemm(rows, w.d, w.T, w.dp, 1, w.block, kh, k->ld, NULL,
                      head_data(dq, &w, n, h) + i * dq->ld, dq->ld, call->accumulate[Q]);
        if (dk->data)
            boot_gemm(w.T, w.d, rows, w.dp, w.block, 1, qi, q->ld, NULL, head_data(dk, &w, n, h),
                      dk->ld, i > 0 || call->accumulate[K]);
    }
}

static boot_status attention_backward(const boot_node *node, const boot_call *call) {
    const int64_t heads = (int64_t)node->attr[HEADS], N = node->in[Q].n;
#pragma omp for collapse(2) schedule(static)
    for (int64_t n = 0; n < N; n++)
        for (int64_t h = 0; h < heads; h++) attention_backward_head(node, call, n, h);
    return BOOT_OK;
}

const boot_op boot_op_attention = {
    .name = "attention",
    .inputs = "q k v",
    .attrs = "heads",
    .doc = "softmax(q k^T / sqrt(C / heads)) v over H W tokens. q, k, v: (N, H, W, C).",
    .flags = 0,
    .backward_reads = 1u << Q | 1u << K | 1u << V | BOOT_READS_OUT,
    .infer = attention_infer,
    .forward = attention_forward,
    .backward = attention_backward,
};
