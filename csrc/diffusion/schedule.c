/* schedule.c: betas of each named schedule and their running product. */
#include "diffusion/schedule.h"

#include <math.h>
#include <string.h>

static double lerp(double a, double b, int64_t i, int64_t n) {
    return n > 1 ? a + (b - a) * (double)i / (double)(n - 1) : a;
}

/* abar(u) of the cosine schedule, Nichol and Dhariwal 2021, u in [0, 1]. */
static double cosine_abar(double u) {
    const double c = cos((u + 0.008) / 1.008 * M_PI / 2);
    return c * c;
}

static boot_status beta_at(const boot_schedule_config *s, int64_t i, int64_t N, double *beta) {
    if (!strcmp(s->beta_schedule, "trained_betas")) {
        *beta = s->trained_betas[i];
    } else if (!strcmp(s->beta_schedule, "linear")) {
        *beta = lerp(s->beta_start, s->beta_end, i, N);
    } else if (!strcmp(s->beta_schedule, "scaled_linear")) {
        const double root = lerp(sqrt(s->beta_start), sqrt(s->beta_end), i, N);
        *beta = root * root;
    } else if (!strcmp(s->beta_schedule, "squaredcos_cap_v2")) {
        const double ratio =
            cosine_abar((double)(i + 1) / (double)N) / cosine_abar((double)i / (double)N);
        *beta = fmin(1 - ratio, 0.999);
    } else if (!strcmp(s->beta_schedule, "sigmoid")) {
        *beta = (s->beta_end - s->beta_start) / (1 + exp(-lerp(-6, 6, i, N))) + s->beta_start;
    } else {
        return boot_fail(BOOT_ERR_VALUE,
                         "beta_schedule is \"%s\", expected linear, scaled_linear, "
                         "squaredcos_cap_v2, sigmoid or "
                         "trained_betas",
                         s->beta_schedule);
    }
    if (!(*beta > 0 && *beta < 1))
        return boot_fail(BOOT_ERR_VALUE,
                         "beta_schedule %s: beta %g at index %lld, expected 0 < beta < 1",
                         s->beta_schedule, *beta, (long long)i);
    return BOOT_OK;
}

/* r = sqrt(abar) becomes (r - r_last) r_0 / (r_0 - r_last): the first stays, the last is exactly 0.
 */
static void rescale_zero_snr(int64_t N, double *abar) {
    const double first = sqrt(abar[0]), last = sqrt(abar[N - 1]);
    for (int64_t i = 0; i < N; i++) {
        const double r = (sqrt(abar[i]) - last) * first / (first - last);
        abar[i] = r * r;
    }
}

boot_status boot_alphas_cumprod(const boot_schedule_config *config, int64_t N, double *abar) {
    double product = 1, beta = 0;
    if (N < 1)
        return boot_fail(BOOT_ERR_VALUE, "num_train_timesteps is %lld, expected at least 1",
                         (long long)N);
    for (int64_t i = 0; i < N; i++) {
        BOOT_TRY(beta_at(config, i, N, &beta));
        product *= 1 - beta;
        abar[i] = product;
    }
    if (config->rescale_betas_zero_snr) {
        if (N < 2)
            return boot_fail(BOOT_ERR_VALUE, "rescale_betas_zero_snr needs at least 2 timesteps");
        rescale_zero_snr(N, abar);
    }
    return BOOT_OK;
}

/* abar in a last interval that ends at zero: alpha falls linearly there. */
static double log_abar_towards_zero(double at_start, double start, double t) {
    return 2 * log(exp(0.5 * at_start) * (1 - t) / (1 - start));
}

static double log_abar_at(const boot_schedule_table *table, double t) {
    const double N = (double)table->N, *y = table->log_abar;
    if (!(t > 0)) return t == t ? y[0] : t;
    if (t >= 1) return y[table->N];
    int64_t j = (int64_t)(t * N); /* which may miss by one: t N is rounded */
    if ((double)j / N > t) j--;
    if ((double)(j + 1) / N <= t) j++;
    const double start = (double)j / N, end = (double)(j + 1) / N;
    if (isinf(y[j + 1])) return log_abar_towards_zero(y[j], start, t);
    return (y[j + 1] - y[j]) / (end - start) * (t - start) + y[j];
}

static double lambda_at(const boot_schedule_table *table, double t) {
    const double log_abar = log_abar_at(table, t);
    return 0.5 * log(-expm1(log_abar)) - 0.5 * log_abar;
}

void boot_table_alpha_sigma(const boot_schedule_table *table, int64_t count, const double *t,
                            double *alpha, double *sigma) {
    for (int64_t i = 0; i < count; i++) {
        const double log_abar = log_abar_at(table, t[i]);
        alpha[i] = exp(0.5 * log_abar);
        sigma[i] = sqrt(-expm1(log_abar));
    }
}

void boot_table_lambda(const boot_schedule_table *table, int64_t count, const double *t,
                       double *lambda) {
    for (int64_t i = 0; i < count; i++) lambda[i] = lambda_at(table, t[i]);
}

boot_status boot_table_step_coefficient(const boot_schedule_table *table, int64_t count,
                                        const double *t, const double *s, double *c) {
    for (int64_t i = 0; i < count; i++) {
        if (!(s[i] <= t[i] && s[i] >= 0 && t[i] > 0 && t[i] <= 1))
            return boot_fail(BOOT_ERR_VALUE,
                             "step_coefficient needs 0 <= s <= t <= 1 and t > 0, got t = %g and "
                             "s = %g",
                             t[i], s[i]);
        /* Where s = t = 1 and alpha is 0, the difference would be inf - inf. */
        c[i] = s[i] == t[i] ? 0 : -expm1(lambda_at(table, s[i]) - lambda_at(table, t[i]));
    }
    return BOOT_OK;
}
