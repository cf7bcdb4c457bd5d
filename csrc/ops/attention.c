/* attention.c: softmax attention over the pixels of each image, with heads (Vaswani et al. 2017).
 *
 *   S = q k^T / sqrt(d),  P = softmax(S),  o = P v        per image and head, d = C / heads
 *   dv = P^T do,  dP = do v^T,  dS = P (dP - rowsum(do o)),  dq = dS k / sqrt(d),  dk = dS^T q /
 * sqrt(d)
 *
 * Rows of S are made in blocks of a few queries and dropped again: no S x S matrix is stored.
 * Backward remakes them from the saved log-sum-exp of each row (Dao et al. 2022). One image and
 * head is one unit of parallel work, its sums always in the same order. */
#include <math.h>
#include <omp.h>

#include "base/gemm.h"
#include "base/lanes.h"
#include "base/vmath.h"
#include "ops/op.h"

enum { Q, K, V };
enum { HEADS };
enum { ROWS = 48, MIN_PART = 16 }; /* queries in one block, and the fewest worth a thread */

/* Floats from row to row of T values: a multiple of 4096 bytes would put all rows into one cache
 * set. */
static int64_t row_stride(int64_t T) { return (T + 15) / 16 * 16 + 16; }

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
    node->saved_floats = q->n * heads * T;
    /* Per thread: k^T and v^T (d x T), two blocks of rows (ROWS x T), one column of sums. */
    const int64_t d = q->c / heads;
    node->scratch_floats =
        (int64_t)omp_get_max_threads() * (2 * (d + ROWS) * row_stride(T) + ROWS + 64);
    return boot_expect_size(node, &node->out);
}

/* Softmax of `rows` rows of s: (rows, T), scaled by `scale`; lse[r] = log of the row's sum of
 * exponentials. */
BOOT_INLINE void softmax_rows_body(int64_t rows, int64_t T, int64_t ld, float scale, float *s,
                                   float *lse) {
    for (int64_t r = 0; r < rows; r++) {
        float *row = s + r * ld;
        const float top = boot_row_max(row, T) * scale;
        for (int64_t j = 0; j < T; j++) row[j] = boot_exp(row[j] * scale - top);
        const float sum = boot_row_sum(row, T), inverse = 1.0f / sum;
        for (int64_t j = 0; j < T; j++) row[j] *= inverse;
        lse[r] = top + logf(sum);
    }
}
BOOT_MULTI_ISA(softmax_rows,
               (int64_t rows, int64_t T, int64_t ld, float scale, float *s, float *lse),
               (rows, T, ld, scale, s, lse))

/* sum: (rows), of a * b along rows of d. */
BOOT_INLINE void row_products_body(int64_t rows, int64_t d, const float *a, int64_t lda,
                                   const float *b, int64_t ldb, float *sum) {
    for (int64_t r = 0; r < rows; r++) sum[r] = boot_row_product(a + r * lda, b + r * ldb, d);
}
BOOT_MULTI_ISA(row_products,
               (int64_t rows, int64_t d, const float *a, int64_t lda, const float *b, int64_t ldb,
                float *sum),
               (rows, d, a, lda, b, ldb, sum))

/* s -> P = exp(scale s - lse), then dp -> dS = scale P (dp - delta). s, dp: (rows, T). */
BOOT_INLINE void softmax_grad_body(int64_t rows, int64_t T, int64_t ld, float scale,
                                   const float *lse, const float *delta, float *restrict s,
                                   float *restrict dp) {
    for (int64_t r = 0; r < rows; r++) {
        float *p = s + r * ld, *g = dp + r * ld;
        for (int64_t j = 0; j < T; j++) {
            p[j] = boot_exp(p[j] * scale - lse[r]);
            g[j] = scale * p[j] * (g[j] - delta[r]);
        }
    }
}
BOOT_MULTI_ISA(softmax_grad,
               (int64_t rows, int64_t T, int64_t ld, float scale, const float *lse,
                const float *delta, float *restrict s, float *restrict dp),
               (rows, T, ld, scale, lse, delta, s, dp))

/* The per-thread blocks of scratch. */
typedef struct {
    float *kt, *vt, *s, *dp, *delta;
    int64_t ld;
} work;

static work work_of(const boot_node *node, float *scratch, int thread) {
    const int64_t T = node->in[Q].h * node->in[Q].w, d = node->in[Q].c / (int64_t)node->attr[HEADS];
    const int64_t ld = row_stride(T), each = 2 * (d + ROWS) * ld + ROWS + 64;
    float *base = scratch + thread * each;
    return (work){base,
                  base + d * ld,
                  base + 2 * d * ld,
                  base + (2 * d + ROWS) * ld,
                  base + 2 * (d + ROWS) * ld,
                  ld};
}

/* Queries [from, to) of one image and head. */
static void forward_rows(const boot_node *node, const boot_call *call, int64_t n, int64_t h,
                         int64_t from, int64_t to, work w) {
    const boot_tensor *q = &call->in[Q], *k = &call->in[K], *v = &call->in[V], *o = &call->out;
    const int64_t heads = (int64_t)node->attr[HEADS], T = q->h * q->w, d = q->c / heads;
    const float scale = (float)(1.0 / sqrt((double)d));
    const float *qh = q->data + n * T * q->ld + h * d, *kh = k->data + n * T * k->ld + h * d;
    const float *vh = v->data + n * T * v->ld + h * d;
    float *oh = o->data + n * T * o->ld + h * d, *lse = call->saved + (n * heads + h) * T;
    boot_transpose(T, d, kh, k->ld, w.kt, w.ld);
    for (int64_t i = from; i < to; i += ROWS) {
        const int64_t rows = to - i < ROWS ? to - i : ROWS;
        boot_gemm(rows, T, d, qh + i * q->ld, q->ld, 1, w.kt, w.ld, NULL, w.s, w.ld, false);
        softmax_rows(rows, T, w.ld, scale, w.s, lse + i);
        boot_gemm(rows, d, T, w.s, w.ld, 1, vh, v->ld, NULL, oh + i * o->ld, o->ld, false);
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
            forward_rows(node, call, unit / heads, unit % heads, part * T / parts,
                         (part + 1) * T / parts,
                         work_of(node, call->scratch, omp_get_thread_num()));
    return BOOT_OK;
}

static void attention_backward_head(const boot_node *node, const boot_call *call, int64_t n,
                                    int64_t h, work w) {
    const boot_tensor *q = &call->in[Q], *k = &call->in[K], *v = &call->in[V], *o = &call->out,
                      *g = &call->dout;
    const boot_tensor *dq = &call->din[Q], *dk = &call->din[K], *dv = &call->din[V];
    const int64_t heads = (int64_t)node->attr[HEADS], T = q->h * q->w, d = q->c / heads;
    const float scale = (float)(1.0 / sqrt((double)d));
    const float *qh = q->data + n * T * q->ld + h * d, *kh = k->data + n * T * k->ld + h * d;
    const float *gh = g->data + n * T * g->ld + h * d, *oh = o->data + n * T * o->ld + h * d;
    const float *lse = call->saved + (n * heads + h) * T;
    boot_transpose(T, d, kh, k->ld, w.kt, w.ld);
    boot_transpose(T, d, v->data + n * T * v->ld + h * d, v->ld, w.vt, w.ld);
    for (int64_t i = 0; i < T; i += ROWS) {
        const int64_t rows = T - i < ROWS ? T - i : ROWS;
        row_products(rows, d, gh + i * g->ld, g->ld, oh + i * o->ld, o->ld, w.delta);
        boot_gemm(rows, T, d, qh + i * q->ld, q->ld, 1, w.kt, w.ld, NULL, w.s, w.ld, false);
        boot_gemm(rows, T, d, gh + i * g->ld, g->ld, 1, w.vt, w.ld, NULL, w.dp, w.ld, false);
        softmax_grad(rows, T, w.ld, scale, lse + i, w.delta, w.s, w.dp);
        if (dv->data)
            boot_gemm(T, d, rows, w.s, 1, w.ld, gh + i * g->ld, g->ld, NULL,
                      dv->data + n * T * dv->ld + h * d, dv->ld, i > 0 || call->accumulate[V]);
        if (dq->data)
            boot_gemm(rows, d, T, w.dp, w.ld, 1, kh, k->ld, NULL,
                      dq->data + (n * T + i) * dq->ld + h * d, dq->ld, call->accumulate[Q]);
        if (dk->data)
            boot_gemm(T, d, rows, w.dp, 1, w.ld, qh + i * q->ld, q->ld, NULL,
                      dk->data + n * T * dk->ld + h * d, dk->ld, i > 0 || call->accumulate[K]);
    }
}

static boot_status attention_backward(const boot_node *node, const boot_call *call) {
    const int64_t heads = (int64_t)node->attr[HEADS], N = node->in[Q].n;
#pragma omp for collapse(2) schedule(static)
    for (int64_t n = 0; n < N; n++)
        for (int64_t h = 0; h < heads; h++)
            attention_backward_head(node, call, n, h,
                                    work_of(node, call->scratch, omp_get_thread_num()));
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
