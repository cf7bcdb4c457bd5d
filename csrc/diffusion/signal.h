/* signal.h: the Signal-ODE and its pieces, element by element over images. docs/method.md numbers
 * the equations.
 *
 * Every array holds `n` images of `count` floats; per-image numbers (alpha, sigma, c, w, weight)
 * are float64. */
#ifndef BOOT_SIGNAL_H
#define BOOT_SIGNAL_H

#include <stdint.h>

#include "base/status.h"

typedef enum {
    BOOT_PREDICT_EPSILON,
    BOOT_PREDICT_V,
    BOOT_PREDICT_SAMPLE,
    BOOT_PREDICT_FLOW,
    BOOT_NUM_PREDICTIONS
} boot_prediction;

/* The teacher as signal predictor f(x_t, t), from what its network returns; clipped to [-clip,
   clip] if clip > 0. For any alpha and sigma, variance preserving or not:
     epsilon  output = eps                        f = (x_t - sigma output) / alpha
     v        output = alpha eps - sigma x_0      f = (alpha x_t - sigma output) / (alpha^2 +
   sigma^2) sample   output = x_0                        f = output flow     output = eps - x_0 f =
   (x_t - sigma output) / (alpha + sigma) BOOT_ERR_VALUE where epsilon meets alpha == 0: there is no
   signal to recover. */
boot_status boot_signal_from_output(boot_prediction prediction, int64_t n, int64_t count,
                                    const float *output, const float *x_t, const double *alpha,
                                    const double *sigma, double clip, float *f);

/* x_t = alpha y + sigma eps */
void boot_diffuse(int64_t n, int64_t count, const float *y, const float *eps, const double *alpha,
                  const double *sigma, float *x_t);

/* Exact Signal-ODE (DDIM) step: y_s = y_t + c (f - y_t), c = 1 - (sigma_s alpha_t) / (alpha_s
   sigma_t). f2 != NULL: Heun's step with the mean of f and f2. */
void boot_signal_step(int64_t n, int64_t count, const float *y, const float *f, const float *f2,
                      const double *c, float *y_s);

/* Classifier-free guidance: f = f_null + w (f_cond - f_null). */
void boot_guide(int64_t n, int64_t count, const float *f_cond, const float *f_null, const double *w,
                float *f);

/* loss = sum_n weight_n mean (y - target)^2, and its gradient dy. Sums in float64, in a fixed
   order. BOOT_ERR_NONFINITE when the loss is not finite. */
boot_status boot_weighted_mse(int64_t n, int64_t count, const float *y, const float *target,
                              const double *weight, double *loss, float *dy);

/* The same with the pseudo-Huber distance sqrt(mean (y - target)^2 + c^2) - c, c > 0: that of Song
   and Dhariwal (2023) divided by sqrt(count), so that c means the same for any image size. */
boot_status boot_weighted_huber(int64_t n, int64_t count, const float *y, const float *target,
                                const double *weight, double c, double *loss, float *dy);

#endif
