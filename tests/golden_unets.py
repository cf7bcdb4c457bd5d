"""Reads the golden U-Net files and runs `boot._core.UNet2D` on them (helper of the tests)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot import _core
from boot.unet_config import UNet2DConfig

Array = NDArray[Any]
FOLDER = Path(__file__).parent / "golden"
NAMES = sorted(path.stem.removeprefix("unet_") for path in FOLDER.glob("unet_*.npz"))

MAX_OUTPUT_ERROR = 1e-4  # of the output's largest value
MAX_GRADIENT_ERROR = 1e-3  # relative L2, per tensor

# google/ddpm-cifar10-32
CIFAR10: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


@dataclass(frozen=True)
class Example:
    """A network, its inputs, and what diffusers says about it."""

    config: dict[str, Any]
    weights: dict[str, Array]
    sample: Array
    timesteps: Array
    labels: Array | None
    output: Array
    doutput: Array
    grads: dict[str, Array]


def from_arrays(arrays: Any) -> Example:
    """Unpack what `make_unet.py` packs."""
    shapes = {
        str(name): tuple(json.loads(str(shape)))
        for name, shape in zip(arrays["names"], arrays["shapes"], strict=True)
    }

    def unpack(flat: Array, names: list[str]) -> dict[str, Array]:
        ends = np.cumsum([int(np.prod(shapes[name])) for name in names])
        assert ends[-1] == flat.size
        parts = np.split(flat.astype(np.float32), ends[:-1])
        return {n: part.reshape(shapes[n]) for n, part in zip(names, parts, strict=True)}

    return Example(
        config=json.loads(str(arrays["config"])),
        weights=unpack(arrays["weights"], list(shapes)),
        sample=arrays["sample"],
        timesteps=arrays["timesteps"],
        labels=arrays.get("labels"),
        output=arrays["output"],
        doutput=arrays["doutput"],
        grads=unpack(arrays["grads"], [str(name) for name in arrays["grad_names"]]),
    )


@cache
def load(name: str) -> Example:
    """One golden file."""
    with np.load(FOLDER / f"unet_{name}.npz") as arrays:
        return from_arrays({key: arrays[key] for key in arrays.files})


def model_config(config: dict[str, Any]) -> UNet2DConfig:
    """A config as a file of today would hold it (very old ones bring a warning)."""
    return UNet2DConfig.from_dict({"_diffusers_version": "0.42.1", **config})


def build(config: dict[str, Any], weights: dict[str, Array], **options: Any) -> Any:
    """A core network with these weights; every parameter must be among them."""
    network = _core.UNet2D(model_config(config).to_core(), **options)
    assign(network, weights)
    return network


def assign(network: Any, weights: dict[str, Array]) -> None:
    """Write weights by name."""
    flat = network.weights
    for name, shape, offset in network.parameters:
        assert weights[name].shape == tuple(shape), name
        flat[offset : offset + weights[name].size] = weights[name].ravel()
    network.weights_changed()


def gradients(network: Any) -> dict[str, Array]:
    """Copies of the gradients by name."""
    flat = network.grads
    return {
        name: flat[offset : offset + int(np.prod(shape))].reshape(shape).copy()
        for name, shape, offset in network.parameters
    }


def assert_outputs_agree(found: Array, expected: Array) -> None:
    """Largest difference within 1e-4 of the largest value."""
    assert found.dtype == np.float32 and found.shape == expected.shape
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= MAX_OUTPUT_ERROR, f"largest error {error:.2e} of the largest value"


def assert_gradients_agree(found: dict[str, Array], expected: dict[str, Array]) -> None:
    """Relative L2 error of every tensor within 1e-3.

    A tensor whose gradient is zero by symmetry (the bias of an attention's keys) has no relative
    error: 1e-3 of the typical size over all tensors is the least that an error is compared with.
    """
    count = sum(g.size for g in expected.values())
    typical = np.sqrt(
        sum(float(np.sum(g.astype(np.float64) ** 2)) for g in expected.values()) / count
    )
    errors = {}
    for name, g in expected.items():
        scale = max(float(np.linalg.norm(g)), 1e-3 * typical * np.sqrt(g.size))
        errors[name] = float(np.linalg.norm(found[name] - g)) / scale
    worst = max(errors, key=lambda name: errors[name])
    wrong = sum(not error <= MAX_GRADIENT_ERROR for error in errors.values())
    assert wrong == 0, f"{wrong} of {len(errors)} tensors differ, {worst} by {errors[worst]:.2e}"
