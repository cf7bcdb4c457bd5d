/* tensor.h: a view of float32 memory that somebody else owns. */
#ifndef BOOT_TENSOR_H
#define BOOT_TENSOR_H

#include <stdint.h>

/* Activations are (n, h, w, c), channels innermost, `ld` floats from one pixel to the next (ld >=
   c, so a tensor may be a channel slice of a wider one). Weights use the same four numbers for
   their own four dimensions, e.g. (out, in, k, k) for a convolution, dense, with unused trailing
   ones. */
typedef struct {
    int64_t n, h, w, c, ld;
    float *data;
} boot_tensor;

static inline boot_tensor boot_shape(int64_t n, int64_t h, int64_t w, int64_t c) {
    return (boot_tensor){n, h, w, c, c, 0};
}
static inline int64_t boot_pixels(const boot_tensor *t) { return t->n * t->h * t->w; }
static inline int64_t boot_count(const boot_tensor *t) { return t->n * t->h * t->w * t->c; }
/* Elements behind one index of the first dimension: the row length of a vector or matrix. */
static inline int64_t boot_row(const boot_tensor *t) { return t->h * t->w * t->c; }

#endif
