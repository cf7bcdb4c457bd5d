"""Live comparison with PyTorch and diffusers: full-size networks, real teachers, AdamW, schedules.

Skipped where torch and diffusers are not installed. BOOT_TEACHERS may name more teacher folders (or
folders of teachers), separated as in PATH.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_unets import (
    CIFAR10,
    Example,
    assert_gradients_agree,
    assert_outputs_agree,
    build,
    from_arrays,
    gradients,
)

import boot
from boot import _core

HAVE_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "diffusers"))
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not HAVE_TORCH, reason="torch and diffusers are not installed"),
]
SIDE = Path(__file__).parent / "torch_side.py"


def teacher_folders() -> list[Path]:
    """The teacher in the package, and those of BOOT_TEACHERS."""
    roots = [Path(boot.__file__).parent / "data" / "digits_teacher"]
    roots += [Path(name) for name in os.environ.get("BOOT_TEACHERS", "").split(os.pathsep) if name]

    def is_teacher(folder: Path) -> bool:
        return (folder / "model_index.json").exists() or (folder / "config.json").exists()

    found: list[Path] = []
    for root in roots:
        found += [root] if is_teacher(root) else sorted(f for f in root.glob("*") if is_teacher(f))
    return found


TEACHERS = teacher_folders()


def torch_side(command: str, source: object, target: Path) -> dict[str, Any]:
    """Run torch_side.py in another process; `source` is a path, or a value to pass as JSON."""
    if not isinstance(source, Path):
        text, source = json.dumps(source), target.with_suffix(".json")
        source.write_text(text)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for name in ("PYTHONWARNINGS", "LD_PRELOAD"):  # a sanitizer is for us, not for PyTorch
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, str(SIDE), command, str(source), str(target)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(target) as arrays:
        return {name: arrays[name] for name in arrays.files}


def check_network(example: Example, arrays: dict[str, Any]) -> None:
    network = build(example.config, example.weights)
    found = network.forward(example.sample, example.timesteps, example.labels)
    assert_outputs_agree(found, example.output)
    fractional = network.forward(example.sample, example.timesteps + 0.25, example.labels)
    assert_outputs_agree(fractional, arrays["fractional_output"])
    found = network.forward(example.sample, example.timesteps, example.labels, train=True)
    assert_outputs_agree(found, example.output)
    network.backward(example.doutput)
    assert_gradients_agree(gradients(network), example.grads)


def test_cifar_network_and_every_gradient_match_pytorch(tmp_path):
    arrays = torch_side("random", CIFAR10, tmp_path / "cifar.npz")
    example = from_arrays(arrays)
    assert sum(w.size for w in example.weights.values()) == 35_746_307
    assert example.sample.shape == (3, 3, 32, 32)
    check_network(example, arrays)


@pytest.mark.parametrize("folder", TEACHERS, ids=lambda folder: folder.name)
def test_teacher_and_every_gradient_match_pytorch(folder, tmp_path):
    arrays = torch_side("folder", folder, tmp_path / "teacher.npz")
    example = from_arrays(arrays)
    check_network(example, arrays)
    teacher = boot.Teacher.from_pretrained(folder)
    found = teacher.model(example.sample, example.timesteps, class_labels=example.labels)
    assert_outputs_agree(found, example.output)
    one_time = teacher.model(example.sample, 412, class_labels=example.labels)
    assert_outputs_agree(one_time[1:2], example.output[1:2])


def test_schedules_match_diffusers(tmp_path):
    configs: list[dict[str, Any]] = [
        {"beta_schedule": name, "beta_start": start, "beta_end": end, "num_train_timesteps": count}
        for name, count, start, end in [
            ("linear", 1000, 1e-4, 0.02),
            ("scaled_linear", 1000, 0.00085, 0.012),
            ("squaredcos_cap_v2", 1000, 1e-4, 0.02),
            ("sigmoid", 1000, 1e-4, 0.02),
            ("linear", 50, 1e-3, 0.2),
        ]
    ]
    configs += [{"trained_betas": [0.1, 0.2, 0.4], "num_train_timesteps": 3}]
    configs += [{**config, "rescale_betas_zero_snr": True} for config in configs[:2]]
    theirs = torch_side("schedules", configs, tmp_path / "schedules.npz")
    for i, config in enumerate(configs):
        ours = _core.alphas_cumprod(
            config.get("beta_schedule", "linear"),
            config["num_train_timesteps"],
            config.get("beta_start", 1e-4),
            config.get("beta_end", 0.02),
            np.array(config["trained_betas"]) if "trained_betas" in config else None,
            config.get("rescale_betas_zero_snr", False),
        )
        # Theirs is a float32 product of up to 1000 factors.
        np.testing.assert_allclose(theirs[str(i)], ours, rtol=2e-4, atol=1e-9, err_msg=str(config))


@pytest.mark.parametrize("max_grad_norm", [1.0, 1e6])
def test_adamw_matches_pytorch(max_grad_norm, tmp_path):
    settings = {
        "learning_rate": 3e-3,
        "beta1": 0.9,
        "beta2": 0.99,
        "epsilon": 1e-8,
        "weight_decay": 0.02,
        "max_grad_norm": max_grad_norm,
    }
    theirs = torch_side("adamw", settings, tmp_path / "adamw.npz")
    weights = theirs["start"].copy()
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    for step, grads in enumerate(theirs["grads"], start=1):
        norm = _core.adamw_step(weights, grads, m, v, None, step=step, ema_decay=0.0, **settings)
        assert norm == pytest.approx(theirs["norms"][step - 1], rel=1e-5)
    np.testing.assert_allclose(weights, theirs["weights"], atol=2e-6)
