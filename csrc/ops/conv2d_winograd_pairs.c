/* conv2d_winograd_pairs.c: what a forward or data pass of conv2d_winograd.c adds for products of
 * pairs (base/gemm_pairs.h): the sums of V's pairs, and scales, all powers of two. A pair adds a
 * number of V to one of U, which costs digits where they differ in size, and leaves noise where one
 * side is zero. So pixels have a scale, weights have one of each output and, where inputs differ
 * much, one of each input that pixels undo; and a tile whose row of V is out of proportion
 * nevertheless is brought back alone (boot_pairs_row_sums). */
#include "base/gemm_pairs.h"

#include <math.h>
#include <stdlib.h>

#include "base/lanes.h"
#include "ops/conv2d_winograd.h"

/* What makes pixels' root mean square 1/2, as SiLU leaves it, and U as large as V is then: in every
   plane V is about 400 times as large as U where pixels and weights are. */
static const float HALF = 0.5f, U_SCALE = 256;

/* Mean square of 9 weights at w, and at places `stride` apart, `count` of them or `samples`, each
   times its factor, or NULL. */
static double mean_of_weights(int64_t count, int64_t samples, const float *w, int64_t stride,
                              const float *factors) {
    double squares[9] = {0}, sum = 0;
    for (int64_t i = 0; i < samples; i++) {
        /* Unevenly spread: weights may differ at every so many. */
        const int64_t step = count / samples, k = count * i / samples + (i * i) % step;
        const double factor = factors ? factors[k] : 1;
        for (int tap = 0; tap < 9; tap++) {
            const double weight = factor * w[k * stride + tap];
            squares[tap] += weight * weight;
        }
    }
    for (int tap = 0; tap < 9; tap++) sum += squares[tap];
    return sum / (double)(9 * samples);
}

/* boot_pairs_scale_of that, from a few places, or all where those are zero. */
static float scale_of_weights(int64_t count, const float *w, int64_t stride, const float *factors) {
    enum { SAMPLES = 16 };
    const int64_t few = count < SAMPLES ? count : SAMPLES;
    const double mean = mean_of_weights(count, few, w, stride, factors);
    return boot_pairs_scale_of(mean != 0 ? mean
                                         : mean_of_weights(count, count, w, stride, factors));
}

void boot_winograd_find_balance(const boot_winograd_pass *p, float *balance) {
    enum { EXPONENTS = 288, MIDDLE = 140, MOST = 30 };
    const boot_weight_strides by = boot_weight_strides_of(p);
    const int64_t K = p->in.channels;
    int64_t counts[EXPONENTS] = {0}, sized = 0, seen = 0;
    int usual = 0, most = 0; /* the exponent in the middle, and how far others are from it */
    for (int64_t k = 0; k < K; k++) {
        balance[k] = scale_of_weights(p->outputs, p->weight + k * by.input, by.output, NULL);
        if (balance[k] != 0) counts[MIDDLE + ilogbf(balance[k])]++, sized++;
    }
    for (; usual < EXPONENTS && 2 * (seen + counts[usual]) < sized; usual++) seen += counts[usual];
    for (int64_t k = 0; k < K; k++) {
        if (balance[k] == 0) continue; /* nothing is multiplied: its pixels do not count */
        const int apart = MIDDLE + ilogbf(balance[k]) - usual;
        balance[k] = ldexpf(1, apart < -MOST ? -MOST : apart > MOST ? MOST : apart);
        most = abs(apart) > most ? abs(apart) : most;
    }
    /* A factor of two is not worth multiplying pixels. */
    for (int64_t k = 0; k < K && most <= 1; k++) balance[k] = balance[k] != 0;
}

static float largest(int64_t count, const float *x) {
    float most = 1;
    for (int64_t i = 0; i < count; i++) most = x[i] > most ? x[i] : most;
    return most;
}

void boot_winograd_find_scales(boot_winograd_pass *p, float *scales) {
    const boot_tile_map *in = &p->in;
    const int64_t rows = p->s->N * in->H * in->W, K = in->channels;
    bool balanced = true;
    for (int64_t k = 0; k < K; k++) {
        scales[k] = p->balance[k] != 0 ? 1 / p->balance[k] : 0;
        balanced &= scales[k] == 1;
    }
    float own = HALF * boot_pairs_scale(rows, K, p->x, in->ld, balanced ? NULL : scales);
    const float most = 0x1p125f / largest(K, scales);
    /* Pixels are multiplied only where they are out of proportion. */
    if (own == 0 || (own >= 0.5f && own <= 2)) own = 1;
    if (own > most) own = most;
    for (int64_t k = 0; k < K; k++) scales[k] *= own;
    if (!balanced || own != 1) p->scales_v = scales;
    p->sink.back = 1 / own;
}

void boot_winograd_output_scales(const boot_winograd_pass *p, int64_t o, float *scales,
                                 float *backs) {
    const boot_weight_strides by = boot_weight_strides_of(p);
    const int64_t K = p->in.channels;
    const float most = 0x1p118f / largest(K, p->balance);
    for (int64_t i = 0; i < p->nr; i++) {
        const float *w = p->weight + (o + i) * by.output;
        const bool inside = o + i < p->outputs;
        const float size = inside ? scale_of_weights(K, w, by.input, p->balance) : 0;
        scales[i] = U_SCALE * (size < most ? size : most);
        backs[i] = size == 0 ? 0 : 1 / scales[i]; /* products of anything with nothing */
    }
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
