"""The random part of a training step: noise, labels, times and guidance scales."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from boot.config import DistillConfig
from boot.network import Images
from boot.noise import Stream, choice, normal, uniform
from boot.schedule import Float64
from boot.targets import lowest_time


class Draw(NamedTuple):
    """The random part of one step.

    eps: (B,C,H,W); labels: (B,) or None; t: (B,) times; w: (B,) guidance scales or None.
    """

    eps: Images
    labels: NDArray[np.int64] | None
    t: Float64
    w: Float64 | None

    def take(self, rows: NDArray[np.int64]) -> Draw:
        """Return the samples at some rows, in that order."""
        return Draw._make(None if a is None else a[rows] for a in self)

    def again(self, rows: NDArray[np.int64]) -> Draw:
        """Return all samples, and behind them those at some rows once more."""
        return self.take(np.concatenate([np.arange(len(self.t)), rows])) if len(rows) else self


def draw_step(
    config: DistillConfig,
    step: int,
    shape: tuple[int, int, int],
    labels: NDArray[np.int64] | None,
    t_min: float,
    lowest: float,
    grid: int | None,
) -> Draw:
    """Draw what a step counted from 0 needs: functions of (seed, step, sample) alone.

    config: resolved. shape: (C,H,W); labels: those to draw from, or None; lowest: no t is below it;
    grid: the timesteps of networks that know whole ones only.
    """
    seed, size, t_max = config.seed, config.train_batch_size, float(config.t_max or 1.0)
    eps = normal(seed, Stream.TRAIN_NOISE, step, 0, (size, *shape))
    chosen = None if labels is None else choice(seed, Stream.TRAIN_LABEL, step, 0, size, labels)
    share = 1.0 - uniform(seed, Stream.TRAIN_TIME, step, 0, size)  # (0, 1]
    low = lowest_time(config, step, t_min, t_max)
    t = low + share * (t_max - low)
    if grid is not None:
        t = np.ceil(t * grid) / grid
    # Not below t_min + delta: a step cut short at t_min has a small C, and 1/C^2 would make it
    # the loudest (on EDM's schedule, whose sigma hardly moves there, by a factor of 30).
    t = np.clip(t, lowest, t_max)
    return Draw(eps, chosen, t, drawn_scales(config, step))


def drawn_scales(config: DistillConfig, step: int) -> Float64 | None:
    """Draw the guidance scales of a training step, (B,), evenly from their range.

    None where one scale is built in. A function of (seed, step, sample) alone.
    """
    lo, hi = config.guidance_scale_min, config.guidance_scale_max
    if hi is None:
        return None
    size = config.train_batch_size
    return lo + (hi - lo) * uniform(config.seed, Stream.TRAIN_GUIDANCE, step, 0, size)
