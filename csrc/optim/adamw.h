/* adamw.h: AdamW with global-norm clipping and an exponential moving average, one pass over flat
 * buffers. */
#ifndef BOOT_ADAMW_H
#define BOOT_ADAMW_H

#include <stdint.h>

#include "base/status.h"

#define BOOT_ADAMW_LEAST_EPSILON 1e-30

typedef struct {
    int64_t step; /* 1 for the first */
    double learning_rate, beta1, beta2, epsilon, weight_decay;
    double max_grad_norm; /* 0: no clipping */
    double ema_decay;     /* ema = decay ema + (1 - decay) weights */
} boot_adamw_config;

/* All arrays: (count). `ema` may be NULL. *norm is the gradient's length before clipping.
     g' = g min(1, max_grad_norm / (norm + 1e-6))       m = b1 m + (1 - b1) g'    v = b2 v + (1 -
   b2) g'^2 w -= lr weight_decay w + lr (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) + epsilon)
   (Loshchilov and Hutter 2019). BOOT_ERR_NONFINITE, with nothing changed, when a gradient is not
   finite, or so large that its square is not; BOOT_ERR_VALUE for an epsilon below the least. */
boot_status boot_adamw_step(const boot_adamw_config *config, int64_t count, float *weights,
                            const float *grads, float *m, float *v, float *ema, double *norm);

/* The same with m and v kept as bfloat16, the upper halves of floats. They are computed in float32
   and rounded up or down at random, in the mean to what they are: to nearest, v would stand still,
   whose steps are below half a bfloat16's. The random bits are a function of (step, index) alone.
 */
boot_status boot_adamw_step_bfloat16(const boot_adamw_config *config, int64_t count, float *weights,
                                     const float *grads, uint16_t *m, uint16_t *v, float *ema,
                                     double *norm);

/* The first thing that an update does, alone: *norm, and BOOT_ERR_NONFINITE if it would refuse
   grads (count). */
boot_status boot_check_grads(int64_t count, const float *grads, double max_grad_norm, double *norm);

#endif
