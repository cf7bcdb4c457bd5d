/* conv2d_taps.c: the forward convolution of few pixels, a matrix product per row of taps.
 *
 *   y[i,j,:] = scale (bias + temb + residual + sum_{a,b} x[s i + a - p, s j + b - p, :] W_ab)
 *
 * Where Winograd's weights, four times as large, take longer to read than to multiply: one image, a
 * few pixels. A row of outputs takes k rows of inputs, with k pixels of each side by side. Sums
 * keep one order: the same bits for any number of threads. */
#include <omp.h>
#include <string.h>

#include "base/gemm.h"
#include "base/lanes.h"
#include "ops/conv2d.h"

enum { MOST_PIXELS = 256, MOST_FLOATS = 65536 }; /* of outputs, of columns */
enum { PANEL = 32 };                             /* outputs whose weights lie together */

static int64_t panels_of(const boot_conv_shape *s) { return (s->O + PANEL - 1) / PANEL; }

/* Floats from panel to panel: (k k, I, PANEL). */
static int64_t panel_floats(const boot_conv_shape *s) { return s->k * s->k * s->I * PANEL; }

/* Panel of weight (O, I, k k) from output o on. */
static void pack_panel(const boot_conv_shape *s, const float *weight, int64_t o, float *panel) {
    const int64_t taps = s->k * s->k, outputs = boot_least(s->O - o, PANEL);
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
    if (fresh) return BOOT_OK;
    for (int64_t j = 0; j < panels_of(s); j++)
        pack_panel(s, t->weight, j * PANEL, panels + j * panel_floats(s));
    boot_packs_filled(t->packs, t->weight, &boot_conv_taps, panels_of(s) * panel_floats(s));
    return BOOT_OK;
}

BOOT_INLINE void start_rows_body(int64_t pixels, int64_t outputs, const float *bias,
                                 const float *temb, const float *residual, int64_t ldr, float *y,
                                 int64_t ldy) {
    for (int64_t j = 0; j < pixels; j++)
        for (int64_t o = 0; o < outputs; o++)
            y[j * ldy + o] = (bias ? bias[o] : 0.0f) + (temb ? temb[o] : 0.0f) +
                             (residual ? residual[j * ldr + o] : 0.0f);
}
BOOT_MULTI_ISA(start_rows,
               (int64_t pixels, int64_t outputs, const float *bias, const float *temb,
                const float *residual, int64_t ldr, float *y, int64_t ldy),
               (pixels, outputs, bias, temb, residual, ldr, y, ldy))

BOOT_INLINE void scale_rows_body(int64_t pixels, int64_t outputs, float scale, float *y,
                                 int64_t ldy) {
    for (int64_t j = 0; j < pixels; j++)
        for (int64_t o = 0; o < outputs; o++) y[j * ldy + o] *= scale;
}
BOOT_MULTI_ISA(scale_rows, (int64_t pixels, int64_t outputs, float scale, float *y, int64_t ldy),
               (pixels, outputs, scale, y, ldy))

/* The columns of all inputs: for each row h and each output column j the k pixels that a row of
   taps covers there, side by side, zeros outside. Rows h of one remainder by the stride follow each
   other, as those of neighbouring outputs do: (N, stride, rows_of, Wo, k I). */
static int64_t rows_of(const boot_conv_shape *s) { return (s->H + s->stride - 1) / s->stride; }

static int64_t columns_at(const boot_conv_shape *s, int64_t n, int64_t h) {
    const int64_t row = (n * s->stride + h % s->stride) * rows_of(s) + h / s->stride;
    return row * s->Wo * s->k * s->I;
}

static int64_t columns_floats(const boot_conv_shape *s) { return columns_at(s, s->N, 0); }

static void make_columns(const boot_conv_shape *s, const boot_conv_args *t, int64_t r,
                         float *columns) {
    float *to = columns + columns_at(s, r / s->H, r % s->H);
    for (int64_t j = 0; j < s->Wo; j++)
        for (int64_t b = 0; b < s->k; b++, to += s->I) {
            const int64_t w = j * s->stride + b - s->pad_begin;
            if (w < 0 || w >= s->W)
                memset(to, 0, s->I * sizeof(float));
            else
                memcpy(to, t->x + (r * s->W + w) * t->ldx, s->I * sizeof(float));
        }
}

/* Rows [from, to) of image n, the outputs of the panel from o on. */
static void run_rows(const boot_conv_shape *s, const boot_conv_args *t, const float *columns,
                     int64_t n, int64_t from, int64_t to, int64_t o, const float *panel) {
    const int64_t outputs = boot_least(s->O - o, PANEL), K = s->k * s->I;
    const int64_t pixel = (n * s->Ho + from) * s->Wo, pixels = (to - from) * s->Wo;
    float *y = t->y + pixel * t->ldy + o;
    start_rows(pixels, outputs, t->bias ? t->bias + o : NULL,
               t->temb ? t->temb + n * t->ldt + o : NULL,
               t->residual ? t->residual + pixel * t->ldr + o : NULL, t->ldr, y, t->ldy);
    for (int64_t a = 0; a < s->k; a++) {
        int64_t first = from, end = to; /* of the rows whose tap row a lies inside */
        while (first < end && first * s->stride + a < s->pad_begin) first++;
        while (first < end && (end - 1) * s->stride + a - s->pad_begin >= s->H) end--;
        if (first == end) continue;
        boot_gemm((end - first) * s->Wo, outputs, K,
                  columns + columns_at(s, n, first * s->stride + a - s->pad_begin), K, 1,
                  panel + a * K * PANEL, PANEL, NULL, y + (first - from) * s->Wo * t->ldy, t->ldy,
                  true);
    }
    if (t->scale != 1.0f) scale_rows(pixels, outputs, t->scale, y, t->ldy);
}

static boot_status taps_run(void *state, const boot_conv_shape *s, boot_conv_direction direction,
                            const boot_conv_args *t) {
    (void)state, (void)direction;
    const int64_t panels = panels_of(s), floats = panel_floats(s), threads = omp_get_num_threads();
    const float *kept =
        t->packs ? boot_packs_find(t->packs, t->weight, &boot_conv_taps, panels * floats) : NULL;
    if (!kept) {
#pragma omp for schedule(static)
        for (int64_t j = 0; j < panels; j++)
            pack_panel(s, t->weight, j * PANEL, t->scratch + j * floats);
        kept = t->scratch;
    }
    float *columns = t->scratch + panels * floats;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < s->N * s->H; r++) make_columns(s, t, r, columns);
    /* By panels first: a thread reads its share of the weights, and leaves the rest alone. */
    const int64_t parts = s->N * panels % threads ? boot_least(threads, s->Ho) : 1;
#pragma omp for schedule(static)
    for (int64_t u = 0; u < panels * s->N * parts; u++) {
        const int64_t j = u / (s->N * parts), n = u / parts % s->N, part = u % parts;
        run_rows(s, t, columns, n, s->Ho * part / parts, s->Ho * (part + 1) / parts, j * PANEL,
                 kept + j * floats);
    }
    return BOOT_OK;
}

static bool taps_applies(const boot_conv_shape *s, boot_conv_direction direction) {
    return direction == BOOT_CONV_FORWARD && !s->upsampled && s->N * s->Ho * s->Wo <= MOST_PIXELS &&
           columns_floats(s) <= MOST_FLOATS;
}

static boot_status taps_create(const boot_conv_shape *s, boot_conv_direction direction,
                               boot_dnnl *dnnl, void **state, int64_t *scratch) {
    (void)direction, (void)dnnl;
    *state = NULL;
    *scratch = panels_of(s) * panel_floats(s) + columns_floats(s);
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
                                         .automatic = BOOT_CONV_ALL,
                                         .handicap = 1,
                                         .applies = taps_applies,
                                         .create = taps_create,
                                         .pack = taps_pack,
                                         .run = taps_run,
                                         .destroy = taps_destroy,
                                         .pack_need = taps_pack_need};
