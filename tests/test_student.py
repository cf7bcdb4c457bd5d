"""The student: output map, gradient, and folders that diffusers runs as the same function."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from models import CONFIG, PLAIN, make_teacher, noise
from pipelines import edit

from boot.diffusers_io import load_pipeline
from boot.errors import FormatError
from boot.network import Network
from boot.reading import to_json
from boot.safetensors_io import load_tensors, save_tensors
from boot.student import Student, StudentInfo
from boot.teacher import Teacher

INFO = StudentInfo(t_max=0.8, t_min=0.001, guidance_scale=1.5, null_class_label=2)
RANGED = dataclasses.replace(INFO, guidance_scale_min=1.0, guidance_scale_max=4.0)
T_MAX_INDEX = 799


def make_student(config=CONFIG, info=INFO, **scheduler):
    """A student whose target embedding does something, as after training."""
    if config.num_class_embeds is None and info is INFO:
        info = dataclasses.replace(info, guidance_scale=1.0, null_class_label=None)
    student = Student.from_teacher(make_teacher(config, **scheduler), info)
    rng = np.random.default_rng(9)
    for name, view in student.model.parameters.items():
        if name.startswith("boot_"):
            view += 0.3 * rng.standard_normal(view.shape).astype(np.float32)
    student.model.weights_changed()
    return student


def test_a_fresh_student_of_a_v_teacher_is_the_teacher_at_t_max_for_every_target_time():
    teacher = make_teacher(prediction_type="v_prediction", clip_sample=False)
    student = Student.from_teacher(teacher, INFO)
    x, labels = noise(4), np.array([0, 1, 0, 1])
    expected = teacher.signal(x, np.full(4, 0.8), labels)
    for t in (0.001, 0.3, 0.8):
        np.testing.assert_allclose(student(x, t, labels), expected, atol=1e-5)


def test_the_output_map_and_the_timestep_are_those_of_t_max_whatever_the_target():
    student, x = make_student(), noise(3)
    alpha, sigma = student.schedule.alpha_sigma(0.8)
    t = np.array([0.001, 0.4, 0.8])
    output = student.model(x, T_MAX_INDEX, [0, 1, 2], target_timestep=1000 * t - 1)
    np.testing.assert_allclose(student(x, t, [0, 1, 2]), alpha * x - sigma * output, atol=1e-5)
    assert np.abs(student(x, 0.4, 0) - student(x, 0.1, 0)).max() > 1e-3


def test_backward_is_the_derivative_of_the_signal():
    student, x = make_student(), noise(2)
    t, labels, dy = np.array([0.2, 0.7]), np.array([0, 1]), noise(2, seed=5)
    weights = student.model.weights
    student.signal_train(x, t, labels)
    student.backward(dy)
    gradient = student.model.core.grads.copy()
    norm = np.linalg.norm(gradient.astype(np.float64))
    # Along the gradient the slope is its length, far above the rounding of float32.
    start, values = weights.copy(), []
    for step in (0.004, -0.004):
        weights[:] = start + np.float32(step / norm) * gradient
        student.model.weights_changed()
        values.append(float((student.signal(x, t, labels).astype(np.float64) * dy).sum()))
    assert norm == pytest.approx((values[0] - values[1]) / 0.008, rel=2e-3)


def test_sample_is_one_call_at_t_min_clipped():
    student = make_student()
    student.model.weights[:] *= 1.5
    student.model.weights_changed()
    x, labels = student.inputs(6, seed=4)
    images = student.sample(6, seed=4)
    assert labels.tolist() == [0, 1, 0, 1, 0, 1]
    raw = student(x, None, labels)
    assert np.abs(raw).max() > 1
    np.testing.assert_allclose(images, np.clip(raw, -1, 1), atol=1e-6)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(x, make_teacher().inputs(6, seed=4)[0])


# -------------------------------------------------------------------------------------- folders

CASES = {
    "conditional": {"config": CONFIG},
    "scales": {"config": CONFIG, "info": RANGED},
    "unconditional": {"config": PLAIN},
    "cosine": {"config": PLAIN, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    "zero_snr": {
        "config": PLAIN,
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    },
    "sigmoid": {"config": PLAIN, "beta_schedule": "sigmoid"},
    "trained": {
        "config": PLAIN,
        "num_train_timesteps": 10,
        "trained_betas": tuple(np.linspace(0.01, 0.5, 10)),
    },
    "range": {"config": PLAIN, "clip_sample_range": 0.8},
    "no_clip": {"config": PLAIN, "clip_sample": False},
    "learned": {
        "config": dataclasses.replace(
            PLAIN, time_embedding_type="learned", num_train_timesteps=1000
        )
    },
}


def case(name):
    options = dict(CASES[name])
    config = options.pop("config")
    info = INFO if config is CONFIG else StudentInfo(t_max=0.8, t_min=0.001)
    info = options.pop("info", info)
    if name == "trained":
        info = dataclasses.replace(info, t_min=0.1)
    clip = options.get("clip_sample", True), options.get("clip_sample_range", 1.0)
    info = dataclasses.replace(info, clip_sample=clip[0], clip_sample_range=clip[1])
    return make_student(config, info, **options)


@pytest.mark.parametrize("name", CASES)
def test_saved_and_loaded_is_the_same_bit_for_bit_at_every_t(tmp_path, name):
    student = case(name)
    student.save_pretrained(tmp_path / "s")
    loaded = Student.from_pretrained(tmp_path / "s")
    np.testing.assert_array_equal(loaded.model.weights, student.model.weights)
    assert loaded.info == student.info
    assert loaded.scheduler == student.scheduler
    labels = None if student.num_classes is None else [0, 1]
    for t in (student.info.t_min, 0.4, 0.8):
        expected = student(noise(2), t, labels)
        loaded.model.pin_kernels(student.model.kernels)
        np.testing.assert_array_equal(loaded(noise(2), t, labels), expected)
    loaded.save_pretrained(tmp_path / "again")
    for path in sorted((tmp_path / "s").rglob("*.safetensors")):
        other = tmp_path / "again" / path.relative_to(tmp_path / "s")
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_one_ddim_step_on_the_exported_folder_is_the_student(tmp_path, name):
    """The step of diffusers' DDIMScheduler, written out in NumPy from the exported files alone."""
    student = case(name)
    student.save_pretrained(tmp_path / "s")
    exported = load_pipeline(tmp_path / "s")
    scheduler = json.loads((tmp_path / "s/scheduler/scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "DDIMScheduler"
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["timestep_spacing"] == "leading"
    assert scheduler["set_alpha_to_one"] is True
    timestep = scheduler["steps_offset"]  # "leading" with one step
    network = Network(exported.unet)
    network.load(exported.tensors)
    abar = Teacher(network, exported.scheduler).schedule.alphas_cumprod[timestep]
    x, labels = student.inputs(4)
    output = network(x, timestep, labels)
    image = np.sqrt(abar) * x - np.sqrt(1 - abar) * output
    if scheduler["clip_sample"]:
        limit = scheduler["clip_sample_range"]
        image = np.clip(image, -limit, limit)
    image = np.clip(image, -1, 1)  # abar of the step's end is 1: x0 itself; then the pipeline clips
    np.testing.assert_allclose(student.sample(4), image, atol=2e-5)


def test_the_folder_holds_a_pipeline_a_card_and_what_boot_needs(tmp_path):
    student = make_student()
    student.save_pretrained(tmp_path / "my-student")
    files = {
        str(p.relative_to(tmp_path / "my-student")) for p in tmp_path.rglob("*") if p.is_file()
    }
    assert files == {
        "README.md",
        "boot.json",
        "boot.safetensors",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    index = json.loads((tmp_path / "my-student/model_index.json").read_text())
    assert index["_class_name"] == "DDIMPipeline"
    card = (tmp_path / "my-student/README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    assert 'from_pretrained("my-student")' in card
    assert "class_labels=labels" in card
    assert "% 2" in card  # two classes; the null label was not trained
    assert "{" not in card
    other = dataclasses.replace(INFO, null_class_label=0)
    make_student(info=other).save_pretrained(tmp_path / "other")
    assert "if i != 0" in (tmp_path / "other/README.md").read_text()


def test_the_card_of_an_unconditional_student_shows_the_pipeline(tmp_path):
    make_student(PLAIN).save_pretrained(tmp_path / "s")
    assert "num_inference_steps=1" in (tmp_path / "s/README.md").read_text()


def test_float16_folders_load(tmp_path):
    student = make_student()
    student.save_pretrained(tmp_path / "s", dtype="float16")
    loaded = Student.from_pretrained(tmp_path / "s")
    np.testing.assert_allclose(loaded.sample(4), student.sample(4), atol=0.02)
    size = (tmp_path / "s/unet/diffusion_pytorch_model.safetensors").stat().st_size
    assert size < 2.5 * student.model.num_parameters


def test_a_folder_with_files_is_kept_unless_overwriting(tmp_path):
    first, second = make_student(), make_student()
    first.save_pretrained(tmp_path / "s")
    before = (tmp_path / "s/boot.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="new or empty"):
        second.save_pretrained(tmp_path / "s")
    assert (tmp_path / "s/boot.safetensors").read_bytes() == before
    second.model.weights[:] *= 0.5
    second.model.weights_changed()
    second.save_pretrained(tmp_path / "s", overwrite=True)
    np.testing.assert_array_equal(
        Student.from_pretrained(tmp_path / "s").model.weights, second.model.weights
    )


def test_a_pipeline_that_is_no_student_is_named_as_such(tmp_path):
    make_student().save_pretrained(tmp_path / "s")
    (tmp_path / "s/boot.json").unlink()
    with pytest.raises(FormatError, match="not a student.*Teacher.from_pretrained"):
        Student.from_pretrained(tmp_path / "s")
    assert Teacher.from_pretrained(tmp_path / "s").scheduler.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format_version": 2}, "format_version must be 1, got 2"),
        ({"t_max": None}, "t_max is missing"),
        ({"t_max": 2.0}, "t_max must be finite and > 0"),
        ({"t_max": "0.8"}, "t_max must be a number"),
        ({"t_min": 0.9}, "t_min must be finite"),
        ({"clip_sample": 1}, "clip_sample must be True or False"),
        ({"null_class_label": -1}, "null_class_label"),
        ({"null_class_label": 10**9}, "null_class_label is 1000000000, but the network has 3"),
        ({"teacher": []}, "teacher must be dict"),
        ({"teacher": {"name": {}}}, "teacher.name must be str"),
        ({"teacher": {"sha256": 5}}, "teacher.sha256 must be str"),
        ({"training": "x"}, "training must be dict"),
        ({"training": {"steps": "x"}}, "training.steps must be int"),
        ({"training": {"steps": True}}, "training.steps must be int"),
        ({"training": {"steps": -1}}, "training.steps must be an integer >= 0"),
        ({"training": {"config": []}}, "training.config must be dict"),
        ({"training": {"config": {"solver": "zz"}}}, "training.config: solver must be one of"),
        ({"training": {"config": {"seed": "zz"}}}, "training.config: seed must be an integer"),
        ({"training": {"config": {"seed": -1}}}, "training.config: seed must be an integer"),
        ({"training": {"config": {"t_min": 0.5, "t_max": 0.4}}}, "training.config: t_min must"),
        ({"training": {"config": {"guidance_t_min": 1, "guidance_t_max": 0}}}, "guidance_t_min"),
        (
            {"guidance_scale_min": 2.0, "guidance_scale_max": 2.0, "guidance_scale": 2.0},
            "_min must",
        ),
        ({"scheduler": [1]}, "scheduler must be an object"),
        ({"scheduler": {"beta_start": -1}}, "beta_start"),
        ({"scheduler": {"no_such_key": 1}}, "no_such_key"),
        ({"scheduler": {"num_train_timesteps": 1}}, "scheduler: alphas_cumprod must have shape"),
        ({"scheduler": {"beta_end": 1.0}}, "scheduler: beta_schedule linear: beta 1"),
    ],
)
def test_broken_boot_json_is_named(tmp_path, change, message):
    make_student().save_pretrained(tmp_path / "s")
    edit(tmp_path / "s/boot.json", **change)
    with pytest.raises(FormatError, match=rf"boot\.json.*{message}"):
        Student.from_pretrained(tmp_path / "s")


def test_weights_of_another_student_are_noticed(tmp_path):
    one, other = make_student(), make_student()
    other.model.parameters["time_embedding.linear_2.bias"][:] += 1
    one.save_pretrained(tmp_path / "one")
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "one/boot.safetensors").write_bytes(
        (tmp_path / "other/boot.safetensors").read_bytes()
    )
    with pytest.raises(FormatError, match="does not belong to the weights beside it"):
        Student.from_pretrained(tmp_path / "one")


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda own: own.pop("time_embedding.linear_2.bias"), "must hold"),
        (lambda own: own.update(extra=np.zeros(3, "f4")), "must hold.*extra"),
        (lambda own: own["boot_target_embedding.linear_1.bias"].fill(np.nan), "NaN"),
        (
            lambda own: own.update({"boot_target_embedding.linear_1.bias": np.zeros(3, "f4")}),
            "misshapen: boot_target_embedding.linear_1.bias",
        ),
    ],
)
def test_broken_boot_tensors_are_named(tmp_path, break_it, message):
    make_student().save_pretrained(tmp_path / "s")
    own = load_tensors(tmp_path / "s/boot.safetensors")
    break_it(own)
    save_tensors(tmp_path / "s/boot.safetensors", own)
    with pytest.raises(FormatError, match=message):
        Student.from_pretrained(tmp_path / "s")


def test_a_network_without_target_embedding_is_no_student():
    teacher = make_teacher()
    with pytest.raises(ValueError, match="target embedding"):
        Student(teacher.model, teacher.scheduler, INFO)


# ------------------------------------------------------------------------------- with diffusers

IN_DIFFUSERS = """
import os, re, sys
from pathlib import Path
import numpy as np, torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
import diffusers.pipelines.ddim.pipeline_ddim as pipeline_module

for folder in map(Path, sys.argv[1:]):
    data = dict(np.load(folder / "data.npz"))
    noise = torch.from_numpy(data["noise"])
    labels = torch.from_numpy(data["class_labels"]) if "class_labels" in data else None
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(1)
    t = scheduler.timesteps[0]
    with torch.no_grad():
        output = unet(noise, t, class_labels=labels).sample
    step = scheduler.step(output, t, noise).prev_sample.clamp(-1, 1)
    result = {"by_hand": step.numpy()}
    if labels is None:
        drawn, pipeline_module.randn_tensor = pipeline_module.randn_tensor, lambda *a, **k: noise
        pipeline = DDIMPipeline.from_pretrained(folder)
        out = pipeline(batch_size=len(noise), num_inference_steps=1, output_type="np")
        pipeline_module.randn_tensor = drawn
        result["pipeline"] = out.images.transpose(0, 3, 1, 2) * 2 - 1
    np.savez(folder / "found.npz", **result)
    # The card's own snippet, run where its relative path means this folder.
    os.chdir(folder.parent)
    blocks = re.findall("```python\\n(.*?)```", (folder / "README.md").read_text(), re.S)
    scope = {}
    exec(blocks[1], scope)
    if labels is None:
        assert len(scope["images"]) == 16
    else:
        card = {key: scope[key].numpy() for key in ("noise", "labels", "images")}
        np.savez(folder / "card.npz", **card)
"""


@pytest.fixture(scope="module")
def run_by_diffusers(tmp_path_factory):
    """Export every case, and let one process of diffusers run them all."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    root = tmp_path_factory.mktemp("exported")
    expected, students = {}, {}
    for name in CASES:
        student = case(name)
        student.save_pretrained(root / name)
        x, labels = student.inputs(4, seed=2)
        given = {"noise": x} if labels is None else {"noise": x, "class_labels": labels}
        np.savez(root / name / "data.npz", **given)
        expected[name] = student.sample(noise=x, class_labels=labels)
        students[name] = student
    # A process of its own: PyTorch brings another OpenMP library and another oneDNN.
    command = [sys.executable, "-c", IN_DIFFUSERS, *(str(root / name) for name in CASES)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    card = dict(np.load(root / "conditional/card.npz"))
    assert set(card["labels"]) == {0, 1}
    by_card = students["conditional"].sample(noise=card["noise"], class_labels=card["labels"])
    np.testing.assert_allclose(card["images"], by_card, atol=1e-4)
    return {name: (dict(np.load(root / name / "found.npz")), expected[name]) for name in CASES}


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_diffusers_runs_the_exported_student_as_the_same_function(run_by_diffusers, name):
    found, expected = run_by_diffusers[name]
    assert ("pipeline" in found) == (name not in ("conditional", "scales"))
    for images in found.values():
        np.testing.assert_allclose(images, expected, atol=1e-4)


def test_info_survives_json():
    info = dataclasses.replace(INFO, teacher={"name": "x"}, training={"steps": 3})
    values = json.loads(to_json({"format_version": 1, **dataclasses.asdict(info)}))
    assert StudentInfo.from_dict(values, "boot.json") == info
