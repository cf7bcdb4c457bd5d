"""The Signal-ODE dy/dt = -lambda'_t (f(x_t, t) - y_t): its exact steps, and whole trajectories.

y_t = (x_t - sigma_t eps) / alpha_t, where eps is the fixed start noise of the trajectory. The step
from t to s < t (the DDIM step, rewritten) is y_s = y_t + C (f - y_t); see `Schedule`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from boot import _core
from boot.schedule import Float64, Schedule

Images = NDArray[np.float32]
Signal = Callable[[Images, Float64], Images]  # (x (N,C,H,W), t (N,)) -> f (N,C,H,W)


def diffuse(schedule: Schedule, y: Images, eps: Images, t: Float64) -> Images:
    """Return x_t = alpha_t y + sigma_t eps. y, eps: (N,C,H,W); t: (N,)."""
    alpha, sigma = schedule.alpha_sigma(t)
    return _core.diffuse(y, eps, alpha, sigma)


def euler_step(schedule: Schedule, y: Images, f: Images, t: Float64, s: Float64) -> Images:
    """Return y_s = y_t + C (f - y_t). y, f: (N,C,H,W); t, s: (N,)."""
    return _core.signal_step(y, f, schedule.step_coefficient(t, s))


def heun_step(
    schedule: Schedule, y: Images, f: Images, f_s: Images, t: Float64, s: Float64
) -> Images:
    """Return y_s = y_t + C ((f + f_s) / 2 - y_t), f_s the signal at the point Euler predicts.

    The trapezoid rule in exp(-lambda); unlike EDM's form it never divides by sigma_s.
    """
    return _core.signal_step_heun(y, f, f_s, schedule.step_coefficient(t, s))


def midpoint_step(schedule: Schedule, y: Images, f_mid: Images, t: Float64, s: Float64) -> Images:
    """Return y_s = y_t + C (f_mid - y_t), f_mid the signal at the point Euler predicts half-way."""
    return euler_step(schedule, y, f_mid, t, s)


def step(
    schedule: Schedule,
    signal: Signal,
    eps: Images,
    y: Images,
    f: Images,
    t: Float64,
    s: Float64,
    solver: str,
    grid: int | None = None,
) -> Images:
    """Return the target y_s from y_t and f = signal(x_t, t), by "euler", "heun" or "midpoint".

    Heun calls `signal` once more, at (x_s, s); where s = 0 there is nothing to call it on (x_0 is
    the image itself), and it falls back to Euler. Midpoint calls it once more, at (t + s) / 2. Both
    are of second order. grid: times in between are multiples of 1/grid; None: any.
    """
    if solver == "midpoint":
        mid = between(t, s, 0.5, grid)
        y_mid = euler_step(schedule, y, f, t, mid)
        return midpoint_step(schedule, y, signal(diffuse(schedule, y_mid, eps, mid), mid), t, s)
    y_s = euler_step(schedule, y, f, t, s)
    if solver == "euler" or not np.all(s > 0):
        return y_s
    f_s = signal(diffuse(schedule, y_s, eps, s), s)
    return heun_step(schedule, y, f, f_s, t, s)


def substeps(
    schedule: Schedule,
    signal: Signal,
    eps: Images,
    y: Images,
    f: Images,
    t: Float64,
    s: Float64,
    solver: str,
    count: int = 1,
    grid: int | None = None,
) -> Images:
    """Return y_s like `step`, in `count` steps of equal length in time."""
    start = t
    for k in range(count):
        end = between(t, s, (k + 1) / count, grid) if k + 1 < count else s
        if k > 0:
            f = signal(diffuse(schedule, y, eps, start), start)
        y = step(schedule, signal, eps, y, f, start, end, solver, grid)
        start = end
    return y


def between(t: Float64, s: Float64, share: float, grid: int | None = None) -> Float64:
    """Return the time at a share of the way from t to s, on a grid of 1/grid if there is one."""
    time = t + share * (s - t)
    return time if grid is None else np.clip(np.rint(time * grid) / grid, s, t)


def trajectory(
    schedule: Schedule,
    signal: Signal,
    eps: Images,
    times: Float64,
    solver: str = "euler",
    grid: int | None = None,
) -> list[Images]:
    """Return y at every time of `times` (falling), from y = f at `schedule.start(eps, times[0])`.

    That start is the boundary condition that students are trained with, so with the times and the
    solver of the training this is the fixed point of its loss. eps: (N,C,H,W).
    """
    full = np.ones(len(eps))
    y = signal(schedule.start(eps, times[0]), times[0] * full)
    path = [y]
    for t, s in zip(times[:-1], times[1:], strict=True):
        f = signal(diffuse(schedule, y, eps, t * full), t * full)
        y = step(schedule, signal, eps, y, f, t * full, s * full, solver, grid)
        path.append(y)
    return path


def training_times(schedule: Schedule, t_max: float, t_min: float, delta: float) -> Float64:
    """Return the times t_max, t_max - delta, ..., t_min that steps of `delta` pass through."""
    count = max(1, int(np.ceil((t_max - t_min) / delta - 1e-9)))
    return np.append(t_max - delta * np.arange(count), t_min)
