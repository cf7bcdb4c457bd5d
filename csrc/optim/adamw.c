/* adamw.c: the gradient's norm, then the update. */
#include "optim/adamw.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "base/isa.h"

enum { BLOCK = 16384, LANES = 16, PARTS = 4096 };
static const double LARGEST_NORM = 1e19; /* the square of a larger float is infinite */

/* Sum of squares of up to BLOCK floats; 16 partial sums so that compilers vectorise it in a fixed
 * order. */
BOOT_INLINE void squares_body(int64_t count, const float *g, double *sum) {
    float part[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int k = 0; k < LANES; k++) part[k] += g[i + k] * g[i + k];
    for (; i < count; i++) part[i % LANES] += g[i] * g[i];
    *sum = 0;
    for (int k = 0; k < LANES; k++) *sum += part[k];
}
BOOT_MULTI_ISA(squares, (int64_t count, const float *g, double *sum), (count, g, sum))

/* The squares of float32 overflow above 1.8e19; such a block is summed again in float64 before it
   is called infinite. */
static double block_squares(int64_t count, const float *g) {
    double sum;
    squares(count, g, &sum);
    if (isfinite(sum)) return sum;
    sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (double)g[i] * g[i];
    return sum;
}

/* Blocks are summed one by one, and in `PARTS` groups where there are more: no memory is asked for,
   so that an update which has begun cannot fail. The order is fixed. */
static double grad_norm(int64_t count, const float *grads) {
    const int64_t blocks = (count + BLOCK - 1) / BLOCK, group = (blocks + PARTS - 1) / PARTS;
    double part[PARTS], total = 0;
    const int64_t parts = group ? (blocks + group - 1) / group : 0;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < parts; p++) {
        part[p] = 0;
        for (int64_t b = p * group; b < blocks && b < (p + 1) * group; b++)
            part[p] += block_squares(count - b * BLOCK < BLOCK ? count - b * BLOCK : BLOCK,
                                     grads + b * BLOCK);
    }
    for (int64_t p = 0; p < parts; p++) total += part[p];
    return sqrt(total);
}

static double clip_factor(double max_grad_norm, double norm) {
    const double clip = max_grad_norm > 0 ? max_grad_norm / (norm + 1e-6) : 1;
    return clip > 1 ? 1 : clip;
}

boot_status boot_check_grads(int64_t count, const float *grads, double max_grad_norm,
                             double *norm) {
    *norm = grad_norm(count, grads);
    if (!isfinite(*norm))
        return boot_fail(BOOT_ERR_NONFINITE, "gradient norm is %g, expected a finite number",
                         *norm);
    const double clipped = *norm * clip_factor(max_grad_norm, *norm);
    if (clipped > LARGEST_NORM)
        return boot_fail(BOOT_ERR_NONFINITE,
                         "gradient norm is %g after clipping, expected at most %g", clipped,
                         LARGEST_NORM);
    return BOOT_OK;
}

/* Constants of one update, rounded once. */
typedef struct {
    float clip, b1, one_b1, one_b2, decay, rate, root, epsilon, one_ema; /* one_x: 1 - x */
} update_terms;

BOOT_INLINE void update_body(int64_t count, const update_terms *u, float *restrict w,
                             const float *restrict g, float *restrict m, float *restrict v) {
    const update_terms t = *u;
    for (int64_t i = 0; i < count; i++) {
        const float d = g[i] * t.clip;
        m[i] = t.b1 * m[i] + t.one_b1 * d;
        v[i] += t.one_b2 * (d * d - v[i]);
        w[i] = w[i] * t.decay - t.rate * m[i] / (sqrtf(v[i]) * t.root + t.epsilon);
    }
}
BOOT_MULTI_ISA(update,
               (int64_t count, const update_terms *u, float *restrict w, const float *restrict g,
                float *restrict m, float *restrict v),
               (count, u, w, g, m, v))

/* The float whose upper half is `half`. */
BOOT_INLINE float widened(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* The upper half of x, one up with the probability of the lower half. chance: in [0, 2^16). */
BOOT_INLINE uint16_t halved(float x, uint32_t chance) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + chance) >> 16);
}

/* 64 bits that look random, of a counter (splitmix64). */
static uint64_t block_key(uint64_t step, uint64_t block) {
    uint64_t x = step * 0xd1342543de82ef95u + block * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* The same for an element of a block, in operations that every vector unit has. */
BOOT_INLINE uint32_t element_bits(uint32_t low, uint32_t high, uint32_t i) {
    uint32_t x = low + i * 0x9e3779b9u;
    x = (x ^ x >> 16) * 0x7feb352du ^ high;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* The weights take m and v as computed, before they are rounded. */
BOOT_INLINE void update_halves_body(int64_t count, const update_terms *u, uint64_t key,
                                    float *restrict w, const float *restrict g,
                                    uint16_t *restrict m, uint16_t *restrict v) {
    const update_terms t = *u;
    const uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
    for (int32_t i = 0; i < (int32_t)count; i++) {
        const uint32_t chance = element_bits(low, high, (uint32_t)i);
        const float d = g[i] * t.clip, before = widened(v[i]);
        const float mean = t.b1 * widened(m[i]) + t.one_b1 * d;
        const float square = before + t.one_b2 * (d * d - before);
        w[i] = w[i] * t.decay - t.rate * mean / (sqrtf(square) * t.root + t.epsilon);
        m[i] = halved(mean, chance & 0xffff);
        v[i] = halved(square, chance >> 16);
    }
}
BOOT_MULTI_ISA(update_halves,
               (int64_t count, const update_terms *u, uint64_t key, float *restrict w,
                const float *restrict g, uint16_t *restrict m, uint16_t *restrict v),
               (count, u, key, w, g, m, v))

BOOT_INLINE void average_body(int64_t count, float rate, const float *restrict w,
                              float *restrict ema) {
    for (int64_t i = 0; i < count; i++) ema[i] += rate * (w[i] - ema[i]);
}
BOOT_MULTI_ISA(average, (int64_t count, float rate, const float *restrict w, float *restrict ema),
               (count, rate, w, ema))

/* Checks everything that an update needs, and works out its constants. */
static boot_status begin(const boot_adamw_config *c, int64_t count, const float *grads,
                         update_terms *terms, double *norm) {
    /* A smaller one may vanish in float32, and a gradient of zero would then divide by zero. */
    if (!(c->epsilon >= BOOT_ADAMW_LEAST_EPSILON))
        return boot_fail(BOOT_ERR_VALUE, "epsilon is %g, expected at least %g", c->epsilon,
                         BOOT_ADAMW_LEAST_EPSILON);
    BOOT_TRY(boot_check_grads(count, grads, c->max_grad_norm, norm));
    *terms =
        (update_terms){.clip = (float)clip_factor(c->max_grad_norm, *norm),
                       .b1 = (float)c->beta1,
                       .one_b1 = (float)(1 - c->beta1),
                       .one_b2 = (float)(1 - c->beta2),
                       .decay = (float)(1 - c->learning_rate * c->weight_decay),
                       .rate = (float)(c->learning_rate / (1 - pow(c->beta1, (double)c->step))),
                       .root = (float)(1 / sqrt(1 - pow(c->beta2, (double)c->step))),
                       .epsilon = (float)c->epsilon,
                       .one_ema = (float)(1 - c->ema_decay)};
    return BOOT_OK;
}

boot_status boot_adamw_step(const boot_adamw_config *c, int64_t count, float *weights,
                            const float *grads, float *m, float *v, float *ema, double *norm) {
    update_terms terms;
    BOOT_TRY(begin(c, count, grads, &terms, norm));
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += BLOCK) {
        const int64_t size = count - i < BLOCK ? count - i : BLOCK;
        update(size, &terms, weights + i, grads + i, m + i, v + i);
        if (ema) average(size, terms.one_ema, weights + i, ema + i);
    }
    return BOOT_OK;
}

boot_status boot_adamw_step_bfloat16(const boot_adamw_config *c, int64_t count, float *weights,
                                     const float *grads, uint16_t *m, uint16_t *v, float *ema,
                                     double *norm) {
    update_terms terms;
    BOOT_TRY(begin(c, count, grads, &terms, norm));
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += BLOCK) {
        const int64_t size = count - i < BLOCK ? count - i : BLOCK;
        const uint64_t key = block_key((uint64_t)c->step, (uint64_t)(i / BLOCK));
        update_halves(size, &terms, key, weights + i, grads + i, m + i, v + i);
        if (ema) average(size, terms.one_ema, weights + i, ema + i);
    }
    return BOOT_OK;
}
