"""A student in diffusers' terms: what is baked into the weights, and the scheduler of its one step.

The target embedding at t_min is a constant vector, and so is the guidance embedding at one scale:
both go into the time embedding's last bias, and no user of diffusers needs to know of them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boot import _core
from boot.errors import FormatError, listed, shown
from boot.network import (
    EMBEDDING_PARTS,
    GUIDANCE_EMBEDDING,
    OWN_EMBEDDINGS,
    TARGET_EMBEDDING,
    Network,
    guidance_position,
)
from boot.schedule import Float64, Schedule, betas_of
from boot.scheduler_config import SchedulerConfig

if TYPE_CHECKING:
    from boot.student import Student

BAKED = "time_embedding.linear_2.bias"
TENSORS_FILE = "boot.safetensors"

Tensors = dict[str, NDArray[np.float32]]


def split_tensors(student: Student) -> tuple[Tensors, Tensors]:
    """Return the tensors for diffusers, baked at t_min and the default scale, and boot's own.

    The own ones are the embeddings that diffusers does not know, and the bias before baking.
    """
    parameters = student.model.parameters
    own = {name: a for name, a in parameters.items() if name.startswith(OWN_EMBEDDINGS)}
    tensors = {name: a for name, a in parameters.items() if name not in own}
    own[BAKED] = tensors[BAKED]
    tensors[BAKED] = baked_bias(student, own)
    return tensors, own


def baked_bias(student: Student, own: Tensors) -> NDArray[np.float32]:
    """Return linear_2.bias + the embeddings of t_min and of the default guidance scale: (T,)."""
    total = own[BAKED].astype(np.float64)
    total = total + _embed(own, TARGET_EMBEDDING, _time_features(student, student.info.t_min))
    if student.model.guidance_embedding:
        total = total + guidance_vector(student, own, student.info.guidance_scale)
    return total.astype(np.float32)


def guidance_vector(student: Student, own: Tensors, scale: float) -> Float64:
    """Return what the guidance embedding adds to the time embedding at one scale: (T,)."""
    position = guidance_position(np.array([scale]))
    assert position is not None
    return _embed(own, GUIDANCE_EMBEDDING, _sinusoids(student.model, position, 1.0, 0.0))


def _embed(own: Tensors, prefix: str, features: Float64) -> Float64:
    """The embedding's two layers, linear_2(SiLU(linear_1(features))), in float64."""
    weight_1, bias_1, weight_2, bias_2 = (
        own[f"{prefix}.{part}"].astype(np.float64) for part in EMBEDDING_PARTS
    )
    hidden = weight_1 @ features + bias_1
    result: Float64 = weight_2 @ (hidden / (1.0 + np.exp(-hidden))) + bias_2
    return result


def _time_features(student: Student, t: float) -> Float64:
    """Return the features of a time that go into the embedding's first layer: (C0,)."""
    config, index = student.model.config, float(student.schedule.index(t))
    if config.time_embedding_type == "learned":
        table = student.model.parameters["time_proj.weight"]
        row: Float64 = table[int(index)].astype(np.float64)
        return row
    flip = float(config.flip_sin_to_cos)
    return _sinusoids(student.model, np.array([index]), flip, config.freq_shift)


def _sinusoids(model: Network, position: Float64, flip: float, shift: float) -> Float64:
    attrs = {
        "dim": float(model.config.block_out_channels[0]),
        "flip_sin_to_cos": flip,
        "freq_shift": shift,
    }
    features = _core.op_forward("timestep_embedding", {"t": position}, attrs)
    return features.reshape(-1).astype(np.float64)


def scheduler_to_export(student: Student) -> dict[str, Any]:
    """Return the scheduler config with which one DDIM step is alpha_T x - sigma_T F."""
    values = student.scheduler.to_dict()
    if values["beta_schedule"] == "sigmoid":  # known to DDPMScheduler only: write the table
        plain = dataclasses.replace(student.scheduler, rescale_betas_zero_snr=False)
        values["beta_schedule"] = "linear"
        values["trained_betas"] = list(betas_of(Schedule.from_config(plain).alphas_cumprod))
    return {
        **values,
        "_class_name": "DDIMScheduler",
        "prediction_type": "v_prediction",
        "timestep_spacing": "leading",
        "steps_offset": int(student.schedule.index(student.info.t_max)),
        "set_alpha_to_one": True,
        "clip_sample": student.info.clip_sample,
        "clip_sample_range": student.info.clip_sample_range,
        "thresholding": False,
    }


# ------------------------------------------------------------------------------- reading it back


def check_unbaked(student: Student, baked: NDArray[np.float32], own: Tensors, where: str) -> None:
    """Refuse a folder whose two weight files do not belong together."""
    expected = baked_bias(student, own)
    if not np.allclose(baked, expected, rtol=1e-2, atol=1e-2):
        raise FormatError(
            f"{where}: {TENSORS_FILE} does not belong to the weights beside it (the baked "
            f"{BAKED} differs by up to {np.abs(baked - expected).max():.3g})"
        )


def scheduler_of(values: dict[str, Any], where: str) -> SchedulerConfig:
    """Return the teacher's scheduler from the content of a `boot.json`."""
    scheduler = values.get("scheduler")
    if not isinstance(scheduler, dict):
        raise FormatError(f"{where}: scheduler must be an object, got {shown(scheduler)}")
    try:
        config = SchedulerConfig(**scheduler)
        Schedule.from_config(config)  # whether its numbers make a noise process
        return config
    except (TypeError, ValueError) as problem:
        raise FormatError(f"{where}: scheduler: {problem}") from None


def check_own(own: Tensors, model: Network, where: str) -> None:
    """Require exactly the tensors that the diffusers weights lack, finite."""
    wanted = {BAKED, *(name for name in model.parameters if name.startswith(OWN_EMBEDDINGS))}
    if set(own) != wanted:
        raise FormatError(f"{where} must hold {listed(sorted(wanted))}; got {listed(sorted(own))}")
    broken = [name for name, array in own.items() if not np.isfinite(array).all()]
    if broken:
        raise FormatError(f"{where}: NaN or infinite numbers in {listed(broken)}")
