/* conv2d_columns.c: convolutions with a stride, or of few channels, as products of columns of
 * pixels.
 *
 *   gather   y = cols(x) W       cols: per output pixel the k k pixels under it, side by side
 *   spread   y = sum of taps' own parts of x W, each moved to where its tap lies
 *   weights  dW = cols(x)^T dy
 *
 * A thread gathers a strip of pixels at a time, in its own cache, and spreads an image at a time.
 * Forward passes and data gradients without a stride gather; forward passes of so few outputs that
 * k k of them fit into 32, and data gradients with a stride or of so few inputs, spread. Columns
 * are of x or, where dy has fewer channels, of dy. Sums keep one order: the same bits for any
 * number of threads (Chellapilla et al. 2006). */
#include <omp.h>
#include <string.h>

#include "base/gemm.h"
#include "base/lanes.h"
#include "base/memory.h"
#include "ops/conv2d.h"

enum { THIN = 32, FEW_CHANNELS = 8, STRIP = 96 };
enum { MOST_GAP = 16384, MOST_OWN = 65536, MOST_SPREAD = 1 << 20 };

/* A convolution of C channels (N, H, W, C), pixel stride ld, into M channels of Ho x Wo pixels; its
   mirror image, the data gradient of one without a stride, is another. */
typedef struct {
    int64_t N, H, W, C, ld, Ho, Wo, M, k, stride, pad;
    bool mirrored;
} columns_map;

static columns_map map_of(const boot_conv_shape *s, const boot_conv_args *t, bool mirrored) {
    if (mirrored)
        return (columns_map){
            s->N, s->Ho, s->Wo, s->O, t->ldy, s->H, s->W, s->I, s->k, 1, s->k - 1 - s->pad_begin,
            true};
    return (columns_map){s->N,  s->H, s->W, s->I,      t->ldx,       s->Ho,
                         s->Wo, s->O, s->k, s->stride, s->pad_begin, false};
}

static bool is_thin(int64_t channels, int64_t k) { return channels * k * k <= THIN; }

/* Whether outputs spread: forward of few outputs; data gradient with a stride, or of few inputs. */
static bool spreads(const boot_conv_shape *s, bool data) {
    if (data) return s->stride > 1 || is_thin(s->I, s->k);
    return s->stride == 1 && is_thin(s->O, s->k);
}

/* Pixels of a strip, and the floats of its columns: (strip, taps C), or, of few channels, (taps C,
   strip). */
static int64_t strip_of(const columns_map *m) { return boot_least(m->Ho * m->Wo, STRIP); }
static int64_t strip_floats(const columns_map *m) {
    const int64_t K = m->k * m->k * m->C;
    return K * boot_whole_lanes(strip_of(m)) + boot_least(BOOT_GEMM_AHEAD * K, MOST_GAP);
}
static bool by_taps(const columns_map *m) { return m->C <= FEW_CHANNELS; }

BOOT_INLINE void copy_pixel(int64_t C, const float *from, float *to) {
    int64_t c = 0;
    for (; c + BOOT_LANES <= C; c += BOOT_LANES)
        *(boot_lanes *)(to + c) = *(const boot_lanes *)(from + c);
    for (; c < C; c++) to[c] = from[c];
}

/* A tap's part of the columns of outputs that lie side by side, `inside` of them after `before` and
   before `after` that the image does not reach; x: of the first inside, `step` floats apart. */
BOOT_INLINE void fill_part(const columns_map *m, const float *x, int64_t step, int64_t before,
                           int64_t inside, int64_t after, float *to, int64_t ld) {
    const int64_t C = m->C;
    if (by_taps(m)) {
        for (int64_t c = 0; c < C; c++, to += ld) {
            for (int64_t q = 0; q < before; q++) to[q] = 0;
            for (int64_t q = 0; q < inside; q++) to[before + q] = x[q * step + c];
            for (int64_t q = before + inside; q < before + inside + after; q++) to[q] = 0;
        }
        return;
    }
    for (int64_t q = 0; q < before; q++) memset(to + q * ld, 0, C * sizeof(float));
    to += before * ld;
    if (C == 2 * BOOT_LANES) /* a constant: no loop */
        for (int64_t q = 0; q < inside; q++) copy_pixel(2 * BOOT_LANES, x + q * step, to + q * ld);
    else
        for (int64_t q = 0; q < inside; q++) copy_pixel(C, x + q * step, to + q * ld);
    to += inside * ld;
    for (int64_t q = 0; q < after; q++) memset(to + q * ld, 0, C * sizeof(float));
}

/* Columns of taps [from, to) of the outputs [first, first + count) of image n. */
BOOT_INLINE void fill_columns_body(const columns_map *m, const float *x, int64_t n, int64_t first,
                                   int64_t count, int64_t from, int64_t to, float *columns) {
    const int64_t C = m->C, ld = by_taps(m) ? boot_whole_lanes(strip_of(m)) : (to - from) * C;
    for (int64_t tap = from; tap < to; tap++) {
        float *part = columns + (tap - from) * C * (by_taps(m) ? ld : 1);
        const int64_t b = tap % m->k - m->pad;
        int64_t i = first / m->Wo, j = first % m->Wo;
        for (int64_t p = 0; p < count; i++, j = 0) {
            const int64_t h = i * m->stride + tap / m->k - m->pad, left = m->Wo - j;
            const int64_t end = j + (count - p < left ? count - p : left);
            int64_t lo = j, hi = end;
            while (lo < end && lo * m->stride + b < 0) lo++;
            while (hi > lo && (hi - 1) * m->stride + b >= m->W) hi--;
            if (h < 0 || h >= m->H) lo = hi = end;
            fill_part(m, x + ((n * m->H + h) * m->W + lo * m->stride + b) * m->ld,
                      m->stride * m->ld, lo - j, hi - lo, end - hi,
                      part + p * (by_taps(m) ? 1 : ld), ld);
            p += end - j;
        }
    }
}
BOOT_MULTI_ISA(fill_columns,
               (const columns_map *m, const float *x, int64_t n, int64_t first, int64_t count,
                int64_t from, int64_t to, float *columns),
               (m, x, n, first, count, from, to, columns))

/* The weight as a matrix: (k k C, M) to gather with, (C, k k M) to spread with; rows of
   row_of floats. */
static int64_t row_of(const columns_map *m, bool spread) {
    return boot_whole_lanes(spread ? m->k * m->k * m->M : m->M);
}
static int64_t matrix_floats(const columns_map *m, bool spread) {
    return (spread ? m->C : m->k * m->k * m->C) * row_of(m, spread);
}

/* Of all threads: each makes a small one for itself, in less time than it takes to come over from
   another core's cache. */
static int64_t matrices_floats(int64_t floats, int64_t threads) {
    return boot_whole_lanes(floats <= MOST_OWN ? threads * floats : floats);
}

/* Row r of it: one tap and channel, or one channel. data: of the data gradient, whose C are
 * outputs. */
static void pack_row(const boot_conv_shape *s, const columns_map *m, bool data, bool spread,
                     const float *weight, int64_t r, float *to) {
    const int64_t taps = s->k * s->k, row = row_of(m, spread);
    memset(to, 0, row * sizeof(float));
    for (int64_t tap = 0; tap < taps; tap++) {
        if (!spread && tap != r / m->C) continue;
        const int64_t c = spread ? r : r % m->C, at = m->mirrored ? taps - 1 - tap : tap;
        for (int64_t o = 0; o < m->M; o++)
            to[spread ? tap * m->M + o : o] =
                data ? weight[(c * s->I + o) * taps + at] : weight[(o * s->I + c) * taps + at];
    }
}

/* One pass: forward, or data gradient. */
typedef struct {
    columns_map m; /* what is multiplied: to spread, its outputs are not yet in place */
    bool data, spread;
    const float *matrix;
} columns_pass;

/* To spread, a convolution takes its own channels to k k times the other side's. */
static columns_pass pass_of(const boot_conv_shape *s, const boot_conv_args *t, bool data) {
    columns_pass p = {.data = data, .spread = spreads(s, data)};
    p.m = map_of(s, t, data && !p.spread);
    if (data && p.spread) p.m.C = s->O, p.m.M = s->I, p.m.ld = t->ldy;
    return p;
}

/* The layout differs by direction and by way. */
static const void *pack_key(const columns_pass *p) {
    return (const char *)&boot_conv_columns + p->data + 2 * p->spread;
}

static boot_status columns_pack(void *state, const boot_conv_shape *s,
                                boot_conv_direction direction, const boot_conv_args *t) {
    (void)state;
    const bool data = direction == BOOT_CONV_DATA;
    const columns_pass p = pass_of(s, t, data);
    const int64_t row = row_of(&p.m, p.spread), floats = matrix_floats(&p.m, p.spread);
    float *matrix;
    bool fresh;
    BOOT_TRY(boot_packs_get(t->packs, t->weight, pack_key(&p), floats, &matrix, &fresh));
    if (fresh) return BOOT_OK;
    for (int64_t r = 0; r < floats / row; r++)
        pack_row(s, &p.m, data, p.spread, t->weight, r, matrix + r * row);
    boot_packs_filled(t->packs, t->weight, pack_key(&p), floats);
    return BOOT_OK;
}

static void run_gather(const boot_conv_shape *s, const boot_conv_args *t, const columns_pass *p,
                       float *work) {
    const columns_map *m = &p->m;
    const int64_t pixels = m->Ho * m->Wo, strip = strip_of(m), K = m->k * m->k * m->C;
    const int64_t strips = (pixels + strip - 1) / strip, ld = boot_whole_lanes(strip);
    const float *x = p->data ? t->dy : t->x;
    float *y = p->data ? t->dx : t->y, *columns = work + omp_get_thread_num() * strip_floats(m);
    const int64_t ldy = p->data ? t->ldx : t->ldy;
#pragma omp for schedule(static)
    for (int64_t u = 0; u < m->N * strips; u++) {
        const int64_t n = u / strips, first = u % strips * strip;
        const int64_t count = boot_least(pixels - first, strip), at = n * pixels + first;
        fill_columns(m, x, n, first, count, 0, m->k * m->k, columns);
        boot_gemm(count, m->M, K, columns, by_taps(m) ? 1 : K, by_taps(m) ? ld : 1, p->matrix,
                  row_of(m, false), p->data ? NULL : t->bias, y + at * ldy, ldy,
                  p->data && t->accumulate);
        if (!p->data) boot_conv_finish_rows(count, s, t, n, at);
    }
}

BOOT_INLINE void add_pixel(int64_t C, const float *from, float *to) {
    int64_t c = 0;
    for (; c + BOOT_LANES <= C; c += BOOT_LANES)
        *(boot_lanes *)(to + c) += *(const boot_lanes *)(from + c);
    for (; c < C; c++) to[c] += from[c];
}

/* Row h of an image that comes out; z: (rows, columns, k k M) of the one that was multiplied. */
BOOT_INLINE void spread_row_body(const boot_conv_shape *s, const columns_pass *p, const float *z,
                                 int64_t h, const float *bias, bool accumulate, float *y,
                                 int64_t ldy) {
    const int64_t M = p->m.M, row = row_of(&p->m, true), step = s->stride, pad = s->pad_begin;
    const int64_t height = p->data ? s->Ho : s->H, width = p->data ? s->Wo : s->W;
    const int64_t outputs = p->data ? s->W : s->Wo;
    for (int64_t w = 0; w < outputs && !accumulate; w++)
        for (int64_t c = 0; c < M; c++) y[w * ldy + c] = bias ? bias[c] : 0.0f;
    for (int64_t tap = 0; tap < s->k * s->k; tap++) {
        const int64_t a = tap / s->k, b = tap % s->k, d = p->data ? h + pad - a : h + a - pad;
        if (d < 0 || d % step || d / step >= height) continue;
        const int64_t shift = p->data ? b - pad : pad - b; /* w = step j + shift */
        const float *from = z + d / step * width * row + tap * M;
        int64_t j = 0, end = width;
        while (j < end && step * j + shift < 0) j++;
        while (end > j && step * (end - 1) + shift >= outputs) end--;
        if (M == 1)
            for (; j < end; j++) y[(step * j + shift) * ldy] += from[j * row];
        else
            for (; j < end; j++) add_pixel(M, from + j * row, y + (step * j + shift) * ldy);
    }
}
BOOT_MULTI_ISA(spread_row,
               (const boot_conv_shape *s, const columns_pass *p, const float *z, int64_t h,
                const float *bias, bool accumulate, float *y, int64_t ldy),
               (s, p, z, h, bias, accumulate, y, ldy))

/* Pixels of one image that are multiplied, and of one that comes out. */
static int64_t pixels_in(const boot_conv_shape *s, bool data) {
    return data ? s->Ho * s->Wo : s->H * s->W;
}

static int64_t spread_floats(const boot_conv_shape *s, const columns_pass *p) {
    return (pixels_in(s, p->data) + 1) * row_of(&p->m, true);
}

static void run_spread(const boot_conv_shape *s, const boot_conv_args *t, const columns_pass *p,
                       float *work) {
    const int64_t pixels = pixels_in(s, p->data), row = row_of(&p->m, true);
    const int64_t rows = p->data ? s->H : s->Ho, width = p->data ? s->W : s->Wo;
    float *z = work + omp_get_thread_num() * spread_floats(s, p);
    const float *x = p->data ? t->dy : t->x, *bias = p->data ? NULL : t->bias;
    float *y = p->data ? t->dx : t->y;
    const int64_t ldx = p->data ? t->ldy : t->ldx, ldy = p->data ? t->ldx : t->ldy;
#pragma omp for schedule(static)
    for (int64_t n = 0; n < s->N; n++) {
        boot_gemm(pixels, row, p->m.C, x + n * pixels * ldx, ldx, 1, p->matrix, row, NULL, z, row,
                  false);
        for (int64_t h = 0; h < rows; h++) {
            const int64_t at = (n * rows + h) * width;
            spread_row(s, p, z, h, bias, p->data && t->accumulate, y + at * ldy, ldy);
            if (!p->data) boot_conv_finish_rows(width, s, t, n, at);
        }
    }
}

/* The columns of the weight gradient: of x, or of dy where that is thinner. */
static columns_map weights_map(const boot_conv_shape *s, const boot_conv_args *t) {
    return map_of(s, t, s->stride == 1 && is_thin(s->O, s->k) && s->O < s->I);
}

/* dU (k k C, M) += cols^T of a thread's taps times the other side, strip by strip. */
static void add_weights(const boot_conv_args *t, const columns_map *m, int64_t from, int64_t to,
                        float *columns, float *du) {
    const int64_t pixels = m->Ho * m->Wo, strip = strip_of(m), rows = (to - from) * m->C;
    const int64_t ld = by_taps(m) ? boot_whole_lanes(strip) : rows,
                  ldo = m->mirrored ? t->ldx : t->ldy;
    const float *other = m->mirrored ? t->x : t->dy;
    bool first = true;
    for (int64_t n = 0; n < m->N; n++)
        for (int64_t p = 0; p < pixels; p += strip) {
            const int64_t count = boot_least(pixels - p, strip);
            fill_columns(m, m->mirrored ? t->dy : t->x, n, p, count, from, to, columns);
            boot_gemm(rows, m->M, count, columns, by_taps(m) ? ld : 1, by_taps(m) ? 1 : ld,
                      other + (n * pixels + p) * ldo, ldo, NULL, du + from * m->C * m->M, m->M,
                      !first);
            first = false;
        }
}

static void run_weights(const boot_conv_shape *s, const boot_conv_args *t) {
    const columns_map m = weights_map(s, t);
    const int64_t taps = s->k * s->k, parts = boot_least(omp_get_num_threads(), taps);
    float *du = t->scratch, *work = du + boot_whole_lanes(taps * s->I * s->O);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < parts; part++)
        add_weights(t, &m, taps * part / parts, taps * (part + 1) / parts,
                    work + part * strip_floats(&m), du);
#pragma omp for schedule(static)
    for (int64_t o = 0; o < s->O; o++)
        for (int64_t i = 0; i < s->I; i++)
            for (int64_t tap = 0; tap < taps; tap++)
                t->dweight[(o * s->I + i) * taps + tap] =
                    m.mirrored ? du[((taps - 1 - tap) * s->O + o) * s->I + i]
                               : du[(tap * s->I + i) * s->O + o];
}

static boot_status columns_run(void *state, const boot_conv_shape *s, boot_conv_direction direction,
                               const boot_conv_args *t) {
    if (direction == BOOT_CONV_WEIGHTS) {
        run_weights(s, t);
        return BOOT_OK;
    }
    const bool data = direction == BOOT_CONV_DATA;
    columns_pass p = pass_of(s, t, data);
    const int64_t row = row_of(&p.m, p.spread), floats = matrix_floats(&p.m, p.spread);
    float *own = t->scratch + (floats <= MOST_OWN ? omp_get_thread_num() * floats : 0);
    p.matrix = t->packs ? boot_packs_find(t->packs, t->weight, pack_key(&p), floats) : NULL;
    if (!p.matrix && floats <= MOST_OWN) {
        for (int64_t r = 0; r < floats / row; r++)
            pack_row(s, &p.m, data, p.spread, t->weight, r, own + r * row);
    } else if (!p.matrix) {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < floats / row; r++)
            pack_row(s, &p.m, data, p.spread, t->weight, r, own + r * row);
    }
    if (!p.matrix) p.matrix = own;
    float *work = t->scratch + matrices_floats(floats, *(const int *)state);
    if (p.spread)
        run_spread(s, t, &p, work);
    else
        run_gather(s, t, &p, work);
    return BOOT_OK;
}

/* An image whose spread parts would be large is left to other kernels. */
static bool columns_applies(const boot_conv_shape *s, boot_conv_direction direction) {
    const bool data = direction == BOOT_CONV_DATA;
    if (direction != BOOT_CONV_WEIGHTS && spreads(s, data) &&
        pixels_in(s, data) > MOST_SPREAD / boot_whole_lanes(s->k * s->k * (data ? s->I : s->O)))
        return false;
    return !s->upsampled && s->k == 3 &&
           (s->stride > 1 || is_thin(s->I, s->k) || is_thin(s->O, s->k)) &&
           (s->stride > 1 || s->pad_begin == s->pad_end);
}

static boot_status columns_create(const boot_conv_shape *s, boot_conv_direction direction,
                                  boot_dnnl *dnnl, void **state, int64_t *scratch) {
    (void)dnnl;
    const int64_t threads = omp_get_max_threads();
    const boot_conv_args none = {0};
    BOOT_TRY(boot_alloc(state, sizeof(int), false, "conv2d"));
    *(int *)*state = (int)threads; /* that scratch is for; a team may be smaller */
    if (direction == BOOT_CONV_WEIGHTS) {
        const columns_map m = weights_map(s, &none);
        *scratch = boot_whole_lanes(s->k * s->k * s->I * s->O) + threads * strip_floats(&m);
        return BOOT_OK;
    }
    const columns_pass p = pass_of(s, &none, direction == BOOT_CONV_DATA);
    *scratch = matrices_floats(matrix_floats(&p.m, p.spread), threads) +
               (p.spread ? boot_least(threads, s->N) * spread_floats(s, &p)
                         : threads * strip_floats(&p.m));
    return BOOT_OK;
}

static boot_pack_need columns_pack_need(const void *state, const boot_conv_shape *s,
                                        boot_conv_direction direction) {
    (void)state;
    const bool data = direction == BOOT_CONV_DATA;
    const columns_pass p = pass_of(s, &(boot_conv_args){0}, data);
    return (boot_pack_need){pack_key(&p), matrix_floats(&p.m, p.spread), false};
}

static void columns_destroy(void *state) { boot_free(state); }

const boot_conv_kernel boot_conv_columns = {.name = "columns",
                                            .fused = true,
                                            .team = true,
                                            .automatic = BOOT_CONV_ALL,
                                            .handicap = 1,
                                            .applies = columns_applies,
                                            .create = columns_create,
                                            .pack = columns_pack,
                                            .run = columns_run,
                                            .destroy = columns_destroy,
                                            .pack_need = columns_pack_need};
