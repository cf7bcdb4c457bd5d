/* lanes.h: 16 channels of a row as one value, for sums that stay in registers; and sums along a
 * row, in an order that does not depend on the instruction set. */
#ifndef BOOT_LANES_H
#define BOOT_LANES_H

#include <math.h>
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

/* Sum of the lanes, halves upon halves. */
BOOT_INLINE float boot_sum_of_lanes(const boot_lanes *v) {
    float x[BOOT_LANES];
    memcpy(x, v, sizeof x);
    for (int width = BOOT_LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
}

/* Sums run in 16 lanes: the compiler may not reorder one sum, and would add number after number. */
BOOT_INLINE float boot_row_sum(const float *x, int64_t n) {
    boot_lanes sum = {0}, v;
    for (int64_t i = 0; i < n; i += BOOT_LANES) {
        boot_load_lanes(&v, x, i, n);
        sum += v;
    }
    return boot_sum_of_lanes(&sum);
}

/* Sum of x[i] y[i]. */
BOOT_INLINE float boot_row_product(const float *x, const float *y, int64_t n) {
    boot_lanes sum = {0}, v, w;
    for (int64_t i = 0; i < n; i += BOOT_LANES) {
        boot_load_lanes(&v, x, i, n);
        boot_load_lanes(&w, y, i, n);
        sum += v * w;
    }
    return boot_sum_of_lanes(&sum);
}

/* Largest of n >= 1 numbers, NaN left out. */
BOOT_INLINE float boot_row_max(const float *x, int64_t n) {
    float most[BOOT_LANES];
    int64_t i = 0;
    for (int lane = 0; lane < BOOT_LANES; lane++) most[lane] = -INFINITY;
    for (; i + BOOT_LANES <= n; i += BOOT_LANES)
        for (int lane = 0; lane < BOOT_LANES; lane++)
            most[lane] = x[i + lane] > most[lane] ? x[i + lane] : most[lane];
    for (; i < n; i++) most[0] = x[i] > most[0] ? x[i] : most[0];
    for (int lane = 1; lane < BOOT_LANES; lane++)
        most[0] = most[lane] > most[0] ? most[lane] : most[0];
    return most[0];
}

#endif
