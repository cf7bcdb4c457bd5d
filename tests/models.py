"""Small teachers with random weights, for the tests of everything above the network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from pipelines import CONFIG

from boot.diffusers_io import save_pipeline
from boot.distiller import Distiller
from boot.network import Network
from boot.scheduler_config import SchedulerConfig
from boot.teacher import Teacher
from boot.unet_keys import expected_tensors

CLASSES = CONFIG.num_class_embeds or 0
PLAIN = dataclasses.replace(CONFIG, num_class_embeds=None)
# The least that trains: for tests that start thousands of times.
LEAST = dataclasses.replace(
    PLAIN,
    block_out_channels=(8,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    mid_block_type=None,
)
DDPM = SchedulerConfig(clip_sample=True)
ADAMW = {  # the numbers of `_core.adamw_step`
    "step": 1,
    "learning_rate": 1e-3,
    "beta1": 0.9,
    "beta2": 0.99,
    "epsilon": 1e-8,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "ema_decay": 0.9,
}


def tensors(config: Any = CONFIG, seed: int = 0) -> dict[str, Any]:
    """Random weights of a size that keeps activations near 1, so that tests see no saturation."""
    rng = np.random.default_rng(seed)
    result = {}
    for name, shape in expected_tensors(config).items():
        scale = 1.0 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        array = scale * rng.standard_normal(shape)
        if "norm" in name and name.endswith("weight"):
            array += 1.0
        result[name] = array.astype(np.float32)
    return result


def make_teacher(config: Any = CONFIG, seed: int = 0, **scheduler: Any) -> Teacher:
    """A class-conditional teacher (3 rows, the last one null) unless the config says otherwise."""
    process = dataclasses.replace(DDPM, **scheduler)
    network = Network(config, max_timestep=process.num_train_timesteps - 1.0)
    network.load(tensors(config, seed))
    return Teacher(network, process, name="tiny")


def save_teacher(folder: Path, config: Any = CONFIG, **scheduler: Any) -> Path:
    """Write such a teacher as a diffusers pipeline folder."""
    process = dataclasses.replace(DDPM, **scheduler)
    values = {"_class_name": "DDPMScheduler", **process.to_dict()}
    save_pipeline(folder, config, values, tensors(config), pipeline_class="DDPMPipeline")
    return folder


def noise(count: int = 4, seed: int = 1, channels: int = 1, size: int = 8) -> Any:
    """Standard normal images."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, channels, size, size)).astype(np.float32)


# ---------------------------------------------------------------------------------- training

SMALL = {
    "train_batch_size": 6,
    "max_train_steps": 40,
    "lr_warmup_steps": 4,
    "sample_steps": 0,
    "solver": "heun",  # with a boundary term: what the defaults leave out is tested too
    "boundary_weight": 0.1,
    "correction": "none",  # a critic has its own tests, in test_critic.py
}


def make(config: Any = CONFIG, teacher: Any = None, **overrides: Any) -> Distiller:
    """A Distiller of a small teacher, with settings for a few quick steps."""
    return Distiller(teacher or make_teacher(config), **{**SMALL, **overrides})


def weights_of(distiller: Distiller) -> list[Any]:
    """Copies of everything that training changes."""
    return [b.copy() for b in distiller._buffers().values()]


def assert_same(a: Any, b: Any) -> None:
    """Equal bit for bit."""
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def pin_like(distiller: Distiller, other: Distiller) -> None:
    """Kernels are chosen by timing: the same choice gives the same bits."""
    for name, network in distiller._networks().items():
        network.pin_kernels(other._networks()[name].kernels)


def poison(distiller: Distiller, on: bool, value: float = np.nan) -> None:
    """Make every output of the teacher NaN (or another value), or right again."""
    model = distiller.teacher.model
    vars(model).pop("forward", None)
    if on:
        real = model.forward
        model.forward = lambda *args: np.full_like(real(*args), value)  # type: ignore[method-assign]
