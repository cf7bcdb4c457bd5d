"""Runs PyTorch and diffusers for the parity tests, in a process of its own, and leaves .npz files.

    python tests/torch_side.py random CONFIG.json OUT.npz      a UNet2DModel with drawn weights
    python tests/torch_side.py folder FOLDER OUT.npz           a saved model
    python tests/torch_side.py schedules CONFIGS.json OUT.npz  alphas_cumprod of schedulers
    python tests/torch_side.py adamw SETTINGS.json OUT.npz     steps of AdamW with clipping

Two OpenMP runtimes in one process would disturb each other, so `boot` is never imported here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent / "golden"))
from make_unet import evaluate, random_weights

Arrays = dict[str, NDArray[Any]]
COUNT = 3


def describe(model: Any, seed: int, size: tuple[int, int]) -> Arrays:
    """Inputs, output and every parameter gradient, as the golden files hold them."""
    config, rng = model.config, np.random.RandomState(seed)
    sample = rng.standard_normal((COUNT, config.in_channels, *size)).astype(np.float32)
    doutput = rng.standard_normal((COUNT, config.out_channels, *size)).astype(np.float32)
    timesteps = np.array([999.0, 412.0, 0.0])
    labels = None
    if config.num_class_embeds is not None:
        labels = rng.randint(0, config.num_class_embeds, COUNT).astype(np.int64)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    output, grads = evaluate(model, sample, timesteps, labels, doutput)
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    arrays = {
        "config": np.array(json.dumps(plain)),
        "names": np.array(list(weights)),
        "shapes": np.array([json.dumps(value.shape) for value in weights.values()]),
        "weights": np.concatenate([value.ravel() for value in weights.values()]),
        "sample": sample,
        "timesteps": timesteps,
        "output": output,
        "doutput": doutput,
        "grad_names": np.array(list(grads)),
        "grads": np.concatenate([grad.ravel() for grad in grads.values()]),
    }
    # Fractional timesteps reach diffusers only as tensors.
    with torch.no_grad():
        given = None if labels is None else torch.tensor(labels)
        steps = torch.tensor(timesteps + 0.25, dtype=torch.float32)
        arrays["fractional_output"] = model(torch.tensor(sample), steps, given).sample.numpy()
    return arrays if labels is None else {**arrays, "labels": labels}


def size_of(model: Any) -> tuple[int, int]:
    """Height and width of the images the model is for."""
    size = model.config.sample_size or 16
    return (size, size) if isinstance(size, int) else tuple(size)


def run_random(source: str, target: str) -> Arrays:
    """Draw weights for a config."""
    model = UNet2DModel(**json.loads(Path(source).read_text()))
    weights = random_weights(model, 11)
    model.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    return describe(model, 12, size_of(model))


def run_folder(source: str, target: str) -> Arrays:
    """Load a model as diffusers loads it."""
    folder = Path(source)
    folder = folder / "unet" if (folder / "unet").is_dir() else folder
    plain = list(folder.glob("diffusion_pytorch_model.safetensors*"))
    variants = [path.name.split(".")[1] for path in folder.glob("*.*.safetensors")]
    variant = None if plain or not variants else variants[0]
    model = UNet2DModel.from_pretrained(folder, variant=variant).float()
    return describe(model, 13, size_of(model))


def run_schedules(source: str, target: str) -> Arrays:
    """The tables of several scheduler configs."""
    configs = json.loads(Path(source).read_text())
    return {
        str(i): DDPMScheduler(**config).alphas_cumprod.numpy() for i, config in enumerate(configs)
    }


def run_adamw(source: str, target: str) -> Arrays:
    """Ten steps of torch.optim.AdamW on gradients that depend on nothing."""
    s = json.loads(Path(source).read_text())
    rng = np.random.RandomState(3)
    weights = torch.nn.Parameter(torch.tensor(rng.standard_normal(1000).astype(np.float32)))
    arrays = {"start": weights.detach().numpy().copy()}
    optimizer = torch.optim.AdamW(
        [weights],
        lr=s["learning_rate"],
        betas=(s["beta1"], s["beta2"]),
        eps=s["epsilon"],
        weight_decay=s["weight_decay"],
    )
    grads, norms = rng.standard_normal((10, 1000)).astype(np.float32), []
    for grad in grads:
        weights.grad = torch.tensor(grad)
        norms.append(float(torch.nn.utils.clip_grad_norm_([weights], s["max_grad_norm"])))
        optimizer.step()
    return arrays | {
        "grads": grads,
        "norms": np.array(norms),
        "weights": weights.detach().numpy(),
    }


if __name__ == "__main__":
    command, source, target = sys.argv[1:]
    np.savez(target, **globals()[f"run_{command}"](source, target))
