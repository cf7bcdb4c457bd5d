"""What a training step aims at, beside the Signal-ODE: step length, range of times, weights, loss.

Every function here is one setting of `DistillConfig`; how they come together is
`Distiller._loss_and_gradient`. The equations are in docs/method.md.
"""

from __future__ import annotations

import numpy as np

from boot import _core
from boot.config import DistillConfig
from boot.network import Images
from boot.schedule import Float64, Schedule


def progress(config: DistillConfig, step: int) -> float:
    """Return how far a run is at a step counted from 0: 0 at the first, 1 at the last."""
    return min(1.0, step / max(1, config.max_train_steps - 1))


def delta(config: DistillConfig, step: int) -> float:
    """Return the step length of the Signal-ODE, at a training step counted from 0.

    `delta_schedule` linear goes from `delta_start` to `delta`: long steps first, which reach the
    image end in few bootstraps, then short ones, which are exact.
    """
    if config.delta_schedule == "constant":
        return config.delta
    return config.delta_start + progress(config, step) * (config.delta - config.delta_start)


def lowest_time(config: DistillConfig, step: int, t_min: float, t_max: float) -> float:
    """Return the lower end of the times that are drawn, at a training step counted from 0.

    `t_distribution` progressive moves it from t_max to t_min in the first `progressive_fraction`
    of the run, so that a time is trained once those above it, which its targets rest on, were.
    """
    if config.t_distribution == "uniform":
        return t_min
    share = progress(config, step) / config.progressive_fraction
    return t_max - min(1.0, share) * (t_max - t_min)


def weights(config: DistillConfig, schedule: Schedule, t: Float64, s: Float64) -> Float64:
    """Return omega (N,), the weight of || y(eps, s) - y* ||^2 for steps from t to s.

    By the step coefficient C, kept at least c_floor: 1/C^2 ("inverse_c2": the error of f), 1/C, 1.
    By SNR = alpha_s^2 / sigma_s^2, for a loss on signals: max(SNR, 1) and SNR + 1 (Salimans and
    Ho, Progressive Distillation, 2022, section 4), min(SNR, snr_gamma) (Hang et al., Efficient
    Diffusion Training via Min-SNR, 2023).
    """
    power = {"inverse_c2": 2.0, "inverse_c": 1.0, "uniform": 0.0}.get(config.loss_weight)
    if power is not None:
        return np.maximum(schedule.step_coefficient(t, s), config.c_floor) ** -power
    snr = np.exp(-2.0 * schedule.lambda_(s))
    if config.loss_weight == "truncated_snr":
        return np.maximum(snr, 1.0)
    if config.loss_weight == "snr_plus_one":
        return snr + 1.0
    return np.minimum(snr, config.snr_gamma)


def distance(
    config: DistillConfig, y: Images, target: Images, weight: Float64
) -> tuple[float, Images]:
    """Return sum_n weight_n d(y_n, target_n), and its gradient with respect to y.

    d is the mean square, or the pseudo-Huber distance sqrt(mean square + c^2) - c (Song and
    Dhariwal, Improved Techniques for Training Consistency Models, 2023) with c = huber_c.
    """
    if config.loss == "l2":
        return _core.weighted_mse(y, target, weight)
    return _core.weighted_huber(y, target, weight, config.huber_c)
