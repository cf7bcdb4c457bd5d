/* conv2d_plain.c: the convolution as its definition says, in plain C: slow, the judge of every
 * other kernel.
 *
 *   y[n,i,j,o] = sum_{a,b,c} x[n, s i + a - p, s j + b - p, c] weight[o,c,a,b]  (+ bias, temb,
 * residual, scale) */
#include <string.h>

#include "ops/conv2d.h"

static bool plain_applies(const boot_conv_shape *c, boot_conv_direction direction) {
    (void)c, (void)direction;
    return true;
}

static boot_status plain_create(const boot_conv_shape *c, boot_conv_direction direction,
                                boot_dnnl *dnnl, void **state, int64_t *scratch) {
    (void)c, (void)direction, (void)dnnl;
    *state = NULL;
    *scratch = 0;
    return BOOT_OK;
}

/* Walks every (output pixel, tap) pair that lies inside the image. */
#define FOR_EACH_TAP(BODY)                                                                         \
    for (int64_t i = 0; i < c->Ho; i++)                                                            \
        for (int64_t j = 0; j < c->Wo; j++)                                                        \
            for (int64_t a = 0; a < c->k; a++)                                                     \
                for (int64_t b = 0; b < c->k; b++) {                                               \
                    const int64_t h = i * c->stride + a - c->pad_begin;                            \
                    const int64_t w = j * c->stride + b - c->pad_begin;                            \
                    if (h < 0 || w < 0 || h >= c->H || w >= c->W) continue;                        \
                    const int up = c->upsampled; /* the pixel that stands for (h, w) */            \
                    const int64_t in = (n * (c->H >> up) + (h >> up)) * (c->W >> up) + (w >> up);  \
                    const int64_t out = (n * c->Ho + i) * c->Wo + j;                               \
                    BODY                                                                           \
                }

static void plain_forward(const boot_conv_shape *c, const boot_conv_args *t) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < c->N; n++) {
        for (int64_t p = n * c->Ho * c->Wo; p < (n + 1) * c->Ho * c->Wo; p++)
            for (int64_t o = 0; o < c->O; o++)
                t->y[p * t->ldy + o] = (t->bias ? t->bias[o] : 0) +
                                       (t->temb ? t->temb[n * t->ldt + o] : 0) +
                                       (t->residual ? t->residual[p * t->ldr + o] : 0);
        FOR_EACH_TAP(for (int64_t o = 0; o < c->O; o++) {
            float sum = 0;
            for (int64_t e = 0; e < c->I; e++)
                sum += t->x[in * t->ldx + e] * t->weight[((o * c->I + e) * c->k + a) * c->k + b];
            t->y[out * t->ldy + o] += sum;
        })
        for (int64_t p = n * c->Ho * c->Wo; p < (n + 1) * c->Ho * c->Wo; p++)
            for (int64_t o = 0; o < c->O; o++) t->y[p * t->ldy + o] *= t->scale;
    }
}

static void plain_data(const boot_conv_shape *c, const boot_conv_args *t) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < c->N; n++) {
        const int64_t pixels = (c->H >> c->upsampled) * (c->W >> c->upsampled);
        for (int64_t p = n * pixels; !t->accumulate && p < (n + 1) * pixels; p++)
            memset(t->dx + p * t->ldx, 0, c->I * sizeof(float));
        FOR_EACH_TAP(for (int64_t o = 0; o < c->O; o++) for (int64_t e = 0; e < c->I; e++)
                         t->dx[in * t->ldx + e] +=
                     t->dy[out * t->ldy + o] * t->weight[((o * c->I + e) * c->k + a) * c->k + b];)
    }
}

static void plain_weights(const boot_conv_shape *c, const boot_conv_args *t) {
    memset(t->dweight, 0, c->O * c->I * c->k * c->k * sizeof(float));
    for (int64_t n = 0; n < c->N; n++)
        FOR_EACH_TAP(for (int64_t o = 0; o < c->O; o++) for (int64_t e = 0; e < c->I; e++)
                         t->dweight[((o * c->I + e) * c->k + a) * c->k + b] +=
                     t->dy[out * t->ldy + o] * t->x[in * t->ldx + e];)
}

static boot_status plain_run(void *state, const boot_conv_shape *c, boot_conv_direction direction,
                             const boot_conv_args *args) {
    (void)state;
    switch (direction) {
    case BOOT_CONV_FORWARD:
        plain_forward(c, args);
        break;
    case BOOT_CONV_DATA:
        plain_data(c, args);
        break;
    default:
        plain_weights(c, args);
        break;
    }
    return BOOT_OK;
}

static void plain_destroy(void *state) { (void)state; }

const boot_conv_kernel boot_conv_plain = {.name = "plain",
                                          .fused = true,
                                          .applies = plain_applies,
                                          .create = plain_create,
                                          .run = plain_run,
                                          .destroy = plain_destroy};
