/* lanes.h: 16 channels of a row as one value, for sums that stay in registers. */
#ifndef BOOT_LANES_H
#define BOOT_LANES_H

#include <stdint.h>
#include <string.h>

#include "base/isa.h"

/* Channels [c, c + 16) of a row, with zeros where it ends; sums of them stay in registers. */
enum { BOOT_LANES = 16 };
typedef float boot_lanes __attribute__((vector_size(4 * BOOT_LANES), aligned(4), may_alias));

BOOT_INLINE void boot_load_lanes(boot_lanes *v, const float *row, int64_t c, int64_t C) {
    if (c + BOOT_LANES <= C) {
        *v = *(const boot_lanes *)(row + c);
    } else {
        float part[BOOT_LANES] = {0};
        for (int64_t i = c; i < C; i++) part[i - c] = row[i];
        memcpy(v, part, sizeof part);
    }
}

BOOT_INLINE void boot_store_lanes(float *row, int64_t c, int64_t C, const boot_lanes *v) {
    if (c + BOOT_LANES <= C)
        *(boot_lanes *)(row + c) = *v;
    else
        memcpy(row + c, v, (C - c) * sizeof(float));
}

#endif
