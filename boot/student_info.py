"""What a student is beside its network: the content of `boot.json`, checked."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot.config import DistillConfig
from boot.errors import (
    FormatError,
    check_bool,
    check_float,
    check_int,
    check_timesteps,
    shown,
    type_name,
)
from boot.guidance import Guidance
from boot.inputs import repeated
from boot.network import LARGEST_GUIDANCE_SCALE

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class StudentInfo:
    """What a student is beside its network; stored as `boot.json` in its folder.

    t_min, t_max: times of image and noise, on the schedule's grid. guidance_scale,
    null_class_label: the guidance it was distilled with; a student of a range of scales has
    guidance_scale_min and guidance_scale_max, and guidance_scale is what it takes if none is asked
    for. teacher: name and SHA-256. training: settings and steps, as JSON-ready values.
    """

    t_max: float
    t_min: float
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    guidance_scale: float = 1.0
    null_class_label: int | None = None
    guidance_scale_min: float | None = None
    guidance_scale_max: float | None = None
    teacher: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def guidance(self) -> Guidance:
        """The guidance that is built in (never applied again)."""
        return Guidance(self.guidance_scale, self.null_class_label, varies=self.takes_scale)

    @property
    def takes_scale(self) -> bool:
        """Whether the guidance scale is an input of the student, within a range."""
        return self.guidance_scale_max is not None

    @property
    def scale_range(self) -> tuple[float, float]:
        """Smallest and largest guidance scale it was trained for: equal if one is built in."""
        if self.guidance_scale_min is None or self.guidance_scale_max is None:
            return self.guidance_scale, self.guidance_scale
        return self.guidance_scale_min, self.guidance_scale_max

    @property
    def largest(self) -> float:
        """What images are clipped to: the largest absolute value."""
        return min(1.0, self.clip_sample_range) if self.clip_sample else 1.0

    def check_scales(self, guidance_scale: Any, count: int) -> NDArray[np.float64]:
        """Return guidance scales as (count,), each within the range the student was trained for.

        guidance_scale: a number or (count,); None: the default. Raises TypeError or ValueError.
        """
        if guidance_scale is None:
            return repeated(self.guidance_scale, count)
        scales = check_timesteps("guidance_scale", guidance_scale, count)
        lo, hi = self.scale_range
        if scales.min() < lo or scales.max() > hi:
            wrong = scales.min() if scales.min() < lo else scales.max()
            if self.takes_scale:
                raise ValueError(
                    f"guidance_scale must be in [{lo:g}, {hi:g}], the range that this student was "
                    f"trained for, got {wrong:g}"
                )
            raise ValueError(
                f"guidance_scale must be {lo:g}, which is built into this student, got {wrong:g}; "
                "distil with guidance_scale_max to choose it when sampling"
            )
        return scales

    def settings(self) -> DistillConfig:
        """The settings of its training, as far as this version knows them; defaults for the rest.

        Raises TypeError, ConfigError or OverflowError for values that no training can have had;
        `from_dict` refuses those.
        """
        known = {option.name for option in DistillConfig.options()}
        stored = self.training.get("config", {})
        return DistillConfig().replace(
            **{name: value for name, value in stored.items() if name in known}
            | {
                "guidance_scale": self.guidance_scale,
                "null_class_label": self.null_class_label,
                "guidance_scale_min": self.scale_range[0] if self.takes_scale else 1.0,
                "guidance_scale_max": self.guidance_scale_max,
            }
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> StudentInfo:
        """Check the content of a `boot.json`; FormatError that starts with `where`."""
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise FormatError(
                f"{where}: format_version must be {FORMAT_VERSION}, got {shown(version)}: the "
                "student was saved by another version of boot"
            )
        known = {item.name: item for item in dataclasses.fields(cls)}
        missing = [name for name in ("t_max", "t_min") if name not in values]
        if missing:
            raise FormatError(f"{where}: {missing[0]} is missing")
        try:
            info = cls(**{key: value for key, value in values.items() if key in known})
            check_float("t_max", info.t_max, 0, 1, above=True)
            check_float("t_min", info.t_min, 0, info.t_max, above=True, below=True)
            _check_scales(info)
            check_bool("clip_sample", info.clip_sample)
            check_float("clip_sample_range", info.clip_sample_range, 0, above=True)
            if info.null_class_label is not None:
                check_int("null_class_label", info.null_class_label, 0)
            _check_origin(info)
        except (TypeError, ValueError, OverflowError) as problem:
            raise FormatError(f"{where}: {problem}") from None
        return info

    def check_classes(self, num_classes: int | None, where: str) -> None:
        """Require the null label to be a class of the network; FormatError as in `from_dict`."""
        if self.null_class_label is not None and self.null_class_label >= (num_classes or 0):
            raise FormatError(
                f"{where}: null_class_label is {self.null_class_label}, but the network has "
                f"{num_classes or 0} classes"
            )


def _check_scales(info: StudentInfo) -> None:
    lo, hi = info.guidance_scale_min, info.guidance_scale_max
    if (lo is None) != (hi is None):
        raise ValueError("guidance_scale_min and guidance_scale_max must be given together")
    if hi is not None:
        check_float("guidance_scale_max", hi, 0, LARGEST_GUIDANCE_SCALE)
        check_float("guidance_scale_min", lo, 0, hi)
    limits = (0.0, LARGEST_GUIDANCE_SCALE) if hi is None else info.scale_range
    check_float("guidance_scale", info.guidance_scale, *limits)


def _check_origin(info: StudentInfo) -> None:
    """Check what it says of its teacher and its training; keys of other versions may be there."""
    facts: dict[str, tuple[Any, dict[str, type]]] = {
        "teacher": (info.teacher, {"name": str, "sha256": str}),
        "training": (info.training, {"steps": int, "config": dict}),
    }
    for field, (values, kinds) in facts.items():
        if not isinstance(values, dict):
            raise TypeError(f"{field} must be dict, got {shown(values)} ({type_name(values)})")
        for key, kind in kinds.items():
            value = values.get(key, kind())
            if not isinstance(value, kind) or isinstance(value, bool):
                found = f"{shown(value)} ({type_name(value)})"
                raise TypeError(f"{field}.{key} must be {kind.__name__}, got {found}")
    check_int("training.steps", info.training.get("steps", 0), 0)
    try:
        info.settings()
    except (TypeError, ValueError, OverflowError) as problem:
        raise ValueError(f"training.config: {problem}") from None
