"""DPM-Solver++(2M) against diffusers' own solver, on the packaged digits teacher."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from boot.demo import TEACHER_FOLDER
from boot.teacher import Teacher

IN_DIFFUSERS = """
import sys
import numpy as np, torch, diffusers
torch.set_num_threads(1)
folder, data, steps = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3])
unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet").float()
config = diffusers.DDPMScheduler.load_config(folder, subfolder="scheduler")
scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
    config, timestep_spacing="trailing", final_sigmas_type="zero", lower_order_final=False,
    algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", thresholding=False,
)
scheduler.set_timesteps(steps)
x, labels = torch.from_numpy(data["x"]), torch.from_numpy(data["labels"])
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x).prev_sample
np.save(sys.argv[4], x.numpy())
"""


@pytest.mark.parity
@pytest.mark.parametrize("steps", [5, 20])
def test_the_solver_is_diffusers(steps, tmp_path):
    if importlib.util.find_spec("diffusers") is None or importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch and diffusers")
    teacher = Teacher.from_pretrained(TEACHER_FOLDER)
    teacher.clip = dataclasses.replace(teacher.clip, limit=0.0, thresholding=False)
    x, labels = teacher.inputs(6, seed=3)
    np.savez(tmp_path / "data.npz", x=x, labels=labels)
    command = [sys.executable, "-c", IN_DIFFUSERS, str(TEACHER_FOLDER)]
    command += [str(tmp_path / "data.npz"), str(steps), str(tmp_path / "found.npy")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    found = np.clip(np.load(tmp_path / "found.npy"), -1, 1)
    expected = teacher.sample(
        noise=x, class_labels=labels, num_inference_steps=steps, sampler="dpm"
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)
    ddim = teacher.sample(noise=x, class_labels=labels, num_inference_steps=steps)
    assert np.abs(found - ddim).max() > 10 * np.abs(found - expected).max()
