"""The noise process that a diffusers scheduler config describes; how it samples is not read.

Teachers come with DDPM, PNDM, DDIM, Euler or DPM configs. All of these describe the same
variance-preserving process x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, so only its keys matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boot.errors import (
    ConfigError,
    UnsupportedModel,
    check_bool,
    check_float,
    check_int,
    check_supported,
    shown,
    type_name,
)

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
TEACHER_PREDICTIONS = (*PREDICTION_TYPES, "flow")  # of callables, which need no diffusers config
MAX_TIMESTEPS = 1_000_000
MAX_BETAS = 100_000  # in a list: more would not fit into a file that is read again

# Scheduler class -> where its defaults differ from those of SchedulerConfig. A missing key means
# the default of the class, and these do differ.
_CLIPS: dict[str, Any] = {"clip_sample": True}
_LATENT: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULER_CLASSES: dict[str, dict[str, Any]] = {
    "DDIMInverseScheduler": _CLIPS,
    "DDIMParallelScheduler": _CLIPS,
    "DDIMScheduler": _CLIPS,
    "DDPMParallelScheduler": _CLIPS,
    "DDPMScheduler": _CLIPS,
    "DEISMultistepScheduler": {},
    "DPMSolverMultistepInverseScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSDEScheduler": _LATENT,
    "DPMSolverSinglestepScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "EulerDiscreteScheduler": {},
    "HeunDiscreteScheduler": _LATENT,
    "KDPM2AncestralDiscreteScheduler": _LATENT,
    "KDPM2DiscreteScheduler": _LATENT,
    "LCMScheduler": {**_LATENT, "beta_schedule": "scaled_linear"},
    "LMSDiscreteScheduler": {},
    "PNDMScheduler": {},
    "RePaintScheduler": _CLIPS,
    "SASolverScheduler": {},
    "TCDScheduler": {**_LATENT, "beta_schedule": "scaled_linear"},
    "UniPCMultistepScheduler": {},
}


@dataclass(frozen=True)
class SchedulerConfig:
    """The keys of a diffusers scheduler config that describe the noise process and the output.

    Raises TypeError for a wrong type, ConfigError (a ValueError) for a value out of range,
    UnsupportedModel for a beta_schedule or prediction_type that `boot` does not know.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None  # wins over the three above
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    def __post_init__(self) -> None:
        """Check every key; numbers become plain Python numbers, lists become tuples."""
        steps = check_int(
            "num_train_timesteps", self.num_train_timesteps, 1, MAX_TIMESTEPS, error=ConfigError
        )
        self._set("num_train_timesteps", steps)
        for key in ("rescale_betas_zero_snr", "clip_sample", "thresholding"):
            self._set(key, check_bool(key, getattr(self, key)))
        for key, hi in (
            ("beta_start", 1.0),
            ("beta_end", 1.0),
            ("clip_sample_range", None),
            ("dynamic_thresholding_ratio", 1.0),
            ("sample_max_value", None),
        ):
            value = check_float(key, getattr(self, key), 0, hi, above=True, error=ConfigError)
            self._set(key, value)
        for key, allowed in (
            ("beta_schedule", BETA_SCHEDULES),
            ("prediction_type", PREDICTION_TYPES),
        ):
            check_supported(key, getattr(self, key), allowed)
        if self.trained_betas is not None:
            self._set("trained_betas", _check_betas(self.trained_betas, steps))

    def _set(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SchedulerConfig:
        """Make a config from the content of a diffusers `scheduler_config.json`.

        Missing keys take the defaults of the scheduler class that the file names; keys about
        sampling, and unknown ones, are ignored.
        """
        name = values.get("_class_name", "DDPMScheduler")
        check_supported("_class_name", name, list(SCHEDULER_CLASSES))
        if values.get("use_flow_sigmas", False) is not False:
            raise UnsupportedModel("use_flow_sigmas: flow-matching schedules are not supported")
        if values.get("predict_epsilon", True) is not True and "prediction_type" not in values:
            raise UnsupportedModel(
                "predict_epsilon: this key of old configs is ignored by diffusers today; write "
                '"prediction_type": "sample" into the scheduler config instead'
            )
        known = {item.name for item in dataclasses.fields(cls)}
        given = {key: value for key, value in values.items() if key in known}
        return cls(**{**SCHEDULER_CLASSES[name], **given})

    def to_dict(self) -> dict[str, Any]:
        """Return every key as a JSON-ready value."""
        values = dataclasses.asdict(self)
        if self.trained_betas is not None:
            values["trained_betas"] = list(self.trained_betas)
        return values


def _check_betas(betas: Any, steps: int) -> tuple[float, ...]:
    if not isinstance(betas, (list, tuple)):
        raise TypeError(f"trained_betas must be a list, got {shown(betas)} ({type_name(betas)})")
    if len(betas) > MAX_BETAS:
        raise ConfigError(
            f"trained_betas must have at most {MAX_BETAS} entries (num_train_timesteps), got "
            f"{len(betas)}"
        )
    if len(betas) != steps:
        raise ConfigError(
            f"trained_betas must have num_train_timesteps = {steps} entries, got {len(betas)}"
        )
    return tuple(
        check_float(f"trained_betas[{i}]", beta, 0, 1, above=True, error=ConfigError)
        for i, beta in enumerate(betas)
    )
