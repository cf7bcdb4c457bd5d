/* signal.c: Signal-ODE step, prediction types, guidance and loss. */
#include "diffusion/signal.h"

#include <math.h>
#include <stddef.h>

#define FOR_EACH_IMAGE                                                                             \
    _Pragma("omp parallel for schedule(static) if (n * count > 65536)") for (int64_t i = 0; i < n; \
                                                                             i++)

/* NaN goes through: it must be seen, not hidden. */
static float clamp(float x, float limit) { return x > limit ? limit : x < -limit ? -limit : x; }

/* f = a x + b output, then the clip. All prediction types are of this form. */
static void affine_image(int64_t count, float a, const float *x, float b, const float *output,
                         float clip, float *f) {
    for (int64_t k = 0; k < count; k++) {
        const float v = a * x[k] + b * output[k];
        f[k] = clip > 0 ? clamp(v, clip) : v;
    }
}

boot_status boot_signal_from_output(boot_prediction prediction, int64_t n, int64_t count,
                                    const float *output, const float *x_t, const double *alpha,
                                    const double *sigma, double clip, float *f) {
    for (int64_t i = 0; i < n; i++)
        if (prediction == BOOT_PREDICT_EPSILON && !(alpha[i] > 0))
            return boot_fail(
                BOOT_ERR_VALUE,
                "signal: alpha is %g for image %lld, and an epsilon prediction holds no signal "
                "there; expected alpha > 0 (choose a smaller t_max)",
                alpha[i], (long long)i);
    FOR_EACH_IMAGE {
        float a = 0, b = 1;
        if (prediction == BOOT_PREDICT_EPSILON)
            a = (float)(1 / alpha[i]), b = (float)(-sigma[i] / alpha[i]);
        if (prediction == BOOT_PREDICT_V) {
            const double square = alpha[i] * alpha[i] + sigma[i] * sigma[i];
            a = (float)(alpha[i] / square), b = (float)(-sigma[i] / square);
        }
        if (prediction == BOOT_PREDICT_FLOW) {
            const double sum = alpha[i] + sigma[i];
            a = (float)(1 / sum), b = (float)(-sigma[i] / sum);
        }
        affine_image(count, a, x_t + i * count, b, output + i * count, (float)clip, f + i * count);
    }
    return BOOT_OK;
}

void boot_diffuse(int64_t n, int64_t count, const float *y, const float *eps, const double *alpha,
                  const double *sigma, float *x_t) {
    FOR_EACH_IMAGE affine_image(count, (float)alpha[i], y + i * count, (float)sigma[i],
                                eps + i * count, 0, x_t + i * count);
}

void boot_signal_step(int64_t n, int64_t count, const float *y, const float *f, const float *f2,
                      const double *c, float *y_s) {
    FOR_EACH_IMAGE {
        const float step = (float)c[i];
        for (int64_t k = i * count; k < (i + 1) * count; k++) {
            const float to = f2 ? 0.5f * (f[k] + f2[k]) : f[k];
            y_s[k] = y[k] + step * (to - y[k]);
        }
    }
}

void boot_guide(int64_t n, int64_t count, const float *f_cond, const float *f_null, const double *w,
                float *f) {
    FOR_EACH_IMAGE {
        const float scale = (float)w[i];
        for (int64_t k = i * count; k < (i + 1) * count; k++)
            f[k] = f_null[k] + scale * (f_cond[k] - f_null[k]);
    }
}

static boot_status finite_loss(double loss) {
    if (isfinite(loss)) return BOOT_OK;
    return boot_fail(BOOT_ERR_NONFINITE, "loss is %g, expected a finite number", loss);
}

/* d = y - target in place of dy, and mean d^2 in a fixed order. */
static double difference(int64_t count, const float *y, const float *target, float *d) {
    double sum = 0;
    for (int64_t k = 0; k < count; k++) {
        d[k] = y[k] - target[k];
        sum += (double)d[k] * d[k];
    }
    return sum / (double)count;
}

static void scale(int64_t count, float by, float *d) {
    for (int64_t k = 0; k < count; k++) d[k] *= by;
}

boot_status boot_weighted_mse(int64_t n, int64_t count, const float *y, const float *target,
                              const double *weight, double *loss, float *dy) {
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        total += weight[i] * difference(count, y + i * count, target + i * count, dy + i * count);
        scale(count, (float)(2 * weight[i] / (double)count), dy + i * count);
    }
    *loss = total;
    return finite_loss(total);
}

boot_status boot_weighted_huber(int64_t n, int64_t count, const float *y, const float *target,
                                const double *weight, double c, double *loss, float *dy) {
    double total = 0;
    if (!(c > 0) || !isfinite(c))
        return boot_fail(BOOT_ERR_VALUE, "pseudo-Huber: c is %g, expected a finite number > 0", c);
    for (int64_t i = 0; i < n; i++) {
        const double mse = difference(count, y + i * count, target + i * count, dy + i * count);
        const double root = sqrt(mse + c * c);
        total += weight[i] * (mse / (root + c)); /* root - c, without the cancellation */
        scale(count, (float)(weight[i] / (root * (double)count)), dy + i * count);
    }
    *loss = total;
    return finite_loss(total);
}
