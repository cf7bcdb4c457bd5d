"""Noise processes given by formulas of a continuous time: VP cosine and linear, EDM, flows.

Each is a `Schedule` whose time runs over [0, 1], t = 0 the image, whatever its literature counts
in; `timestep(t)` turns that time into what models of the process are fed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from boot.errors import check_float
from boot.schedule import Float64, Schedule


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """abar(t) = cos^2(pi/2 (t + offset) / (1 + offset)) / its value at 0 (Nichol, Dhariwal 2021).

    The limit of diffusers' `squaredcos_cap_v2`, and equal to it on the grid but for the cap of its
    last beta. Models are fed t in (0, 1].
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        """Check the offset."""
        check_float("offset", self.offset, 0, 1)

    def alpha_sigma(self, t: Any) -> tuple[Float64, Float64]:
        """Return alpha_t and sigma_t; sigma in a form that keeps its digits near t = 0."""
        t = np.asarray(t, np.float64)
        quarter = 0.5 * np.pi
        start = quarter * self.offset / (1.0 + self.offset)
        angle = quarter * (t + self.offset) / (1.0 + self.offset)
        alpha = np.cos(angle) / np.cos(start)
        sigma = np.sqrt(np.sin(quarter * t / (1.0 + self.offset)) * np.sin(angle + start))
        return np.where(t < 1.0, alpha, 0.0), np.where(t < 1.0, sigma / np.cos(start), 1.0)


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """The VP-SDE of Song et al. 2021: log abar(t) = -(beta_min t + (beta_max - beta_min) t^2 / 2).

    Near diffusers' "linear" table, not equal to it: log abar differs by up to 0.07, so use the
    table for models trained on the table. Models are fed t in (0, 1].
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        """Check 0 < beta_min <= beta_max."""
        check_float("beta_min", self.beta_min, 0, above=True)
        check_float("beta_max", self.beta_max, self.beta_min)

    def alpha_sigma(self, t: Any) -> tuple[Float64, Float64]:
        """Return alpha_t = sqrt(abar) and sigma_t = sqrt(1 - abar)."""
        t = np.asarray(t, np.float64)
        log_abar = -t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)
        return np.exp(0.5 * log_abar), np.sqrt(-np.expm1(log_abar))


@dataclass(frozen=True)
class EDMSchedule(Schedule):
    """Variance exploding, alpha = 1: x = x_0 + sigma eps (Karras et al. 2022).

    sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho for t > 0, their
    eq. 5, and 0 at t = 0, as their last step goes to the image. Models are fed sigma, and x as it
    is: preconditioning (c_in, c_noise, c_skip, c_out) is the callable's own business.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        """Check 0 < sigma_min < sigma_max and rho > 0."""
        check_float("sigma_min", self.sigma_min, 0, above=True)
        check_float("sigma_max", self.sigma_max, self.sigma_min, above=True)
        check_float("rho", self.rho, 0, above=True)

    def alpha_sigma(self, t: Any) -> tuple[Float64, Float64]:
        """Return 1 and sigma(t)."""
        t = np.asarray(t, np.float64)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        sigma = np.where(t > 0, (low + t * (high - low)) ** self.rho, 0.0)
        return np.ones_like(t), sigma

    def timestep(self, t: Any) -> Float64:
        """Return sigma(t)."""
        return self.alpha_sigma(t)[1]

    def time_of(self, timestep: Any) -> Float64:
        """Return the time of a sigma >= sigma_min."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        t: Float64 = (np.asarray(timestep, np.float64) ** (1 / self.rho) - low) / (high - low)
        return t


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """Rectified flow: alpha = 1 - t, sigma = t (Liu et al. 2023, Lipman et al. 2023).

    t counts from the image, so a model that is trained from noise at 0 to data at 1 needs 1 - t
    and the negative of its velocity. Models are fed t in (0, 1].
    """

    def alpha_sigma(self, t: Any) -> tuple[Float64, Float64]:
        """Return 1 - t and t."""
        t = np.asarray(t, np.float64)
        return 1.0 - t, t


@dataclass(frozen=True)
class TrigFlowSchedule(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): TrigFlow (Lu and Song 2024) for sigma_data = 1.

    Its network's output dx/d(angle) is `v_prediction`. Models are fed the angle in (0, pi/2].
    """

    def alpha_sigma(self, t: Any) -> tuple[Float64, Float64]:
        """Return the cosine and the sine of the angle."""
        t = np.asarray(t, np.float64)
        return np.where(t < 1.0, np.cos(self.timestep(t)), 0.0), np.sin(self.timestep(t))

    def timestep(self, t: Any) -> Float64:
        """Return the angle pi t / 2."""
        return 0.5 * np.pi * np.asarray(t, np.float64)

    def time_of(self, timestep: Any) -> Float64:
        """Return the time of an angle."""
        return np.asarray(timestep, np.float64) / (0.5 * np.pi)
