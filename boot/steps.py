"""One training step and its bookkeeping: counters, learning rate, and numbers that go wrong.

A step with a NaN or Inf anywhere changes no weight. Too many of them bring back the last good state
at half the learning rate; after two such roll-backs the run ends with TrainingDiverged.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from boot import resume
from boot.errors import TrainingDiverged
from boot.interrupts import InterruptGuard
from boot.network import worst_gradient

if TYPE_CHECKING:
    from boot.distiller import Distiller, Losses

MAX_BAD_IN_A_ROW = 3
WINDOW, MAX_BAD_IN_WINDOW = 1000, 10  # one percent
MAX_ROLLBACKS = 2

_log = logging.getLogger("boot")


def take(distiller: Distiller) -> dict[str, float]:
    """Do one step of a Distiller, alone and whole; see `Distiller.step`."""
    with alone(distiller), InterruptGuard() as guard:
        logs = _step(distiller)
    if guard.interrupted:
        raise KeyboardInterrupt
    return logs


@contextlib.contextmanager
def alone(distiller: Distiller) -> Iterator[None]:
    """Keep other threads out while the arrays of a run are used; RuntimeError if one is in.

    And in a fork of a process that has used the core: it must not write into its parent's folder.
    """
    if not distiller._busy.acquire(blocking=False):
        raise RuntimeError(
            "this Distiller is in a step or a checkpoint of another thread; use one per thread"
        )
    try:
        distiller._training.model.core.memory()  # the core knows: RuntimeError in a fork
        yield
    finally:
        distiller._busy.release()


def _step(distiller: Distiller) -> dict[str, float]:
    config, state = distiller.config, distiller.state
    course = config.learning_rate_factor(state.step)
    rate = (config.learning_rate or 0.0) * course * state.rate_factor
    bootstrap = boundary = norm = math.nan
    critic: float | None = None
    try:
        losses = distiller._loss_and_gradient(distiller._draw())
        bootstrap, boundary, critic = losses.bootstrap, losses.boundary, losses.critic
        norm = _updated(distiller, losses, rate)
    except FloatingPointError as problem:
        state.step += 1
        _skipped(distiller, problem)
    logs = {
        "step": state.step,
        "loss": bootstrap + boundary,
        "loss_bootstrap": bootstrap,
        "loss_boundary": boundary,
        "learning_rate": rate,
        "grad_norm": norm,
        "skipped": state.skipped,
        "rollbacks": state.rollbacks,
    }
    return logs if critic is None else {**logs, "loss_critic": critic}


def _updated(distiller: Distiller, losses: Losses, rate: float) -> float:
    """Update the weights and count it, both or neither; return the gradient's norm."""
    state, guard = distiller.state, InterruptGuard.active()
    with guard.hold() if guard else contextlib.nullcontext():
        distiller._training.model.gradients_held = True
        try:
            norm = distiller._update(losses, rate)
        except FloatingPointError as problem:
            culprit = worst_gradient(distiller._training.model)
            raise FloatingPointError(f"{problem}: {culprit}") from problem
        finally:
            distiller._training.model.gradients_held = False
        state.step += 1
        state.updates += 1
        state.critic_updates += losses.critic is not None
        state.bad_in_a_row = 0
        resume.remember(distiller)
    return norm


def _skipped(distiller: Distiller, problem: FloatingPointError) -> None:
    """Count a step that changed nothing; roll back, or give up, when there were too many."""
    state = distiller.state
    state.skipped += 1
    state.bad_in_a_row += 1
    recent = [step for step in state.bad_steps if step > state.step - WINDOW]
    state.bad_steps = [*recent, state.step]
    _log.warning("step %d skipped, weights unchanged: %s", state.step, problem)
    if state.bad_in_a_row >= MAX_BAD_IN_A_ROW:
        what = f"{state.bad_in_a_row} steps in a row up to step {state.step}"
    elif len(state.bad_steps) >= MAX_BAD_IN_WINDOW:
        what = f"{len(state.bad_steps)} of the last {WINDOW} steps up to step {state.step}"
    else:
        return
    if state.rollbacks >= MAX_ROLLBACKS:
        raise TrainingDiverged(
            f"{what} had numbers that are not finite, after {state.rollbacks} roll-backs; the last "
            f"one: {problem}; the weights are those of the last good step; try a lower "
            "learning_rate or a smaller t_max"
        ) from problem
    where = resume.roll_back(distiller)
    state.rollbacks += 1
    state.rate_factor /= 2
    state.bad_in_a_row, state.bad_steps = 0, []
    _log.warning(
        "%s had numbers that are not finite: back to the weights of %s, learning rate times %g",
        what,
        where,
        state.rate_factor,
    )
