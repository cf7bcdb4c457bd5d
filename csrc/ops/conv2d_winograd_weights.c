/* conv2d_winograd_weights.c: the weight gradient of conv2d_winograd.c.
 *
 *   dg = G^T [ sum_tiles (B^T d B) . (A dy A^T) ] G
 *
 * The sums over tiles are 36 matrix products V^T D, one per plane. Of many tiles each thread makes
 * its own planes of V and D and adds up their products, block after block, in its own caches: what
 * one core wrote and another reads would take longer to come over than to be made anew from x and
 * dy. */
#include <omp.h>
#include <string.h>

#include "ops/conv2d_winograd.h"

enum {
    WIDE_BLOCK = 72,
    BLOCK = 48,
    WIDE_FLOATS = 512,
    FEW_TILES = 64,
    ROWS = 96,
    FEW_ROWS = 48,
    MOST_GROUPS = 6,
    LANES = 16
};

/* All tiles in one block where they are few; else as many as leave V and D in the second-level
   cache. */
static boot_tile_cut grad_cut(const boot_conv_shape *s) {
    boot_tile_cut k = {.th = (s->H + 3) / 4,
                       .tw = (s->W + 3) / 4,
                       .ldv = boot_tile_row(s->I),
                       .ldm = boot_tile_row(s->O)};
    k.tiles = s->N * k.th * k.tw;
    k.block = k.tiles <= FEW_TILES ? k.tiles : k.ldv + k.ldm <= WIDE_FLOATS ? WIDE_BLOCK : BLOCK;
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
    int64_t plane_u;
    boot_tile_planes planes;
} grad_pass;

static int64_t plane_of_few(int nr) { return FEW_ROWS * nr + PAD; }

/* Transforms of channels [i, i + inputs) of x and of all of dy, tiles [from, to) of block b. */
static void transform_tiles(const grad_pass *p, int64_t b, int64_t from, int64_t to, int64_t i,
                            int64_t inputs, float *v, const boot_tile_planes_at *at_v, float *d,
                            const boot_tile_planes_at *at_d) {
    const boot_conv_shape *s = p->s;
    const boot_tile_cut *k = &p->cut;
    const boot_input_fn input_tile = boot_input_fn_of(s, p->f);
    const boot_tile_map in = boot_tile_map_of_x(s, inputs, p->t->ldx);
    const boot_tile_map out = {s->H, s->W, s->O, p->t->ldy};
    boot_tile_place at = boot_tile_at(k, b * k->block + from);
    for (int64_t tile = from; tile < to; tile++, boot_tile_step(k, &at)) {
        input_tile(&in, p->t->x + i + at.n * in.H * in.W * in.ld, at.h0 - 1, at.w0 - 1,
                   v + tile * k->ldv, at_v);
        p->f->grad_tile(&out, p->t->dy + at.n * s->H * s->W * out.ld, at.h0, at.w0,
                        d + tile * k->ldm, at_d);
    }
}

/* Plane (1, 1) of D = A dy A^T is the sum of a tile's pixels. Adds those of tiles [from, to) of
   block b to the images' sums; d: plane (1, 1) of the block. */
static void add_pixel_sums(const grad_pass *p, int64_t b, int64_t from, int64_t to,
                           const float *d) {
    const int64_t O = p->s->O;
    boot_tile_place at = boot_tile_at(&p->cut, b * p->cut.block + from);
    for (int64_t tile = from; tile < to; tile++, boot_tile_step(&p->cut, &at)) {
        float *sum = p->t->pixel_sums + at.n * O;
        if (at.h0 == 0 && at.w0 == 0) memset(sum, 0, O * sizeof(float));
        for (int64_t o = 0; o < O; o++) sum[o] += d[tile * p->cut.ldm + o];
    }
}

/* One block holds all tiles, whose transforms are shared out among the threads. A thread then
   finishes 36 small sums in its cache and turns them into weights at once, so that the large dU is
   never written. */
static void run_few(const grad_pass *p) {
    const boot_conv_shape *s = p->s;
    const boot_tile_cut *k = &p->cut;
    const int64_t parts = (s->I + FEW_ROWS - 1) / FEW_ROWS, plane = plane_of_few(p->nr);
    const int64_t panels = (s->O + p->nr - 1) / p->nr, threads = omp_get_num_threads();
    const boot_tile_planes_at at_v = boot_all_planes(k->plane_v),
                              at_d = boot_all_planes(k->plane_m);
    float *du = p->du + omp_get_thread_num() * PLANES * plane;
#pragma omp for schedule(static)
    for (int64_t part = 0; part < threads; part++)
        transform_tiles(p, 0, k->tiles * part / threads, k->tiles * (part + 1) / threads, 0, s->I,
                        p->v, &at_v, p->d, &at_d);
    if (p->t->pixel_sums) {
        const int64_t each = k->th * k->tw;
#pragma omp for schedule(static) nowait
        for (int64_t n = 0; n < s->N; n++)
            add_pixel_sums(p, 0, n * each, (n + 1) * each, p->d + 7 * k->plane_m);
    }
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

/* How `threads` share the sums: `groups` of planes times `parts` of the inputs. */
typedef struct {
    int64_t groups, parts;
    int64_t columns; /* of planes, at most, that a group touches */
} grad_grid;

/* What a thread adds up: planes [from, to), counted down the columns, of inputs [i, i + inputs). */
typedef struct {
    int64_t from, to, first; /* first: the column that `from` lies in */
    int columns;             /* bits of those touched */
    int64_t i, inputs;
} grad_share;

/* Plane c, counted down the columns: row-major 6 r + c of it is its mirror image's number. */
static int row_of(const boot_tile_planes *planes, int64_t c) { return planes->at[c] % 6; }
static int column_of(const boot_tile_planes *planes, int64_t c) { return planes->at[c] / 6; }

static grad_share share_of(const grad_pass *p, const grad_grid *g, int64_t slot) {
    const int64_t group = slot % g->groups, part = slot / g->groups;
    const int64_t vectors = (p->s->I + LANES - 1) / LANES, end = vectors * (part + 1) / g->parts;
    grad_share own = {.from = p->planes.count * group / g->groups,
                      .to = p->planes.count * (group + 1) / g->groups,
                      .i = vectors * part / g->parts * LANES};
    own.inputs = (end * LANES < p->s->I ? end * LANES : p->s->I) - own.i;
    own.first = column_of(&p->planes, own.from);
    for (int64_t c = own.from; c < own.to; c++) own.columns |= 1 << column_of(&p->planes, c);
    return own;
}

/* The grid that keeps most threads busy; of two, the one of more groups. */
static grad_grid grid_of(const grad_pass *p, int64_t threads) {
    const int64_t vectors = (p->s->I + LANES - 1) / LANES;
    grad_grid best = {0};
    for (int64_t groups = threads < MOST_GROUPS ? threads : MOST_GROUPS; groups > 0; groups--) {
        const int64_t parts = threads / groups < vectors ? threads / groups : vectors;
        if (groups * parts > best.groups * best.parts) best = (grad_grid){groups, parts, 0};
    }
    for (int64_t slot = 0; slot < best.groups; slot++) {
        const grad_share own = share_of(p, &best, slot);
        const int64_t columns = column_of(&p->planes, own.to - 1) - own.first + 1;
        if (columns > best.columns) best.columns = columns;
    }
    return best;
}

/* Floats of V and D of one thread, and a gap behind them: the products fetch some rows beyond the
   last plane, which would take them away from the thread that is writing them. */
static int64_t grid_floats(const grad_pass *p, const grad_grid *g) {
    return g->columns * 6 * (p->cut.plane_v + p->cut.plane_m) + BOOT_GEMM_AHEAD * p->cut.ldm;
}

/* Whether a share is the first that makes column 1 of D. */
static bool sums_pixels(const grad_pass *p, const grad_grid *g, int64_t slot) {
    if (slot >= g->groups || !(share_of(p, g, slot).columns & 2)) return false;
    return slot == 0 || !(share_of(p, g, slot - 1).columns & 2);
}

/* dU of a thread's planes and inputs over all blocks. v: its V and D. */
static void run_share(const grad_pass *p, const grad_grid *g, int64_t slot, float *v) {
    const boot_conv_shape *s = p->s;
    const boot_tile_cut *k = &p->cut;
    const grad_share own = share_of(p, g, slot);
    const boot_tile_planes_at at_v = {own.columns, k->plane_v, 6 * k->plane_v, NULL};
    const boot_tile_planes_at at_d = {own.columns, k->plane_m, 6 * k->plane_m, NULL};
    float *d = v + g->columns * 6 * k->plane_v;
    const bool sums = p->t->pixel_sums && sums_pixels(p, g, slot);
    for (int64_t b = 0; b < k->blocks; b++) {
        const int64_t tiles = boot_tile_rows(k, b);
        transform_tiles(p, b, 0, tiles, own.i, own.inputs, v - own.first * at_v.column, &at_v,
                        d - own.first * at_d.column, &at_d);
        if (sums) add_pixel_sums(p, b, 0, tiles, d + (1 - own.first) * at_d.column + at_d.row);
        for (int64_t c = own.from; c < own.to; c++) {
            const int64_t r = row_of(&p->planes, c), column = column_of(&p->planes, c);
            const int64_t plane = r + 6 * (column - own.first);
            const float *vc = v + plane * k->plane_v, *dc = d + plane * k->plane_m;
            float *du = p->du + (6 * r + column) * p->plane_u + own.i * k->ldm;
            for (int64_t i = 0; i < own.inputs; i += ROWS)
                for (int64_t j = 0; j < s->O; j += p->nr)
                    boot_panel_for(&p->panels, s->O - j, false)(
                        own.inputs - i < ROWS ? own.inputs - i : ROWS, tiles, vc + i, 1, k->ldv,
                        dc + j, k->ldm, NULL, du + i * k->ldm + j, k->ldm, b > 0);
        }
    }
}

/* Everything about a weight gradient but where it happens. */
static grad_pass grad_pass_of(const boot_conv_shape *s) {
    grad_pass p = {.s = s,
                   .f = boot_tile_transforms_for_isa(),
                   .panels = boot_gemm_panels(),
                   .cut = grad_cut(s),
                   .planes = boot_tile_planes_of(s)};
    p.nr = p.panels.nr;
    p.plane_u = s->I * p.cut.ldm + PAD;
    return p;
}

boot_status boot_winograd_weights(const boot_conv_shape *s, const boot_conv_args *t) {
    grad_pass p = grad_pass_of(s);
    const boot_tile_cut *k = &p.cut;
    p.t = t;
    if (k->blocks == 1) {
        p.v = t->scratch;
        p.d = p.v + PLANES * k->plane_v;
        p.du = p.d + PLANES * k->plane_m;
        run_few(&p);
        return BOOT_OK;
    }
    const grad_grid g = grid_of(&p, omp_get_num_threads());
    p.du = t->scratch;
    p.v = p.du + PLANES * p.plane_u;
    if (s->upsampled) {
#pragma omp single nowait
        boot_tile_clear_unused(s, p.du, p.plane_u);
    }
#pragma omp for schedule(static)
    for (int64_t slot = 0; slot < g.groups * g.parts; slot++)
        run_share(&p, &g, slot, p.v + slot * grid_floats(&p, &g));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s->I; i++)
        p.f->weight_grad(s->O, p.du + i * k->ldm, p.plane_u, t->dweight + 9 * i, 9 * s->I);
    return BOOT_OK;
}

int64_t boot_winograd_weights_scratch(const boot_conv_shape *s) {
    const grad_pass p = grad_pass_of(s);
    const boot_tile_cut *k = &p.cut;
    const int64_t threads = omp_get_max_threads();
    if (k->blocks == 1) return PLANES * (k->plane_v + k->plane_m + threads * plane_of_few(p.nr));
    int64_t most = 0; /* a team may be smaller than planned, and its threads' shares larger */
    for (int64_t team = 1; team <= threads; team++) {
        const grad_grid g = grid_of(&p, team);
        const int64_t floats = g.groups * g.parts * grid_floats(&p, &g);
        if (floats > most) most = floats;
    }
    return PLANES * p.plane_u + most;
}
