/* lanes.h: 16 channels of a row as one value, for sums that stay in registers; and sums along a
 * row, in an order that does not depend on the instruction set. */
#ifndef BOOT_LANES_H
#define BOOT_LANES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/isa.h"

/* Channels [c, c + 16) of a row, with zeros where it ends; sums of them stay in registers. */
enum { BOOT_LANES = 16 };
typedef float boot_lanes __attribute__((vector_size(4 * BOOT_LANES), aligned(4), may_alias));
typedef int32_t boot_lane_bits __attribute__((vector_size(4 * BOOT_LANES)));

static inline int64_t boot_least(int64_t a, int64_t b) { return a < b ? a : b; }

/* n, or the next multiple of 16. */
static inline int64_t boot_whole_lanes(int64_t n) {
    return (n + BOOT_LANES - 1) / BOOT_LANES * BOOT_LANES;
}

BOOT_INLINE void boot_load_lanes(boot_lanes *v, const float *row, int64_t c, int64_t C) {
    if (c + BOOT_LANES <= C) {
        *v = *(const boot_lanes *)(row + c);
    } else {
        float part[BOOT_LANES] = {0};
        for (int64_t i = c; i < C; i++) part[i - c] = row[i];
        memcpy(v, part, sizeof part);
    }
}

/* The same; `whole`, a constant: the row has all of them. */
BOOT_INLINE void boot_load_part(boot_lanes *v, const bool whole, const float *row, int64_t c,
                                int64_t C) {
    if (whole)
        *v = *(const boot_lanes *)(row + c);
    else
        boot_load_lanes(v, row, c, C);
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

/* Sum of x[i] y[i]. It runs in 16 lanes: the compiler may not reorder one sum, and would add number
   after number. */
BOOT_INLINE float boot_row_product(const float *x, const float *y, int64_t n) {
    boot_lanes sum = {0}, v, w;
    for (int64_t i = 0; i < n; i += BOOT_LANES) {
        boot_load_lanes(&v, x, i, n);
        boot_load_lanes(&w, y, i, n);
        sum += v * w;
    }
    return boot_sum_of_lanes(&sum);
}

/* 16 rows of 16 floats become columns: after the step of distance S, bit S of row and lane numbers
   have changed places. Fast where a vector has 16 lanes. */
#define BOOT_KEEP(S, l) ((l) & (S) ? 16 + (l) - (S) : (l))
#define BOOT_MOVE(S, l) ((l) & (S) ? 16 + (l) : (l) + (S))
#define BOOT_ALL_LANES(F, S)                                                                       \
    {F(S, 0), F(S, 1), F(S, 2),  F(S, 3),  F(S, 4),  F(S, 5),  F(S, 6),  F(S, 7),                  \
     F(S, 8), F(S, 9), F(S, 10), F(S, 11), F(S, 12), F(S, 13), F(S, 14), F(S, 15)}
#define BOOT_EXCHANGE(S)                                                                           \
    for (int i = 0; i < 16; i++)                                                                   \
        if (!(i & S)) {                                                                            \
            const boot_lanes a = r[i], b = r[i + S];                                               \
            r[i] = __builtin_shuffle(a, b, (boot_lane_bits)BOOT_ALL_LANES(BOOT_KEEP, S));          \
            r[i + S] = __builtin_shuffle(a, b, (boot_lane_bits)BOOT_ALL_LANES(BOOT_MOVE, S));      \
        }
BOOT_INLINE void boot_transpose_lanes(boot_lanes r[16]) {
    BOOT_EXCHANGE(8)
    BOOT_EXCHANGE(4)
    BOOT_EXCHANGE(2)
    BOOT_EXCHANGE(1)
}

#endif
