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

#endif
