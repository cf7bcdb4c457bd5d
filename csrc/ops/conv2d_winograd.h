/* conv2d_winograd.h: what the files of our Winograd kernel share: tiles, cuts and transforms.
 */
#ifndef BOOT_CONV2D_WINOGRAD_H
#define BOOT_CONV2D_WINOGRAD_H

#include "base/gemm.h"
#include "ops/conv2d.h"

enum { PLANES = 36, PAD = 16 };

/* The planes that are computed. Of an upsampled image rows 1 and 2 of a 6x6 tile are equal, and 3
   and 4, so that row 2 of B^T d vanishes; the same for columns: 25 planes are left. In the sums of
   dx over 2x2 pixels the same planes of M cancel. */
typedef struct {
    int count;
    const unsigned char *at;
} boot_tile_planes;

boot_tile_planes boot_tile_planes_of(const boot_conv_shape *s);

/* Zero in the planes that are not computed, floats [0, plane) of each. */
void boot_tile_clear_unused(const boot_conv_shape *s, float *m, int64_t plane);

/* Images on one side of the convolution: size, channels, pixel stride. */
typedef struct {
    int64_t H, W, channels, ld;
} boot_tile_map;

/* Where finished tiles go, and what is done on the way: M times back, and backs (channels), or
 * NULL. */
typedef struct {
    float *y;
    const float *bias, *temb, *residual;
    int64_t ldr, ldt;
    const float *backs;
    float back, scale;
    bool accumulate;
} boot_tile_out;

/* Where plane (i, j) of a transformed tile goes: v + i * row + j * column floats. Only the columns
   j whose bits are set in `columns` are computed, of pixels times `scales` (channels), or NULL. */
typedef struct {
    int columns;
    int64_t row, column;
    const float *scales;
} boot_tile_planes_at;

/* All of them, plane p = 6 i + j at v + p * plane. */
static inline boot_tile_planes_at boot_all_planes(int64_t plane) {
    return (boot_tile_planes_at){0x3f, 6 * plane, plane, NULL};
}

typedef void (*boot_input_fn)(const boot_tile_map *, const float *image, int64_t h0, int64_t w0,
                              float *v, const boot_tile_planes_at *);
typedef void (*boot_output_fn)(const boot_tile_map *, const boot_tile_out *, const float *m,
                               int64_t plane, int64_t n, int64_t h0, int64_t w0);

typedef struct {
    boot_input_fn input_tile, upsampled_tile; /* of an image as it is, or upsampled */
    void (*grad_tile)(const boot_tile_map *, const float *image, int64_t h0, int64_t w0, float *v,
                      const boot_tile_planes_at *);
    boot_output_fn output_tile, summed_tile; /* all pixels, or sums over 2x2 */
    void (*weight_panel)(int64_t outputs, int64_t K, const float *w, int64_t so, int64_t sk,
                         bool flip, float *u, int64_t plane);
    void (*paired_panel)(int64_t outputs, int64_t K, const float *w, int64_t so, int64_t sk,
                         bool flip, const float *scales, const float *balance, float *u,
                         int64_t plane);
    void (*weight_grad)(int64_t outputs, const float *du, int64_t plane, float *dw, int64_t so);
} boot_tile_transforms;

/* Those of the best instruction set. */
const boot_tile_transforms *boot_tile_transforms_for_isa(void);

/* x as it is in memory, with I channels from pixel to pixel of ldx floats. */
static inline boot_tile_map boot_tile_map_of_x(const boot_conv_shape *s, int64_t I, int64_t ldx) {
    const int shift = s->upsampled;
    return (boot_tile_map){s->H >> shift, s->W >> shift, I, ldx};
}

static inline boot_input_fn boot_input_fn_of(const boot_conv_shape *s,
                                             const boot_tile_transforms *f) {
    return s->upsampled ? f->upsampled_tile : f->input_tile;
}

static inline int64_t boot_round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* Row strides are padded by a cache line: a multiple of 4096 bytes would put all rows into one
 * cache set. */
static inline int64_t boot_tile_row(int64_t channels) { return boot_round_up(channels, 32) + PAD; }

/* Floats of what is kept beside a plane of so many tiles for products of pairs: a flag, and two
   numbers a tile. */
static inline int64_t boot_winograd_plane_sums(int64_t tiles) {
    return PAD + 2 * boot_round_up(tiles + PAD, PAD);
}

/* How tiles are cut: `tiles` over all images, `block` of them at a time, pixel strides and plane
   strides of transformed inputs (v) and products (m), in floats. */
typedef struct {
    int64_t th, tw, tiles, block, blocks;
    int64_t ldv, ldm, plane_v, plane_m;
    bool shared; /* threads share each stage of one block; else each has its own */
} boot_tile_cut;

/* That of a forward or data pass from K to C channels (conv2d_winograd_tiles.c). */
boot_tile_cut boot_tile_cut_of(int64_t N, int64_t H, int64_t W, int64_t K, int64_t C, int threads,
                               bool pairs);

static inline int64_t boot_tile_rows(const boot_tile_cut *k, int64_t block) {
    const int64_t left = k->tiles - block * k->block;
    return left < k->block ? left : k->block;
}

/* A tile's image and its first pixel. */
typedef struct {
    int64_t n, h0, w0;
} boot_tile_place;

static inline boot_tile_place boot_tile_at(const boot_tile_cut *k, int64_t tile) {
    return (boot_tile_place){tile / (k->th * k->tw), tile % (k->th * k->tw) / k->tw * 4,
                             tile % k->tw * 4};
}

/* On to the next tile; divisions would take as long as a small transform. */
static inline void boot_tile_step(const boot_tile_cut *k, boot_tile_place *at) {
    at->w0 += 4;
    if (at->w0 < 4 * k->tw) return;
    at->w0 = 0, at->h0 += 4;
    if (at->h0 < 4 * k->th) return;
    at->h0 = 0, at->n++;
}

/* One forward or data-gradient pass, in terms of what comes in (K channels) and goes out. */
typedef struct {
    const boot_conv_shape *s;
    bool pairs;  /* products of pairs */
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
    int64_t floats_u;   /* of all panels and, of pairs, what outputs are to be multiplied by, and
                           the inputs' balance */
    int64_t plane_sums; /* floats of sums of pairs of a plane */
    /* Of pairs, powers of two (K): what weights of each input are multiplied by, and pixels, or
       NULL. */
    const float *balance, *scales_v;
    const float *weight;
    bool data; /* else forward */
} boot_winograd_pass;

/* Weights of an output of the pass, and of an input, are so many floats from the next one's. */
typedef struct {
    int64_t output, input;
} boot_weight_strides;

static inline boot_weight_strides boot_weight_strides_of(const boot_winograd_pass *p) {
    const int64_t I = p->s->I;
    return p->data ? (boot_weight_strides){9, 9 * I} : (boot_weight_strides){9 * I, 9};
}

/* Floats of V, behind whose planes the sums of its pairs are, one for each tile of a plane. */
static inline int64_t boot_winograd_floats_of_v(const boot_winograd_pass *p) {
    return PLANES * (p->cut.plane_v + (p->pairs ? p->plane_sums : 0));
}

/* Tiles first ... first + count - 1 of the pass to rows slot ... of v, and back from m. */
void boot_winograd_input(const boot_winograd_pass *p, int64_t first, int64_t count, int64_t slot,
                         float *v);
void boot_winograd_output(const boot_winograd_pass *p, int64_t first, int64_t count, int64_t slot,
                          const float *m);

/* M (rows, row stride ldm) = V U, or +=, for one panel of outputs, from `o` on, of the c-th plane
   that is computed; k: inputs [k, k + depth), whose U is `u`. */
void boot_winograd_product(const boot_winograd_pass *p, int64_t rows, int c, int64_t o, int64_t k,
                           int64_t depth, const float *v, const float *u, float *m);

/* U of the outputs of one panel, from `o` on, and of inputs [k, k + depth). scales: of pairs, those
   of the panel's outputs (boot_winograd_output_scales). */
void boot_winograd_pack_piece(const boot_winograd_pass *p, int64_t o, int64_t k, int64_t depth,
                              const float *scales, float *u, int64_t plane_u);

/* The same pass, seen by the outputs of one panel, from `o` on, alone; its M is (planes, rows, nr).
 */
boot_winograd_pass boot_winograd_panel_of(const boot_winograd_pass *p, int64_t o, int64_t plane_m);

/* Whether weights are packed a panel at a time, just before their use: with few tiles, writing all
   of U to memory and reading it back would take longer than the products; that pass, by a team, and
   its floats of scratch (conv2d_winograd_few.c). */
bool boot_winograd_few(const boot_winograd_pass *p);
void boot_winograd_run_few(const boot_winograd_pass *p, float *scratch);
int64_t boot_winograd_few_scratch(const boot_winograd_pass *p);

/* Products of pairs (conv2d_winograd_pairs.c). Powers of two that make the weights of all inputs of
   about one size: balance (K). */
void boot_winograd_find_balance(const boot_winograd_pass *p, float *balance);
/* The scales of V, in `scales` (K) if there are any: every thread finds the same. */
void boot_winograd_find_scales(boot_winograd_pass *p, float *scales);
/* Powers of two that U of the outputs of one panel, from `o` on, is larger by, and what the outputs
   are to be multiplied by; both (nr). */
void boot_winograd_output_scales(const boot_winograd_pass *p, int64_t o, float *scales,
                                 float *backs);
/* Where a pass with all of U has the latter, and the balance. */
static inline float *boot_winograd_backs(const boot_winograd_pass *p) {
    return p->u + p->panels * p->panel_u;
}
static inline float *boot_winograd_balance(const boot_winograd_pass *p) {
    return boot_winograd_backs(p) + p->panels * p->nr;
}
/* The sums of the pairs of the first `rows` tiles, in V: in the c-th plane that is computed; or in
   all of them, shared out among a team. Of a pass of multiplications: nothing. */
void boot_winograd_sum_pairs(const boot_winograd_pass *p, int64_t rows, int c, float *v);
void boot_winograd_sum_all_pairs(const boot_winograd_pass *p, int64_t rows, float *v);
/* boot_winograd_product for `outputs` outputs, at most those of a panel. */
void boot_winograd_product_of_pairs(const boot_winograd_pass *p, int64_t rows, int c,
                                    int64_t outputs, int64_t k, int64_t depth, const float *v,
                                    const float *u, float *m);

/* Weight gradient, and the floats of scratch that it needs (conv2d_winograd_weights.c). */
boot_status boot_winograd_weights(const boot_conv_shape *s, const boot_conv_args *t);
int64_t boot_winograd_weights_scratch(const boot_conv_shape *s);

#endif
