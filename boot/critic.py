"""Correction by distribution: train the student on the images it makes, still without data.

A student that matches its teacher noise by noise, in the mean square, blurs where it is unsure: its
images are too alike. Their *distribution* can be corrected. A second network, the critic, learns to
denoise the student's own images; where it and the teacher disagree about a noised one, the student
makes too many such images or too few (Luo et al., Diff-Instruct, 2023; Yin et al., One-step
Diffusion with Distribution Matching Distillation, 2024, equations 7 and 8):

    y = y(eps, t_min),   x = alpha_t y + sigma_t n,   n ~ N(0, I) fresh,   t ~ U(LOWEST_T, t_max)
    critic:   min || F(x, t) - F* ||^2       F* the output that means y
    student:  d loss / d y = correction_weight (f_critic(x, t) - f_teacher(x, t)) / mean |y - f_t|

The terms of BOOT stay; they tie each image to its noise. In the critic's first steps the student is
not pulled: the critic must know its images first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boot import _core
from boot.config import DistillConfig
from boot.errors import check_computed
from boot.guidance import Clip, Guidance, critic_scale
from boot.moments import zero_moments
from boot.network import Images, Network, worst_gradient
from boot.noise import Stream, normal, uniform
from boot.schedule import Float64, Schedule
from boot.signal_ode import diffuse

if TYPE_CHECKING:
    from boot.teacher import Teacher

LOWEST_T = 0.02  # below it next to nothing of an image is hidden
MOST_ALONE = 200  # updates of the critic before it pulls; a quarter of its part of the run at most


class Pull(NamedTuple):
    """A critic's own loss, None if it was not asked, and d loss / d y of the images, (N,C,H,W)."""

    loss: float | None
    gradient: Images


def alone(config: DistillConfig) -> int:
    """Return for how many of its first updates the critic only learns."""
    return min(MOST_ALONE, int((1 - config.correction_start) * config.max_train_steps / 4))


def takes_part(config: DistillConfig, step: int) -> bool:
    """Whether there is a critic in a step counted from 0."""
    return step >= config.correction_start * config.max_train_steps


class Critic:
    """The second network of a run with its optimiser's moments; see the top of this file."""

    def __init__(
        self,
        config: DistillConfig,
        teacher: Teacher,
        start: Network,
        clip: Clip,
        guidance: Guidance,
    ) -> None:
        """Copy the network that the student started from: the teacher's, if it has one.

        clip: how the teacher's signal is bounded, and so the critic's. guidance: of the teacher.
        """
        self.model = Network(
            start.config,
            guidance_embedding=config.guidance_scale_max is not None,
            max_timestep=start.max_timestep,
        )
        self.model.keep_packed(self.model.is_small)  # not really: but it runs in shards then
        self.model.core.configure(in_training=True)
        self._start = start
        self.begin()
        self.m, self.v = zero_moments(config.moments_dtype, self.model.weights)
        self.rows = max(1, round(config.train_batch_size * (config.correction_fraction or 0.0)))
        self._teacher, self._clip, self._guidance = teacher, clip, guidance
        # A copy of the teacher means by its output what the teacher does; others learn v.
        copied = start is teacher.network
        self._prediction_type = teacher.prediction_type if copied else "v_prediction"
        self._indices = Schedule.from_config(teacher.scheduler)

    def begin(self) -> None:
        """Give the network the weights that it starts with."""
        self.model.load(self._start.parameters)
        self.model.weights_changed()

    def judge(
        self,
        config: DistillConfig,
        images: Images,
        labels: NDArray[Any] | None,
        step: int,
        updates: int,
        grid: int | None,
        w: Float64 | None = None,
    ) -> Pull:
        """Learn from images of the student, (rows,C,H,W), and say where to pull them.

        config: of the run, whose max_train_steps may have changed since the critic was made.
        The gradient of the critic's own loss is left in its network, for `update`. updates: those
        that it has seen. grid: the timesteps of networks that know whole ones only. w: (rows,) the
        guidance scales of the images where they differ. Raises FloatingPointError if a number is
        not finite.
        """
        n, t = _draw(config, images.shape, step, grid)
        teacher = self._teacher
        alpha, sigma = teacher.schedule.alpha_sigma(t)
        x = diffuse(teacher.schedule, images, n, t)
        own = None if w is None or not self._guidance.varies else critic_scale(w)
        wanted = teacher.signal(x, t, labels, self._guidance, self._clip, own)
        # Our networks know variance-preserving inputs; a callable's process may be another one.
        size = np.sqrt(alpha**2 + sigma**2)
        alpha, sigma = alpha / size, sigma / size
        x = x / _per_image(size)
        output = self.model.forward_train(x, self._indices.index(t), labels, None, w)
        check_computed("the critic's output", output)
        found = self._clip.signal(self._prediction_type, output, x, alpha, sigma)
        error = output - output_of(self._prediction_type, images, n, alpha, sigma)
        self.model.backward(error * np.float32(2.0 / error.size))
        self._check_gradient(config)
        scale = np.abs(images - wanted).mean(axis=(1, 2, 3), keepdims=True) + np.float32(1e-3)
        weight = 0.0 if updates < alone(config) else float(config.correction_weight or 0.0)
        gradient = (found - wanted) / scale * np.float32(weight / images.size)
        return Pull(float(np.mean(np.square(error), dtype=np.float64)), gradient)

    def _check_gradient(self, config: DistillConfig) -> None:
        """Refuse a gradient that `update` could not use, while the student is still untouched."""
        try:
            _core.check_grads(self.model.core.grads, config.max_grad_norm)
        except FloatingPointError as problem:
            culprit = worst_gradient(self.model)
            raise FloatingPointError(f"the critic's {problem}: {culprit}") from problem

    def update(self, config: DistillConfig, updates: int) -> None:
        """Do an optimiser step with the gradient of the last `judge`, after `updates` earlier."""
        _core.adamw_step(
            self.model.weights,
            self.model.core.grads,
            self.m,
            self.v,
            None,
            step=updates + 1,
            learning_rate=float(config.correction_learning_rate or 0.0),
            beta1=config.adam_beta1,
            beta2=config.adam_beta2,
            epsilon=config.adam_epsilon,
            weight_decay=0.0,
            max_grad_norm=config.max_grad_norm,
            ema_decay=0.0,
        )
        self.model.weights_changed()

    def buffers(self) -> dict[str, NDArray[Any]]:
        """Return what a checkpoint holds of it."""
        return {"critic": self.model.weights, "critic_m": self.m, "critic_v": self.v}


def _draw(
    config: DistillConfig, shape: tuple[int, ...], step: int, grid: int | None
) -> tuple[Images, Float64]:
    """Draw the noise and the times of a step."""
    t_max = float(config.t_max or 1.0)
    low = min(max(LOWEST_T, config.t_min), t_max)
    n = normal(config.seed, Stream.CORRECTION_NOISE, step, 0, shape)
    share = 1.0 - uniform(config.seed, Stream.CORRECTION_TIME, step, 0, shape[0])
    t = low + share * (t_max - low)
    return n, t if grid is None else np.ceil(t * grid) / grid


def output_of(prediction_type: str, y: Images, n: Images, alpha: Float64, sigma: Float64) -> Images:
    """Return the network output that means signal y with noise n in x = alpha y + sigma n.

    y, n: (N,C,H,W); alpha, sigma: (N,). The inverse of the core's `signal_from_output`.
    """
    if prediction_type == "epsilon":
        return n
    if prediction_type == "sample":
        return y
    if prediction_type == "flow":
        return n - y
    v: Images = _per_image(alpha) * n - _per_image(sigma) * y
    return v


def _per_image(a: Float64) -> Images:
    return a.astype(np.float32).reshape(-1, 1, 1, 1)
