/* conv2d_winograd_weights.c: the weight gradient of conv2d_winograd.c.
 *
 *   dg = G^T [ sum_tiles (B^T d B) . (A dy A^T) ] G
 *
 * The sums over tiles are 36 matrix products V^T D, one per plane. */
#include <omp.h>

#include "ops/conv2d_winograd.h"

enum { GRAD_BLOCK = 48, FEW_TILES = 64, ROWS = 96, FEW_ROWS = 48 };

/* Always in shared blocks; all tiles in one where they are few. */
static boot_tile_cut grad_cut(const boot_conv_shape *s) {
    boot_tile_cut k = {.th = (s->H + 3) / 4,
                       .tw = (s->W + 3) / 4,
                       .ldv = boot_tile_row(s->I),
                       .ldm = boot_tile_row(s->O),
                       .shared = true};
    k.tiles = s->N * k.th * k.tw;
    k.block = k.tiles <= FEW_TILES ? k.tiles : GRAD_BLOCK;
    k.blocks = (k.tiles + k.block - 1) / k.block;
    k.plane_v = k.block * k.ldv + PAD, k.plane_m = k.block * k.ldm + PAD;
    return k;
}

/* One weight gradient under way. v, d: transformed inputs and gradients of a block. du: (36, I,
   ldm) sums over the blocks so far, or, with one block only, (36, FEW_ROWS, nr) of a thread. */
typedef struct {
    const boot_conv_shape *s;
    const boot_conv_args *t;
    const boot_tile_transforms *f;
    boot_panels panels;
    int nr; /* of a panel */
    boot_tile_cut cut;
    float *v, *d, *du;
    boot_tile_planes planes;
} grad_pass;

static int64_t plane_of_few(int nr) { return FEW_ROWS * nr + PAD; }

/* Transforms of block b; the tiles are shared out among the threads. */
static void transform_block(const grad_pass *p, int64_t b) {
    const boot_conv_shape *s = p->s;
    const boot_tile_cut *k = &p->cut;
    const boot_tile_map in = {s->H, s->W, s->I, p->t->ldx}, out = {s->H, s->W, s->O, p->t->ldy};
    const int64_t rows = boot_tile_rows(k, b), parts = omp_get_num_threads();
#pragma omp for schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        const int64_t from = rows * part / parts, to = rows * (part + 1) / parts;
        boot_tile_place at = boot_tile_at(k, b * k->block + from);
        for (int64_t i = from; i < to; i++, boot_tile_step(k, &at)) {
            p->f->input_tile(&in, p->t->x + at.n * s->H * s->W * in.ld, at.h0 - 1, at.w0 - 1,
                             p->v + i * k->ldv, k->plane_v);
            p->f->grad_tile(&out, p->t->dy + at.n * s->H * s->W * out.ld, at.h0, at.w0,
                            p->d + i * k->ldm, k->plane_m);
        }
    }
}

/* One block holds all tiles: a thread finishes 36 small sums in its cache and turns them into
   weights at once, so that the large dU is never written. */
static void finish_few(const grad_pass *p) {
    const boot_conv_shape *s = p->s;
    const boot_tile_cut *k = &p->cut;
    const int64_t parts = (s->I + FEW_ROWS - 1) / FEW_ROWS, plane = plane_of_few(p->nr);
    const int64_t panels = (s->O + p->nr - 1) / p->nr;
    float *du = p->du + omp_get_thread_num() * PLANES * plane;
    boot_tile_clear_unused(s, du, plane);
#pragma omp for collapse(2) schedule(static)
    for (int64_t j = 0; j < panels; j++)
        for (int64_t part = 0; part < parts; part++) {
            const int64_t i = part * FEW_ROWS, o = j * p->nr;
            const int64_t rows = s->I - i < FEW_ROWS ? s->I - i : FEW_ROWS;
            for (int c = 0; c < p->planes.count; c++) {
                const int64_t q = p->planes.at[c];
                boot_panel_for(&p->panels, s->O - o, false)(
                    rows, k->tiles, p->v + q * k->plane_v + i, 1, k->ldv, p->d + q * k->plane_m + o,
                    k->ldm, NULL, du + q * plane, p->nr, false);
            }
            for (int64_t r = 0; r < rows; r++)
                p->f->weight_grad(s->O - o < p->nr ? s->O - o : p->nr, du + r * p->nr, plane,
                                  p->t->dweight + 9 * (i + r) + o * 9 * s->I, 9 * s->I);
        }
}

/* dU += V^T D over block b, planes and rows of dU shared out among the threads. */
static void add_products(const grad_pass *p, int64_t b, int64_t plane_u) {
    const boot_conv_shape *s = p->s;
    const boot_tile_cut *k = &p->cut;
    const int64_t parts = (s->I + ROWS - 1) / ROWS;
#pragma omp for collapse(2) schedule(static)
    for (int c = 0; c < p->planes.count; c++)
        for (int64_t part = 0; part < parts; part++) {
            const int64_t q = p->planes.at[c];
            const int64_t i = part * ROWS, M = s->I - i < ROWS ? s->I - i : ROWS;
            for (int64_t j = 0; j < s->O; j += p->nr)
                boot_panel_for(&p->panels, s->O - j,
                               false)(M, boot_tile_rows(k, b), p->v + q * k->plane_v + i, 1, k->ldv,
                                      p->d + q * k->plane_m + j, k->ldm, NULL,
                                      p->du + q * plane_u + i * k->ldm + j, k->ldm, b > 0);
        }
}

boot_status boot_winograd_weights(const boot_conv_shape *s, const boot_conv_args *t) {
    grad_pass p = {.s = s,
                   .t = t,
                   .f = boot_tile_transforms_for_isa(),
                   .cut = grad_cut(s),
                   .v = t->scratch,
                   .planes = boot_tile_planes_of(s)};
    const boot_tile_cut *k = &p.cut;
    const int64_t plane_u = s->I * k->ldm + PAD;
    p.panels = boot_gemm_panels();
    p.nr = p.panels.nr;
    p.d = p.v + PLANES * k->plane_v;
    p.du = p.d + PLANES * k->plane_m;
    if (k->blocks == 1) {
        transform_block(&p, 0);
        finish_few(&p);
        return BOOT_OK;
    }
    if (s->upsampled) {
#pragma omp single
        boot_tile_clear_unused(s, p.du, plane_u);
    }
    for (int64_t b = 0; b < k->blocks; b++) {
        transform_block(&p, b);
        add_products(&p, b, plane_u);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s->I; i++)
        p.f->weight_grad(s->O, p.du + i * k->ldm, plane_u, t->dweight + 9 * i, 9 * s->I);
    return BOOT_OK;
}

int64_t boot_winograd_weights_scratch(const boot_conv_shape *s) {
    const boot_tile_cut k = grad_cut(s);
    const int nr = boot_gemm_panels().nr;
    return PLANES *
           (k.plane_v + k.plane_m +
            (k.blocks == 1 ? omp_get_max_threads() * plane_of_few(nr) : s->I * k.ldm + PAD));
}
