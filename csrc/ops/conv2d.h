/* conv2d.h: what a convolution kernel is, so that conv2d.c can choose among several. */
#ifndef BOOT_CONV2D_H
#define BOOT_CONV2D_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dnnl.h"
#include "ops/packs.h"
#include "ops/tuner.h"

typedef enum {
    BOOT_CONV_FORWARD = 0,
    BOOT_CONV_DATA,
    BOOT_CONV_WEIGHTS,
    BOOT_CONV_DIRECTIONS,
    BOOT_CONV_ALL = (1 << BOOT_CONV_DIRECTIONS) - 1 /* a bit of each */
} boot_conv_direction;

typedef struct {
    int64_t N, H, W, I; /* input images */
    int64_t Ho, Wo, O;  /* output images */
    int64_t k, stride, pad_begin, pad_end;
    bool has_bias;
    /* x and dx are (N, H/2, W/2, I): each pixel stands for 2x2 of the image (upsample_nearest).
       Most kernels do not apply. */
    bool upsampled;
} boot_conv_shape;

/* Floats behind a weight that kernels may read (never use): vector loads of 9 taps go over the end.
 */
enum { BOOT_CONV_SLACK = 16 };

/* Arrays of one call. x, dx: (N, H, W, I), halved where upsampled, with pixel stride ldx; y, dy,
   residual: (N, Ho, Wo, O) with pixel strides ldy, ldr; weight, dweight: (O, I, k, k) dense; bias:
   (O); temb: (N, O). */
typedef struct {
    const float *x, *weight, *bias, *temb, *residual, *dy;
    float *y, *dx, *dweight;
    int64_t ldx, ldy, ldr, ldt; /* ldt: row stride of temb */
    float scale;                /* forward: y = scale (conv + bias + temb + residual) */
    bool accumulate;            /* data: dx += */
    float *pixel_sums;          /* weights: (N, O), of dy over the pixels of each image, or NULL */
    float *scratch;
    boot_packs *packs; /* keep packed weights here; NULL: pack into scratch every time */
} boot_conv_args;

typedef struct {
    const char *name;
    bool fused; /* forward: run() applies temb, residual and scale itself; data: honours accumulate
                 */
    bool team;  /* run() is for every thread of a team; else for one, and it forks by itself */
    bool sums;  /* weights: fills pixel_sums */
    unsigned automatic; /* bits of the directions whose timing it takes part in */
    double handicap;    /* its time is multiplied by this: the price of separate epilogues and large
                           scratch, and what shows only in a whole network */
    bool (*applies)(const boot_conv_shape *shape, boot_conv_direction direction);
    boot_status (*create)(const boot_conv_shape *shape, boot_conv_direction direction,
                          boot_dnnl *dnnl, void **state, int64_t *scratch_floats);
    /* Optional: fills the pack of args->weight in args->packs if it is out of date. */
    boot_status (*pack)(void *state, const boot_conv_shape *shape, boot_conv_direction direction,
                        const boot_conv_args *args);
    boot_status (*run)(void *state, const boot_conv_shape *shape, boot_conv_direction direction,
                       const boot_conv_args *args);
    void (*destroy)(void *state);
    /* Optional: what it keeps where packed weights are kept. */
    boot_pack_need (*pack_need)(const void *state, const boot_conv_shape *shape,
                                boot_conv_direction direction);
} boot_conv_kernel;

extern const boot_conv_kernel boot_conv_direct, boot_conv_dnnl_winograd, boot_conv_winograd,
    boot_conv_plain, boot_conv_taps, boot_conv_columns, boot_conv_winograd_pairs;

/* All kernels; boot_conv_kernels[0] is "auto" (NULL). */
enum { BOOT_NUM_CONV_KERNELS = 8 };
extern const boot_conv_kernel *const boot_conv_kernels[BOOT_NUM_CONV_KERNELS];

/* y = scale (y + temb + residual) of pixels [first, first + pixels), all of image n. */
void boot_conv_finish_rows(int64_t pixels, const boot_conv_shape *s, const boot_conv_args *t,
                           int64_t n, int64_t first);

/* Look number `look` at the kernels for one direction of a layer where none is known, nor `pinned`
   (an index of boot_conv_kernels, 0: none): times all of them, or in later looks the two that were
   close once more. */
boot_status boot_conv_look(int pinned, const boot_conv_shape *shape, boot_conv_direction direction,
                           boot_plan_context *context, int look);

/* The kernel for one direction of the layer `name`: the pinned one, or what the context knows, or
   else one by rule. */
boot_status boot_conv_choose(const char *name, int pinned, const boot_conv_shape *shape,
                             boot_conv_direction direction, const boot_plan_context *context,
                             const boot_conv_kernel **chosen);

/* How a timed run finds its weights: to be packed, kept packed by the run before, kept packed in
   the third-level cache, or in memory. */
typedef enum {
    BOOT_PACK_AGAIN,
    BOOT_PACK_KEPT,
    BOOT_PACK_KEPT_FAR,
    BOOT_PACK_KEPT_COLD
} boot_conv_packing;

/* Best of up to `repeats` runs in seconds on made-up data, for the tuner and for benchmarks. Stops
   early once a run took longer than `give_up` seconds: such a kernel has lost. BOOT_ERR_MEMORY if
   that takes more than `limit` bytes; 0: no limit. */
boot_status boot_conv_time(const boot_conv_kernel *kernel, const boot_conv_shape *shape,
                           boot_conv_direction direction, boot_dnnl *dnnl, int repeats,
                           double give_up, boot_conv_packing packing, int64_t limit,
                           double *seconds);

#endif
