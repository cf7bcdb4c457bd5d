"""The student: one network call from noise to image, y(eps, t) = alpha_T eps - sigma_T F(eps, t).

alpha_T and sigma_T are those of the noise end t_max, whatever t is asked for: the network's input
is always pure noise, so a map that depends on t would return that noise for small t. The target t
enters through an embedding of its own, and the network's own timestep stays at t_max.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot import _core
from boot.diffusers_io import LoadedPipeline, load_pipeline, save_pipeline
from boot.errors import (
    FormatError,
    check_bool,
    check_float,
    check_folder,
    check_int,
    check_path,
    check_timesteps,
    listed,
)
from boot.files import read_json_object, to_json
from boot.guidance import Guidance
from boot.inputs import sampling_inputs
from boot.model_card import model_card
from boot.network import TARGET_EMBEDDING, Images, Network
from boot.safetensors_io import load_tensors
from boot.schedule import Float64, Schedule
from boot.scheduler_config import SchedulerConfig
from boot.teacher import Teacher

INFO_FILE = "boot.json"
TENSORS_FILE = "boot.safetensors"
FORMAT_VERSION = 1
BAKED = "time_embedding.linear_2.bias"


@dataclasses.dataclass(frozen=True)
class StudentInfo:
    """What a student is beside its network; stored as `boot.json` in its folder.

    t_min, t_max: times of image and noise, on the schedule's grid. guidance_scale,
    null_class_label: the guidance it was distilled with. teacher: name and SHA-256. training:
    settings and steps, as JSON-ready values.
    """

    t_max: float
    t_min: float
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    guidance_scale: float = 1.0
    null_class_label: int | None = None
    teacher: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def guidance(self) -> Guidance:
        """The guidance that is built in (never applied again)."""
        return Guidance(self.guidance_scale, self.null_class_label)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> StudentInfo:
        """Check the content of a `boot.json`; FormatError that starts with `where`."""
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise FormatError(
                f"{where}: format_version must be {FORMAT_VERSION}, got {version!r}: the student "
                "was saved by another version of boot"
            )
        known = {item.name: item for item in dataclasses.fields(cls)}
        missing = [name for name in ("t_max", "t_min") if name not in values]
        if missing:
            raise FormatError(f"{where}: {missing[0]} is missing")
        try:
            info = cls(**{key: value for key, value in values.items() if key in known})
            check_float("t_max", info.t_max, 0, 1, above=True)
            check_float("t_min", info.t_min, 0, info.t_max, above=True, below=True)
            check_float("guidance_scale", info.guidance_scale, 0, 100)
            check_bool("clip_sample", info.clip_sample)
            check_float("clip_sample_range", info.clip_sample_range, 0, above=True)
            if info.null_class_label is not None:
                check_int("null_class_label", info.null_class_label, 0)
        except (TypeError, ValueError) as problem:
            raise FormatError(f"{where}: {problem}") from None
        return info


class Student:
    """A one-step generator. `sample` makes images; calling it gives the signal at any time t.

    Attributes: `model` (the network, with its target embedding), `scheduler`, `schedule`, `info`.
    """

    def __init__(self, model: Network, scheduler: SchedulerConfig, info: StudentInfo) -> None:
        """Join a network that has a target embedding with its noise process."""
        if not model.target_embedding:
            raise ValueError("model must have a target embedding: Network(target_embedding=True)")
        self.model = model
        self.scheduler = scheduler
        self.schedule = Schedule.from_config(scheduler)
        self.info = info
        self._alpha, self._sigma = (float(a) for a in self.schedule.alpha_sigma(info.t_max))
        self._index = float(self.schedule.index(info.t_max))

    @classmethod
    def from_teacher(cls, teacher: Teacher, info: StudentInfo) -> Student:
        """Copy a teacher's network; a v-prediction teacher's copy equals it at t_max exactly.

        An epsilon or sample network means something else by its output, and learns the student's
        in the first few hundred steps.
        """
        teacher.check_can_sample()
        config = teacher.model.config
        model = Network(config, target_embedding=True, max_timestep=teacher.model.max_timestep)
        model.load(teacher.model.parameters)
        return cls(model, teacher.scheduler, info)

    def __repr__(self) -> str:
        """Show size, times and guidance."""
        return (
            f"Student({self.model.num_parameters:,} parameters, t_max={self.info.t_max:g}, "
            f"t_min={self.info.t_min:g}, guidance_scale={self.info.guidance_scale:g})"
        )

    # --------------------------------------------------------------------------------- running

    def signal(self, eps: Images, t: Float64, labels: Any = None) -> Images:
        """Return y(eps, t), unchecked. eps: (N,C,H,W) float32; t: (N,); labels: (N,) or None."""
        index = np.full(len(eps), self._index)
        return self._output_map(eps, self.model.forward(eps, index, labels, self.schedule.index(t)))

    def signal_train(self, eps: Images, t: Float64, labels: Any = None) -> Images:
        """Like `signal`, keeping what `backward` needs."""
        index = np.full(len(eps), self._index)
        output = self.model.forward_train(eps, index, labels, self.schedule.index(t))
        return self._output_map(eps, output)

    def backward(self, dy: Images) -> None:
        """Fill the network's gradients from d loss / d y of the last `signal_train`."""
        self.model.backward(dy * np.float32(-self._sigma))  # y = alpha_T eps - sigma_T F

    def _output_map(self, eps: Images, output: Images) -> Images:
        alpha, sigma = np.full(len(eps), self._alpha), np.full(len(eps), self._sigma)
        return _core.signal_from_output("v_prediction", output, eps, alpha, sigma, 0.0)

    def __call__(self, noise: Any, t: Any = None, class_labels: Any = None) -> Images:
        """Return the signal y(noise, t), not clipped: at t_min the image, at t_max the first guess.

        noise: (N,C,H,W) float, finite. t: a number or (N,) within [t_min, t_max]; None: t_min.
        class_labels: an integer or (N,) for a class-conditional student, else None. Returns
        (N,C,H,W) float32. Raises TypeError or ValueError before computing.
        """
        eps = self.model.check_sample("noise", noise)
        times = self._check_times(t, len(eps))
        labels = self.model.check_labels("class_labels", class_labels, len(eps))
        return self.signal(eps, times, labels)

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
        self, n: int | None = None, *, class_labels: Any = None, seed: int = 0, noise: Any = None
    ) -> Images:
        """Generate images with one network call.

        n: number of images, may be left out with `noise`. class_labels: an integer or (n,); None:
        0, 1, 2, ... in turn (without the null label if the student was distilled with guidance).
        seed: image i gets the same noise in any batch, and the same as the teacher's. noise:
        (n,C,H,W) instead of a seed. Returns (n,C,H,W) float32 in [-1, 1]. Raises TypeError or
        ValueError before computing.
        """
        eps, labels = self.inputs(n, class_labels=class_labels, seed=seed, noise=noise)
        images = self.signal(eps, np.full(len(eps), self.info.t_min), labels)
        limit = min(1.0, self.info.clip_sample_range) if self.info.clip_sample else 1.0
        np.clip(images, -limit, limit, out=images)
        return images

    def inputs(
        self, n: int | None = None, *, class_labels: Any = None, seed: int = 0, noise: Any = None
    ) -> tuple[Images, NDArray[Any] | None]:
        """Return the noise (n,C,H,W) and labels (n,) or None that `sample` would use."""
        return sampling_inputs(self.model, self.info.guidance, n, class_labels, seed, noise)

    # ---------------------------------------------------------------------------------- folders

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        dtype: str = "float32",
    ) -> None:
        """Write a diffusers pipeline folder whose one DDIM step is this student.

        The embedding of t_min is constant, so it is baked into the time embedding's last bias.
        What diffusers has no place for lies beside: `boot.json` and `boot.safetensors`. overwrite:
        the folder may hold files already (its student is replaced). dtype: "float32" or "float16".
        Raises FileExistsError, NotADirectoryError, PermissionError or another OSError, with what
        was there untouched.
        """
        path = check_path("folder", folder)
        model = self.model
        own = {name: a for name, a in model.parameters.items() if name.startswith(TARGET_EMBEDDING)}
        tensors = {name: a for name, a in model.parameters.items() if name not in own}
        own[BAKED] = tensors[BAKED]
        tensors[BAKED] = self._baked_bias(own)
        card = model_card(self, path.resolve().name)
        info = {
            "format_version": FORMAT_VERSION,
            "scheduler": self.scheduler.to_dict(),  # of the teacher: exact where the export is not
            **dataclasses.asdict(self.info),
        }
        save_pipeline(
            path,
            model.config,
            self._scheduler_to_export(),
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
        values = read_json_object(root / INFO_FILE)
        info = StudentInfo.from_dict(values, str(root / INFO_FILE))
        scheduler = _scheduler_of(values, str(root / INFO_FILE))
        loaded = load_pipeline(root)
        own = load_tensors(root / TENSORS_FILE)
        highest = float(scheduler.num_train_timesteps - 1)
        model = Network(loaded.unet, target_embedding=True, max_timestep=highest)
        _check_own(own, model, str(root / TENSORS_FILE))
        model.load({**loaded.tensors, **own})
        model.core.keep_packed(True)  # it will be sampled, not trained
        student = cls(model, scheduler, info)
        student._check_unbaked(loaded, own, str(root))
        return student

    def _check_unbaked(self, loaded: LoadedPipeline, own: dict[str, Any], where: str) -> None:
        """Refuse a folder whose two weight files do not belong together."""
        baked, expected = loaded.tensors[BAKED], self._baked_bias(own)
        if not np.allclose(baked, expected, rtol=1e-2, atol=1e-2):
            raise FormatError(
                f"{where}: {TENSORS_FILE} does not belong to the weights beside it (the baked "
                f"{BAKED} differs by up to {np.abs(baked - expected).max():.3g})"
            )

    def _baked_bias(self, own: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return linear_2.bias + target embedding of t_min: what the network adds for that t."""
        weight_1, bias_1, weight_2, bias_2 = (
            own[f"{TARGET_EMBEDDING}.{part}"].astype(np.float64)
            for part in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")
        )
        hidden = weight_1 @ self._time_features(self.info.t_min) + bias_1
        hidden = hidden / (1.0 + np.exp(-hidden))  # SiLU
        baked: NDArray[np.float32] = (own[BAKED] + weight_2 @ hidden + bias_2).astype(np.float32)
        return baked

    def _time_features(self, t: float) -> NDArray[np.float64]:
        """Return the features of a time that go into the embedding's first layer: (C0,)."""
        config, index = self.model.config, float(self.schedule.index(t))
        if config.time_embedding_type == "learned":
            table = self.model.parameters["time_proj.weight"]
            row: NDArray[np.float64] = table[int(index)].astype(np.float64)
            return row
        attrs = {
            "dim": config.block_out_channels[0],
            "flip_sin_to_cos": float(config.flip_sin_to_cos),
            "freq_shift": config.freq_shift,
        }
        features = _core.op_forward("timestep_embedding", {"t": np.array([index])}, attrs)
        return features.reshape(-1).astype(np.float64)

    def _scheduler_to_export(self) -> dict[str, Any]:
        """Return the scheduler config with which one DDIM step is alpha_T x - sigma_T F."""
        values = self.scheduler.to_dict()
        if values["beta_schedule"] == "sigmoid":  # known to DDPMScheduler only: write the table
            plain = dataclasses.replace(self.scheduler, rescale_betas_zero_snr=False)
            abar = np.concatenate([[1.0], Schedule.from_config(plain).alphas_cumprod])
            values["beta_schedule"] = "linear"
            values["trained_betas"] = list(1.0 - abar[1:] / abar[:-1])
        return {
            **values,
            "_class_name": "DDIMScheduler",
            "prediction_type": "v_prediction",
            "timestep_spacing": "leading",
            "steps_offset": int(self._index),
            "set_alpha_to_one": True,
            "clip_sample": self.info.clip_sample,
            "clip_sample_range": self.info.clip_sample_range,
            "thresholding": False,
        }


def _scheduler_of(values: dict[str, Any], where: str) -> SchedulerConfig:
    scheduler = values.get("scheduler")
    if not isinstance(scheduler, dict):
        raise FormatError(f"{where}: scheduler must be an object, got {scheduler!r}")
    try:
        return SchedulerConfig(**scheduler)
    except (TypeError, ValueError) as problem:
        raise FormatError(f"{where}: scheduler: {problem}") from None


def _check_own(own: dict[str, NDArray[np.float32]], model: Network, where: str) -> None:
    """Require exactly the tensors that the diffusers weights lack, finite."""
    wanted = {BAKED, *(name for name in model.parameters if name.startswith(TARGET_EMBEDDING))}
    if set(own) != wanted:
        raise FormatError(f"{where} must hold {listed(sorted(wanted))}; got {listed(sorted(own))}")
    broken = [name for name, array in own.items() if not np.isfinite(array).all()]
    if broken:
        raise FormatError(f"{where}: NaN or infinite numbers in {listed(broken)}")
