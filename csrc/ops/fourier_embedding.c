/* fourier_embedding.c: random Fourier features of log t (Song et al. 2021; diffusers'
 * GaussianFourierProjection).
 *
 *   a_k = 2 pi ln(t) w_k;  y = [sin a, cos a], or [cos a, sin a] with flip_sin_to_cos
 *
 * The frequencies w are fixed at random when the network is made and never trained: no gradient. */
#include <math.h>

#include "ops/op.h"

enum { T, WEIGHT };
enum { FLIP };

static boot_status fourier_embedding_infer(boot_node *node) {
    const int64_t count = boot_count(&node->in[WEIGHT]);
    node->out = boot_shape(node->in[T].n, 1, 1, 2 * count);
    BOOT_TRY(boot_expect_count(node, T, "t", node->in[T].n));
    return boot_expect_size(node, &node->out);
}

/* t: (N), weight: (C), y: (N, 2C) */
static boot_status fourier_embedding_forward(const boot_node *node, const boot_call *call) {
    const boot_tensor *y = &call->out;
    const int64_t half = y->c / 2;
#pragma omp for schedule(static)
    for (int64_t n = 0; n < y->n; n++) {
        float *row = y->data + n * y->ld;
        float *sines = row + (node->attr[FLIP] ? half : 0),
              *cosines = row + (node->attr[FLIP] ? 0 : half);
        const float log_t = logf(call->in[T].data[n]);
        for (int64_t k = 0; k < half; k++) {
            const float angle = log_t * call->in[WEIGHT].data[k] * 2.0f * (float)M_PI;
            sines[k] = (float)sin((double)angle);
            cosines[k] = (float)cos((double)angle);
        }
    }
    return BOOT_OK;
}

const boot_op boot_op_fourier_embedding = {
    .name = "fourier_embedding",
    .inputs = "t weight",
    .attrs = "flip_sin_to_cos",
    .doc = "Fourier features of log t. t: (N), weight: (C), y: (N, 1, 1, 2C).",
    .flags = BOOT_OP_NO_GRADIENT,
    .backward_reads = 0,
    .infer = fourier_embedding_infer,
    .forward = fourier_embedding_forward,
};
