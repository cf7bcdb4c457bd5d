"""What a teacher or student is, as plain facts: for `boot info` and for reports."""

from __future__ import annotations

from typing import Any

from boot.student import Student
from boot.teacher import Teacher


def describe(model: Teacher | Student) -> dict[str, Any]:
    """Return JSON-ready facts about a teacher or a student, in reading order."""
    schedule, scheduler = model.schedule, model.scheduler
    network = model.network if isinstance(model, Teacher) else model.model
    shape = model.model.image_shape()
    prediction = model.prediction_type if isinstance(model, Teacher) else scheduler.prediction_type
    table = scheduler.beta_schedule if scheduler.trained_betas is None else "trained_betas"
    facts: dict[str, Any] = {
        "kind": "student" if isinstance(model, Student) else "teacher",
        "network": "callable" if network is None else "UNet2DModel",
        "parameters": None if network is None else network.num_parameters,
        "images": "any size" if shape is None else "x".join(map(str, shape)),
        "widths": None if network is None else list(network.config.block_out_channels),
        "classes": model.num_classes,
        "prediction_type": prediction,
        "beta_schedule": table,
        "timesteps": schedule.num_train_timesteps,
        "terminal_alpha": float(schedule.alpha_sigma(1.0)[0]),
    }
    if isinstance(model, Teacher):
        facts["name"] = model.name
        facts["sha256"] = model.fingerprint
        facts["clip"] = model.clip.limit if not model.clip.thresholding else "dynamic"
        facts["default_t_max"] = schedule.default_t_max(prediction)
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
