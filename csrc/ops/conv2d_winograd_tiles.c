/* conv2d_winograd_tiles.c: the tile transforms of conv2d_winograd.c, compiled for every instruction
 * set. */
#include <string.h>

#include "base/isa.h"
#include "ops/conv2d_winograd.h"

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
