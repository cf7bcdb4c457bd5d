/* embedding.c: y[n] = weight[ids[n]], a table look-up; dweight[k] = sum of dy[n] over ids[n] == k.
 */
#include <string.h>

#include "ops/op.h"

enum { IDS, WEIGHT };

static boot_status embedding_infer(boot_node *node) {
    node->out = boot_shape(node->in[IDS].n, 1, 1, boot_row(&node->in[WEIGHT]));
    BOOT_TRY(boot_expect_count(node, IDS, "ids", node->in[IDS].n));
    return boot_expect_size(node, &node->out);
}

/* ids: (N) whole numbers stored as float32 (tables stay below 2^24 rows), weight: (K, T), y: (N, T)
 */
static boot_status embedding_forward(const boot_node *node, const boot_call *call) {
    const boot_tensor *y = &call->out;
    const int64_t rows = call->in[WEIGHT].n;
    for (int64_t n = 0; n < y->n; n++) { /* by every thread: all must find the same */
        const float id = call->in[IDS].data[n];
        if (!(id >= 0 && id < (float)rows) || id != (float)(int64_t)id)
            return boot_fail(
                BOOT_ERR_VALUE,
                "embedding (%s): id %g at position %lld, expected a whole number in [0, %lld]",
                node->name, (double)id, (long long)n, (long long)rows - 1);
    }
#pragma omp for schedule(static)
    for (int64_t n = 0; n < y->n; n++)
        memcpy(y->data + n * y->ld, call->in[WEIGHT].data + (int64_t)call->in[IDS].data[n] * y->c,
               y->c * sizeof(float));
    return BOOT_OK;
}

static boot_status embedding_backward(const boot_node *node, const boot_call *call) {
    (void)node;
    const boot_tensor *dy = &call->dout, *dweight = &call->din[WEIGHT];
    if (!dweight->data) return BOOT_OK;
#pragma omp single /* rows of one class meet in the same sum */
    {
        memset(dweight->data, 0, boot_count(dweight) * sizeof(float));
        for (int64_t n = 0; n < dy->n; n++) {
            float *row = dweight->data + (int64_t)call->in[IDS].data[n] * dy->c;
            for (int64_t c = 0; c < dy->c; c++) row[c] += dy->data[n * dy->ld + c];
        }
    }
    return BOOT_OK;
}

const boot_op boot_op_embedding = {
    .name = "embedding",
    .inputs = "ids weight",
    .attrs = "",
    .doc = "Table look-up. ids: (N) whole numbers, weight: (K, T), y: (N, 1, 1, T).",
    .flags = 0,
    .backward_reads = 1u << IDS,
    .constants = 1u << IDS,
    .infer = embedding_infer,
    .forward = embedding_forward,
    .backward = embedding_backward,
};
