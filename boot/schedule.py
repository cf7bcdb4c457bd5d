"""The noise process of a teacher on the unit interval: alpha, sigma, step coefficients in float64.

Notation: x_t = alpha_t x_0 + sigma_t eps. Index i of an N-step schedule stands for the time
t = (i + 1) / N, and abar(0) = 1; between indices log(alphas_cumprod) is interpolated linearly.
`lambda_t` is the *negative half* log-SNR, log(sigma_t / alpha_t): it grows with t.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boot import _core
from boot.config import AUTO_ALPHA_FLOOR, AUTO_T_MAX
from boot.errors import check_float
from boot.scheduler_config import SchedulerConfig

Float64 = NDArray[np.float64]

# N * (k / N) can miss the whole number k by rounding; an index this close to one is that one.
_WHOLE = 1e-6


class Schedule:
    """A variance-preserving noise process given by a table of `alphas_cumprod`.

    alphas_cumprod: (N,) float64, falling, in (0, 1); the last one may be 0 (zero terminal SNR).
    All methods take a time or an array of times in [0, 1] and return float64 of the same shape.
    """

    def __init__(self, alphas_cumprod: ArrayLike) -> None:
        """Check the table; ValueError if it does not fall from below 1 to 0 or more."""
        table = np.array(alphas_cumprod, np.float64)
        if table.ndim != 1 or table.size < 2:
            raise ValueError(f"alphas_cumprod must have shape (N >= 2,), got {table.shape}")
        falls = np.all(np.diff(table) < 0) and table[0] < 1 and table[-1] >= 0
        if not np.isfinite(table).all() or not falls:
            raise ValueError(
                "alphas_cumprod must fall strictly from below 1 to 0 or more, got "
                f"{table[0]:.6g} ... {table[-1]:.6g}"
            )
        self.alphas_cumprod: Float64 = table
        self.num_train_timesteps: int = len(table)
        self._grid = np.arange(len(table) + 1) / len(table)
        with np.errstate(divide="ignore"):
            self._log_abar = np.concatenate([[0.0], np.log(table)])
        table.flags.writeable = False

    @classmethod
    def from_config(cls, config: SchedulerConfig) -> Schedule:
        """Build the table that diffusers' schedulers build from the same config, in float64."""
        return cls(
            _core.alphas_cumprod(
                config.beta_schedule,
                config.num_train_timesteps,
                config.beta_start,
                config.beta_end,
                config.trained_betas,
                config.rescale_betas_zero_snr,
            )
        )

    # ------------------------------------------------------------------------------- time grid

    def index(self, t: Any) -> Float64:
        """Return the timestep index N t - 1 that the network is fed; may be fractional."""
        exact = np.asarray(t, np.float64) * self.num_train_timesteps - 1.0
        whole = np.rint(exact)
        result: Float64 = np.where(np.abs(exact - whole) < _WHOLE, whole, exact)
        return result

    def time(self, index: Any) -> Float64:
        """Return the time (index + 1) / N of a timestep index."""
        return (np.asarray(index, np.float64) + 1.0) / self.num_train_timesteps

    def snap(self, t: float) -> float:
        """Return the time on the grid (a multiple of 1/N, at least 1/N) that is nearest to t."""
        check_float("t", t, 0, 1)
        return max(1, round(t * self.num_train_timesteps)) / self.num_train_timesteps

    def times(self, t_start: float, t_end: float, steps: int) -> Float64:
        """Return (steps + 1,) falling times on the grid, evenly spread from t_start to t_end.

        Raises ValueError when the grid holds fewer than `steps` steps between the two.
        """
        first, last = (round(t * self.num_train_timesteps) for t in (t_start, t_end))
        if not 1 <= steps <= first - last:
            raise ValueError(
                f"steps must be 1 ... {first - last} between t = {t_start} and t = {t_end} on a "
                f"schedule of {self.num_train_timesteps} timesteps, got {steps}"
            )
        times: Float64 = np.rint(np.linspace(first, last, steps + 1)) / self.num_train_timesteps
        return times

    # ------------------------------------------------------------------------ signal and noise

    def log_alpha_bar(self, t: Any) -> Float64:
        """Return log abar(t) = 2 log alpha_t; -inf only at t = 1 of a zero-terminal-SNR table."""
        t = np.asarray(t, np.float64)
        with np.errstate(invalid="ignore"):  # 0 * -inf inside a last interval that ends at -inf
            result: Float64 = np.asarray(np.interp(t, self._grid, self._log_abar))
        if self._log_abar[-1] != -math.inf:
            return result
        # Zero terminal SNR: the logarithm has no end value to interpolate to, alpha itself has.
        start, left = self._grid[-2], np.exp(0.5 * self._log_abar[-2])
        share = np.clip((1.0 - t) / (1.0 - start), 0.0, 1.0)
        with np.errstate(divide="ignore"):
            result = np.where(t > start, 2.0 * np.log(left * share), result)
        return result

    def alpha_sigma(self, t: Any) -> tuple[Float64, Float64]:
        """Return alpha_t = sqrt(abar) and sigma_t = sqrt(1 - abar), accurate at both ends."""
        log_abar = self.log_alpha_bar(t)
        return np.exp(0.5 * log_abar), np.sqrt(-np.expm1(log_abar))

    def lambda_(self, t: Any) -> Float64:
        """Return log(sigma_t / alpha_t), the negative half log-SNR; -inf at t = 0."""
        log_abar = self.log_alpha_bar(t)
        with np.errstate(divide="ignore"):
            return 0.5 * np.log(-np.expm1(log_abar)) - 0.5 * log_abar

    def step_coefficient(self, t: Any, s: Any) -> Float64:
        """Return C = 1 - (sigma_s alpha_t) / (alpha_s sigma_t) of the step from t to s, in [0, 1].

        0 <= s <= t, t > 0. C is 1 for s = 0 and for alpha_t = 0: such a step forgets y_t.
        """
        t, s = np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(s, np.float64))
        if not (np.all(s <= t) and np.all(s >= 0) and np.all(t > 0) and np.all(t <= 1)):
            raise ValueError("step_coefficient needs 0 <= s <= t <= 1 and t > 0")
        with np.errstate(invalid="ignore"):  # s = t = 1 with alpha = 0 is inf - inf
            coefficient = -np.expm1(self.lambda_(s) - self.lambda_(t))
        return np.where(s == t, 0.0, coefficient)

    # --------------------------------------------------------------------------- default t_max

    def default_t_max(self, prediction_type: str) -> float:
        """Return the noise end used when none is given: the largest grid time up to 0.98.

        An epsilon network's signal is (x - sigma eps) / alpha, so its errors grow by 1/alpha: for
        it alpha must also be at least AUTO_ALPHA_FLOOR (t = 0.8 on the linear DDPM schedule).
        """
        last = int(AUTO_T_MAX * self.num_train_timesteps + _WHOLE)
        if prediction_type == "epsilon":
            strong = np.count_nonzero(self.alphas_cumprod >= AUTO_ALPHA_FLOOR**2)
            last = min(last, int(strong))
        return max(last, 2) / self.num_train_timesteps
