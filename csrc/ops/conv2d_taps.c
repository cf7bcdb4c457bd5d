/* conv2d_taps.c: the forward convolution of few pixels, one matrix product per tap.
 *
 *   y[i,j,:] = scale (bias + temb + residual + sum_{a,b} x[s i + a - p, s j + b - p, :] W_ab)
 *
 * Where Winograd's weights, four times as large, take longer to read than to multiply: one image, a
 * few pixels. A row of outputs reads a row of inputs for each tap, so nothing is copied. Sums keep
 * one order: the same bits for any number of threads. */
#include <omp.h>
#include <string.h>

#include "base/gemm.h"
#include "base/lanes.h"
#include "ops/conv2d.h"

enum { MOST_PIXELS = 256, PANEL = 32 }; /* outputs whose weights lie together */

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t panels_of(const boot_conv_shape *s) { return (s->O + PANEL - 1) / PANEL; }

/* Floats from panel to panel: (k k, I, PANEL). */
static int64_t panel_floats(const boot_conv_shape *s) { return s->k * s->k * s->I * PANEL; }

/* Panel of weight (O, I, k k) from output o on. */
static void pack_panel(const boot_conv_shape *s, const float *weight, int64_t o, float *panel) {
    const int64_t taps = s->k * s->k, outputs = least(s->O - o, PANEL);
    memset(panel, 0, panel_floats(s) * sizeof(float));
    for (int64_t c = 0; c < outputs; c++)
        for (int64_t i = 0; i < s->I; i++)
            for (int64_t tap = 0; tap < taps; tap++)
                panel[(tap * s->I + i) * PANEL + c] = weight[((o + c) * s->I + i) * taps + tap];
}

static boot_status taps_pack(void *state, const boot_conv_shape *s, boot_conv_direction direction,
                             const boot_conv_args *t) {
    (void)state, (void)direction;
    float *panels;
    bool fresh;
    BOOT_TRY(boot_packs_get(t->packs, t->weight, &boot_conv_taps, panels_of(s) * panel_floats(s),
                            &panels, &fresh));
    for (int64_t j = 0; j < panels_of(s) && !fresh; j++)
        pack_panel(s, t->weight, j * PANEL, panels + j * panel_floats(s));
    return BOOT_OK;
}

BOOT_INLINE void start_row_body(int64_t pixels, int64_t outputs, const float *bias,
                                const float *temb, const float *residual, int64_t ldr, float *y,
                                int64_t ldy) {
    for (int64_t j = 0; j < pixels; j++)
        for (int64_t o = 0; o < outputs; o++)
            y[j * ldy + o] = (bias ? bias[o] : 0.0f) + (temb ? temb[o] : 0.0f) +
                             (residual ? residual[j * ldr + o] : 0.0f);
}
BOOT_MULTI_ISA(start_row,
               (int64_t pixels, int64_t outputs, const float *bias, const float *temb,
                const float *residual, int64_t ldr, float *y, int64_t ldy),
               (pixels, outputs, bias, temb, residual, ldr, y, ldy))

BOOT_INLINE void scale_row_body(int64_t pixels, int64_t outputs, float scale, float *y,
                                int64_t ldy) {
    for (int64_t j = 0; j < pixels; j++)
        for (int64_t o = 0; o < outputs; o++) y[j * ldy + o] *= scale;
}
BOOT_MULTI_ISA(scale_row, (int64_t pixels, int64_t outputs, float scale, float *y, int64_t ldy),
               (pixels, outputs, scale, y, ldy))

/* First output column whose tap b lies inside a row of the image, and the first that does not. */
static int64_t first_column(const boot_conv_shape *s, int64_t b) { return b < s->pad_begin; }

static int64_t end_column(const boot_conv_shape *s, int64_t b) {
    const int64_t last = s->W - 1 + s->pad_begin - b; /* of the padded row, from this tap's first */
    return last < 0 ? 0 : least(s->Wo, last / s->stride + 1);
}

/* Row i of image n, the outputs of the panel from o on. */
static void run_row(const boot_conv_shape *s, const boot_conv_args *t, int64_t n, int64_t i,
                    int64_t o, const float *panel) {
    const int64_t outputs = least(s->O - o, PANEL), row = (n * s->Ho + i) * s->Wo;
    float *y = t->y + row * t->ldy + o;
    start_row(s->Wo, outputs, t->bias ? t->bias + o : NULL,
              t->temb ? t->temb + n * t->ldt + o : NULL,
              t->residual ? t->residual + row * t->ldr + o : NULL, t->ldr, y, t->ldy);
    for (int64_t a = 0; a < s->k; a++) {
        const int64_t h = i * s->stride + a - s->pad_begin;
        if (h < 0 || h >= s->H) continue;
        for (int64_t b = 0; b < s->k; b++) {
            const int64_t from = first_column(s, b), end = end_column(s, b);
            const float *x =
                t->x + ((n * s->H + h) * s->W + from * s->stride + b - s->pad_begin) * t->ldx;
            if (from < end)
                boot_gemm(end - from, outputs, s->I, x, s->stride * t->ldx, 1,
                          panel + (a * s->k + b) * s->I * PANEL, PANEL, NULL, y + from * t->ldy,
                          t->ldy, true);
        }
    }
    if (t->scale != 1.0f) scale_row(s->Wo, outputs, t->scale, y, t->ldy);
}

static boot_status taps_run(void *state, const boot_conv_shape *s, boot_conv_direction direction,
                            const boot_conv_args *t) {
    (void)state, (void)direction;
    const int64_t rows = s->N * s->Ho, panels = panels_of(s), floats = panel_floats(s);
    const float *kept =
        t->packs ? boot_packs_find(t->packs, t->weight, &boot_conv_taps, panels * floats) : NULL;
    if (!kept) {
#pragma omp for schedule(static)
        for (int64_t j = 0; j < panels; j++)
            pack_panel(s, t->weight, j * PANEL, t->scratch + j * floats);
        kept = t->scratch;
    }
    /* By panels first: a thread reads its share of the weights, and leaves the rest alone. */
#pragma omp for collapse(2) schedule(static)
    for (int64_t j = 0; j < panels; j++)
        for (int64_t r = 0; r < rows; r++)
            run_row(s, t, r / s->Ho, r % s->Ho, j * PANEL, kept + j * floats);
    return BOOT_OK;
}

static bool taps_applies(const boot_conv_shape *s, boot_conv_direction direction) {
    return direction == BOOT_CONV_FORWARD && s->N * s->Ho * s->Wo <= MOST_PIXELS;
}

static boot_status taps_create(const boot_conv_shape *s, boot_conv_direction direction,
                               boot_dnnl *dnnl, void **state, int64_t *scratch) {
    (void)direction, (void)dnnl;
    *state = NULL;
    *scratch = panels_of(s) * panel_floats(s);
    return BOOT_OK;
}

static boot_pack_need taps_pack_need(const void *state, const boot_conv_shape *s,
                                     boot_conv_direction direction) {
    (void)state, (void)direction;
    return (boot_pack_need){&boot_conv_taps, panels_of(s) * panel_floats(s), false};
}

static void taps_destroy(void *state) { (void)state; }

const boot_conv_kernel boot_conv_taps = {.name = "taps",
                                         .fused = true,
                                         .team = true,
                                         .automatic = true,
                                         .handicap = 1,
                                         .applies = taps_applies,
                                         .create = taps_create,
                                         .pack = taps_pack,
                                         .run = taps_run,
                                         .destroy = taps_destroy,
                                         .pack_need = taps_pack_need};
