"""The noise process of a teacher on the unit interval: alpha, sigma, step coefficients in float64.

Notation: x_t = alpha_t x_0 + sigma_t eps, t = 0 the image, t = 1 the noise. `Schedule` is what all
processes share; `TableSchedule` is the one of a diffusers scheduler; `continuous` has the others.
`lambda_t` is the *negative half* log-SNR, log(sigma_t / alpha_t): it grows with t.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boot import _core
from boot.choices import AUTO_ALPHA_FLOOR, AUTO_T_MAX
from boot.errors import check_float
from boot.scheduler_config import SchedulerConfig

Float64 = NDArray[np.float64]

# N * (k / N) can miss the whole number k by rounding; an index this close to one is that one.
_WHOLE = 1e-6
_MOST_STEPS = 1_000_000  # of a sampler on a schedule without a table
_LARGEST_BETA = 1.0 - 1e-6  # a table that diffusers can multiply up in float32 ends above 0


class Schedule:
    """A noise process: a subclass says `alpha_sigma(t)` and what its models are told of the time.

    Methods take a time or an array of times in [0, 1] and return float64 of the same shape. Every
    process has a grid of `num_train_timesteps` times: t_min and t_max lie on it, and a student's
    network is told of a time by its `index` there, as diffusers' networks are.
    """

    num_train_timesteps: int = 1000

    @classmethod
    def from_config(cls, config: SchedulerConfig) -> TableSchedule:
        """Build the table that diffusers' schedulers build from the same config, in float64."""
        return TableSchedule(
            _core.alphas_cumprod(
                config.beta_schedule,
                config.num_train_timesteps,
                config.beta_start,
                config.beta_end,
                config.trained_betas,
                config.rescale_betas_zero_snr,
            )
        )

    def alpha_sigma(self, t: Any) -> tuple[Float64, Float64]:
        """Return alpha_t and sigma_t, accurate at both ends; sigma_0 is 0."""
        raise NotImplementedError(f"{type(self).__name__} must have a method alpha_sigma(t)")

    def timestep(self, t: Any) -> Float64:
        """Return what a model of this process is fed for a time: t itself, unless overridden."""
        return np.asarray(t, np.float64)

    def time_of(self, timestep: Any) -> Float64:
        """Return the time that a model is fed `timestep` for: the inverse of `timestep(t)`."""
        return np.asarray(timestep, np.float64)

    # ------------------------------------------------------------------------------- time grid

    def index(self, t: Any) -> Float64:
        """Return the index N t - 1, which diffusers' networks are fed; may be fractional."""
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

    def most_steps(self, t_start: float) -> int:
        """Return how many steps a sampler can take from t_start to 0."""
        return _MOST_STEPS

    def times(self, t_start: float, t_end: float, steps: int) -> Float64:
        """Return (steps + 1,) falling times, evenly spread from t_start to t_end."""
        if not (steps >= 1 and t_start > t_end):
            raise ValueError(
                f"steps must be >= 1 and t_start > t_end, got {steps}, {t_start} and {t_end}"
            )
        return np.linspace(t_start, t_end, steps + 1)

    # ------------------------------------------------------------------------ signal and noise

    def lambda_(self, t: Any) -> Float64:
        """Return log(sigma_t / alpha_t), the negative half log-SNR; -inf at t = 0."""
        alpha, sigma = self.alpha_sigma(t)
        with np.errstate(divide="ignore"):
            result: Float64 = np.log(sigma) - np.log(alpha)
        return result

    def step_coefficient(self, t: Any, s: Any) -> Float64:
        """Return C = 1 - (sigma_s alpha_t) / (alpha_s sigma_t) of the step from t to s, in [0, 1].

        0 <= s <= t, t > 0. C is 1 for s = 0 and for alpha_t = 0: such a step forgets y_t.
        """
        t, s = np.asarray(t, np.float64), np.asarray(s, np.float64)
        if not ((s <= t) & (s >= 0) & (t > 0) & (t <= 1)).all():
            raise ValueError("step_coefficient needs 0 <= s <= t <= 1 and t > 0")
        with np.errstate(invalid="ignore"):  # s = t = 1 with alpha = 0 is inf - inf
            coefficient = -np.expm1(self.lambda_(s) - self.lambda_(t))
        return np.where(s == t, 0.0, coefficient)

    # ---------------------------------------------------------- variance-preserving form, and t_max

    def start(self, noise: NDArray[np.float32], t: float) -> NDArray[np.float32]:
        """Return what x_t is where there is no image yet: noise of the scale of x_t.

        The scale is sqrt(alpha^2 + sigma^2), which images of variance 1 would give: 1 for a
        variance-preserving process, about sigma_max for EDM's.
        """
        scale = np.float32(np.hypot(*self.alpha_sigma(t)))
        return noise if scale == 1 else noise * scale

    def table(self) -> Float64:
        """Return alpha^2 / (alpha^2 + sigma^2) on the grid: (N,), an `alphas_cumprod`.

        x_t / sqrt(alpha^2 + sigma^2) is a variance-preserving process with this table: the same
        trajectories in other units.
        """
        alpha, sigma = self.alpha_sigma(self.time(np.arange(self.num_train_timesteps)))
        result: Float64 = alpha**2 / (alpha**2 + sigma**2)
        return result

    def to_config(self, **values: Any) -> SchedulerConfig:
        """Return a diffusers config of the variance-preserving form; values: its other keys.

        Raises TypeError or ValueError if `alpha_sigma` is not that of a noise process.
        """
        check_process(self)
        betas = np.minimum(betas_of(self.table()), _LARGEST_BETA)
        return SchedulerConfig(
            num_train_timesteps=self.num_train_timesteps, trained_betas=tuple(betas), **values
        )

    def default_t_max(self, prediction_type: str) -> float:
        """Return the noise end used when none is given: the largest grid time up to 0.98.

        An epsilon network's signal is (x - sigma eps) / alpha, so its errors grow by 1/alpha: for
        it alpha / sqrt(alpha^2 + sigma^2) must also be at least AUTO_ALPHA_FLOOR (t = 0.8 on the
        linear DDPM schedule).
        """
        last = int(AUTO_T_MAX * self.num_train_timesteps + _WHOLE)
        if prediction_type == "epsilon":
            strong = np.count_nonzero(self.table() >= AUTO_ALPHA_FLOOR**2)
            last = min(last, int(strong))
        return max(last, 2) / self.num_train_timesteps


class TableSchedule(Schedule):
    """A variance-preserving noise process given by a table of `alphas_cumprod`.

    Index i of an N-step table stands for the time t = (i + 1) / N, and abar(0) = 1; between indices
    log(alphas_cumprod) is interpolated linearly. alphas_cumprod: (N,) float64, falling, in (0, 1);
    the last one may be 0 (zero terminal SNR). Models are fed the index N t - 1.
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
        with np.errstate(divide="ignore"):
            self._log_abar = np.concatenate([[0.0], np.log(table)])
        table.flags.writeable = False

    def __repr__(self) -> str:
        """Show the length and the ends of the table."""
        table = self.alphas_cumprod
        return f"TableSchedule({len(table)} timesteps, {table[0]:.6g} ... {table[-1]:.6g})"

    def timestep(self, t: Any) -> Float64:
        """Return the index N t - 1."""
        return self.index(t)

    def time_of(self, timestep: Any) -> Float64:
        """Return the time of an index."""
        return self.time(timestep)

    def table(self) -> Float64:
        """Return `alphas_cumprod`."""
        return self.alphas_cumprod

    def most_steps(self, t_start: float) -> int:
        """Return how many timesteps lie between t_start and 0: a sampler's steps end on them."""
        return round(t_start * self.num_train_timesteps)

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

    def alpha_sigma(self, t: Any) -> tuple[Float64, Float64]:
        """Return alpha_t = sqrt(abar) and sigma_t = sqrt(1 - abar), accurate at both ends."""
        return _core.table_alpha_sigma(self._log_abar, t)

    def lambda_(self, t: Any) -> Float64:
        """Return log(sigma_t / alpha_t), the negative half log-SNR."""
        return _core.table_lambda(self._log_abar, t)

    def step_coefficient(self, t: Any, s: Any) -> Float64:
        """Return C of the step from t to s, see `Schedule.step_coefficient`; not by `lambda_`."""
        if np.shape(t) != np.shape(s):
            t, s = np.broadcast_arrays(t, s)
        return _core.table_step_coefficient(self._log_abar, t, s)


def check_process(schedule: Schedule) -> None:
    """Require that a schedule goes from image to noise: the message names it and the time.

    Raises TypeError unless `alpha_sigma` returns two arrays of the shape of t, ValueError unless
    both are finite and not negative, and sigma / alpha grows with t.
    """
    name = type(schedule).__name__
    t = schedule.time(np.arange(schedule.num_train_timesteps))
    pair = schedule.alpha_sigma(t)
    if not isinstance(pair, (tuple, list)) or [np.shape(a) for a in pair] != [t.shape] * 2:
        raise TypeError(f"{name}.alpha_sigma must return two arrays of the shape of t, {t.shape}")
    alpha, sigma = (np.asarray(a, np.float64) for a in pair)
    with np.errstate(invalid="ignore"):
        bad = ~(np.isfinite(alpha) & np.isfinite(sigma) & (alpha >= 0) & (sigma >= 0))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(
            f"{name}.alpha_sigma({t[i]:g}) must be finite and not negative, got {alpha[i]:g} and "
            f"{sigma[i]:g}"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.concatenate([[0.0], sigma / alpha])
    t = np.concatenate([[0.0], t])
    falls = ~(ratio[1:] > ratio[:-1])
    if falls.any():
        i = int(np.argmax(falls))
        raise ValueError(
            f"{name}: sigma / alpha must grow with t, from the image at t = 0 to noise at t = 1, "
            f"got {ratio[i]:.6g} at t = {t[i]:g} and {ratio[i + 1]:.6g} at t = {t[i + 1]:g}"
        )


def betas_of(alphas_cumprod: Float64) -> Float64:
    """Return the betas (N,) whose running product of 1 - beta is the table (N,)."""
    abar = np.concatenate([[1.0], alphas_cumprod])
    betas: Float64 = 1.0 - abar[1:] / abar[:-1]
    return betas
