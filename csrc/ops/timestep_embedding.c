/* timestep_embedding.c: sinusoidal features of a timestep (Vaswani et al. 2017; diffusers'
 * Timesteps).
 *
 *   f_k = exp(-ln(10000) k / (h - freq_shift)),  h = dim / 2,  k = 0..h-1,  a_k = t f_k
 *   y   = [sin a, cos a], or [cos a, sin a] with flip_sin_to_cos; an odd dim gets one zero at the
 * end
 *
 * Frequencies and angles are rounded to float32 as diffusers does, so that large timesteps agree.
 */
#include <math.h>

#include "ops/op.h"

enum { T };
enum { DIM, FLIP, SHIFT };

static boot_status timestep_embedding_infer(boot_node *node) {
    const int64_t dim = (int64_t)node->attr[DIM];
    if (dim < 2 || dim / 2 == node->attr[SHIFT])
        return boot_fail(
            BOOT_ERR_VALUE,
            "timestep_embedding (%s): dim %lld with freq_shift %g, expected dim >= 2 and dim / 2 "
            "!= freq_shift",
            node->name, (long long)dim, node->attr[SHIFT]);
    node->out = boot_shape(node->in[T].n, 1, 1, dim);
    return boot_expect_count(node, T, "t", node->in[T].n);
}

/* t: (N), y: (N, dim) */
static boot_status timestep_embedding_forward(const boot_node *node, const boot_call *call) {
    const boot_tensor *y = &call->out;
    const int64_t half = y->c / 2;
#pragma omp for schedule(static)
    for (int64_t n = 0; n < y->n; n++) {
        float *row = y->data + n * y->ld;
        float *sines = row + (node->attr[FLIP] ? half : 0),
              *cosines = row + (node->attr[FLIP] ? 0 : half);
        row[y->c - 1] = 0.0f;
        for (int64_t k = 0; k < half; k++) {
            const float exponent =
                (float)(-log(10000.0) * (double)k) / (float)(half - node->attr[SHIFT]);
            const float angle = call->in[T].data[n] * expf(exponent);
            sines[k] = (float)sin((double)angle);
            cosines[k] = (float)cos((double)angle);
        }
    }
    return BOOT_OK;
}

const boot_op boot_op_timestep_embedding = {
    .name = "timestep_embedding",
    .inputs = "t",
    .attrs = "dim flip_sin_to_cos freq_shift",
    .doc = "Sinusoidal timestep features. t: (N), y: (N, 1, 1, dim).",
    .flags = BOOT_OP_NO_GRADIENT,
    .backward_reads = 0,
    .infer = timestep_embedding_infer,
    .forward = timestep_embedding_forward,
};
