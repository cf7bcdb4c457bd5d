"""A teacher that is known exactly: a mixture of Gaussians, whose denoiser has a closed form.

For tests, docs and one-minute experiments: any schedule and prediction type, and classes, so that
guidance can be tried. Everything inside is float64.

    >>> from boot import Distiller, toy
    >>> from boot.continuous import FlowSchedule
    >>> mixture = toy.GaussianMixture.random((1, 4, 4), components=3)
    >>> teacher = mixture.teacher(FlowSchedule(), "flow")
    >>> distiller = Distiller(teacher, student=toy.small_network(teacher), max_train_steps=3)
    >>> history = distiller.fit()
    >>> distiller.student.sample(2).shape
    (2, 1, 4, 4)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot.errors import check_choice, check_float, check_int
from boot.noise import Stream, normal, uniform
from boot.schedule import Float64, Schedule
from boot.scheduler_config import TEACHER_PREDICTIONS
from boot.teacher import Teacher
from boot.unet_config import UNet2DConfig

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Images x_0 ~ sum_k weights_k N(means_k, stds_k^2 I), with a class for each component.

    means: (K,C,H,W) float64. stds, weights: (K,), positive; weights sum to 1. classes: (K,) int64
    in 0 ... num_classes - 1, or None. The label num_classes means "no class": all components.
    """

    means: Float64
    stds: Float64
    weights: Float64
    classes: Labels | None = None

    def __post_init__(self) -> None:
        """Check shapes and ranges; weights are made to sum to 1."""
        means = np.array(self.means, np.float64)
        if means.ndim != 4 or means.size == 0 or not np.isfinite(means).all():
            raise ValueError(f"means must be finite and (K,C,H,W), got shape {means.shape}")
        count = len(means)
        values: dict[str, Any] = {"means": means}
        for name in ("stds", "weights"):
            array = np.array(getattr(self, name), np.float64)
            if array.shape != (count,) or not (np.isfinite(array).all() and (array > 0).all()):
                raise ValueError(f"{name} must be {count} numbers > 0, got {array}")
            values[name] = array
        values["weights"] /= values["weights"].sum()
        if self.classes is not None:
            classes = np.array(self.classes, np.int64)
            used = np.unique(classes)
            if classes.shape != (count,) or not np.array_equal(used, np.arange(len(used))):
                raise ValueError(f"classes must be {count} labels 0, 1, ... without a gap")
            values["classes"] = classes
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def random(
        cls,
        sample_shape: tuple[int, int, int] = (1, 8, 8),
        *,
        components: int = 3,
        classes: int | None = None,
        std: float = 0.15,
        seed: int = 0,
    ) -> GaussianMixture:
        """Draw means from N(0, 0.5^2) within [-0.8, 0.8]; equal weights, one std for all.

        With the std of 0.15 few pixels lie beyond [-1, 1], where samples are clipped; with 0.3 many
        do, and a check warns. components, classes: component k has class k modulo `classes`; None
        for a mixture without classes.
        """
        count = check_int("components", components, 1, 2**20)
        std = check_float("std", std, 0, above=True)
        means = 0.5 * normal(seed, Stream.TOY, 0, 0, (count, *sample_shape)).astype(np.float64)
        labels = None
        if classes is not None:
            labels = np.arange(count) % check_int("classes", classes, 1, count)
        return cls(np.clip(means, -0.8, 0.8), np.full(count, std), np.ones(count), labels)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, without the null label; None if there are none."""
        return None if self.classes is None else int(self.classes.max()) + 1

    def denoise(self, x: Any, alpha: Float64, sigma: Float64, labels: Any = None) -> Float64:
        """Return E[x_0 | alpha x_0 + sigma eps = x]. x: (N,C,H,W); the rest: (N,) each.

        With v_k = alpha^2 s_k^2 + sigma^2 and r_k the posterior of component k,
        sum_k r_k (m_k + alpha s_k^2 / v_k (x - alpha m_k)).
        """
        flat = np.asarray(x, np.float64).reshape(len(x), -1)
        means = self.means.reshape(len(self.means), -1)
        alpha, sigma = np.asarray(alpha)[:, None], np.asarray(sigma)[:, None]
        variance = alpha**2 * self.stds**2 + sigma**2  # (N,K)
        square = (flat**2).sum(1)[:, None] - 2 * alpha * (flat @ means.T)
        square += alpha**2 * (means**2).sum(1)
        log_r = np.log(self.weights) - 0.5 * (flat.shape[1] * np.log(variance) + square / variance)
        if labels is not None and self.classes is not None:
            chosen = np.asarray(labels)[:, None]
            allowed = (chosen == self.classes) | (chosen == self.num_classes)
            log_r = np.where(allowed, log_r, -np.inf)
        r = np.exp(log_r - log_r.max(1, keepdims=True))
        r /= r.sum(1, keepdims=True)
        gain = alpha * self.stds**2 / variance
        f = (r * (1 - alpha * gain)) @ means + (r * gain).sum(1)[:, None] * flat
        result: Float64 = f.reshape(np.shape(x))
        return result

    def output(
        self, prediction_type: str, x: Any, alpha: Float64, sigma: Float64, labels: Any = None
    ) -> Float64:
        """Return what a perfect network of a prediction type says at x: (N,C,H,W) float64."""
        f = self.denoise(x, alpha, sigma, labels)
        if prediction_type == "sample":
            return f
        alpha, sigma = (np.asarray(a).reshape(-1, 1, 1, 1) for a in (alpha, sigma))
        eps: Float64 = (x - alpha * f) / sigma
        if prediction_type == "epsilon":
            return eps
        return eps - f if prediction_type == "flow" else alpha * eps - sigma * f

    def teacher(
        self, schedule: Schedule, prediction_type: str = "v_prediction", **options: Any
    ) -> Teacher:
        """Return the exact teacher. options: more arguments of `Teacher.from_callable`."""
        check_choice("prediction_type", prediction_type, TEACHER_PREDICTIONS)

        def function(x: Images, timestep: Float64, labels: Labels | None) -> Float64:
            alpha, sigma = schedule.alpha_sigma(schedule.time_of(timestep))
            return self.output(prediction_type, x, alpha, sigma, labels)

        classes = self.num_classes
        known: dict[str, Any] = {
            "sample_shape": self.means.shape[1:],
            "num_classes": None if classes is None else classes + 1,
            "null_class_label": classes,
            "name": "mixture",
        }
        return Teacher.from_callable(
            function, prediction_type=prediction_type, schedule=schedule, **{**known, **options}
        )

    def sample(self, n: int, seed: int = 0) -> tuple[Images, Labels | None]:
        """Draw n images of the mixture: (n,C,H,W) float32, and their classes or None."""
        n = check_int("n", n, 1)
        noise = normal(seed, Stream.TOY, 1, 0, (n, *self.means.shape[1:])).astype(np.float64)
        # Component by weight: each of n equal slices of [0, 1) in an order that the seed decides.
        slots = np.searchsorted(np.cumsum(self.weights), (np.arange(n) + 0.5) / n)
        order = uniform(seed, Stream.TOY, 2, 0, n)
        k = np.minimum(slots, len(self.weights) - 1)[np.argsort(order, kind="stable")]
        images = self.means[k] + self.stds[k].reshape(-1, 1, 1, 1) * noise
        return images.astype(np.float32), None if self.classes is None else self.classes[k]


def small_network(teacher: Teacher, width: int = 16) -> UNet2DConfig:
    """Return a config of the smallest useful student: one level, no attention; width % 8 == 0."""
    config = teacher.model.config
    return UNet2DConfig(
        sample_size=config.sample_size,
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        num_class_embeds=config.num_class_embeds,
        block_out_channels=(width,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
        layers_per_block=1,
        norm_num_groups=8,
    )
