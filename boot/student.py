"""The student: one network call from noise to image, y(eps, t) = alpha_T eps - sigma_T F(eps, t).

alpha_T and sigma_T are those of the noise end t_max, whatever t is asked for: the network's input
is always pure noise, so a map that depends on t would return that noise for small t. The target t
enters through an embedding of its own, and the network's own timestep stays at t_max.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot import _core, refine
from boot.diffusers_io import INFO_FILE, load_pipeline, save_pipeline
from boot.errors import (
    BootWarning,
    FormatError,
    check_bool,
    check_float,
    check_folder,
    check_int,
    check_path,
    check_timesteps,
)
from boot.export import (
    BAKED,
    TENSORS_FILE,
    check_own,
    check_unbaked,
    guidance_vector,
    scheduler_of,
    scheduler_to_export,
    split_tensors,
)
from boot.htmlparts import facts_table, picture
from boot.inputs import repeated, sampling_inputs
from boot.model_card import model_card
from boot.network import GUIDANCE_EMBEDDING, TARGET_EMBEDDING, Images, Network
from boot.reading import check_inside, read_json_object, to_json
from boot.safetensors_io import load_tensors
from boot.schedule import Float64, Schedule
from boot.scheduler_config import SchedulerConfig
from boot.student_info import FORMAT_VERSION, StudentInfo
from boot.teacher import Teacher


class Student:
    """A one-step generator. `sample` makes images; calling it gives the signal at any time t.

    Attributes: `model` (the network, with its target embedding), `scheduler`, `schedule`, `info`.
    """

    def __init__(self, model: Network, scheduler: SchedulerConfig, info: StudentInfo) -> None:
        """Join a network that has a target embedding with its noise process."""
        if not model.target_embedding:
            raise ValueError("model must have a target embedding: Network(target_embedding=True)")
        if model.guidance_embedding != info.takes_scale:
            raise ValueError(
                "model must have a guidance embedding if and only if info has a range of scales, "
                f"got {model.guidance_embedding} and guidance_scale_max {info.guidance_scale_max}"
            )
        self.model = model
        self.scheduler = scheduler
        self.schedule = Schedule.from_config(scheduler)
        self.info = info
        self._alpha, self._sigma = (float(a) for a in self.schedule.alpha_sigma(info.t_max))
        self._index = float(self.schedule.index(info.t_max))
        self._end_index = float(self.schedule.index(info.t_min))

    @classmethod
    def from_teacher(
        cls, teacher: Teacher, info: StudentInfo, network: Network | None = None
    ) -> Student:
        """Copy a teacher's network; a v-prediction teacher's copy equals it at t_max exactly.

        An epsilon or sample network means something else by its output, and learns the student's
        in the first few hundred steps. network: another one to copy, for a callable teacher say.
        """
        teacher.check_can_sample()
        network = network or teacher.network
        if network is None:
            raise ValueError(f"network must be given: {teacher.name!r} is a callable")
        model = Network(
            network.config,
            target_embedding=True,
            guidance_embedding=info.takes_scale,
            max_timestep=network.max_timestep,
        )
        model.load(network.parameters)
        model.keep_packed(model.is_small)
        return cls(model, teacher.scheduler, info)

    def __repr__(self) -> str:
        """Show size, times and guidance."""
        lo, hi = self.info.scale_range
        scale = f"{lo:g}" if lo == hi else f"{lo:g} ... {hi:g}"
        return (
            f"Student({self.model.num_parameters:,} parameters, t_max={self.info.t_max:g}, "
            f"t_min={self.info.t_min:g}, guidance_scale={scale})"
        )

    def _repr_html_(self) -> str:
        """Show facts and sixteen images in a notebook."""
        from boot.images import make_grid  # Pillow: only for who looks

        facts = {
            "parameters": f"{self.model.num_parameters:,}",
            "t_max": self.info.t_max,
            "t_min": self.info.t_min,
            "guidance_scale": self.info.guidance_scale,
            "teacher": self.info.teacher.get("name"),
            "steps": self.info.training.get("steps"),
        }
        table = facts_table(facts, "One-step student")
        if self.model.image_shape() is None or self.model.config.class_embed_type is not None:
            return table  # there is no telling what to draw
        grid = make_grid(self.sample(16))
        return table + picture(grid._repr_png_(), "sixteen images", "one network call, seed 0")

    # --------------------------------------------------------------------------------- running

    def signal(
        self, eps: Images, t: Float64, labels: Any = None, w: Float64 | None = None
    ) -> Images:
        """Return y(eps, t, labels, w), unchecked.

        eps: (N,C,H,W) float32; t: (N,); labels: (N,) or None; w: (N,) guidance scales, for students
        of a range of them; None: the default one.
        """
        return self._signal(eps, self.schedule.index(t), labels, w)

    def _signal(
        self, eps: Images, target: Float64, labels: Any, w: Float64 | None, clip: float = 0.0
    ) -> Images:
        index, w = repeated(self._index, len(eps)), self._scales(w, len(eps))
        return self._output_map(eps, self.model.forward(eps, index, labels, target, w), clip)

    def signal_train(
        self, eps: Images, t: Float64, labels: Any = None, w: Float64 | None = None
    ) -> Images:
        """Like `signal`, keeping what `backward` needs."""
        index, w = repeated(self._index, len(eps)), self._scales(w, len(eps))
        output = self.model.forward_train(eps, index, labels, self.schedule.index(t), w)
        return self._output_map(eps, output)

    def _scales(self, w: Float64 | None, count: int) -> Float64 | None:
        if not self.info.takes_scale:
            return None
        return repeated(self.info.guidance_scale, count) if w is None else w

    def backward(self, dy: Images) -> None:
        """Fill the network's gradients from d loss / d y of the last `signal_train`."""
        self.model.backward(dy * np.float32(-self._sigma))  # y = alpha_T eps - sigma_T F

    def _output_map(self, eps: Images, output: Images, clip: float = 0.0) -> Images:
        alpha, sigma = (repeated(value, len(eps)) for value in (self._alpha, self._sigma))
        return _core.signal_from_output("v_prediction", output, eps, alpha, sigma, clip)

    def __call__(
        self, noise: Any, t: Any = None, class_labels: Any = None, guidance_scale: Any = None
    ) -> Images:
        """Return the signal y(noise, t), not clipped: at t_min the image, at t_max the first guess.

        noise: (N,C,H,W) float, finite. t: a number or (N,) within [t_min, t_max]; None: t_min.
        class_labels: an integer or (N,) for a class-conditional student, else None. guidance_scale:
        a number or (N,) within the range it was trained for; None: the default. Returns (N,C,H,W)
        float32. Raises TypeError or ValueError before computing.
        """
        eps = self.model.check_sample("noise", noise)
        times = self._check_times(t, len(eps))
        labels = self.model.check_labels("class_labels", class_labels, len(eps))
        return self.signal(eps, times, labels, self.check_scales(guidance_scale, len(eps)))

    def check_scales(self, guidance_scale: Any, count: int) -> Float64:
        """Return guidance scales as (count,), each within the range the student was trained for.

        guidance_scale: a number or (count,); None: the default. Raises TypeError or ValueError.
        """
        return self.info.check_scales(guidance_scale, count)

    def _check_times(self, t: Any, count: int) -> Float64:
        t = self.info.t_min if t is None else t
        times = check_timesteps("t", t, count, self.info.t_min, self.info.t_max)
        if self.model.config.time_embedding_type == "learned":
            index = self.schedule.index(times)
            if (index != np.rint(index)).any():
                step = f"1/{self.schedule.num_train_timesteps}"
                raise ValueError(f"t must be multiples of {step} for learned time embeddings")
        return times

    @property
    def num_classes(self) -> int | None:
        """Rows of the class embedding, the null row included; None if unconditional."""
        return self.model.config.num_classes

    def sample(
        self,
        n: int | None = None,
        *,
        class_labels: Any = None,
        guidance_scale: Any = None,
        seed: int = 0,
        noise: Any = None,
    ) -> Images:
        """Generate images with one network call.

        n: number of images, may be left out with `noise`. class_labels: an integer or (n,); None:
        0, 1, 2, ... in turn (without the null label if the student was distilled with guidance).
        guidance_scale: a number or (n,) within the range it was trained for; None: the default.
        seed: image i gets the same noise in any batch, and the same as the teacher's. noise:
        (n,C,H,W) instead of a seed. Returns (n,C,H,W) float32 in [-1, 1]. Raises TypeError or
        ValueError before computing.
        """
        eps, labels = self.inputs(n, class_labels=class_labels, seed=seed, noise=noise)
        w = self.check_scales(guidance_scale, len(eps))
        target = repeated(self._end_index, len(eps))
        return self._signal(eps, target, labels, w, self.info.largest)

    def refine(
        self,
        teacher: Teacher,
        n: int | None = None,
        *,
        num_teacher_steps: int,
        t: float = 0.2,
        fresh_noise: bool = False,
        sampler: str = "ddim",
        class_labels: Any = None,
        guidance_scale: Any = None,
        seed: int = 0,
        noise: Any = None,
    ) -> Images:
        """Jump to time t with one call, and let the teacher take the rest of the steps.

        num_teacher_steps: steps of `sampler` from t to 0, one or more. t: in [t_min, t_max], best
        on the grid; the larger, the more is the teacher's work. fresh_noise: make the whole image
        first and noise it again up to t, instead of jumping there. The teacher is guided as when it
        taught. The rest, the result and the errors are as for `sample`; see `refine` for the ways.
        """
        fresh_noise = check_bool("fresh_noise", fresh_noise)
        times = refine.check_refine(self, teacher, t, num_teacher_steps, sampler)
        eps, labels = self.inputs(n, class_labels=class_labels, seed=seed, noise=noise)
        w = self.check_scales(guidance_scale, len(eps))
        start = float(times[0])
        if fresh_noise:
            images = self.sample(noise=eps, class_labels=labels, guidance_scale=w)
            x = refine.renoise(teacher.schedule, images, start, seed)
        else:
            x = refine.jump(self, teacher.schedule, eps, labels, w, start)
        return self.clipped(refine.teacher_steps(self, teacher, x, labels, w, times, sampler))

    def resample(
        self,
        n: int | None = None,
        *,
        t: float,
        num_rounds: int = 1,
        num_corrections: int = 4,
        class_labels: Any = None,
        guidance_scale: Any = None,
        seed: int = 0,
        noise: Any = None,
    ) -> Images:
        """Make images, noise them again up to t and finish them again, without a teacher.

        t: in [t_min, t_max]; num_rounds: how often, 0 or more; num_corrections: calls that look for
        the start noise of the noised image, each round, see `refine.start_noise`. Network calls:
        1 + num_rounds * (num_corrections + 1). The rest is as for `sample`.
        """
        t = check_float("t", t, self.info.t_min, self.info.t_max)
        self._check_times(t, 1)
        rounds = check_int("num_rounds", num_rounds, 0)
        corrections = check_int("num_corrections", num_corrections, 1)
        eps, labels = self.inputs(n, class_labels=class_labels, seed=seed, noise=noise)
        w = self.check_scales(guidance_scale, len(eps))
        images = self.sample(noise=eps, class_labels=labels, guidance_scale=w)
        for number in range(rounds):
            x = refine.renoise(self.schedule, images, t, seed, number)
            eps = refine.start_noise(self, x, labels, w, t, corrections)
            images = self.sample(noise=eps, class_labels=labels, guidance_scale=w)
        return images

    def clipped(self, images: Images) -> Images:
        """Clip images in place to the range of the student's, and return them."""
        np.clip(images, -self.info.largest, self.info.largest, out=images)
        return images

    def inputs(
        self, n: int | None = None, *, class_labels: Any = None, seed: int = 0, noise: Any = None
    ) -> tuple[Images, NDArray[Any] | None]:
        """Return the noise (n,C,H,W) and labels (n,) or None that `sample` would use."""
        guidance = self.info.guidance
        noise, labels = sampling_inputs(self.model, guidance, n, class_labels, seed, noise)
        null = guidance.null_label
        if guidance.active and class_labels is not None and np.any(labels == null):
            text = f"label {null} means 'no class': this student was not trained for it"
            warnings.warn(text, BootWarning, stacklevel=3)
        return noise, labels

    # ---------------------------------------------------------------------------------- folders

    def with_guidance(self, guidance_scale: float) -> Student:
        """Return a copy that has one guidance scale built in: the same images, no embedding of it.

        guidance_scale: within the range that this student was trained for, ValueError otherwise.
        """
        scale = float(self.check_scales(check_float("guidance_scale", guidance_scale), 1)[0])
        info = dataclasses.replace(
            self.info, guidance_scale=scale, guidance_scale_min=None, guidance_scale_max=None
        )
        tensors = {name: a.copy() for name, a in self.model.parameters.items()}
        if self.model.guidance_embedding:
            tensors[f"{TARGET_EMBEDDING}.linear_2.bias"] += guidance_vector(self, tensors, scale)
            tensors = {n: a for n, a in tensors.items() if not n.startswith(GUIDANCE_EMBEDDING)}
        highest = self.model.max_timestep
        model = Network(self.model.config, target_embedding=True, max_timestep=highest)
        model.load(tensors)
        return Student(model, self.scheduler, info)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        guidance_scale: float | None = None,
        overwrite: bool = False,
        dtype: str = "float32",
    ) -> None:
        """Write a diffusers pipeline folder whose one DDIM step is this student.

        The embedding of t_min is constant, so it is baked into the time embedding's last bias.
        What diffusers has no place for lies beside: `boot.json` and `boot.safetensors`.
        guidance_scale: write the student `with_guidance` of that scale; None: diffusers gets the
        default scale, and boot loads the range again. overwrite: the folder may hold files already
        (its student is replaced). dtype: "float32" or "float16". Raises FileExistsError,
        NotADirectoryError, PermissionError or another OSError, with what was there untouched.
        """
        path = check_path("folder", folder)
        if guidance_scale is not None:
            chosen = self.with_guidance(guidance_scale)
            chosen.save_pretrained(path, overwrite=overwrite, dtype=dtype)
            return
        tensors, own = split_tensors(self)
        card = model_card(self, path.resolve().name)
        info = {
            "format_version": FORMAT_VERSION,
            "scheduler": self.scheduler.to_dict(),  # of the teacher: exact where the export is not
            **dataclasses.asdict(self.info),
        }
        save_pipeline(
            path,
            self.model.config,
            scheduler_to_export(self),
            tensors,
            extra_files={INFO_FILE: to_json(info), "README.md": card},
            extra_tensors={TENSORS_FILE: own},
            dtype=dtype,
            exist_ok=overwrite,
        )

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Student:
        """Load a folder written by `save_pretrained`; a float32 one comes back bit for bit.

        Raises FileNotFoundError, NotADirectoryError, FormatError (also for a diffusers pipeline
        that is not a student) or UnsupportedModel.
        """
        root = check_folder("folder", folder)
        if not (root / INFO_FILE).exists():
            raise FormatError(
                f"{str(root)!r} is not a student: it has no {INFO_FILE}; for a diffusion model "
                "use Teacher.from_pretrained"
            )
        where = str(root / INFO_FILE)
        values = read_json_object(check_inside(root / INFO_FILE, root))
        info = StudentInfo.from_dict(values, where)
        scheduler = scheduler_of(values, where)
        loaded = load_pipeline(root)
        info.check_classes(loaded.unet.num_classes, where)
        own = load_tensors(check_inside(root / TENSORS_FILE, root))
        highest = float(scheduler.num_train_timesteps - 1)
        model = Network(
            loaded.unet,
            target_embedding=True,
            guidance_embedding=info.takes_scale,
            max_timestep=highest,
        )
        check_own(own, model, str(root / TENSORS_FILE))
        model.load({**loaded.tensors, **own})
        model.keep_packed(True)  # it will be sampled, not trained
        student = cls(model, scheduler, info)
        check_unbaked(student, loaded.tensors[BAKED], own, str(root))
        return student
