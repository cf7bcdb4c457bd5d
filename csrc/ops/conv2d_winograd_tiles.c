/* conv2d_winograd_tiles.c: the tile transforms of conv2d_winograd.c, compiled for every instruction
 * set. */
#include <string.h>

#include "base/gemm_pairs.h"
#include "base/lanes.h"
#include "ops/conv2d_winograd.h"

/* Inputs k from the prefetch of weights, or of their gradients, to their use, and channels from
   that of pixels: there are more streams of them than the processor follows by itself. */
enum { TAPS_AHEAD = 16, CHANNELS_AHEAD = 32 };

/* Unrolled in the source: arrays of vectors stay in registers only where all indices are constants
   from the start. */
/* clang-format off */
#define EACH_3(F) F(0); F(1); F(2)
#define EACH_4(F) EACH_3(F); F(3)
#define EACH_5(F) EACH_4(F); F(4)
#define EACH_6(F) EACH_5(F); F(5)
/* clang-format on */

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

/* clang-format off */
static const unsigned char every_plane[PLANES] = {
     0,  1,  2,  3,  4,  5,
     6,  7,  8,  9, 10, 11,
    12, 13, 14, 15, 16, 17,
    18, 19, 20, 21, 22, 23,
    24, 25, 26, 27, 28, 29,
    30, 31, 32, 33, 34, 35};
static const unsigned char upsampled_planes[] = {
     0,  1,      3,  4,  5,
     6,  7,      9, 10, 11,

    18, 19,     21, 22, 23,
    24, 25,     27, 28, 29,
    30, 31,     33, 34, 35};
/* clang-format on */

boot_tile_planes boot_tile_planes_of(const boot_conv_shape *s) {
    return s->upsampled ? (boot_tile_planes){(int)sizeof upsampled_planes, upsampled_planes}
                        : (boot_tile_planes){PLANES, every_plane};
}

void boot_tile_clear_unused(const boot_conv_shape *s, float *m, int64_t plane) {
    for (int q = 0; s->upsampled && q < PLANES; q++)
        if (q / 6 == 2 || q % 6 == 2) memset(m + q * plane, 0, plane * sizeof(float));
}

const boot_tile_transforms *boot_tile_transforms_for_isa(void) {
    switch (boot_isa()) {
    case BOOT_ISA_AVX512:
        return &avx512_transforms;
    case BOOT_ISA_AVX2:
        return &avx2_transforms;
    default:
        return &sse_transforms;
    }
}

/* Floats of U, V and M together that stay in a second-level cache of 1 MiB; of U where shorter
   blocks pay nevertheless, since V takes the less: for products of pairs, always. */
enum { CACHED = 230000, SMALL_U = 600000, SHORT_BLOCK = 24, STEP = 12, MAX_BLOCK = 36 };

/* The most tiles of a block: as many as leave U in the cache, for which it is read again. */
static int64_t longest_block(int64_t K, int64_t C, bool pairs) {
    const int64_t u = PLANES * K * boot_round_up(C, 32), panel = C < 32 ? C : 32;
    const int64_t tiles = (CACHED - u) / (PLANES * (boot_tile_row(K) + panel)) / STEP * STEP;
    if (u > CACHED) return pairs || u < SMALL_U ? SHORT_BLOCK : MAX_BLOCK;
    return tiles < STEP ? STEP : tiles < MAX_BLOCK ? tiles : MAX_BLOCK;
}

/* Either every thread cuts a share of the tiles into blocks (private buffers), or, where those
   would be too small, all threads share each stage of one block. */
boot_tile_cut boot_tile_cut_of(int64_t N, int64_t H, int64_t W, int64_t K, int64_t C, int threads,
                               bool pairs) {
    boot_tile_cut k = {.th = (H + 3) / 4, .tw = (W + 3) / 4};
    k.tiles = N * k.th * k.tw;
    const int64_t most = longest_block(K, C, pairs);
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
