"""The teacher: a diffusion model that `boot` only ever asks for values, never for gradients."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot.callable_model import CallableModel, Function
from boot.diffusers_io import INFO_FILE, fingerprint, load_pipeline
from boot.errors import (
    UnsupportedModel,
    check_choice,
    check_computed,
    check_float,
    check_folder,
    check_int,
    shown,
)
from boot.guidance import Clip, Guidance, guided_output, warn_of_idle
from boot.image_model import ImageModel
from boot.inputs import sampling_inputs
from boot.network import Images, Network
from boot.samplers import SAMPLERS
from boot.schedule import Float64, Schedule
from boot.scheduler_config import TEACHER_PREDICTIONS, SchedulerConfig


class Teacher:
    """A model with its noise process, seen as the signal predictor f(x_t, t).

    Attributes: `model` (of a diffusers folder: call it like a diffusers U-Net), `schedule` (alpha,
    sigma over time), `prediction_type`, `scheduler` (a diffusers config: the schedule's, or that of
    its variance-preserving form, which students are exported with), `clip` (how its signal is kept
    in range), `name`.
    """

    def __init__(
        self,
        model: Network | CallableModel,
        scheduler: SchedulerConfig,
        *,
        name: str = "teacher",
        schedule: Schedule | None = None,
        prediction_type: str | None = None,
        weights_file: Path | None = None,
    ) -> None:
        """Join a model and its noise process; None: as the scheduler config says.

        weights_file: what the model's weights were loaded from, or the index of its shards.
        """
        self.model: ImageModel = model
        self.scheduler = scheduler
        self.schedule = Schedule.from_config(scheduler) if schedule is None else schedule
        self.prediction_type = prediction_type or scheduler.prediction_type
        self.name = name
        self.weights_file = weights_file
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
        NotADirectoryError, FormatError or UnsupportedModel (also for a student); see
        `diffusers_io.load_pipeline`.
        """
        if (check_folder("folder", folder) / INFO_FILE).exists():
            raise UnsupportedModel(
                f"{os.fspath(folder)!r} holds a student of boot ({INFO_FILE}), which makes images "
                "in one call: it cannot teach, its teacher can"
            )
        loaded = load_pipeline(folder, variant=variant)
        highest = float(loaded.scheduler.num_train_timesteps - 1)
        model = Network(loaded.unet, max_timestep=highest)
        model.load(loaded.tensors)
        model.keep_packed(model.is_small)
        name = loaded.folder.resolve().name
        file = Path(loaded.source["folder"]) / loaded.source["weights"]
        return cls(model, loaded.scheduler, name=name, schedule=loaded.schedule, weights_file=file)

    @classmethod
    def from_callable(
        cls,
        function: Function,
        *,
        prediction_type: str,
        schedule: Schedule | SchedulerConfig,
        sample_shape: tuple[int, int, int],
        num_classes: int | None = None,
        null_class_label: int | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        name: str = "callable",
        fingerprint: str | None = None,
    ) -> Teacher:
        """Make a teacher of any `function(x_t, t, condition) -> array`; values, never gradients.

        x_t: (N,C,H,W) float32 as the schedule has it, alpha_t x_0 + sigma_t eps. t: (N,) float64,
        another one for each image, what `schedule.timestep` hands out: the index of a table, t in
        (0, 1] for VP formulas and rectified flow, sigma for EDM, the angle for TrigFlow. condition:
        (N,) int64 labels, None if num_classes is. Returns (N,C,H,W) float16, 32 or 64, finite, or
        something with `__array__`; anything else raises TeacherError, naming t. N differs between
        calls, up to 256.

        prediction_type: "epsilon", "v_prediction" (alpha eps - sigma x_0), "sample" or "flow"
        (eps - x_0). schedule: a `Schedule`, or a SchedulerConfig for a table. num_classes: number
        of labels, the one that means "no class" included; null_class_label: that one, None if there
        is none (then there is no guidance). fingerprint: any text that tells this teacher from
        others, for checkpoints; None: a hash of its settings and of its outputs on fixed noise,
        which notices a change in the last bits, by another machine or number of threads say.
        """
        check_choice("prediction_type", prediction_type, TEACHER_PREDICTIONS)
        values: dict[str, Any] = {
            "prediction_type": "v_prediction",  # the form of the student's output, whatever f says
            "clip_sample": clip_sample,
            "clip_sample_range": clip_sample_range,
        }
        if isinstance(schedule, SchedulerConfig):
            scheduler = dataclasses.replace(schedule, **values)
            schedule = Schedule.from_config(scheduler)
        elif isinstance(schedule, Schedule):
            scheduler = schedule.to_config(**values)
        else:
            raise TypeError(
                f"schedule must be a Schedule or a SchedulerConfig, got {shown(schedule)}"
            )
        model = CallableModel(
            function, sample_shape, num_classes, null_class_label, name, fingerprint
        )
        return cls(model, scheduler, name=name, schedule=schedule, prediction_type=prediction_type)

    def __repr__(self) -> str:
        """Show name, size, prediction type and classes."""
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        network = self.network
        kind = "a callable" if network is None else f"{network.num_parameters:,} parameters"
        return f"Teacher({self.name!r}, {kind}, {self.prediction_type}{classes})"

    @property
    def network(self) -> Network | None:
        """The model, if it is one of our networks; None for a callable."""
        return self.model if isinstance(self.model, Network) else None

    @property
    def null_class_label(self) -> int | None:
        """The label that means "no class" unless told otherwise; None if there is none."""
        if isinstance(self.model, CallableModel):
            return self.model.null_label
        return None if self.num_classes is None else self.num_classes - 1

    @property
    def num_classes(self) -> int | None:
        """Rows of the class embedding, the null row included; None if unconditional."""
        return self.model.config.num_classes

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of config, noise process and weights: equal for equal teachers."""
        if isinstance(self.model, CallableModel):
            return self.model.fingerprint(self.schedule, self.prediction_type)
        assert isinstance(self.model, Network)
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
        (the DiT convention), or what a callable was declared with. The others: see `Guidance`.
        Raises ValueError for values out of range, and for any that asks for guidance of a teacher
        that is not class-conditional.
        """
        scale = check_float("guidance_scale", scale, 0, 100)
        rescale = check_float("guidance_rescale", guidance_rescale, 0, 1)
        high = check_float("guidance_t_max", guidance_t_max, 0, 1)
        low = check_float("guidance_t_min", guidance_t_min, 0, high)
        if self.num_classes is None:
            options = {
                "guidance_scale": (scale, 1.0),
                "null_class_label": (null_class_label, None),
                "negative_class_label": (negative_class_label, None),
                "guidance_rescale": (rescale, 0.0),
                "guidance_t_min": (low, 0.0),
                "guidance_t_max": (high, 1.0),
            }
            for name, (found, off) in options.items():
                if found != off:
                    wanted = off if off is None else f"{off:g}"
                    raise ValueError(
                        f"{name} must be {wanted} for {self.name!r}, which has no class table to "
                        f"guide by, got {found}"
                    )
            return Guidance()
        label = self.null_class_label if null_class_label is None else null_class_label
        if label is None and scale == 1.0 and not varies and negative_class_label is None:
            return Guidance(rescale=rescale, t_low=low, t_high=high)
        if label is None:
            raise ValueError(
                f"null_class_label must be given: {self.name!r} was declared without one, and "
                "guidance needs a label that means 'no class'"
            )
        last = self.num_classes - 1
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
        output = guided_output(self.model, x, self.schedule.timestep(t), labels, guidance, scales)
        check_computed("the teacher's output", output)  # before the clip, which would hide an Inf
        alpha, sigma = self.schedule.alpha_sigma(t)
        return (clip or self.clip).signal(self.prediction_type, output, x, alpha, sigma)

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
        sampler: "ddim", "heun" (two network calls a step) or "dpm" (DPM-Solver++(2M), one call).
        t_start: where to start from pure noise; below 1 for a fair comparison with students, and
        for epsilon teachers in few steps. guidance_options: as in `guidance`, such as
        negative_class_label. Returns (n,C,H,W) float32 in [-1, 1]. Raises TypeError or ValueError
        before computing.
        """
        check_choice("sampler", sampler, tuple(SAMPLERS))
        t_start = check_float("t_start", t_start, 0, 1, above=True)
        guidance = self.guidance(guidance_scale, null_class_label, **guidance_options)
        warn_of_idle(guidance)
        self.check_can_sample()
        steps = check_int("num_inference_steps", num_inference_steps, 1)
        available = self.schedule.most_steps(t_start)
        if steps > available:
            raise ValueError(
                f"num_inference_steps must be 1 ... {available} for t_start {t_start}, got {steps}"
            )
        times = self.schedule.times(t_start, 0.0, steps)
        if self.prediction_type == "epsilon" and self.schedule.alpha_sigma(times[0])[0] == 0:
            raise ValueError(
                f"t_start must be smaller than {times[0]:g}: an epsilon teacher says nothing about "
                "the signal where alpha is 0"
            )
        noise, labels = sampling_inputs(self.model, guidance, n, class_labels, seed, noise)
        start = self.schedule.start(noise, times[0])
        images: Images = np.empty_like(noise)
        size = self.model.chunk_size(noise.shape[2], noise.shape[3])
        for begin in range(0, len(noise), size):
            rows = slice(begin, begin + size)
            chosen = None if labels is None else labels[rows]

            def signal(x: Images, t: Float64, chosen: Any = chosen) -> Images:
                return self.signal(x, t, chosen, guidance)

            images[rows] = SAMPLERS[sampler](self.schedule, signal, start[rows], times)
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
