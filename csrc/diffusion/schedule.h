/* schedule.h: noise schedules of the diffusers schedulers as tables of alphas_cumprod, in float64.
 */
#ifndef BOOT_SCHEDULE_H
#define BOOT_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct {
    const char
        *beta_schedule; /* linear, scaled_linear, squaredcos_cap_v2, sigmoid, or trained_betas */
    double beta_start, beta_end;
    const double *trained_betas; /* (num_train_timesteps), for "trained_betas" only */
    bool rescale_betas_zero_snr; /* Lin et al. 2024: shift sqrt(abar) so that the last one is 0 */
} boot_schedule_config;

/* alphas_cumprod: (num_train_timesteps) = running product of 1 - beta. */
boot_status boot_alphas_cumprod(const boot_schedule_config *config, int64_t num_train_timesteps,
                                double *alphas_cumprod);

/* log abar on the grid: N + 1 numbers at the times 0, 1/N, ..., 1, the first 0, the last -inf where
   the terminal SNR is zero. In between it is linear in t, but in a last interval that ends at -inf,
   where alpha is. */
typedef struct {
    const double *log_abar;
    int64_t N;
} boot_schedule_table;

/* alpha = sqrt(abar) and sigma = sqrt(1 - abar) at `count` times in [0, 1]. */
void boot_table_alpha_sigma(const boot_schedule_table *table, int64_t count, const double *t,
                            double *alpha, double *sigma);
/* lambda = log(sigma / alpha), -inf at t = 0. */
void boot_table_lambda(const boot_schedule_table *table, int64_t count, const double *t,
                       double *lambda);
/* c = 1 - (sigma_s alpha_t) / (alpha_s sigma_t) of the steps from t to s; BOOT_ERR_VALUE unless
   0 <= s <= t <= 1 and t > 0. */
boot_status boot_table_step_coefficient(const boot_schedule_table *table, int64_t count,
                                        const double *t, const double *s, double *c);

#endif
