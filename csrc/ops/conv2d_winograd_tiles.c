/* conv2d_winograd_tiles.c: the tile transforms of conv2d_winograd.c, compiled for every instruction
 * set. */
#include <string.h>

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
