"""One training step and its bookkeeping: counters, learning rate, and numbers that go wrong."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from boot.errors import TrainingDiverged
from boot.interrupts import InterruptGuard

if TYPE_CHECKING:
    from boot.distiller import Distiller

MAX_BAD_STEPS = 3  # steps in a row without a finite gradient before training is called diverged

_log = logging.getLogger("boot")


def take(distiller: Distiller) -> dict[str, float]:
    """Do one step of a Distiller, alone and whole; see `Distiller.step`."""
    if not distiller._busy.acquire(blocking=False):
        raise RuntimeError("this Distiller is in a step already; use one object per thread")
    try:
        with InterruptGuard() as guard:
            logs = _step(distiller)
    finally:
        distiller._busy.release()
    if guard.interrupted:
        raise KeyboardInterrupt
    return logs


def _step(distiller: Distiller) -> dict[str, float]:
    config, state = distiller.config, distiller.state
    rate = (config.learning_rate or 0.0) * config.learning_rate_factor(state.step)
    bootstrap = boundary = norm = math.nan
    try:
        losses = distiller._loss_and_gradient(distiller._draw())
        bootstrap, boundary = losses.bootstrap, losses.boundary
        norm = distiller._update(losses, rate)
    except FloatingPointError as problem:
        state.skipped += 1
        state.bad_in_a_row += 1
        _log.warning("step %d skipped, weights unchanged: %s", state.step + 1, problem)
        if state.bad_in_a_row >= MAX_BAD_STEPS:
            raise TrainingDiverged(
                f"{state.bad_in_a_row} steps in a row up to step {state.step + 1} had numbers "
                f"that are not finite ({problem}); the weights are those of the last good "
                "step; try a lower learning_rate or a smaller t_max"
            ) from problem
    else:
        state.updates += 1
        state.bad_in_a_row = 0
    state.step += 1
    return {
        "step": state.step,
        "loss": bootstrap + boundary,
        "loss_bootstrap": bootstrap,
        "loss_boundary": boundary,
        "learning_rate": rate,
        "grad_norm": norm,
        "skipped": state.skipped,
    }
