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

#include "base/memory.h"
#include "ops/conv2d_winograd.h"

enum { MAX_BLOCK = 36, FEW_TILES = 64, DEPTH = 96, MOST_PANELS = 3, LINE = 16, MOST_OWN = 150000 };
/* Floats of U, V and M together that stay in a second-level cache of 1 MiB; of U where shorter
   blocks pay nevertheless, since V takes the less. */
enum { CACHED = 230000, SMALL_U = 600000, SHORT_BLOCK = 24, STEP = 12 };

/* The most tiles of a block: as many as leave U in the cache, for which it is read again. */
static int64_t longest_block(int64_t K, int64_t C) {
    const int64_t u = PLANES * K * boot_round_up(C, 32), panel = C < 32 ? C : 32;
    const int64_t tiles = (CACHED - u) / (PLANES * (boot_tile_row(K) + panel)) / STEP * STEP;
    if (u > CACHED) return u < SMALL_U ? SHORT_BLOCK : MAX_BLOCK;
    return tiles < STEP ? STEP : tiles < MAX_BLOCK ? tiles : MAX_BLOCK;
}

/* Either every thread cuts a share of the tiles into blocks (private buffers), or, where those
   would be too small, all threads share each stage of one block. */
static boot_tile_cut cut_of(int64_t N, int64_t H, int64_t W, int64_t K, int64_t C, int threads) {
    boot_tile_cut k = {.th = (H + 3) / 4, .tw = (W + 3) / 4};
    k.tiles = N * k.th * k.tw;
    const int64_t most = longest_block(K, C);
    k.blocks = boot_round_up((k.tiles + most - 1) / most, threads);
    k.block = boot_round_up((k.tiles + k.blocks - 1) / k.blocks, 4);
    /* Blocks of fewer than 8 tiles would leave the register tile of the product half empty. */
    k.shared = k.block < 8;
    if (k.shared) k.block = k.tiles < MAX_BLOCK ? k.tiles : MAX_BLOCK;
    k.blocks = (k.tiles + k.block - 1) / k.block;
    k.ldv = boot_tile_row(K), k.ldm = boot_tile_row(C);
    k.plane_v = k.block * k.ldv + PAD, k.plane_m = k.block * k.ldm + PAD;
    return k;
}

/* One forward or data-gradient pass, in terms of what comes in (K channels) and goes out. */
typedef struct {
    const boot_conv_shape *s;
    int threads; /* planned for: a team may be smaller */
    const boot_tile_transforms *f;
    boot_input_fn input_tile;
    boot_output_fn output_tile;
    int side; /* of a tile's pixels in the image that comes out */
    boot_tile_planes planes;
    boot_panels kernels;
    int nr; /* outputs of a panel */
    boot_tile_cut cut;
    boot_tile_map in, out;
    boot_tile_out sink;
    const float *x;
    float *u;
    bool packed;                               /* u holds all of U already */
    int64_t outputs, panels, plane_u, panel_u; /* outputs: of all panels */
} pass;

/* Tiles first ... first + count - 1 of the pass to rows slot ... of v, and back from m. */
static void input_tiles(const pass *p, int64_t first, int64_t count, int64_t slot, float *v) {
    const boot_tile_planes_at planes = boot_all_planes(p->cut.plane_v);
    boot_tile_place at = boot_tile_at(&p->cut, first);
    for (int64_t i = slot; i < slot + count; i++, boot_tile_step(&p->cut, &at))
        p->input_tile(&p->in, p->x + at.n * p->in.H * p->in.W * p->in.ld, at.h0 - 1, at.w0 - 1,
                      v + i * p->cut.ldv, &planes);
}

static void output_tiles(const pass *p, int64_t first, int64_t count, int64_t slot,
                         const float *m) {
    boot_tile_place at = boot_tile_at(&p->cut, first);
    for (int64_t i = slot; i < slot + count; i++, boot_tile_step(&p->cut, &at))
        p->output_tile(&p->out, &p->sink, m + i * p->cut.ldm, p->cut.plane_m, at.n, at.h0, at.w0);
}

/* M = V U for panel j of plane q; m: of the panel's first output. */
static void product(const pass *p, int64_t rows, int64_t q, int64_t j, const float *v, float *m) {
    const int64_t outputs = p->outputs - j * p->nr;
    boot_panel_for(&p->kernels, outputs, false)(rows, p->in.channels, v + q * p->cut.plane_v,
                                                p->cut.ldv, 1,
                                                p->u + j * p->panel_u + q * p->plane_u, p->nr, NULL,
                                                m + q * p->cut.plane_m, p->cut.ldm, false);
}

/* The same pass, seen by the outputs of one panel, from `o` on, alone; its M is (planes, rows, nr).
 */
static pass panel_of(const pass *p, int64_t o, int64_t plane_m) {
    pass part = *p;
    part.cut.ldm = p->nr, part.cut.plane_m = plane_m;
    part.out.channels = p->out.channels - o < p->nr ? p->out.channels - o : p->nr;
    part.sink.y += o;
    if (p->sink.bias) part.sink.bias += o;
    if (p->sink.temb) part.sink.temb += o;
    if (p->sink.residual) part.sink.residual += o;
    return part;
}

/* Whether a block's products are finished a panel of outputs after the other: their M stays in the
   second-level cache then. With more panels reading V again for each takes longer. */
static bool by_panels(const pass *p) { return p->panels > 1 && p->panels <= MOST_PANELS; }

/* Fetches, to be written, the pixels of the tile at `at` and goes on to the next. */
static void fetch_output(const pass *p, boot_tile_place *at) {
    const boot_tile_map *t = &p->out;
    const int64_t h0 = at->h0 / 4 * p->side, h1 = h0 + p->side < t->H ? h0 + p->side : t->H;
    const int64_t w0 = at->w0 / 4 * p->side, w1 = w0 + p->side < t->W ? w0 + p->side : t->W;
    const float *image = p->sink.y + at->n * t->H * t->W * t->ld;
    for (int64_t h = h0; h < h1; h++)
        for (int64_t w = w0; w < w1; w++)
            for (int64_t c = 0; c < t->channels; c += LINE)
                __builtin_prefetch(image + (h * t->W + w) * t->ld + c, 1);
    boot_tile_step(&p->cut, at);
}

/* Tiles [first, first + rows), a block, by one thread. While the products are computed, the outputs
   that they are going to fill are fetched, a tile with every plane. */
static void run_block(const pass *p, int64_t first, int64_t rows, float *v, float *m) {
    const boot_tile_cut *k = &p->cut;
    int64_t left = rows; /* to fetch */
    boot_tile_place at = boot_tile_at(k, first);
    input_tiles(p, first, rows, 0, v);
    if (by_panels(p)) {
        for (int64_t j = 0; j < p->panels; j++) {
            const pass part = panel_of(p, j * p->nr, k->block * p->nr + PAD);
            for (int q = 0; q < p->planes.count; q++) {
                product(&part, rows, p->planes.at[q], j, v, m);
                if (left-- > 0) fetch_output(p, &at);
            }
            output_tiles(&part, first, rows, 0, m);
        }
        return;
    }
    for (int q = 0; q < p->planes.count; q++) {
        for (int64_t j = 0; j < p->panels; j++)
            product(p, rows, p->planes.at[q], j, v, m + j * p->nr);
        if (left-- > 0) fetch_output(p, &at);
    }
    output_tiles(p, first, rows, 0, m);
}

/* Each thread takes an equal share of the tiles, a block after the other. */
static void run_blocks(const pass *p, float *work) {
    const boot_tile_cut *k = &p->cut;
    const int64_t each = PLANES * (k->plane_v + k->plane_m), threads = omp_get_num_threads();
    float *v = work + omp_get_thread_num() * each, *m = v + PLANES * k->plane_v;
    boot_tile_clear_unused(p->s, m, by_panels(p) ? k->block * p->nr + PAD : k->plane_m);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < threads; t++) {
        const int64_t end = k->tiles * (t + 1) / threads;
        for (int64_t i = k->tiles * t / threads; i < end; i += k->block)
            run_block(p, i, end - i < k->block ? end - i : k->block, v, m);
    }
}

/* All threads share every stage of one block after another. */
static void run_shared(const pass *p, float *work) {
    const boot_tile_cut *k = &p->cut;
    float *v = work, *m = v + PLANES * k->plane_v;
    if (p->s->upsampled) {
#pragma omp single
        boot_tile_clear_unused(p->s, m, k->plane_m);
    }
    for (int64_t b = 0; b < k->blocks; b++) {
        const int64_t rows = boot_tile_rows(k, b);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++) input_tiles(p, b * k->block + i, 1, i, v);
#pragma omp for collapse(2) schedule(static)
        for (int64_t j = 0; j < p->panels; j++)
            for (int q = 0; q < p->planes.count; q++)
                product(p, rows, p->planes.at[q], j, v, m + j * p->nr);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++) output_tiles(p, b * k->block + i, 1, i, m);
    }
}

/* Panel j of U, p->nr outputs; plane q at u + j * panel_u + q * plane_u, so that a thread that
   takes panels reads one stretch of memory. */
static void pack_panel(const pass *p, const float *weight, bool data, int64_t j) {
    const int64_t so = data ? 9 : 9 * p->s->I, sk = data ? 9 * p->s->I : 9;
    p->f->weight_panel(p->out.channels - j * p->nr, p->in.channels, weight + j * p->nr * so, so, sk,
                       data, p->u + j * p->panel_u, p->plane_u);
}

/* All of U, by a team. */
static void pack_panels(const pass *p, const float *weight, bool data) {
#pragma omp for schedule(static)
    for (int64_t j = 0; j < p->panels; j++) pack_panel(p, weight, data, j);
}

/* Whether each thread makes all of U for itself: a small one is made anew in less time than it
   takes to come over from another core's cache. */
static bool own_packs(const pass *p) { return p->panels * p->panel_u <= MOST_OWN; }

/* Everything about a pass but where U is. */
static pass pass_of(const boot_conv_shape *s, const boot_conv_args *t, bool data, int threads) {
    const int64_t K = data ? s->O : s->I, C = data ? s->I : s->O;
    pass p = {
        .s = s,
        .threads = threads,
        .f = boot_tile_transforms_for_isa(),
        .planes = boot_tile_planes_of(s),
        .cut = cut_of(s->N, s->H, s->W, K, C, threads),
        .side = data && s->upsampled ? 2 : 4,
        .in = data ? (boot_tile_map){s->H, s->W, K, t->ldy} : boot_tile_map_of_x(s, K, t->ldx),
        .out = data ? boot_tile_map_of_x(s, C, t->ldx) : (boot_tile_map){s->H, s->W, C, t->ldy},
        .x = data ? t->dy : t->x,
        .u = t->scratch};
    p.sink = data ? (boot_tile_out){.y = t->dx, .scale = 1, .accumulate = t->accumulate}
                  : (boot_tile_out){t->y,   t->bias, t->temb,  t->residual,
                                    t->ldr, t->ldt,  t->scale, false};
    p.input_tile = data ? p.f->input_tile : boot_input_fn_of(s, p.f);
    p.output_tile = data && s->upsampled ? p.f->summed_tile : p.f->output_tile;
    p.kernels = boot_gemm_panels();
    p.nr = p.kernels.nr;
    p.outputs = C, p.panels = (C + p.nr - 1) / p.nr;
    p.plane_u = K * p.nr + PAD, p.panel_u = PLANES * p.plane_u;
    return p;
}

/* One kernel's packs differ by direction. */
static const void *pack_key(bool data) { return (const char *)&boot_conv_winograd + data; }

static boot_status winograd_pack(void *state, const boot_conv_shape *s,
                                 boot_conv_direction direction, const boot_conv_args *t) {
    const bool data = direction == BOOT_CONV_DATA;
    pass p = pass_of(s, t, data, *(const int *)state);
    bool fresh;
    BOOT_TRY(
        boot_packs_get(t->packs, t->weight, pack_key(data), p.panels * p.panel_u, &p.u, &fresh));
    if (fresh) return BOOT_OK;
#pragma omp parallel /* of one, where the caller shares nodes out among threads already */
    pack_panels(&p, t->weight, data);
    boot_packs_filled(t->packs, t->weight, pack_key(data), p.panels * p.panel_u);
    return BOOT_OK;
}

/* Whether weights are packed a panel at a time, just before their use: with few tiles, writing all
   of U to memory and reading it back would take longer than the products. */
static bool few_tiles(const pass *p) {
    return p->cut.tiles <= FEW_TILES && p->panels >= p->threads;
}

/* Floats of scratch of run_few: V of all tiles, then U and M of one panel per thread. */
static int64_t few_plane_v(const pass *p) { return p->cut.tiles * p->cut.ldv + PAD; }
static int64_t few_plane_u(const pass *p) {
    return (p->in.channels < DEPTH ? p->in.channels : DEPTH) * p->nr + PAD;
}
static int64_t few_plane_m(const pass *p) { return p->cut.tiles * p->nr + PAD; }

/* M = V U of the panel of outputs from `o` on, for all tiles. U: packed, or made here piece by
   piece in this thread's cache. */
static void few_products(const pass *p, const boot_conv_args *t, bool data, int64_t o,
                         const float *v, float *u, float *m) {
    const boot_conv_shape *s = p->s;
    const int64_t K = p->in.channels, piece = p->packed ? K : DEPTH;
    const int64_t so = data ? 9 : 9 * s->I, sk = data ? 9 * s->I : 9;
    const int64_t plane_u = p->packed ? p->plane_u : few_plane_u(p);
    const float *from = p->packed ? p->u + o / p->nr * p->panel_u : u;
    for (int64_t k = 0; k < K; k += piece) {
        const int64_t depth = K - k < piece ? K - k : piece;
        if (!p->packed)
            p->f->weight_panel(p->out.channels - o, depth, t->weight + o * so + k * sk, so, sk,
                               data, u, plane_u);
        for (int i = 0; i < p->planes.count; i++) {
            const int64_t q = p->planes.at[i];
            boot_panel_for(&p->kernels, p->out.channels - o, k > 0)(
                p->cut.tiles, depth, v + q * few_plane_v(p) + k, p->cut.ldv, 1, from + q * plane_u,
                p->nr, NULL, m + q * few_plane_m(p), p->nr, false);
        }
    }
}

/* One panel of outputs for all tiles: M, and U, stay in this thread's cache. */
static void few_panel(const pass *p, const boot_conv_args *t, bool data, int64_t o, const float *v,
                      float *u) {
    const int64_t plane_m = few_plane_m(p);
    float *m = u + PLANES * few_plane_u(p);
    few_products(p, t, data, o, v, u, m);
    boot_tile_clear_unused(p->s, m, plane_m);
    const pass part = panel_of(p, o, plane_m);
    output_tiles(&part, 0, p->cut.tiles, 0, m);
}

static void run_few(const pass *p, const boot_conv_args *t, bool data, float *v) {
    const int64_t each = PLANES * (few_plane_u(p) + few_plane_m(p));
    float *u = v + PLANES * few_plane_v(p) + omp_get_thread_num() * each;
    pass all = *p;
    all.cut.plane_v = few_plane_v(p);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p->cut.tiles; i++) input_tiles(&all, i, 1, i, v);
#pragma omp for schedule(static)
    for (int64_t j = 0; j < p->panels; j++) few_panel(p, t, data, j * p->nr, v, u);
}

static boot_status run_pass(const boot_conv_shape *s, const boot_conv_args *t, bool data,
                            int threads) {
    pass p = pass_of(s, t, data, threads);
    float *work = t->scratch + p.panels * p.panel_u;
    float *kept = !t->packs
                      ? NULL
                      : boot_packs_find(t->packs, t->weight, pack_key(data), p.panels * p.panel_u);
    p.packed = kept != NULL;
    if (kept) p.u = kept;
    /* Kept weights are for threads to share out: one alone goes by blocks, whose V is smaller. */
    const bool few = few_tiles(&p) && (!p.packed || omp_get_num_threads() > 1);
    if (!few && !p.packed && own_packs(&p)) {
        work += (p.threads - 1) * p.panels * p.panel_u;
        p.u += omp_get_thread_num() * p.panels * p.panel_u;
        for (int64_t j = 0; j < p.panels; j++) pack_panel(&p, t->weight, data, j);
    } else if (!few && !p.packed) {
        pack_panels(&p, t->weight, data);
    }
    if (few)
        run_few(&p, t, data, t->scratch);
    else if (p.cut.shared)
        run_shared(&p, work);
    else
        run_blocks(&p, work);
    return BOOT_OK;
}

static bool winograd_applies(const boot_conv_shape *s, boot_conv_direction direction) {
    (void)direction;
    return s->k == 3 && s->stride == 1 && s->pad_begin == 1 && s->pad_end == 1;
}

/* The state is the number of threads, which the cut into tiles and scratch depend on. */
static boot_status winograd_create(const boot_conv_shape *s, boot_conv_direction direction,
                                   boot_dnnl *dnnl, void **state, int64_t *scratch) {
    (void)dnnl;
    const int threads = omp_get_max_threads();
    BOOT_TRY(boot_alloc(state, sizeof threads, false, "conv2d"));
    *(int *)*state = threads;
    if (direction == BOOT_CONV_WEIGHTS) {
        *scratch = boot_winograd_weights_scratch(s);
        return BOOT_OK;
    }
    const pass p = pass_of(s, &(boot_conv_args){0}, direction == BOOT_CONV_DATA, threads);
    const boot_tile_cut *k = &p.cut;
    const int64_t few = PLANES * (few_plane_v(&p) + threads * (few_plane_u(&p) + few_plane_m(&p)));
    *scratch =
        p.panels * p.panel_u + PLANES * (k->shared ? 1 : threads) * (k->plane_v + k->plane_m);
    if (own_packs(&p)) *scratch += (threads - 1) * p.panels * p.panel_u;
    if (few_tiles(&p) && few > *scratch) *scratch = few;
    return BOOT_OK;
}

static boot_status winograd_run(void *state, const boot_conv_shape *s,
                                boot_conv_direction direction, const boot_conv_args *args) {
    if (direction == BOOT_CONV_WEIGHTS) return boot_winograd_weights(s, args);
    return run_pass(s, args, direction == BOOT_CONV_DATA, *(const int *)state);
}

static boot_pack_need winograd_pack_need(const void *state, const boot_conv_shape *s,
                                         boot_conv_direction direction) {
    const bool data = direction == BOOT_CONV_DATA;
    const pass p = pass_of(s, &(boot_conv_args){.scale = 1}, data, *(const int *)state);
    return (boot_pack_need){pack_key(data), p.panels * p.panel_u, false};
}

static void winograd_destroy(void *state) { boot_free(state); }

const boot_conv_kernel boot_conv_winograd = {.name = "winograd",
                                             .fused = true,
                                             .team = true,
                                             .sums = true,
                                             .automatic = true,
                                             .handicap = 1,
                                             .applies = winograd_applies,
                                             .create = winograd_create,
                                             .pack = winograd_pack,
                                             .run = winograd_run,
                                             .destroy = winograd_destroy,
                                             .pack_need = winograd_pack_need};
