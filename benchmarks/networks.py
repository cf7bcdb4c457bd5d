"""The networks that the benchmarks run, and folders of such teachers with random weights.

Speed does not depend on the weights, so no download and no training is needed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

UNET = {"in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 16}


@dataclass(frozen=True)
class Case:
    """A network and how it is trained and sampled."""

    config: dict[str, Any]
    scheduler: dict[str, Any]
    batch: int  # of a training step
    sample_batches: tuple[int, ...]
    guidance_scale: float | None  # of the distillation; None: no classes
    t_max: float


CASES = {
    "cifar10": Case(  # google/ddpm-cifar10-32: 35.7 M parameters
        {
            "sample_size": 32,
            "block_out_channels": [128, 256, 256, 256],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
        },
        {"beta_schedule": "linear", "prediction_type": "epsilon"},
        batch=8,
        sample_batches=(1, 8),
        guidance_scale=None,
        t_max=0.8,
    ),
    "digits": Case(  # 8x8 handwritten digits: 0.70 M parameters
        {
            **UNET,
            "sample_size": 8,
            "block_out_channels": [32, 64],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": None,
            "num_class_embeds": 11,
        },
        {"beta_schedule": "linear", "prediction_type": "epsilon"},
        batch=64,
        sample_batches=(1, 64),
        guidance_scale=1.5,
        t_max=0.8,
    ),
    "fashion": Case(  # 16x16 clothes: 1.86 M parameters
        {
            **UNET,
            "sample_size": 16,
            "block_out_channels": [32, 64, 96],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": 32,
            "num_class_embeds": 11,
        },
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        batch=64,
        sample_batches=(1, 64),
        guidance_scale=1.5,
        t_max=0.98,
    ),
}


def write_teacher(case: Case, folder: Path) -> Path:
    """Write a diffusers pipeline folder whose weights are random, of a size that training gives."""
    from safetensors.numpy import save_file

    from boot.unet_config import UNet2DConfig
    from boot.unet_keys import expected_tensors

    version = {"_diffusers_version": "0.42.1"}
    config = {"_class_name": "UNet2DModel", **version, **case.config}
    scheduler = {"_class_name": "DDPMScheduler", **version, **case.scheduler}
    index = {
        "_class_name": "DDPMPipeline",
        **version,
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in expected_tensors(UNet2DConfig.from_dict(config)).items():
        if len(shape) > 1:
            values = rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))
        else:
            values = np.full(shape, float("norm" in name and name.endswith("weight")))
        tensors[name] = values.astype(np.float32)
    for part, values in (("unet", config), ("scheduler", scheduler)):
        (folder / part).mkdir(parents=True)
        file = "config.json" if part == "unet" else "scheduler_config.json"
        (folder / part / file).write_text(json.dumps(values))
    (folder / "model_index.json").write_text(json.dumps(index))
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder
