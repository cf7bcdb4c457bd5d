/* conv2d_winograd.c: Winograd's F(4x4, 3x3) for 3x3 convolutions of stride 1 and padding 1 (Lavin
 * and Gray 2016).
 *
 *   y = A^T [ sum_i (G g_i G^T) . (B^T d_i B) ] A      6x6 input tiles d, 3x3 weights g, 4x4 output
 * tiles y
 *
 * 36 multiplications do the work of 144. Data gradient: the same with weights turned round and
 * transposed. Weight gradient: the adjoint,  dg = G^T [ sum_tiles (B^T d B) . (A dy A^T) ] G. The
 * sums over channels (or tiles) are 36 matrix products with packed panels, of multiplications or,
 * as a kernel of its own, of pairs (base/gemm_pairs.h). Tiles are independent and sums keep one
 * order, so results do not depend on the number of threads. fp32 throughout; error about 3e-6
 * relative, of pairs up to twice as much. */
#include <omp.h>

#include "base/gemm_pairs.h"
#include "base/memory.h"
#include "ops/conv2d_winograd.h"

enum { MOST_PANELS = 3, LINE = 16, MOST_OWN = 160000 };

/* What the cut into tiles and scratch depend on, and whether products are of pairs. */
typedef struct {
    int threads;
    bool pairs;
} winograd_state;

void boot_winograd_input(const boot_winograd_pass *p, int64_t first, int64_t count, int64_t slot,
                         float *v) {
    boot_tile_planes_at planes = boot_all_planes(p->cut.plane_v);
    boot_tile_place at = boot_tile_at(&p->cut, first);
    planes.scales = p->scales_v;
    for (int64_t i = slot; i < slot + count; i++, boot_tile_step(&p->cut, &at))
        p->input_tile(&p->in, p->x + at.n * p->in.H * p->in.W * p->in.ld, at.h0 - 1, at.w0 - 1,
                      v + i * p->cut.ldv, &planes);
}

void boot_winograd_output(const boot_winograd_pass *p, int64_t first, int64_t count, int64_t slot,
                          const float *m) {
    boot_tile_place at = boot_tile_at(&p->cut, first);
    for (int64_t i = slot; i < slot + count; i++, boot_tile_step(&p->cut, &at))
        p->output_tile(&p->out, &p->sink, m + i * p->cut.ldm, p->cut.plane_m, at.n, at.h0, at.w0);
}

void boot_winograd_product(const boot_winograd_pass *p, int64_t rows, int c, int64_t o, int64_t k,
                           int64_t depth, const float *v, const float *u, float *m) {
    const int64_t outputs = p->outputs - o, ldv = p->cut.ldv;
    const float *from = v + p->planes.at[c] * p->cut.plane_v + k;
    if (p->pairs)
        boot_winograd_product_of_pairs(p, rows, c, outputs, k, depth, v, u, m);
    else
        boot_panel_for(&p->kernels, outputs, k > 0)(rows, depth, from, ldv, 1, u, p->nr, NULL, m,
                                                    p->cut.ldm, false);
}

/* M = V U for panel j, all inputs, with U packed; m: of the panel's first output and all planes. */
static void whole_product(const boot_winograd_pass *p, int64_t rows, int c, int64_t j,
                          const float *v, float *m) {
    const int64_t q = p->planes.at[c];
    boot_winograd_product(p, rows, c, j * p->nr, 0, p->in.channels, v,
                          p->u + j * p->panel_u + q * p->plane_u, m + q * p->cut.plane_m);
}

boot_winograd_pass boot_winograd_panel_of(const boot_winograd_pass *p, int64_t o, int64_t plane_m) {
    boot_winograd_pass part = *p;
    part.cut.ldm = p->nr, part.cut.plane_m = plane_m;
    part.out.channels = p->out.channels - o < p->nr ? p->out.channels - o : p->nr;
    part.sink.y += o;
    if (p->sink.bias) part.sink.bias += o;
    if (p->sink.temb) part.sink.temb += o;
    if (p->sink.residual) part.sink.residual += o;
    if (p->sink.backs) part.sink.backs += o;
    return part;
}

/* Whether a block's products are finished a panel of outputs after the other: their M stays in the
   second-level cache then. With more panels reading V again for each takes longer. */
static bool by_panels(const boot_winograd_pass *p) {
    return p->panels > 1 && p->panels <= MOST_PANELS;
}

/* Fetches, to be written, the pixels of the tile at `at` and goes on to the next. */
static void fetch_output(const boot_winograd_pass *p, boot_tile_place *at) {
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
static void run_block(const boot_winograd_pass *p, int64_t first, int64_t rows, float *v,
                      float *m) {
    const boot_tile_cut *k = &p->cut;
    int64_t left = rows; /* to fetch */
    boot_tile_place at = boot_tile_at(k, first);
    boot_winograd_input(p, first, rows, 0, v);
    if (by_panels(p)) {
        for (int64_t j = 0; j < p->panels; j++) {
            const boot_winograd_pass part =
                boot_winograd_panel_of(p, j * p->nr, k->block * p->nr + PAD);
            for (int c = 0; c < p->planes.count; c++) {
                if (j == 0) boot_winograd_sum_pairs(p, rows, c, v);
                whole_product(&part, rows, c, j, v, m);
                if (left-- > 0) fetch_output(p, &at);
            }
            boot_winograd_output(&part, first, rows, 0, m);
        }
        return;
    }
    for (int c = 0; c < p->planes.count; c++) {
        boot_winograd_sum_pairs(p, rows, c, v);
        for (int64_t j = 0; j < p->panels; j++) whole_product(p, rows, c, j, v, m + j * p->nr);
        if (left-- > 0) fetch_output(p, &at);
    }
    boot_winograd_output(p, first, rows, 0, m);
}

/* Each thread takes an equal share of the tiles, a block after the other. */
static void run_blocks(const boot_winograd_pass *p, float *work) {
    const boot_tile_cut *k = &p->cut;
    const int64_t floats_v = boot_winograd_floats_of_v(p), each = floats_v + PLANES * k->plane_m;
    const int64_t threads = omp_get_num_threads();
    float *v = work + omp_get_thread_num() * each, *m = v + floats_v;
    boot_tile_clear_unused(p->s, m, by_panels(p) ? k->block * p->nr + PAD : k->plane_m);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < threads; t++) {
        const int64_t end = k->tiles * (t + 1) / threads;
        for (int64_t i = k->tiles * t / threads; i < end; i += k->block)
            run_block(p, i, end - i < k->block ? end - i : k->block, v, m);
    }
}

/* All threads share every stage of one block after another. */
static void run_shared(const boot_winograd_pass *p, float *work) {
    const boot_tile_cut *k = &p->cut;
    float *v = work, *m = v + boot_winograd_floats_of_v(p);
    if (p->s->upsampled) {
#pragma omp single
        boot_tile_clear_unused(p->s, m, k->plane_m);
    }
    for (int64_t b = 0; b < k->blocks; b++) {
        const int64_t rows = boot_tile_rows(k, b);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++) boot_winograd_input(p, b * k->block + i, 1, i, v);
        boot_winograd_sum_all_pairs(p, rows, v);
#pragma omp for collapse(2) schedule(static)
        for (int64_t j = 0; j < p->panels; j++)
            for (int c = 0; c < p->planes.count; c++)
                whole_product(p, rows, c, j, v, m + j * p->nr);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++) boot_winograd_output(p, b * k->block + i, 1, i, m);
    }
}

void boot_winograd_pack_piece(const boot_winograd_pass *p, int64_t o, int64_t k, int64_t depth,
                              const float *scales, float *u, int64_t plane_u) {
    const boot_weight_strides by = boot_weight_strides_of(p);
    const float *w = p->weight + o * by.output + k * by.input;
    if (p->pairs)
        p->f->paired_panel(p->outputs - o, depth, w, by.output, by.input, p->data, scales,
                           p->balance + k, u, plane_u);
    else
        p->f->weight_panel(p->outputs - o, depth, w, by.output, by.input, p->data, u, plane_u);
}

/* Panel j of U, p->nr outputs; plane q at u + j * panel_u + q * plane_u, so that a thread that
   takes panels reads one stretch of memory. */
static void pack_panel(const boot_winograd_pass *p, int64_t j) {
    float scales[BOOT_PAIRS_NR];
    if (p->pairs)
        boot_winograd_output_scales(p, j * p->nr, scales, boot_winograd_backs(p) + j * p->nr);
    boot_winograd_pack_piece(p, j * p->nr, 0, p->in.channels, scales, p->u + j * p->panel_u,
                             p->plane_u);
}

/* All of U, by a team. */
static void pack_panels(const boot_winograd_pass *p) {
#pragma omp for schedule(static)
    for (int64_t j = 0; j < p->panels; j++) pack_panel(p, j);
}

/* Whether each thread makes all of U for itself: a small one is made anew in less time than it
   takes to come over from another core's cache. */
static bool own_packs(const boot_winograd_pass *p) { return p->floats_u <= MOST_OWN; }

static int64_t balance_floats(const boot_winograd_pass *p) {
    return boot_round_up(p->in.channels, PAD);
}

/* Floats before U in scratch: of pairs, each thread's balance and scales of V. */
static int64_t floats_before(const boot_winograd_pass *p) {
    return p->pairs ? p->threads * 2 * balance_floats(p) : 0;
}

/* Everything about a pass but where U is. */
static boot_winograd_pass pass_of(const winograd_state *state, const boot_conv_shape *s,
                                  const boot_conv_args *t, bool data) {
    const int64_t K = data ? s->O : s->I, C = data ? s->I : s->O;
    boot_winograd_pass p = {
        .s = s,
        .pairs = state->pairs,
        .threads = state->threads,
        .f = boot_tile_transforms_for_isa(),
        .planes = boot_tile_planes_of(s),
        .cut = boot_tile_cut_of(s->N, s->H, s->W, K, C, state->threads, state->pairs),
        .side = data && s->upsampled ? 2 : 4,
        .in = data ? (boot_tile_map){s->H, s->W, K, t->ldy} : boot_tile_map_of_x(s, K, t->ldx),
        .out = data ? boot_tile_map_of_x(s, C, t->ldx) : (boot_tile_map){s->H, s->W, C, t->ldy},
        .x = data ? t->dy : t->x,
        .weight = t->weight,
        .data = data};
    p.sink = data ? (boot_tile_out){.y = t->dx, .back = 1, .scale = 1, .accumulate = t->accumulate}
                  : (boot_tile_out){t->y,   t->bias, t->temb, t->residual, t->ldr,
                                    t->ldt, NULL,    1,       t->scale,    false};
    p.input_tile = data ? p.f->input_tile : boot_input_fn_of(s, p.f);
    p.output_tile = data && s->upsampled ? p.f->summed_tile : p.f->output_tile;
    p.kernels = boot_gemm_panels();
    p.nr = p.kernels.nr;
    p.outputs = C, p.panels = (C + p.nr - 1) / p.nr;
    p.plane_u = (p.pairs ? boot_pairs_rows(K) : K) * p.nr + PAD, p.panel_u = PLANES * p.plane_u;
    p.floats_u = p.panels * p.panel_u + (p.pairs ? p.panels * p.nr + balance_floats(&p) : 0);
    p.plane_sums = boot_winograd_plane_sums(p.cut.block);
    return p;
}

/* One kernel's packs differ by direction. */
static const void *pack_key(bool pairs, bool data) {
    return (const char *)(pairs ? &boot_conv_winograd_pairs : &boot_conv_winograd) + data;
}

static boot_status winograd_pack(void *state, const boot_conv_shape *s,
                                 boot_conv_direction direction, const boot_conv_args *t) {
    const bool data = direction == BOOT_CONV_DATA;
    boot_winograd_pass p = pass_of(state, s, t, data);
    const void *key = pack_key(p.pairs, data);
    bool fresh;
    BOOT_TRY(boot_packs_get(t->packs, t->weight, key, p.floats_u, &p.u, &fresh));
    if (fresh) return BOOT_OK;
    if (p.pairs) {
        p.balance = boot_winograd_balance(&p);
        boot_winograd_find_balance(&p, boot_winograd_balance(&p));
    }
#pragma omp parallel /* of one, where the caller shares nodes out among threads already */
    pack_panels(&p);
    boot_packs_filled(t->packs, t->weight, key, p.floats_u);
    return BOOT_OK;
}

static boot_status run_pass(const winograd_state *state, const boot_conv_shape *s,
                            const boot_conv_args *t, bool data) {
    boot_winograd_pass p = pass_of(state, s, t, data);
    float *own = t->scratch + omp_get_thread_num() * 2 * balance_floats(&p);
    float *scratch = t->scratch + floats_before(&p), *work = scratch + p.floats_u;
    float *kept = !t->packs
                      ? NULL
                      : boot_packs_find(t->packs, t->weight, pack_key(p.pairs, data), p.floats_u);
    p.packed = kept != NULL;
    p.u = kept ? kept : scratch;
    if (p.pairs) {
        p.balance = kept ? boot_winograd_balance(&p) : own;
        if (!kept) boot_winograd_find_balance(&p, own);
        boot_winograd_find_scales(&p, own + balance_floats(&p));
    }
    /* Kept weights are for threads to share out: one alone goes by blocks, whose V is smaller. */
    const bool few = boot_winograd_few(&p) && (!p.packed || omp_get_num_threads() > 1);
    if (!few && !p.packed && own_packs(&p)) {
        work += (p.threads - 1) * p.floats_u;
        p.u += omp_get_thread_num() * p.floats_u;
        for (int64_t j = 0; j < p.panels; j++) pack_panel(&p, j);
    } else if (!few && !p.packed) {
        pack_panels(&p);
    }
    if (p.pairs) p.sink.backs = boot_winograd_backs(&p);
    if (few)
        boot_winograd_run_few(&p, scratch);
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

/* The weight gradient is that of the other kernel: V and D differ too much from plane to plane. */
static bool pairs_apply(const boot_conv_shape *s, boot_conv_direction direction) {
    const int64_t K = direction == BOOT_CONV_DATA ? s->O : s->I;
    return winograd_applies(s, direction) && boot_pairs_available() &&
           (direction == BOOT_CONV_WEIGHTS || K % 32 == 0);
}

static boot_status create(bool pairs, const boot_conv_shape *s, boot_conv_direction direction,
                          void **state, int64_t *scratch) {
    const int threads = omp_get_max_threads();
    BOOT_TRY(boot_alloc(state, sizeof(winograd_state), false, "conv2d"));
    *(winograd_state *)*state = (winograd_state){threads, pairs};
    if (direction == BOOT_CONV_WEIGHTS) {
        *scratch = boot_winograd_weights_scratch(s);
        return BOOT_OK;
    }
    const boot_winograd_pass p =
        pass_of(*state, s, &(boot_conv_args){0}, direction == BOOT_CONV_DATA);
    const boot_tile_cut *k = &p.cut;
    *scratch = p.floats_u +
               (k->shared ? 1 : threads) * (boot_winograd_floats_of_v(&p) + PLANES * k->plane_m);
    if (own_packs(&p)) *scratch += (threads - 1) * p.floats_u;
    if (boot_winograd_few(&p) && boot_winograd_few_scratch(&p) > *scratch)
        *scratch = boot_winograd_few_scratch(&p);
    *scratch += floats_before(&p);
    return BOOT_OK;
}

static boot_status winograd_create(const boot_conv_shape *s, boot_conv_direction direction,
                                   boot_dnnl *dnnl, void **state, int64_t *scratch) {
    (void)dnnl;
    return create(false, s, direction, state, scratch);
}

static boot_status pairs_create(const boot_conv_shape *s, boot_conv_direction direction,
                                boot_dnnl *dnnl, void **state, int64_t *scratch) {
    (void)dnnl;
    return create(true, s, direction, state, scratch);
}

static boot_status winograd_run(void *state, const boot_conv_shape *s,
                                boot_conv_direction direction, const boot_conv_args *args) {
    if (direction == BOOT_CONV_WEIGHTS) return boot_winograd_weights(s, args);
    return run_pass(state, s, args, direction == BOOT_CONV_DATA);
}

static boot_pack_need winograd_pack_need(const void *state, const boot_conv_shape *s,
                                         boot_conv_direction direction) {
    const bool data = direction == BOOT_CONV_DATA;
    const boot_winograd_pass p = pass_of(state, s, &(boot_conv_args){.scale = 1}, data);
    return (boot_pack_need){pack_key(p.pairs, data), p.floats_u, false};
}

static void winograd_destroy(void *state) { boot_free(state); }

const boot_conv_kernel boot_conv_winograd = {.name = "winograd",
                                             .fused = true,
                                             .team = true,
                                             .sums = true,
                                             .automatic = BOOT_CONV_ALL,
                                             .handicap = 1,
                                             .applies = winograd_applies,
                                             .create = winograd_create,
                                             .pack = winograd_pack,
                                             .run = winograd_run,
                                             .destroy = winograd_destroy,
                                             .pack_need = winograd_pack_need};

/* Handicap: on Zen 5, where they gain up to 8 % alone, steps of cifar10 took 1.02 and of
   fashion 1.01 times as long with all that were faster at all as without any. Zen 4, where they
   gain 15 to 25 %, was not measured with it. */
const boot_conv_kernel boot_conv_winograd_pairs = {.name = "winograd_pairs",
                                                   .fused = true,
                                                   .team = true,
                                                   .sums = true,
                                                   .automatic =
                                                       1 << BOOT_CONV_FORWARD | 1 << BOOT_CONV_DATA,
                                                   .handicap = 1.06,
                                                   .applies = pairs_apply,
                                                   .create = pairs_create,
                                                   .pack = winograd_pack,
                                                   .run = winograd_run,
                                                   .destroy = winograd_destroy,
                                                   .pack_need = winograd_pack_need};
