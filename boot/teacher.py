"""The teacher: a diffusion model that `boot` only ever asks for values, never for gradients."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot.diffusers_io import fingerprint, load_pipeline
from boot.errors import (
    UnsupportedModel,
    check_choice,
    check_computed,
    check_float,
    check_int,
)
from boot.guidance import Clip, Guidance, guided_output
from boot.inputs import sampling_inputs
from boot.network import Images, Network
from boot.samplers import SAMPLERS
from boot.schedule import Float64, Schedule
from boot.scheduler_config import SchedulerConfig

PACK_PARAMETERS = 8_000_000  # up to this size networks keep packed weights and run in shards


class Teacher:
    """A diffusers U-Net with its noise process, seen as the signal predictor f(x_t, t).

    Attributes: `model` (call it like a diffusers U-Net), `scheduler` (its config), `schedule`
    (alpha, sigma over continuous time), `clip` (how its signal is kept in range), `name`.
    """

    def __init__(
        self, model: Network, scheduler: SchedulerConfig, *, name: str = "teacher"
    ) -> None:
        """Join a network and the noise process it was trained with."""
        self.model = model
        self.scheduler = scheduler
        self.schedule = Schedule.from_config(scheduler)
        self.name = name
        self.clip = Clip(
            limit=scheduler.clip_sample_range if scheduler.clip_sample else 0.0,
            thresholding=scheduler.thresholding,
            ratio=scheduler.dynamic_thresholding_ratio,
            highest=scheduler.sample_max_value,
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, variant: str | None = None
    ) -> Teacher:
        """Load a diffusers pipeline folder, or a bare model folder that has a scheduler config.

        variant: such as "fp16", to pick one of several weight files. Raises FileNotFoundError,
        NotADirectoryError, FormatError or UnsupportedModel; see `diffusers_io.load_pipeline`.
        """
        loaded = load_pipeline(folder, variant=variant)
        highest = float(loaded.scheduler.num_train_timesteps - 1)
        model = Network(loaded.unet, max_timestep=highest)
        model.load(loaded.tensors)
        # Packed weights cost four times the memory of the plain ones: for small networks only.
        model.core.keep_packed(model.num_parameters <= PACK_PARAMETERS)
        return cls(model, loaded.scheduler, name=loaded.folder.resolve().name)

    def __repr__(self) -> str:
        """Show name, size, prediction type and classes."""
        classes = f", {self.model.config.num_classes} classes" if self.num_classes else ""
        return (
            f"Teacher({self.name!r}, {self.model.num_parameters:,} parameters, "
            f"{self.scheduler.prediction_type}{classes})"
        )

    @property
    def num_classes(self) -> int | None:
        """Rows of the class embedding, the null row included; None if unconditional."""
        return self.model.config.num_classes

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of config, noise process and weights: equal for equal teachers."""
        return fingerprint(self.model.config, self.scheduler, self.model.parameters)

    # ---------------------------------------------------------------------------------- signal

    def guidance(
        self,
        scale: float,
        null_class_label: int | None = None,
        *,
        varies: bool = False,
        negative_class_label: int | None = None,
        guidance_rescale: float = 0.0,
        guidance_t_min: float = 0.0,
        guidance_t_max: float = 1.0,
    ) -> Guidance:
        """Check a guidance scale (>= 0) and what goes with it against this teacher.

        null_class_label: the label that means "no class"; None: the last row of the class embedding
        (the DiT convention). The others: see `Guidance`. Raises ValueError for values out of range,
        or if the teacher is not class-conditional and anything but scale 1 is asked for.
        """
        scale = check_float("guidance_scale", scale, 0, 100)
        rescale = check_float("guidance_rescale", guidance_rescale, 0, 1)
        high = check_float("guidance_t_max", guidance_t_max, 0, 1)
        low = check_float("guidance_t_min", guidance_t_min, 0, high)
        if self.num_classes is None:
            if scale != 1.0:
                raise ValueError(
                    f"guidance_scale must be 1 for {self.name!r}, which has no class table to "
                    f"guide by, got {scale}"
                )
            given = {
                "null_class_label": null_class_label,
                "negative_class_label": negative_class_label,
            }
            for name, label in given.items():
                if label is not None:
                    raise ValueError(f"{name} must be None: {self.name!r} has no class table")
            return Guidance()
        last = self.num_classes - 1
        label = last if null_class_label is None else null_class_label
        null_label = check_int("null_class_label", label, 0, last)
        if negative_class_label is not None:
            check_int("negative_class_label", negative_class_label, 0, last)
        return Guidance(scale, null_label, varies, negative_class_label, rescale, low, high)

    def check_can_sample(self) -> None:
        """Raise UnsupportedModel if the network does not fit the variance-preserving process."""
        if self.model.config.time_embedding_type == "fourier":
            raise UnsupportedModel(
                "time_embedding_type: fourier networks are conditioned on a noise level, not on a "
                "timestep; boot runs them (teacher.model) but cannot sample from or distil them"
            )

    def signal(
        self,
        x: Images,
        t: Float64,
        labels: Any = None,
        guidance: Guidance = Guidance(),  # noqa: B008 - frozen
        clip: Clip | None = None,
        w: Float64 | None = None,
    ) -> Images:
        """Return f(x_t, t), the guided and clipped prediction of the image.

        x: (N,C,H,W) float32; t: (N,) times in (0, 1]; labels: (N,) int64 or None. Unchecked: for
        loops whose inputs are right by construction. clip: None for the teacher's own. w: (N,)
        guidance scales; None: the one of `guidance`. Raises FloatingPointError if the network's
        output is not finite.
        """
        scales = guidance.scales(t, w)
        output = guided_output(self.model, x, self.schedule.index(t), labels, guidance, scales)
        check_computed("the teacher's output", output)  # before the clip, which would hide an Inf
        alpha, sigma = self.schedule.alpha_sigma(t)
        return (clip or self.clip).signal(self.scheduler.prediction_type, output, x, alpha, sigma)

    # -------------------------------------------------------------------------------- sampling

    def sample(
        self,
        n: int | None = None,
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        null_class_label: int | None = None,
        class_labels: Any = None,
        seed: int = 0,
        noise: Any = None,
        sampler: str = "ddim",
        t_start: float = 1.0,
        **guidance_options: Any,
    ) -> Images:
        """Generate images by integrating the teacher's ODE.

        n: number of images, may be left out with `noise`. num_inference_steps: steps, evenly spread
        from t_start to 0 ("trailing"). class_labels: an integer or (n,); None: 0, 1, 2, ... in
        turn, image by image (the null label is left out when guidance is on). seed: image i gets
        the same noise in any batch, and for a student. noise: (n,C,H,W) instead of a seed.
        sampler: "ddim" or "heun" (two network calls a step). t_start: where to start from pure
        noise; below 1 for a fair comparison with students, and for epsilon teachers in few steps.
        guidance_options: as in `guidance`, such as negative_class_label. Returns (n,C,H,W) float32
        in [-1, 1]. Raises TypeError or ValueError before computing.
        """
        check_choice("sampler", sampler, tuple(SAMPLERS))
        t_start = check_float("t_start", t_start, 0, 1, above=True)
        guidance = self.guidance(guidance_scale, null_class_label, **guidance_options)
        self.check_can_sample()
        steps = check_int("num_inference_steps", num_inference_steps, 1)
        available = round(t_start * self.schedule.num_train_timesteps)
        if steps > available:
            raise ValueError(
                f"num_inference_steps must be 1 ... {available} for t_start {t_start}, got {steps}"
            )
        times = self.schedule.times(t_start, 0.0, steps)
        noise, labels = sampling_inputs(self.model, guidance, n, class_labels, seed, noise)
        images: Images = np.empty_like(noise)
        size = self.model.chunk_size(noise.shape[2], noise.shape[3])
        for begin in range(0, len(noise), size):
            rows = slice(begin, begin + size)
            chosen = None if labels is None else labels[rows]

            def signal(x: Images, t: Float64, chosen: Any = chosen) -> Images:
                return self.signal(x, t, chosen, guidance)

            images[rows] = SAMPLERS[sampler](self.schedule, signal, noise[rows], times)
        np.clip(images, -1.0, 1.0, out=images)
        return images

    def inputs(
        self,
        n: int | None = None,
        *,
        guidance_scale: float = 1.0,
        class_labels: Any = None,
        seed: int = 0,
        noise: Any = None,
    ) -> tuple[Images, NDArray[Any] | None]:
        """Return the noise (n,C,H,W) and labels (n,) or None that `sample` would use."""
        guidance = self.guidance(guidance_scale)
        return sampling_inputs(self.model, guidance, n, class_labels, seed, noise)
