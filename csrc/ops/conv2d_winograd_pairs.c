/* conv2d_winograd_pairs.c: what a forward or data pass of conv2d_winograd.c adds for products of
 * pairs (base/gemm_pairs.h): scales of V and U, and the sums of V's pairs. */
#include "base/gemm_pairs.h"
#include "base/lanes.h"
#include "ops/conv2d_winograd.h"

/* What makes pixels' root mean square 1/2, as SiLU leaves it, and U as large as V is then: in every
   plane V is about 400 times as large as U where pixels and weights are. */
static const float HALF = 0.5f, U_SCALE = 256;

float boot_winograd_scale_of_weights(const boot_conv_shape *s, const float *weight) {
    return U_SCALE * boot_pairs_scale(s->O * s->I, 9, weight, 9);
}

void boot_winograd_find_scales(boot_winograd_pass *p) {
    const boot_tile_map *in = &p->in;
    if (!p->pairs) return;
    const float own = HALF * boot_pairs_scale(p->s->N * in->H * in->W, in->channels, p->x, in->ld);
    p->scale_u = p->packed ? p->u[p->floats_u] : boot_winograd_scale_of_weights(p->s, p->weight);
    /* Pixels are multiplied only where they are out of proportion. */
    if (own > 2 || own < 0.5f) p->scale_v = own;
    p->sink.back = (float)(1.0 / ((double)p->scale_u * (double)p->scale_v));
}

/* Of the c-th plane that is computed: whether rows were made smaller, sums of pairs, and what to
   multiply such rows of M by. */
typedef struct {
    float *tamed, *sums, *backs;
} plane_sums;

static plane_sums sums_of(const boot_winograd_pass *p, const float *v, int c) {
    float *tamed = (float *)v + PLANES * p->cut.plane_v + c * p->plane_sums;
    float *sums = tamed + PAD;
    return (plane_sums){tamed, sums, sums + (p->plane_sums - PAD) / 2};
}

void boot_winograd_sum_pairs(const boot_winograd_pass *p, int64_t rows, int c, float *v) {
    if (!p->pairs) return;
    const plane_sums of = sums_of(p, v, c);
    *of.tamed = boot_pairs_row_sums(rows, p->in.channels, v + p->planes.at[c] * p->cut.plane_v,
                                    p->cut.ldv, of.sums, of.backs);
}

void boot_winograd_sum_all_pairs(const boot_winograd_pass *p, int64_t rows, float *v) {
    if (!p->pairs) return; /* before the loop, which ends in a barrier */
#pragma omp for schedule(static)
    for (int c = 0; c < p->planes.count; c++) boot_winograd_sum_pairs(p, rows, c, v);
}

void boot_winograd_product_of_pairs(const boot_winograd_pass *p, int64_t rows, int c,
                                    int64_t outputs, int64_t k, int64_t depth, const float *v,
                                    const float *u, float *m) {
    const float *from = v + p->planes.at[c] * p->cut.plane_v + k;
    const bool last = k + depth == p->in.channels;
    const plane_sums of = sums_of(p, v, c);
    boot_pairs_panel(rows, outputs, depth, from, p->cut.ldv, last ? of.sums : NULL, u, m,
                     p->cut.ldm, k > 0);
    for (int64_t i = 0; last && *of.tamed != 0 && i < rows; i++)
        for (int64_t o = 0; o < boot_least(outputs, p->nr); o++)
            m[i * p->cut.ldm + o] *= of.backs[i];
}
