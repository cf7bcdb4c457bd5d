/* conv2d_winograd.c: Winograd's F(4x4, 3x3) for 3x3 convolutions of stride 1 and padding 1 (Lavin
 * and Gray 2016).
 *
 *   y = A^T [ sum_i (G g_i G^T) . (B^T d_i B) ] A      6x6 input tiles d, 3x3 weights g, 4x4 output
 * tiles y
 *
 * 36 multiplications do the work of 144. Data gradient: the same with weights turned round and
 * transposed. Weight gradient: the adjoint,  dg = G^T [ sum_tiles (B^T d B) . (A dy A^T) ] G. The
 * sums over channels (or tiles) are 36 matrix products with packed panels. Tiles are independent
 * and sums keep one order, so results do not depend on the number of threads. fp32 throughout;
 * error about 3e-6 relative. */
#include <omp.h>
#include <string.h>

#include "base/gemm.h"
#include "base/isa.h"
#include "ops/conv2d.h"

enum { PLANES = 36, MAX_BLOCK = 36, GRAD_BLOCK = 96, PAD = 16 };

/* Images on one side of the convolution: size, channels, pixel stride. */
typedef struct {
    int64_t H, W, channels, ld;
} tile_map;

/* Where finished tiles go, and what is added on the way. */
typedef struct {
    float *y;
    const float *bias, *temb, *residual;
    int64_t ldr, ldt;
    float scale;
    bool accumulate;
} tile_out;

typedef struct {
    void (*input_tile)(const tile_map *, const float *image, int64_t h0, int64_t w0, float *v,
                       int64_t plane);
    void (*grad_tile)(const tile_map *, const float *image, int64_t h0, int64_t w0, float *v,
                      int64_t plane);
    void (*output_tile)(const tile_map *, const tile_out *, const float *m, int64_t plane,
                        int64_t n, int64_t h0, int64_t w0);
    void (*weight_panel)(int64_t outputs, int64_t K, const float *w, int64_t so, int64_t sk,
                         bool flip, float *u, int64_t plane);
    void (*weight_grad)(int64_t outputs, const float *du, int64_t plane, float *dw, int64_t so);
} transforms;

#define VL 16
#define NAME(x) avx512_##x
#define TARGET BOOT_TARGET_AVX512
#include "ops/conv2d_winograd.inc"
#undef VL
#undef NAME
#undef TARGET
#define VL 8
#define NAME(x) avx2_##x
#define TARGET BOOT_TARGET_AVX2
#include "ops/conv2d_winograd.inc"
#undef VL
#undef NAME
#undef TARGET
#define VL 4
#define NAME(x) sse_##x
#define TARGET
#include "ops/conv2d_winograd.inc"
#undef VL
#undef NAME
#undef TARGET

static const transforms *choose_transforms(void) {
    switch (boot_isa()) {
    case BOOT_ISA_AVX512:
        return &avx512_transforms;
    case BOOT_ISA_AVX2:
        return &avx2_transforms;
    default:
        return &sse_transforms;
    }
}

static int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* Row strides are padded by a cache line: a multiple of 4096 bytes would put all rows into one
 * cache set. */
static int64_t row_of(int64_t channels) { return round_up(channels, 32) + PAD; }

/* How one pass is cut: `tiles` over all images, `block` of them at a time. Either every thread
   takes whole blocks (private buffers), or, with fewer blocks than threads, all threads share each
   stage of one block. */
typedef struct {
    int64_t th, tw, tiles, block, blocks;
    int64_t ldv, ldm, plane_v, plane_m; /* floats */
    bool shared;
} cut;

static cut cut_of(int64_t N, int64_t H, int64_t W, int64_t K, int64_t C, int threads) {
    cut k = {.th = (H + 3) / 4, .tw = (W + 3) / 4};
    k.tiles = N * k.th * k.tw;
    k.blocks = round_up((k.tiles + MAX_BLOCK - 1) / MAX_BLOCK, threads);
    k.block = round_up((k.tiles + k.blocks - 1) / k.blocks, 4);
    /* Blocks of fewer than 12 tiles would leave the register tile of the product half empty. */
    k.shared = k.block < 12;
    if (k.shared) k.block = k.tiles < MAX_BLOCK ? k.tiles : MAX_BLOCK;
    k.blocks = (k.tiles + k.block - 1) / k.block;
    k.ldv = row_of(K), k.ldm = row_of(C);
    k.plane_v = k.block * k.ldv + PAD, k.plane_m = k.block * k.ldm + PAD;
    return k;
}

/* One forward or data-gradient pass, in terms of what comes in (K channels) and goes out. */
typedef struct {
    const transforms *f;
    boot_panel_fn panel;
    int nr;
    cut cut;
    tile_map in, out;
    tile_out sink;
    const float *x;
    float *u;
    int64_t panels, plane_u;
} pass;

static void tile_position(const cut *k, int64_t tile, int64_t *n, int64_t *h0, int64_t *w0) {
    *n = tile / (k->th * k->tw);
    *h0 = tile % (k->th * k->tw) / k->tw * 4;
    *w0 = tile % k->tw * 4;
}

static void input_tile(const pass *p, int64_t tile, int64_t slot, float *v) {
    int64_t n, h0, w0;
    tile_position(&p->cut, tile, &n, &h0, &w0);
    p->f->input_tile(&p->in, p->x + n * p->in.H * p->in.W * p->in.ld, h0 - 1, w0 - 1,
                     v + slot * p->cut.ldv, p->cut.plane_v);
}

static void output_tile(const pass *p, int64_t tile, int64_t slot, const float *m) {
    int64_t n, h0, w0;
    tile_position(&p->cut, tile, &n, &h0, &w0);
    p->f->output_tile(&p->out, &p->sink, m + slot * p->cut.ldm, p->cut.plane_m, n, h0, w0);
}

/* M = V U for panel j of plane q. */
static void product(const pass *p, int64_t rows, int64_t q, int64_t j, const float *v, float *m) {
    p->panel(rows, p->in.channels, v + q * p->cut.plane_v, p->cut.ldv, 1,
             p->u + q * p->plane_u + j * p->in.channels * p->nr, p->nr, NULL,
             m + q * p->cut.plane_m + j * p->nr, p->cut.ldm, false);
}

static int64_t rows_in(const cut *k, int64_t block) {
    const int64_t left = k->tiles - block * k->block;
    return left < k->block ? left : k->block;
}

/* Each thread takes whole blocks. */
static void run_blocks(const pass *p, float *work) {
    const cut *k = &p->cut;
    const int64_t each = PLANES * (k->plane_v + k->plane_m);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < k->blocks; b++) {
        float *v = work + omp_get_thread_num() * each, *m = v + PLANES * k->plane_v;
        const int64_t rows = rows_in(k, b);
        for (int64_t i = 0; i < rows; i++) input_tile(p, b * k->block + i, i, v);
        for (int64_t q = 0; q < PLANES; q++)
            for (int64_t j = 0; j < p->panels; j++) product(p, rows, q, j, v, m);
        for (int64_t i = 0; i < rows; i++) output_tile(p, b * k->block + i, i, m);
    }
}

/* All threads share every stage of one block after another. */
static void run_shared(const pass *p, float *work) {
    const cut *k = &p->cut;
    float *v = work, *m = v + PLANES * k->plane_v;
    for (int64_t b = 0; b < k->blocks; b++) {
        const int64_t rows = rows_in(k, b);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++) input_tile(p, b * k->block + i, i, v);
#pragma omp for collapse(2) schedule(static)
        for (int64_t q = 0; q < PLANES; q++)
            for (int64_t j = 0; j < p->panels; j++) product(p, rows, q, j, v, m);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++) output_tile(p, b * k->block + i, i, m);
    }
}

/* U in panels of p->nr outputs; panel j of plane q at u + q * plane_u + j * K * nr. Runs on the
 * team. */
static void pack_panels(const pass *p, const boot_conv_shape *s, const float *weight, bool data) {
    const int64_t K = p->in.channels, C = p->out.channels;
    const int64_t so = data ? 9 : 9 * s->I, sk = data ? 9 * s->I : 9;
#pragma omp for schedule(static)
    for (int64_t j = 0; j < p->panels; j++)
        p->f->weight_panel(C - j * p->nr, K, weight + j * p->nr * so, so, sk, data,
                           p->u + j * p->nr * K, p->plane_u);
}

/* Everything about a pass but where U is. */
static pass pass_of(const boot_conv_shape *s, const boot_conv_args *t, bool data) {
    const int64_t K = data ? s->O : s->I, C = data ? s->I : s->O;
    pass p = {.f = choose_transforms(),
              .cut = cut_of(s->N, s->H, s->W, K, C, omp_get_max_threads()),
              .in = {s->H, s->W, K, data ? t->ldy : t->ldx},
              .out = {s->H, s->W, C, data ? t->ldx : t->ldy},
              .x = data ? t->dy : t->x,
              .u = t->scratch};
    p.sink = data
                 ? (tile_out){.y = t->dx, .scale = 1, .accumulate = t->accumulate}
                 : (tile_out){t->y, t->bias, t->temb, t->residual, t->ldr, t->ldt, t->scale, false};
    p.panel = boot_gemm_panel(&p.nr);
    p.panels = (C + p.nr - 1) / p.nr;
    p.plane_u = p.panels * K * p.nr + PAD;
    return p;
}

/* U's place among the kept packs; one kernel's packs differ by direction. */
static boot_status find_pack(pass *p, const boot_conv_args *t, bool data, bool *fresh) {
    return boot_packs_get(t->packs, t->weight, (const char *)&boot_conv_winograd + data,
                          PLANES * p->plane_u, &p->u, fresh);
}

static boot_status winograd_pack(void *state, const boot_conv_shape *s,
                                 boot_conv_direction direction, const boot_conv_args *t) {
    (void)state;
    const bool data = direction == BOOT_CONV_DATA;
    pass p = pass_of(s, t, data);
    bool fresh;
    BOOT_TRY(find_pack(&p, t, data, &fresh));
    if (fresh) return BOOT_OK;
#pragma omp parallel /* of one, where the caller shares nodes out among threads already */
    pack_panels(&p, s, t->weight, data);
    return BOOT_OK;
}

static boot_status run_pass(const boot_conv_shape *s, const boot_conv_args *t, bool data) {
    pass p = pass_of(s, t, data);
    float *work = t->scratch + PLANES * p.plane_u;
    bool fresh = false;
    if (t->packs) BOOT_TRY(find_pack(&p, t, data, &fresh));
    /* Below this many multiplications one thread is faster than a fork and several barriers. */
    const bool alone = p.cut.tiles * p.in.channels * p.out.channels * PLANES < 200000;
#pragma omp parallel if (!alone)
    {
        if (!fresh) pack_panels(&p, s, t->weight, data);
        if (p.cut.shared)
            run_shared(&p, work);
        else
            run_blocks(&p, work);
    }
    return BOOT_OK;
}

/* dU += V^T D over one block of tiles, planes and rows of dU shared out among the threads. */
static void grad_products(const boot_conv_shape *s, int64_t rows, const cut *k, const float *v,
                          const float *d, float *du, int64_t plane_u, bool accumulate) {
    enum { ROWS = 96 };
    int nr;
    const boot_panel_fn panel = boot_gemm_panel(&nr);
    const int64_t parts = (s->I + ROWS - 1) / ROWS;
#pragma omp for collapse(2) schedule(static)
    for (int64_t q = 0; q < PLANES; q++)
        for (int64_t part = 0; part < parts; part++) {
            const int64_t i = part * ROWS, M = s->I - i < ROWS ? s->I - i : ROWS;
            for (int64_t j = 0; j < s->O; j += nr)
                panel(M, rows, v + q * k->plane_v + i, 1, k->ldv, d + q * k->plane_m + j, k->ldm,
                      NULL, du + q * plane_u + i * k->ldm + j, k->ldm, accumulate);
        }
}

/* The cut of a weight gradient: always in shared blocks of GRAD_BLOCK tiles. */
static cut grad_cut(const boot_conv_shape *s) {
    cut k = {.th = (s->H + 3) / 4,
             .tw = (s->W + 3) / 4,
             .ldv = row_of(s->I),
             .ldm = row_of(s->O),
             .shared = true};
    k.tiles = s->N * k.th * k.tw;
    k.block = k.tiles < GRAD_BLOCK ? k.tiles : GRAD_BLOCK;
    k.blocks = (k.tiles + k.block - 1) / k.block;
    k.plane_v = k.block * k.ldv + PAD, k.plane_m = k.block * k.ldm + PAD;
    return k;
}

static boot_status run_weights(const boot_conv_shape *s, const boot_conv_args *t) {
    const transforms *f = choose_transforms();
    const cut k = grad_cut(s);
    const tile_map in = {s->H, s->W, s->I, t->ldx}, out = {s->H, s->W, s->O, t->ldy};
    const int64_t plane_u = s->I * k.ldm + PAD;
    float *v = t->scratch, *d = v + PLANES * k.plane_v, *du = d + PLANES * k.plane_m;
#pragma omp parallel if (k.tiles * s->I * s->O * PLANES > 200000)
    {
        for (int64_t b = 0; b < k.blocks; b++) {
            const int64_t rows = rows_in(&k, b);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < rows; i++) {
                int64_t n, h0, w0;
                tile_position(&k, b * k.block + i, &n, &h0, &w0);
                f->input_tile(&in, t->x + n * s->H * s->W * t->ldx, h0 - 1, w0 - 1, v + i * k.ldv,
                              k.plane_v);
                f->grad_tile(&out, t->dy + n * s->H * s->W * t->ldy, h0, w0, d + i * k.ldm,
                             k.plane_m);
            }
            grad_products(s, rows, &k, v, d, du, plane_u, b > 0);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < s->I; i++)
            f->weight_grad(s->O, du + i * k.ldm, plane_u, t->dweight + 9 * i, 9 * s->I);
    }
    return BOOT_OK;
}

static bool winograd_applies(const boot_conv_shape *s, boot_conv_direction direction) {
    (void)direction;
    return s->k == 3 && s->stride == 1 && s->pad_begin == 1 && s->pad_end == 1;
}

/* No state; only the amount of scratch depends on the shape and the number of threads (plans are
 * per number). */
static boot_status winograd_create(const boot_conv_shape *s, boot_conv_direction direction,
                                   boot_dnnl *dnnl, void **state, int64_t *scratch) {
    (void)dnnl;
    *state = NULL;
    if (direction == BOOT_CONV_WEIGHTS) {
        const cut k = grad_cut(s);
        *scratch = PLANES * (k.plane_v + k.plane_m + s->I * k.ldm + PAD);
        return BOOT_OK;
    }
    const int64_t K = direction == BOOT_CONV_DATA ? s->O : s->I,
                  C = direction == BOOT_CONV_DATA ? s->I : s->O;
    const int threads = omp_get_max_threads();
    const cut k = cut_of(s->N, s->H, s->W, K, C, threads);
    *scratch =
        PLANES * (round_up(C, 32) * K + PAD + (k.shared ? 1 : threads) * (k.plane_v + k.plane_m));
    return BOOT_OK;
}

static boot_status winograd_run(void *state, const boot_conv_shape *s,
                                boot_conv_direction direction, const boot_conv_args *args) {
    (void)state;
    if (direction == BOOT_CONV_WEIGHTS) return run_weights(s, args);
    return run_pass(s, args, direction == BOOT_CONV_DATA);
}

static void winograd_destroy(void *state) { (void)state; }

const boot_conv_kernel boot_conv_winograd = {.name = "winograd",
                                             .fused = true,
                                             .automatic = true,
                                             .handicap = 1,
                                             .applies = winograd_applies,
                                             .create = winograd_create,
                                             .pack = winograd_pack,
                                             .run = winograd_run,
                                             .destroy = winograd_destroy};
