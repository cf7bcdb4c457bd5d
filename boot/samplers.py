"""Reference samplers for the teacher, from noise to image: DDIM, Heun, DPM-Solver++(2M).

All work on x: the step from t to s is x_s = alpha_s f + (sigma_s / sigma_t) (x_t - alpha_t f), the
Signal-ODE step without the division by alpha_t, so it is safe where the SNR is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from boot import _core
from boot.schedule import Float64, Schedule
from boot.signal_ode import Images, Signal


def _advance(schedule: Schedule, x: Images, f: Images, t: Float64, s: Float64) -> Images:
    """x_s = alpha_s f + (sigma_s / sigma_t) (x_t - alpha_t f)."""
    alpha_t, sigma_t = schedule.alpha_sigma(t)
    alpha_s, sigma_s = schedule.alpha_sigma(s)
    keep = sigma_s / sigma_t
    return _core.diffuse(f, x, alpha_s - keep * alpha_t, keep)


def sample_ddim(schedule: Schedule, signal: Signal, noise: Images, times: Float64) -> Images:
    """Integrate from x = noise at times[0] down to times[-1], one call of `signal` a step.

    Song et al. 2021. noise: (N,C,H,W) float32; times: falling, see `Schedule.times`. Returns x at
    times[-1].
    """
    x, full = noise, np.ones(len(noise))
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = _advance(schedule, x, signal(x, t * full), t * full, s * full)
    return x


def sample_heun(schedule: Schedule, signal: Signal, noise: Images, times: Float64) -> Images:
    """Like `sample_ddim` with second-order steps: two calls of `signal` a step, one in the last.

    f is averaged with f at the point that the DDIM step predicts; a step to s = 0 stays DDIM.
    """
    x, full = noise, np.ones(len(noise))
    for t, s in zip(times[:-1], times[1:], strict=True):
        f = signal(x, t * full)
        x_s = _advance(schedule, x, f, t * full, s * full)
        if s > 0:
            f_mean = _core.signal_step(f, signal(x_s, s * full), 0.5 * full)
            x_s = _advance(schedule, x, f_mean, t * full, s * full)
        x = x_s
    return x


def sample_dpm(schedule: Schedule, signal: Signal, noise: Images, times: Float64) -> Images:
    """Like `sample_ddim` with DPM-Solver++(2M) steps (Lu et al. 2022, algorithm 2): one call each.

    f is extrapolated from the last two signals to the middle of the step, in log-SNR:
    f + (f - f_last) h / (2 h_last), h the fall of lambda. The first step, the one after a start at
    zero SNR and a step to s = 0 have no such line and stay DDIM.
    """
    x, full = noise, np.ones(len(noise))
    last, h_last = None, 0.0
    heights = schedule.lambda_(times)
    for t, s, h in zip(times[:-1], times[1:], heights[:-1] - heights[1:], strict=True):
        f = signal(x, t * full)
        middle = f
        if last is not None and np.isfinite(h) and np.isfinite(h_last):
            middle = _core.signal_step(f, last, -0.5 * h / h_last * full)
        x = _advance(schedule, x, middle, t * full, s * full)
        last, h_last = f, h
    return x


SAMPLERS: dict[str, Callable[[Schedule, Signal, Images, Float64], Images]] = {
    "ddim": sample_ddim,
    "heun": sample_heun,
    "dpm": sample_dpm,
}
