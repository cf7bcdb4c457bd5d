"""Turns a config with open choices (None) into one without, for a given teacher."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from boot.choices import AUTO_GUIDANCE_SCALE
from boot.config import DistillConfig
from boot.errors import ConfigError, UnsupportedModel
from boot.guidance import Clip, Guidance, critic_scale, warn_of_idle
from boot.inputs import drawn_labels
from boot.learning_rate import auto_learning_rate
from boot.network import Network
from boot.student_info import StudentInfo
from boot.teacher import Teacher

SURELY_FITS = 2**24  # pixels of a batch: no need to ask the core

_log = logging.getLogger("boot")


def resolve_config(config: DistillConfig, teacher: Teacher, start: Network) -> DistillConfig:
    """Return the config with every setting that depends on the teacher filled in.

    The clip is not: None goes on meaning what the teacher's scheduler says, see `clip_for`. start:
    the network that the student is a copy of.

    Raises ConfigError for settings that do not fit the teacher, ValueError for a guidance scale or
    null label it cannot have, UnsupportedModel for a teacher that cannot be distilled.
    """
    teacher.check_can_sample()
    shape = teacher.model.image_shape()
    if shape is None:
        raise UnsupportedModel("sample_size: the teacher's config must say how large images are")
    multiple = teacher.model.config.size_multiple
    if any(side % multiple for side in shape[1:]):
        raise UnsupportedModel(
            f"sample_size: the teacher's levels need a height and width that are multiples of "
            f"{multiple}, got {shape[1]} x {shape[2]}"
        )
    scale = config.guidance_scale
    if scale is None:
        guided = teacher.num_classes != 1 and teacher.null_class_label is not None
        scale = AUTO_GUIDANCE_SCALE if guided else 1.0
        if config.guidance_scale_max is not None:
            scale = min(max(scale, config.guidance_scale_min), config.guidance_scale_max)
    guidance = guidance_for(config.replace(guidance_scale=scale), teacher)
    labels = drawn_labels(teacher.model, guidance)
    if labels is not None and len(labels) == 0:
        name = "guidance_scale_max must be None" if guidance.varies else "guidance_scale must be 1"
        raise ConfigError(f"{name}: the teacher has no class but the null label")
    t_max, t_min = _times(config, teacher)
    _warn_of_unused(guidance, t_max, t_min)
    rate = config.learning_rate
    resolved = config.replace(
        guidance_scale=guidance.scale,
        null_class_label=guidance.null_label,
        t_max=t_max,
        t_min=t_min,
        learning_rate=auto_learning_rate(start.num_parameters) if rate is None else rate,
    )
    resolved = _correction(resolved, teacher, start is teacher.network)
    _check_batch(resolved, teacher, start)
    _report(resolved, teacher)
    return resolved


def _check_batch(config: DistillConfig, teacher: Teacher, start: Network) -> None:
    """Refuse a batch beyond what the core's counters hold, before the first step would."""
    _, height, width = teacher.model.image_shape() or (0, 0, 0)
    corrected = (config.correction_fraction or 0.0) if config.correction != "none" else 0.0
    if config.correction == "rollout":
        corrected *= config.correction_steps
    boundary = config.boundary_fraction if config.boundary_weight > 0 else 0.0
    rows = round(config.train_batch_size * (1.0 + boundary + corrected))
    if rows * height * width < SURELY_FITS:
        return
    try:
        start.core.plan(rows, height, width, True, True)
    except (ValueError, NotImplementedError) as problem:
        raise ConfigError(
            f"train_batch_size must be smaller for images of {width}x{height}, got "
            f"{config.train_batch_size}: {problem}"
        ) from None


def _correction(config: DistillConfig, teacher: Teacher, copied: bool) -> DistillConfig:
    """Fill in what depends on the kind of correction; ConfigError if it does not fit.

    copied: whether the student, and so a critic, starts as the teacher.
    """
    ranged = config.guidance_scale_max is not None
    kind = config.correction or ("distribution" if copied else "none")
    rollout = kind == "rollout"
    scale = 1.0 if config.guidance_scale is None else config.guidance_scale
    values: dict[str, Any] = {
        "correction": kind,
        "correction_fraction": 0.125 if rollout else 0.5,
        "correction_weight": 1.0 if rollout else 0.1,
        "correction_learning_rate": 0.25 * (config.learning_rate or 0.0),
        "correction_guidance_scale": None if ranged else critic_scale(scale),
    }
    given = {name: getattr(config, name) for name in values}
    values.update({name: value for name, value in given.items() if value is not None})
    resolved = config.replace(**values)
    if kind == "distribution":
        critic_guidance_for(resolved, teacher)
    return resolved


def critic_guidance_for(config: DistillConfig, teacher: Teacher) -> Guidance:
    """Return how the teacher is guided where a critic compares with it: as the run, but weaker.

    See `guidance.critic_scale`; a range of scales is one here too unless a scale is set.
    """
    scale = config.correction_guidance_scale
    if scale is None:
        return guidance_for(config, teacher)
    fixed = {"guidance_scale": scale, "guidance_scale_max": None, "guidance_scale_min": 1.0}
    return guidance_for(config.replace(**fixed), teacher)


def guidance_for(config: DistillConfig, teacher: Teacher) -> Guidance:
    """Return the guidance that a run teaches its student; ConfigError if it does not fit."""
    varies = config.guidance_scale_max is not None
    if varies and teacher.num_classes is None:
        raise ConfigError(
            f"guidance_scale_max must be None for {teacher.name!r}, which has no class table to "
            "guide by"
        )
    scale = 1.0 if config.guidance_scale is None else config.guidance_scale
    return teacher.guidance(
        scale,
        config.null_class_label,
        varies=varies,
        negative_class_label=config.negative_class_label,
        guidance_rescale=config.guidance_rescale,
        guidance_t_min=config.guidance_t_min,
        guidance_t_max=config.guidance_t_max,
    )


def teaching_of(info: StudentInfo, teacher: Teacher) -> tuple[Guidance, Clip]:
    """Return how a student's teacher was guided and clipped while it taught the student."""
    config = info.settings()
    return guidance_for(config, teacher), clip_for(config, teacher)


def _times(config: DistillConfig, teacher: Teacher) -> tuple[float, float]:
    schedule, prediction = teacher.schedule, teacher.prediction_type
    t_max = schedule.default_t_max(prediction) if config.t_max is None else config.t_max
    t_max, t_min = schedule.snap(t_max), schedule.snap(config.t_min)
    if t_min >= t_max:
        raise ConfigError(
            f"t_min must be < t_max on the teacher's grid of {schedule.num_train_timesteps} "
            f"timesteps, got t_min {t_min} and t_max {t_max}"
        )
    if prediction == "epsilon" and schedule.alpha_sigma(t_max)[0] == 0:
        raise ConfigError(
            f"t_max must be smaller than {t_max}: an epsilon teacher says nothing about the signal "
            "where alpha is 0"
        )
    return t_max, t_min


def _warn_of_unused(guidance: Guidance, t_max: float, t_min: float) -> None:
    """Log a warning of settings that make no difference to this run."""
    warn_of_idle(guidance)
    low, high = guidance.t_low, guidance.t_high
    if guidance.active and (low > t_max or high < t_min):
        _log.warning(
            "nothing will be guided: guidance_t_min ... guidance_t_max is %g ... %g, and the times "
            "that are trained are %g ... %g",
            *(low, high, t_min, t_max),
        )


def clip_for(config: DistillConfig, teacher: Teacher) -> Clip:
    """Return the teacher's clip with the config's changes; dynamic thresholding goes first."""
    clip = teacher.clip
    changes: dict[str, Any] = {
        "thresholding": config.thresholding,
        "ratio": config.dynamic_thresholding_ratio,
        "highest": config.sample_max_value,
    }
    clip = dataclasses.replace(clip, **{k: v for k, v in changes.items() if v is not None})
    if config.clip_sample is False:
        return dataclasses.replace(clip, limit=0.0, thresholding=config.thresholding is True)
    if config.clip_sample is True or (config.clip_sample_range is not None and clip.limit > 0):
        limit = config.clip_sample_range or teacher.scheduler.clip_sample_range
        return dataclasses.replace(clip, limit=limit)
    return clip


def _report(config: DistillConfig, teacher: Teacher) -> None:
    t_max = config.t_max or 0.0
    alpha = float(teacher.schedule.alpha_sigma(t_max)[0])
    _log.info(
        "t_max = %g: alpha %.4g there, log-SNR %.2f; teacher predicts %s",
        t_max,
        alpha,
        -2.0 * float(teacher.schedule.lambda_(t_max)),
        teacher.prediction_type,
    )
    if config.guidance_scale not in (None, 1.0):
        _log.info(
            "guidance scale %g; label %s of %s means 'no class'",
            config.guidance_scale,
            config.null_class_label,
            teacher.num_classes,
        )
