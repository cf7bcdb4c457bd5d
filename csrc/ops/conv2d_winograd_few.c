/* conv2d_winograd_few.c: a forward or data pass of conv2d_winograd.c over few tiles: threads take
 * panels of outputs, and make the weights of each just before their use. */
#include <omp.h>

#include "base/gemm_pairs.h"
#include "ops/conv2d_winograd.h"

/* LARGE: floats of U beyond which twice as many tiles are few. DEPTH: inputs of a piece of U. */
enum { FEW_TILES = 64, LARGE = 1 << 20, DEPTH = BOOT_PAIRS_DEPTH };

bool boot_winograd_few(const boot_winograd_pass *p) {
    const int64_t most = p->floats_u > LARGE ? 2 * FEW_TILES : FEW_TILES;
    return p->cut.tiles <= most && p->panels >= p->threads;
}

/* Floats of a plane of V of all tiles, and of U and M of one panel, which each thread has. */
static int64_t few_plane_v(const boot_winograd_pass *p) { return p->cut.tiles * p->cut.ldv + PAD; }
static int64_t few_plane_u(const boot_winograd_pass *p) {
    const int64_t depth = p->in.channels < DEPTH ? p->in.channels : DEPTH;
    return (p->pairs ? boot_pairs_rows(depth) : depth) * p->nr + PAD;
}
static int64_t few_plane_m(const boot_winograd_pass *p) { return p->cut.tiles * p->nr + PAD; }

/* M = V U of the panel of outputs from `o` on, for all tiles. U: packed, or made here piece by
   piece in this thread's cache, with these scales. */
static void few_products(const boot_winograd_pass *p, int64_t o, const float *v,
                         const float *scales, float *u, float *m) {
    const int64_t K = p->in.channels, piece = p->packed ? K : DEPTH;
    const int64_t plane_u = p->packed ? p->plane_u : few_plane_u(p);
    const float *from = p->packed ? p->u + o / p->nr * p->panel_u : u;
    for (int64_t k = 0; k < K; k += piece) {
        const int64_t depth = K - k < piece ? K - k : piece;
        if (!p->packed) boot_winograd_pack_piece(p, o, k, depth, scales, u, plane_u);
        for (int c = 0; c < p->planes.count; c++) {
            const int64_t q = p->planes.at[c];
            boot_winograd_product(p, p->cut.tiles, c, o, k, depth, v, from + q * plane_u,
                                  m + q * few_plane_m(p));
        }
    }
}

/* One panel of outputs for all tiles: M, and U, stay in this thread's cache. */
static void few_panel(const boot_winograd_pass *p, int64_t o, const float *v, float *u) {
    const int64_t plane_m = few_plane_m(p);
    float *m = u + PLANES * few_plane_u(p);
    float scales[BOOT_PAIRS_NR], backs[BOOT_PAIRS_NR];
    boot_winograd_pass part = boot_winograd_panel_of(p, o, plane_m);
    if (p->pairs && !p->packed) {
        boot_winograd_output_scales(p, o, scales, backs);
        part.sink.backs = backs;
    }
    few_products(&part, o, v, scales, u, m);
    boot_tile_clear_unused(p->s, m, plane_m);
    boot_winograd_output(&part, 0, p->cut.tiles, 0, m);
}

/* The pass with V of all tiles. */
static boot_winograd_pass all_tiles_of(const boot_winograd_pass *p) {
    boot_winograd_pass all = *p;
    all.cut.plane_v = few_plane_v(p);
    all.plane_sums = boot_winograd_plane_sums(p->cut.tiles);
    return all;
}

int64_t boot_winograd_few_scratch(const boot_winograd_pass *p) {
    const boot_winograd_pass all = all_tiles_of(p);
    return boot_winograd_floats_of_v(&all) +
           p->threads * PLANES * (few_plane_u(p) + few_plane_m(p));
}

void boot_winograd_run_few(const boot_winograd_pass *p, float *v) {
    const int64_t each = PLANES * (few_plane_u(p) + few_plane_m(p));
    const boot_winograd_pass all = all_tiles_of(p);
    float *u = v + boot_winograd_floats_of_v(&all) + omp_get_thread_num() * each;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p->cut.tiles; i++) boot_winograd_input(&all, i, 1, i, v);
    boot_winograd_sum_all_pairs(&all, p->cut.tiles, v);
#pragma omp for schedule(static)
    for (int64_t j = 0; j < p->panels; j++) few_panel(&all, j * p->nr, v, u);
}
