"""What a teacher or student is, as plain facts: for `boot info` and for reports."""

from __future__ import annotations

from typing import Any

from boot.student import Student
from boot.teacher import Teacher


def describe(model: Teacher | Student) -> dict[str, Any]:
    """Return JSON-ready facts about a teacher or a student, in reading order."""
    network, schedule, scheduler = model.model, model.schedule, model.scheduler
    shape = network.image_shape()
    facts: dict[str, Any] = {
        "kind": "student" if isinstance(model, Student) else "teacher",
        "network": "UNet2DModel",
        "parameters": network.num_parameters,
        "images": "any size" if shape is None else "x".join(map(str, shape)),
        "widths": list(network.config.block_out_channels),
        "classes": network.config.num_classes,
        "prediction_type": scheduler.prediction_type,
        "beta_schedule": scheduler.beta_schedule,
        "timesteps": schedule.num_train_timesteps,
        "terminal_alpha": float(schedule.alpha_sigma(1.0)[0]),
    }
    if isinstance(model, Teacher):
        facts["name"] = model.name
        facts["sha256"] = model.fingerprint
        facts["clip"] = model.clip.limit if not model.clip.thresholding else "dynamic"
        facts["default_t_max"] = schedule.default_t_max(scheduler.prediction_type)
        return facts
    info = model.info
    facts |= {
        "t_max": info.t_max,
        "t_min": info.t_min,
        "guidance_scale": info.guidance_scale,
        "guidance_scale_range": list(info.scale_range) if info.takes_scale else None,
        "null_class_label": info.null_class_label,
        "teacher": info.teacher.get("name"),
        "teacher_sha256": info.teacher.get("sha256"),
        "steps": info.training.get("steps"),
    }
    return facts
