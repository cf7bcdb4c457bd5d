"""Make the golden U-Net files: tiny UNet2DModels run by diffusers itself, one .npz per case.

    python tests/golden/make_unet.py        needs torch and diffusers (made with 2.13, 0.42.1)

A file holds config (JSON), names, shapes and values of all weights (flat, float16 numbers, so that
the file is small and the values exact), sample, timesteps, labels, output, and the gradient of
sum(output * doutput) for every weight. The model runs in float64 on float32 inputs, so that the
files carry no rounding of the judge; the script prints how far float32 diffusers is from that.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent

SMALL: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "time_embedding_dim": 12,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


@dataclass(frozen=True)
class Golden:
    """One network and what to feed it."""

    config: dict[str, Any]
    size: tuple[int, int] = (8, 8)
    timesteps: tuple[float, ...] = (0.0, 503.25)
    labels: tuple[int, ...] | None = None
    label_vectors: bool = False  # "identity" class embedding: random (N, T) vectors


CASES: dict[str, Golden] = {
    # google/ddpm-*: right and bottom padding, sin first, shift 1, eps 1e-6, one head
    "ddpm": Golden(
        {
            **SMALL,
            "layers_per_block": 2,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
            "attention_head_dim": None,
        },
        size=(8, 8),
        timesteps=(999.0, 17.0),
    ),
    # what a config without these keys means: pad 1, cos first, shift 0, eps 1e-5, 8 per head
    "defaults": Golden(
        {
            "block_out_channels": [8, 16],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        },
        size=(4, 8),
        timesteps=(3.0, 250.5, 998.0),
    ),
    # ADM: scale and shift, resnets that resample, head width, classes; mid attention without norm
    "adm": Golden(
        {
            **SMALL,
            "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
            "resnet_time_scale_shift": "scale_shift",
            "attention_head_dim": 4,
            "num_class_embeds": 5,
            "act_fn": "silu",
            "flip_sin_to_cos": False,
        },
        labels=(4, 0),
    ),
    # attention blocks whose resampling is a resnet
    "resnet_sampling": Golden(
        {
            **SMALL,
            "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "attention_head_dim": 2,
            "act_fn": "gelu",
        },
        size=(6, 4),
    ),
    "resnet_sampling_up": Golden(
        {
            **SMALL,
            "block_out_channels": [4, 4],
            "down_block_types": ["ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
            "upsample_type": "resnet",
            "attention_head_dim": 4,
            "act_fn": "swish",
        },
        size=(4, 6),
    ),
    "fourier": Golden(
        {**SMALL, "time_embedding_type": "fourier", "attention_head_dim": 4},
        timesteps=(0.05, 1.75, 40.0),
        size=(4, 4),
    ),
    "learned": Golden(
        {
            **SMALL,
            "time_embedding_type": "learned",
            "num_train_timesteps": 10,
            "attention_head_dim": None,
        },
        timesteps=(9.0, 0.0, 9.0),
        size=(4, 4),
    ),
    "class_timestep": Golden(
        {**SMALL, "class_embed_type": "timestep", "attention_head_dim": 8, "act_fn": "mish"},
        labels=(7, 0),
        size=(4, 4),
    ),
    "class_identity": Golden(
        {**SMALL, "class_embed_type": "identity", "attention_head_dim": 1, "act_fn": "relu"},
        label_vectors=True,
        size=(4, 4),
    ),
    "no_attention": Golden(
        {
            **SMALL,
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "add_attention": False,
            "layers_per_block": 2,
            "in_channels": 1,
            "out_channels": 2,
        },
        size=(10, 6),
        timesteps=(42.0,),
    ),
    "no_mid_block": Golden(
        {**SMALL, "mid_block_type": None, "attention_head_dim": None, "downsample_padding": 0},
        size=(6, 6),
    ),
    # mid block: own scale factor and number of groups; inputs in [0, 1]; block names of old files
    "mid_scale": Golden(
        {
            **SMALL,
            "mid_block_scale_factor": 1.4142135623730951,
            "attn_norm_num_groups": 4,
            "resnet_time_scale_shift": "scale_shift",
            "center_input_sample": True,
            "attention_head_dim": 8,
            "down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"],
            "up_block_types": ["UNetResAttnUpBlock2D", "UNetResUpBlock2D"],
        },
    ),
    # odd widths (the sinusoid gets a zero), groups of one channel, one channel of pixels
    "odd_width": Golden(
        {
            **SMALL,
            "block_out_channels": [5, 10],
            "norm_num_groups": 5,
            "attention_head_dim": 5,
            "in_channels": 1,
            "out_channels": 1,
            "freq_shift": 1,
        },
        size=(2, 6),
        timesteps=(700.0, 0.5),
    ),
    "one_level": Golden(
        {
            **SMALL,
            "block_out_channels": [8],
            "down_block_types": ["AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D"],
            "attention_head_dim": 4,
        },
        size=(5, 3),
    ),
    # three levels of different widths: which skip goes where
    "three_levels": Golden(
        {
            **SMALL,
            "block_out_channels": [4, 6, 8],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": 2,
            "time_embedding_dim": 8,
        },
    ),
}


def random_weights(model: Any, seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw every tensor of a model, norms and biases too: float16 numbers as float32."""
    rng = np.random.RandomState(seed)
    weights = {}
    for name, tensor in model.state_dict().items():
        draw = rng.standard_normal(tuple(tensor.shape))
        if name == "time_proj.weight" and tensor.ndim == 1:
            draw *= 2.0  # fourier frequencies; larger ones only amplify the rounding of log t
        elif tensor.ndim == 1:
            draw = 0.2 * draw + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            draw /= np.sqrt(np.prod(tensor.shape[1:]))
        weights[name] = draw.astype(np.float16).astype(np.float32)
    return weights


def evaluate(
    model: Any,
    sample: NDArray[np.float32],
    timesteps: NDArray[np.float64],
    labels: NDArray[Any] | None,
    doutput: NDArray[np.float32],
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Output of a diffusers model and the gradients of sum(output * doutput), in its own dtype."""
    import torch

    model.eval()
    model.zero_grad(set_to_none=True)
    if model.config.time_embedding_type == "positional":  # its sinusoids are float32 always
        model.time_proj.register_forward_hook(lambda module, args, out: out.to(model.dtype))
    whole = np.array_equal(timesteps, timesteps.astype(np.int64))
    steps = torch.tensor(timesteps.astype(np.int64 if whole else np.float32))
    if model.config.time_embedding_type == "fourier":
        steps = torch.tensor(timesteps.astype(np.float32))
    given = None
    if labels is not None:
        given = torch.tensor(labels)
        given = given.to(model.dtype) if given.is_floating_point() else given
    output = model(torch.tensor(sample).to(model.dtype), steps, class_labels=given).sample
    (output * torch.tensor(doutput)).sum().backward()
    grads = {
        name: parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return output.detach().numpy(), grads


def make(name: str) -> dict[str, NDArray[Any]]:
    """All arrays of one golden file."""
    import torch
    from diffusers import UNet2DModel

    case = CASES[name]
    seed = zlib.crc32(name.encode()) % 2**31
    model = UNet2DModel(**case.config)
    weights = random_weights(model, seed)
    model.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    rng = np.random.RandomState(seed + 1)
    n = len(case.timesteps)
    channels = {key: model.config[key] for key in ("in_channels", "out_channels")}
    sample = rng.standard_normal((n, channels["in_channels"], *case.size)).astype(np.float32)
    doutput = rng.standard_normal((n, channels["out_channels"], *case.size)).astype(np.float32)
    timesteps = np.array(case.timesteps, np.float64)
    labels: NDArray[Any] | None = None
    if case.labels is not None:
        labels = np.array(case.labels, np.int64)
    elif case.label_vectors:
        labels = rng.standard_normal((n, case.config["time_embedding_dim"])).astype(np.float32)

    rough, _ = evaluate(model, sample, timesteps, labels, doutput)
    output, grads = evaluate(model.double(), sample, timesteps, labels, doutput)
    difference = np.abs(rough - output).max() / np.abs(output).max()
    print(f"{name:20s} {model.num_parameters():6d} parameters, float32 differs by {difference:.1e}")
    arrays = {
        "config": np.array(json.dumps(case.config)),
        "names": np.array(list(weights)),
        "shapes": np.array([json.dumps(value.shape) for value in weights.values()]),
        "weights": np.concatenate([value.ravel() for value in weights.values()]).astype(np.float16),
        "sample": sample,
        "timesteps": timesteps,
        "output": output.astype(np.float32),
        "doutput": doutput,
        "grad_names": np.array(list(grads)),
        "grads": np.concatenate([g.ravel() for g in grads.values()]).astype(np.float32),
    }
    return arrays if labels is None else {**arrays, "labels": labels}


def main() -> None:
    """Write every file beside this script."""
    for name in CASES:
        np.savez_compressed(HERE / f"unet_{name}.npz", **make(name))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
