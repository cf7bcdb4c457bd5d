"""Callables as teachers: what they are given, what they must not return, and their students."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from models import DDPM, PLAIN, assert_same, make_teacher, noise, save_teacher, weights_of

from boot import toy
from boot.continuous import CosineSchedule, EDMSchedule, FlowSchedule
from boot.distiller import Distiller
from boot.errors import ConfigError, ResumeMismatch, TeacherError
from boot.scheduler_config import SchedulerConfig
from boot.student import Student
from boot.student_init import random_weights
from boot.teacher import Teacher

SHAPE = (1, 4, 4)
MIXTURE = toy.GaussianMixture.random(SHAPE, components=2, classes=2, std=0.5)
SMALL = {"train_batch_size": 8, "max_train_steps": 3, "lr_warmup_steps": 1}


def make(function=lambda x, t, c: 0.5 * x, **options):
    known = {"prediction_type": "sample", "schedule": FlowSchedule(), "sample_shape": SHAPE}
    return Teacher.from_callable(function, **{**known, **options})


def distiller(teacher, **options):
    student = toy.small_network(teacher, 8)
    return Distiller(teacher, **{"student": student, **SMALL, **options})


def test_it_gets_images_the_models_time_and_labels():
    seen = []

    def function(x, t, c):
        seen.append((x.dtype, x.shape, t.dtype, t.copy(), None if c is None else c.copy()))
        x[:] = np.nan  # its own copy
        return np.zeros(x.shape)

    x, t = noise(3, size=4), np.array([0.1, 0.5, 0.9])
    before = x.copy()
    teacher = make(function, schedule=EDMSchedule(), num_classes=5, null_class_label=4)
    assert (teacher.signal(x, t, np.array([0, 3, 4])) == 0).all()
    np.testing.assert_array_equal(x, before)
    dtype, shape, kind, times, labels = seen[0]
    assert (dtype, shape, kind) == (np.float32, (3, *SHAPE), np.float64)
    np.testing.assert_array_equal(times, EDMSchedule().alpha_sigma(t)[1])
    np.testing.assert_array_equal(labels, [0, 3, 4])
    table = make(function, schedule=SchedulerConfig(beta_schedule="squaredcos_cap_v2"))
    table.signal(x, t)
    np.testing.assert_allclose(seen[1][3], [99, 499, 899])
    assert seen[1][4] is None


def test_a_buffer_that_the_callable_reuses_does_no_harm():
    buffer = np.zeros((2, *SHAPE), np.float32)

    def function(x, t, c):
        buffer[:] = x
        return buffer

    teacher, t = make(function), np.full(2, 0.5)
    one = teacher.signal(noise(2, 1, size=4), t)
    teacher.signal(noise(2, 2, size=4), t)
    np.testing.assert_array_equal(one, noise(2, 1, size=4))


def test_large_batches_are_cut():
    sizes = []
    teacher = make(lambda x, t, c: sizes.append(len(x)) or x)
    x = noise(300, size=4)
    np.testing.assert_array_equal(teacher.signal(x, np.full(300, 0.5)), x)
    assert sizes == [256, 44]


@pytest.mark.parametrize(
    "output, message",
    [
        (lambda x: x[:, :, :2], r"must have shape \(2, 1, 4, 4\), got \(2, 1, 2, 4\)"),
        (lambda x: x[0], "must have shape"),
        (lambda x: x.astype(int), "float16, float32 or float64, got dtype int64"),
        (lambda x: x.astype(complex), "got dtype complex128"),
        (lambda x: None, "must be an array, got None"),
        (lambda x: x.tolist(), "must be an array"),
    ],
)
def test_a_wrong_output_is_named_with_the_t_at_which_it_came(output, message):
    teacher = make(lambda x, t, c: output(x), name="mine")
    with pytest.raises(TeacherError, match=rf"mine: the output.*{message}.*t in 0.25 \.\.\. 0.5"):
        teacher.signal(noise(2, size=4), np.array([0.25, 0.5]))


@pytest.mark.parametrize(
    "function, code",
    [
        (lambda x, t, c: x[:, :, :2], "bad_output"),
        (lambda x, t, c: x.astype(int), "bad_output"),
        (lambda x, t, c: x.tolist(), "bad_output"),
        (lambda x, t, c: x * np.nan, "not_finite"),
    ],
)
def test_the_check_tells_a_wrong_kind_of_output_from_nan(function, code):
    report = distiller(make(function, name="mine", fingerprint="mine")).check()
    assert [finding.code for finding in report.problems] == [code]
    assert "mine: the output" in report.problems[0].message


def test_nan_is_named_with_its_t():
    def function(x, t, c):
        out = x.copy()
        out[t < 0.3, 0, 1, 2] = np.nan
        return out

    with pytest.raises(
        TeacherError, match=r"1 NaN or Inf of 16 numbers at t = 0.25 \(image 1 of 3"
    ):
        make(function).signal(noise(3, size=4), np.array([0.5, 0.25, 0.9]))
    with pytest.raises(TeacherError, match="NaN or Inf"):  # the probes come before step 1
        distiller(make(lambda x, t, c: x * np.nan))


def test_nan_that_the_student_made_is_not_the_callables_fault():
    x = noise(2, size=4)
    x[1, 0, 0, 0] = np.inf
    with pytest.raises(FloatingPointError, match="the teacher's input"):
        make().signal(x, np.full(2, 0.5))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"function": 3}, TypeError, "function must be callable"),
        ({"prediction_type": "score"}, ValueError, "prediction_type must be"),
        ({"schedule": "linear"}, TypeError, "schedule must be a Schedule"),
        ({"sample_shape": (4, 4)}, TypeError, "sample_shape must be"),
        ({"sample_shape": (1, 4, 0)}, ValueError, r"sample_shape\[2\] must be"),
        ({"num_classes": 0}, ValueError, "num_classes must be"),
        ({"null_class_label": 0}, ValueError, "null_class_label must be None"),
        ({"num_classes": 3, "null_class_label": 3}, ValueError, "null_class_label must be"),
        ({"clip_sample": 1}, TypeError, "clip_sample"),
        ({"clip_sample_range": 0.0}, ValueError, "clip_sample_range must be"),
        ({"name": ""}, TypeError, "name must be a text"),
        ({"fingerprint": 7}, TypeError, "fingerprint must be a text"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_guidance_needs_a_label_that_means_no_class():
    teacher = make(num_classes=3)
    assert not teacher.guidance(1.0).active
    with pytest.raises(ValueError, match="null_class_label must be given"):
        teacher.guidance(2.0)
    assert teacher.guidance(2.0, 1).null_label == 1
    assert distiller(teacher).config.guidance_scale == 1.0
    assert distiller(MIXTURE.teacher(FlowSchedule())).config.guidance_scale == 1.5
    with pytest.raises(ValueError, match="no class table"):
        make().guidance(2.0)


def test_the_clip_is_the_declared_one():
    x, t = 3 * noise(2, size=4), np.full(2, 0.5)
    assert np.abs(make().signal(x, t)).max() > 1
    assert np.abs(make(clip_sample=True, clip_sample_range=0.7).signal(x, t)).max() == 0.7


def test_fingerprints_tell_teachers_apart():
    prints = [
        make().fingerprint,
        make(lambda x, t, c: 0.5001 * x).fingerprint,
        make(schedule=CosineSchedule()).fingerprint,
        make(prediction_type="epsilon").fingerprint,
        make(num_classes=2).fingerprint,
        make(fingerprint="a").fingerprint,
        make(fingerprint="b").fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert make().fingerprint == prints[0]
    assert make(lambda x, t, c: 1 / 0, fingerprint="a").fingerprint == prints[5]  # not called


# ---------------------------------------------------------------------------------- the student


def test_a_student_must_be_given_and_must_fit():
    teacher = make()
    good = toy.small_network(teacher, 8)
    with pytest.raises(ConfigError, match="student must be given"):
        Distiller(teacher)
    with pytest.raises(TypeError, match="student must be a UNet2DConfig"):
        Distiller(teacher, student=3)
    for changes, message in (
        ({"in_channels": 3}, "in_channels must be 1"),
        ({"out_channels": 2}, "out_channels must be 1"),
        ({"sample_size": 8}, "sample_size must be 4"),
        ({"num_class_embeds": 2}, "num_class_embeds must be None"),
    ):
        with pytest.raises(ConfigError, match=message):
            Distiller(teacher, student=dataclasses.replace(good, **changes))
    free = {**good.to_dict(), "sample_size": None}
    assert distiller(teacher, student=free).student.sample(2).shape == (2, *SHAPE)
    deep = dataclasses.replace(
        good,
        block_out_channels=(8,) * 4,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
    )
    with pytest.raises(ConfigError, match="multiples of 8"):
        Distiller(teacher, student=deep)


def test_random_weights_are_pytorchs_and_a_function_of_the_seed():
    config = dataclasses.replace(PLAIN, num_class_embeds=4)
    one, same, other = (random_weights(config, seed) for seed in (0, 0, 1))
    assert_same(one.values(), same.values())
    for name, array in one.items():
        assert array.dtype == np.float32
        layer = name.rsplit(".", 1)[0]
        if "norm" in layer.rsplit(".", 1)[-1]:
            assert (array == (1 if name.endswith("weight") else 0)).all()
        elif layer == "conv_out":
            assert (array == 0).all()
        elif layer != "class_embedding":
            bound = 1 / np.sqrt(np.prod(one[f"{layer}.weight"].shape[1:]))
            assert np.abs(array).max() <= bound and (array != other[name]).any()
            if array.size > 200:
                assert array.std() == pytest.approx(bound / np.sqrt(3), rel=0.15)
                assert abs(array.mean()) < 0.2 * bound
    assert (random_weights(config, 0, zero_output=False)["conv_out.weight"] != 0).any()


def test_a_student_may_be_a_copy_of_a_folder(tmp_path):
    folder = save_teacher(tmp_path / "model", PLAIN)
    teacher = make(sample_shape=(1, 8, 8))
    student = Distiller(teacher, student=folder, **SMALL).student
    copied = make_teacher(PLAIN).model.parameters
    np.testing.assert_array_equal(
        student.model.parameters["conv_in.weight"], copied["conv_in.weight"]
    )
    with pytest.raises(ConfigError, match="sample_size must be 4"):
        Distiller(make(), student=folder)


def test_a_network_teacher_may_have_another_student():
    teacher = make_teacher(PLAIN)
    run = distiller(teacher)
    assert run.student.model.num_parameters < teacher.network.num_parameters
    assert np.isfinite(run.step()["loss"])


@pytest.mark.parametrize("schedule", [DDPM, CosineSchedule(), EDMSchedule(), FlowSchedule()])
def test_students_are_saved_loaded_and_resumed(schedule, tmp_path):
    teacher = MIXTURE.teacher(FlowSchedule()) if isinstance(schedule, SchedulerConfig) else None
    if teacher is None:
        teacher = MIXTURE.teacher(schedule, "epsilon")
    run = distiller(teacher, output_dir=str(tmp_path / "run"), checkpointing_steps=3)
    run.fit()
    images = run.student.sample(3, seed=1)
    loaded = Student.from_pretrained(tmp_path / "run")
    np.testing.assert_allclose(loaded.sample(3, seed=1), images, atol=1e-5)
    assert loaded.info.null_class_label == 2 and loaded.info.guidance_scale == 1.5
    again = distiller(teacher, output_dir=str(tmp_path / "run"), resume_from_checkpoint="latest")
    assert_same(weights_of(again), weights_of(run))
    with pytest.raises(ResumeMismatch, match="student was"):
        Distiller(
            teacher,
            student=dataclasses.replace(toy.small_network(teacher, 8), norm_eps=1e-3),
            output_dir=str(tmp_path / "run"),
            resume_from_checkpoint="latest",
            **SMALL,
        )


IN_DIFFUSERS = """
import sys
import numpy as np, torch, diffusers
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
    pipeline.scheduler.set_timesteps(1)
    (t,) = pipeline.scheduler.timesteps
    x = torch.from_numpy(np.load(folder + "/noise.npy"))
    with torch.no_grad():
        images = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    np.save(folder + "/found.npy", images.numpy())
"""


@pytest.mark.parity
def test_diffusers_draws_the_same_images(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    mixture, x = toy.GaussianMixture.random(SHAPE, components=2, std=0.5), noise(4, size=4)
    expected = {}
    for schedule in (CosineSchedule(), EDMSchedule(), FlowSchedule()):
        run = distiller(mixture.teacher(schedule, "flow"), max_train_steps=30, learning_rate=1e-2)
        run.fit()
        folder = tmp_path / type(schedule).__name__
        run.student.save_pretrained(folder)
        np.save(folder / "noise.npy", x)
        expected[str(folder)] = run.student.sample(noise=x)
    # A process of its own: PyTorch brings another OpenMP library.
    command = [sys.executable, "-c", IN_DIFFUSERS, *expected]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    for folder, images in expected.items():
        found = np.clip(np.load(f"{folder}/found.npy"), -1, 1)
        np.testing.assert_allclose(found, images, atol=2e-5)
        assert images.std() > 0.1
