"""Every setting of a distillation run: one frozen dataclass, from which the CLI makes its flags.

Names are those of the diffusers training scripts. Each field carries its help text and its limits
as metadata, and one loop checks them all, so a setting is described in exactly one place.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boot import choices
from boot.combinations import check_combinations
from boot.errors import SEED_MAX, ConfigError, check_path, nearest_hint, shown
from boot.files import write_atomically
from boot.learning_rate import LR_SCHEDULERS, course
from boot.options import Option, checked, setting, string_keys
from boot.reading import read_json_object, to_json

RUN_CONFIG_FILE = "distill_config.json"  # in the output_dir
MOST_STEPS = 10**12 - 1  # a checkpoint's name has at most 12 digits


@dataclass(frozen=True)
class DistillConfig:
    """Settings of a distillation; the defaults are the best measured ones.

    They come from experiments on a 0.7 M-parameter class-conditional digits teacher (one-step
    students compared by Fréchet distance, recall and paired error); `learning_rate` and
    `guidance_scale` of None adapt to the teacher. Raises TypeError for a value of a wrong type,
    ConfigError (a ValueError) for one out of range, OverflowError for a seed beyond 64 bits.
    """

    # -------------------------------------------------------------------- the run and the optimiser

    max_train_steps: int = setting(2200, int, "number of training steps", lo=1, hi=MOST_STEPS)
    train_batch_size: int = setting(64, int, "images (noise samples) per step", lo=1, hi=2**20)
    learning_rate: float | None = setting(
        None,
        float,
        "peak learning rate of AdamW; None: 2e-3 for networks up to 0.7 million parameters, "
        "beyond that falling with one over the size, down to 2e-4",
        lo=0,
        hi=1,
        above=True,
    )
    lr_scheduler: str = setting(
        "hold_then_linear",
        str,
        "course of the learning rate after warm-up; hold_then_linear: constant for 60 percent of "
        "the run, then linear to 0; linear and cosine: falling to 0 from the end of the warm-up",
        choices=LR_SCHEDULERS,
    )
    lr_warmup_steps: int = setting(100, int, "steps of linear warm-up to the peak rate", lo=0)
    adam_beta1: float = setting(0.9, float, "decay of AdamW's first moment", lo=0, hi=1, below=True)
    adam_beta2: float = setting(
        0.99, float, "decay of AdamW's second moment", lo=0, hi=1, below=True
    )
    adam_epsilon: float = setting(1e-8, float, "AdamW's epsilon", lo=1e-30)
    adam_weight_decay: float = setting(0.0, float, "decoupled weight decay of AdamW", lo=0, hi=1)
    max_grad_norm: float = setting(
        1.0, float, "clip the global gradient norm to this; 0: no clipping", lo=0
    )
    ema_decay: float = setting(
        0.998,
        float,
        "decay per step of the weight average that becomes the student; 0: use the raw weights",
        lo=0,
        hi=1,
        below=True,
    )

    # ------------------------------------------------------------------------------------- guidance

    guidance_scale: float | None = setting(
        None,
        float,
        "classifier-free guidance distilled into the student, f_null + w (f_class - f_null); 1: "
        "off; None: 1.5 for a class-conditional teacher with a null row, otherwise off",
        lo=0,
        hi=100,
    )
    guidance_scale_max: float | None = setting(
        None,
        float,
        "largest guidance scale; with it the scale is an input of the student, drawn evenly from "
        "guidance_scale_min to here in training, and guidance_scale is the default when sampling; "
        "None: guidance_scale is built in",
        lo=0,
        hi=100,
    )
    guidance_scale_min: float = setting(
        1.0, float, "smallest guidance scale, used with guidance_scale_max", lo=0, hi=100
    )
    null_class_label: int | None = setting(
        None, int, "label that means 'no class'; None: the last row of the class embedding", lo=0
    )
    negative_class_label: int | None = setting(
        None, int, "class to guide away from; None: from 'no class'", lo=0
    )
    guidance_rescale: float = setting(
        0.0,
        float,
        "part phi by which the guided output gets the standard deviation of the unguided one back; "
        "0: off",
        lo=0,
        hi=1,
    )
    guidance_t_min: float = setting(0.0, float, "guide only from this t up", lo=0, hi=1)
    guidance_t_max: float = setting(1.0, float, "guide only up to this t", lo=0, hi=1)

    # ------------------------------------------------------------------------------ loss and target

    boundary_weight: float = setting(
        0.0, float, "weight of the boundary loss (student = teacher at t_max)", lo=0
    )
    boundary_fraction: float = setting(
        0.25, float, "part of the batch used for the boundary loss", lo=0, hi=1
    )
    delta: float = setting(
        0.04, float, "step of the signal-ODE, as a part of unit time", lo=0, hi=1, above=True
    )
    delta_schedule: str = setting(
        "constant",
        str,
        "course of delta over the run; linear: from delta_start to delta",
        choices=choices.DELTA_SCHEDULES,
    )
    delta_start: float = setting(
        0.16, float, "delta at the first step if delta_schedule is linear", lo=0, hi=1, above=True
    )
    solver: str = setting(
        "midpoint",
        str,
        "solver of the target: heun, midpoint (two teacher calls each) or euler (one)",
        choices=choices.SOLVERS,
    )
    teacher_substeps: int = setting(
        1, int, "steps that the solver takes inside one delta", lo=1, hi=64
    )
    loss: str = setting(
        "l2",
        str,
        "distance between student and target: l2 (mean square), or pseudo_huber: "
        "sqrt(mean square + huber_c^2) - huber_c",
        choices=choices.LOSSES,
    )
    huber_c: float = setting(
        0.03,
        float,
        "c of the pseudo-Huber loss as a part of sqrt(number of values of an image)",
        lo=0,
        hi=100,
        above=True,
    )
    loss_weight: str = setting(
        "inverse_c2",
        str,
        "weight of a sample, by its step coefficient C: 1/C^2, 1/C or 1; or by the "
        "signal-to-noise ratio at s: max(SNR, 1), SNR + 1, min(SNR, snr_gamma)",
        choices=choices.LOSS_WEIGHTS,
    )
    snr_gamma: float = setting(
        5.0, float, "largest weight of loss_weight min_snr_gamma", lo=0, above=True
    )
    c_floor: float = setting(
        0.02, float, "smallest C inside the loss weight", lo=0, hi=1, above=True
    )

    # ----------------------------------------------------------- correction of compounding errors

    correction: str | None = setting(
        None,
        str,
        "distribution: a second network learns what the student's images look like, and pulls them "
        "to where the teacher wants them; rollout: follow the teacher's ODE from the student's own "
        "signal for several steps more, and train the student at all of them; None: distribution "
        "for a copy of the teacher, otherwise none",
        choices=choices.CORRECTIONS,
    )
    correction_fraction: float | None = setting(
        None, float, "part of the batch corrected; None: 0.5, rollout 0.125", lo=0, hi=1, above=True
    )
    correction_weight: float | None = setting(
        None, float, "weight of a corrected sample; None: 0.1, for rollout 1", lo=0
    )
    correction_start: float = setting(
        0.6, float, "part of the run before correction distribution", lo=0, hi=1, below=True
    )
    correction_guidance_scale: float | None = setting(
        None,
        float,
        "guidance scale of the teacher in correction distribution; None: three tenths of the way "
        "from 1 to the student's",
        lo=0,
        hi=100,
    )
    correction_learning_rate: float | None = setting(
        None,
        float,
        "learning rate of the second network of correction distribution; None: a quarter of "
        "learning_rate",
        lo=0,
        hi=1,
        above=True,
    )
    correction_steps: int = setting(
        4, int, "steps of delta that correction rollout follows", lo=1, hi=1000
    )

    # ----------------------------------------------------------------------------------------- time

    t_max: float | None = setting(
        None,
        float,
        "time of the noise end, snapped to the teacher's grid; None: the largest t up to 0.98, "
        "for an epsilon teacher with alpha_t >= 0.039 (0.8 on the linear schedule)",
        lo=0,
        hi=1,
        above=True,
    )
    t_min: float = setting(
        0.001,
        float,
        "time of the image end, snapped to the teacher's grid",
        lo=0,
        hi=1,
        above=True,
        below=True,
    )
    t_distribution: str = setting(
        "uniform",
        str,
        "times that are trained: uniform, or progressive: a range that grows from t_max downwards",
        choices=choices.T_DISTRIBUTIONS,
    )
    progressive_fraction: float = setting(
        0.5, float, "part of the run until a progressive range is whole", lo=0, hi=1, above=True
    )

    # ------------------------------------------------------------------------- the teacher's signal

    clip_sample: bool | None = setting(
        None, bool, "clip the teacher's signal; None: as the teacher's scheduler config says"
    )
    clip_sample_range: float | None = setting(
        None,
        float,
        "clip to plus and minus this; None: as the teacher's scheduler config says",
        lo=0,
        above=True,
    )
    thresholding: bool | None = setting(
        None,
        bool,
        "threshold the teacher's signal image by image instead of clipping; None: as its scheduler "
        "config says",
    )
    dynamic_thresholding_ratio: float | None = setting(
        None,
        float,
        "part of an image's numbers that thresholding leaves within its bound; None: as the "
        "teacher's scheduler config says",
        lo=0,
        hi=1,
    )
    sample_max_value: float | None = setting(
        None,
        float,
        "largest bound of dynamic thresholding; None: as the teacher's scheduler config says",
        lo=1,
    )

    # ------------------------------------------------------------------- randomness, threads, files

    seed: int = setting(0, int, "seed of all noise, times and labels", lo=0, hi=SEED_MAX)
    num_threads: int | None = setting(
        None, int, "CPU threads; None: as OMP_NUM_THREADS or the machine says", lo=1, hi=4096
    )
    thread_independent: bool = setting(
        False, bool, "the same bits for any number of threads: kernels by rule instead of by timing"
    )
    gradient_checkpointing: bool = setting(
        False,
        bool,
        "recompute the inside of each block in the backward pass instead of keeping it: the same "
        "numbers in less memory and more time",
    )
    offload_teacher: bool = setting(
        False,
        bool,
        "read the teacher's weights from their file whenever it runs, and give their memory to the "
        "gradients: the same numbers in less memory and a little more time",
    )
    moments_dtype: str = setting(
        "float32",
        str,
        "how AdamW's two moments are kept; bfloat16: half of their memory, rounded at random, in "
        "the mean to what they are",
        choices=choices.MOMENTS_DTYPES,
    )
    memory_limit: int | None = setting(
        None,
        int,
        "the most memory that the run may take beside the interpreter, in bytes or as text like "
        "2GB; None: any. A run that cannot fit is refused before its first step",
        unit="bytes",
    )
    output_dir: str | None = setting(
        None, str, "folder for the student, log and checkpoints; None: write nothing"
    )
    logging_steps: int = setting(10, int, "steps between log lines", lo=1)
    sample_steps: int = setting(500, int, "steps between sample grids; 0: none", lo=0)
    eval_steps: int = setting(
        100,
        int,
        "steps between measurements of the paired error (student against teacher ODE, "
        "same noise); 0: none",
        lo=0,
    )
    num_sample_images: int = setting(16, int, "images in a sample grid", lo=1, hi=4096)
    checkpointing_steps: int = setting(500, int, "steps between checkpoints; 0: none", lo=0)
    checkpoints_total_limit: int | None = setting(
        2, int, "checkpoints to keep, older ones are deleted; None: all", lo=1, optional=True
    )
    resume_from_checkpoint: str | None = setting(
        None, str, "checkpoint folder to continue from, or 'latest'; None: start afresh"
    )
    check_teacher: bool = setting(
        True, bool, "ask the teacher a few questions before the first step: is it what it says?"
    )
    report_to: str = setting(
        "jsonl", str, "where the numbers of each logged step go", choices=choices.REPORTERS
    )

    def __post_init__(self) -> None:
        """Check every field, and store plain Python numbers and strings."""
        for option in self.options():
            value = checked(option, getattr(self, option.name))
            object.__setattr__(self, option.name, value)
        check_combinations(self)

    @classmethod
    def options(cls) -> list[Option]:
        """Describe every setting, in the order of the fields."""
        return [
            dataclasses.replace(item.metadata["option"], name=item.name)
            for item in dataclasses.fields(cls)
        ]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistillConfig:
        """Make a config from names and values; ConfigError for an unknown name, with a hint."""
        return cls().replace(**string_keys(values))

    def replace(self, **overrides: Any) -> DistillConfig:
        """Return a copy with some settings changed; ConfigError for an unknown name."""
        known = [option.name for option in self.options()]
        for name in overrides:
            if name not in known:
                hint = nearest_hint(name, known)
                raise ConfigError(f"unknown setting {shown(name)}{hint}; known: {', '.join(known)}")
        return dataclasses.replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON-ready values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return all settings as JSON text."""
        return to_json(self.to_dict())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the settings to a JSON file, atomically."""
        write_atomically(check_path("path", path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DistillConfig:
        """Read settings from a JSON file, defaults for the rest; FormatError, ConfigError."""
        where: Path = check_path("path", path)
        try:
            return cls.from_dict(read_json_object(where))
        except (ConfigError, TypeError, OverflowError) as problem:
            raise ConfigError(f"{where}: {problem}") from None

    def learning_rate_factor(self, step: int) -> float:
        """Return the part of the peak learning rate for a step, counted from 0: in [0, 1]."""
        return course(self.lr_scheduler, step, self.max_train_steps, self.lr_warmup_steps)
