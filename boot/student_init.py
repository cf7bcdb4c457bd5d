"""What a student starts from: its teacher's network, another folder's, or random weights."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot.diffusers_io import load_pipeline
from boot.errors import ConfigError, UnsupportedModel, check_seed, shown, type_name
from boot.network import Network
from boot.noise import Stream, normal, uniform_array
from boot.teacher import Teacher
from boot.unet_config import UNet2DConfig
from boot.unet_keys import expected_tensors


def starting_network(student: Any, teacher: Teacher, seed: int) -> Network:
    """Return the network whose weights a student of `teacher` starts with.

    student: None for the teacher's own, a UNet2DConfig or the dict of one for random weights (a
    function of `seed`), or the folder of a diffusers model. Raises TypeError, ConfigError or
    UnsupportedModel for what does not fit the teacher's images and classes, and what
    `load_pipeline` raises.
    """
    if student is None:
        if teacher.network is None:
            raise ConfigError(
                f"student must be given: {teacher.name!r} is a callable, which has no network to "
                "copy; give a UNet2DConfig, the dict of one, or the folder of a model"
            )
        return teacher.network
    if isinstance(student, (str, os.PathLike)):
        loaded = load_pipeline(student)
        network = Network(_fitted(loaded.unet, teacher), max_timestep=_last_timestep(teacher))
        network.load(loaded.tensors)
        return network
    if isinstance(student, Mapping):
        student = UNet2DConfig.from_dict(student)
    if not isinstance(student, UNet2DConfig):
        raise TypeError(
            "student must be a UNet2DConfig, a dict of its keys or the folder of a model, got "
            f"{shown(student)} ({type_name(student)})"
        )
    config = _fitted(student, teacher)
    network = Network(config, max_timestep=_last_timestep(teacher))
    network.load(random_weights(config, seed))
    return network


def _last_timestep(teacher: Teacher) -> float:
    return float(teacher.schedule.num_train_timesteps - 1)


def _fitted(config: UNet2DConfig, teacher: Teacher) -> UNet2DConfig:
    """Return the config with the teacher's sample_size, after comparing it with the teacher."""
    wanted = teacher.model.config
    if config.time_embedding_type == "fourier":
        raise UnsupportedModel("time_embedding_type: a student cannot have fourier embeddings")
    steps = teacher.schedule.num_train_timesteps
    if config.time_embedding_type == "learned" and config.num_train_timesteps != steps:
        raise ConfigError(
            f"student: num_train_timesteps must be {steps}, as the teacher's schedule has, got "
            f"{config.num_train_timesteps}"
        )
    if config.sample_size is None or isinstance(config.sample_size, tuple):
        same = config.sample_size in (None, (wanted.sample_size, wanted.sample_size))
        size = wanted.sample_size if same else config.sample_size
        config = dataclasses.replace(config, sample_size=size)
    for key, expected in (
        ("in_channels", wanted.in_channels),
        ("out_channels", wanted.in_channels),
        ("sample_size", wanted.sample_size),
        ("num_class_embeds", wanted.num_class_embeds),
        ("class_embed_type", wanted.class_embed_type),
    ):
        if getattr(config, key) != expected:
            raise ConfigError(
                f"student: {key} must be {expected!r}, as for the teacher {teacher.name!r}, got "
                f"{getattr(config, key)!r}"
            )
    shape = teacher.model.image_shape()
    if shape is not None and any(side % config.size_multiple for side in shape[1:]):
        raise ConfigError(
            f"student: {len(config.block_out_channels)} levels need a height and width that are "
            f"multiples of {config.size_multiple}, but the teacher's images are {shape}"
        )
    return config


def random_weights(
    config: UNet2DConfig, seed: int, *, zero_output: bool = True
) -> dict[str, NDArray[np.float32]]:
    """Return tensors as PyTorch initialises them: functions of (seed, position of the tensor).

    Convolutions and linear layers: U(-b, b) with b = 1 / sqrt(fan_in), weights and biases; tables:
    N(0, 1); norms: 1 and 0. zero_output: the last convolution is 0, so the student's first answer
    is alpha_T eps, close to a black image, whatever the rest says.
    """
    seed = check_seed("seed", seed)
    shapes = expected_tensors(config)
    result: dict[str, NDArray[np.float32]] = {}
    for i, (name, shape) in enumerate(shapes.items()):
        layer, part = name.rsplit(".", 1)
        weight = shapes[f"{layer}.weight"]
        if "norm" in layer.rsplit(".", 1)[-1]:
            result[name] = np.full(shape, 1.0 if part == "weight" else 0.0, np.float32)
        elif layer in ("class_embedding", "time_proj"):
            result[name] = normal(seed, Stream.STUDENT_WEIGHTS, i, 0, (1, *shape))[0]
        elif zero_output and layer == "conv_out":
            result[name] = np.zeros(shape, np.float32)
        else:
            bound = 1.0 / math.sqrt(math.prod(weight[1:]))
            drawn = uniform_array(seed, Stream.STUDENT_WEIGHTS, i, shape)
            result[name] = (bound * (2.0 * drawn - 1.0)).astype(np.float32)
    return result
