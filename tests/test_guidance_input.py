"""The guidance scale as an input of the student: its embedding, training, sampling and export."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models import CONFIG, PLAIN, assert_same, make, make_teacher, noise, weights_of
from pipelines import edit
from test_student import INFO, RANGED, make_student

from boot import cli
from boot.distiller import Distiller
from boot.errors import ConfigError, FormatError
from boot.network import Network, guidance_position
from boot.student import Student

RANGE = {"guidance_scale_max": 4.0}


def test_a_fresh_student_ignores_the_scale_and_equals_one_of_a_built_in_scale():
    teacher = make_teacher(prediction_type="v_prediction", clip_sample=False)
    ranged, plain = (Student.from_teacher(teacher, info) for info in (RANGED, INFO))
    x, labels = noise(3), np.array([0, 1, 0])
    expected = plain(x, 0.3, labels)
    for w in (1.0, 2.5, 4.0):
        np.testing.assert_allclose(ranged(x, 0.3, labels, w), expected, atol=1e-5)
    first = ranged.model.parameters["boot_guidance_embedding.linear_1.weight"]
    assert np.std(first) == pytest.approx(np.sqrt(2 / first.shape[1]), rel=0.2)


def test_a_student_of_one_scale_pays_nothing():
    names = make_student().model.parameters
    assert not any("guidance" in name for name in names)


def test_positions_are_told_apart_and_rise_slower_for_large_scales():
    w = np.array([0.0, 1.0, 8.0, 100.0])
    np.testing.assert_allclose(guidance_position(w), 8 * np.log(1 + w))
    assert guidance_position(None) is None


def test_each_image_has_the_scale_of_its_own():
    student, x = make_student(info=RANGED), noise(4)
    w, labels = np.array([1.0, 2.0, 3.0, 4.0]), [0, 1, 0, 1]
    together = student(x, 0.2, labels, w)
    for i in range(4):
        alone = student(x[i : i + 1], 0.2, labels[i], w[i])
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-5)
    assert np.abs(student(x, 0.2, labels, 1.0) - student(x, 0.2, labels, 4.0)).max() > 1e-3
    np.testing.assert_array_equal(student(x, 0.2, labels), student(x, 0.2, labels, 1.5))


def test_chunks_keep_scale_and_image_together(monkeypatch):
    student, x = make_student(info=RANGED), noise(5)
    w = np.linspace(1, 4, 5)
    whole = student(x, 0.2, 0, w)
    monkeypatch.setattr(Network, "chunk_size", lambda *_: 2)
    np.testing.assert_allclose(student(x, 0.2, 0, w), whole, atol=1e-5)


def test_the_gradient_of_the_guidance_embedding_is_the_derivative():
    student, x = make_student(info=RANGED), noise(2)
    t, w, dy = np.array([0.2, 0.7]), np.array([1.2, 3.0]), noise(2, seed=5)
    weights, core = student.model.weights, student.model.core
    student.signal_train(x, t, np.array([0, 1]), w)
    student.backward(dy)
    gradient = core.grads.copy()
    for name, shape, offset in core.parameters:  # look at the new embedding alone
        if not name.startswith("boot_guidance_embedding"):
            gradient[offset : offset + int(np.prod(shape))] = 0
    norm = np.linalg.norm(gradient.astype(np.float64))
    start, values = weights.copy(), []
    for step in (0.004, -0.004):
        weights[:] = start + np.float32(step / norm) * gradient
        student.model.weights_changed()
        y = student.signal(x, t, np.array([0, 1]), w)
        values.append(float((y.astype(np.float64) * dy).sum()))
    assert norm > 1e-2
    assert norm == pytest.approx((values[0] - values[1]) / 0.008, rel=5e-3)


# ------------------------------------------------------------------------------------- training


def test_scales_are_drawn_evenly_from_the_range_for_each_sample():
    distiller = make(train_batch_size=400, guidance_scale_min=2.0, guidance_scale_max=6.0)
    w = distiller._draw().w
    assert np.histogram(w, 4, (2.0, 6.0))[0].min() > 60
    assert w.min() >= 2
    few = make(train_batch_size=3, guidance_scale_min=2.0, guidance_scale_max=6.0)
    np.testing.assert_array_equal(few._draw().w, w[:3])
    assert make()._draw().w is None


def test_training_teaches_every_scale_of_the_range():
    """One student of a range comes near the teacher of each scale, and nearest with its own."""
    teacher = make_teacher(prediction_type="v_prediction")
    options = {"teacher": teacher, "delta": 0.2, "train_batch_size": 24, "max_train_steps": 200}
    distiller = make(**options, guidance_scale_min=0.0, guidance_scale_max=6.0)
    x, labels = distiller.student.inputs(32)
    goal = {"num_inference_steps": 5, "sampler": "heun", "t_start": 0.98}

    def rmse(asked, guided):
        images = distiller.student.sample(noise=x, class_labels=labels, guidance_scale=asked)
        truth = teacher.sample(noise=x, class_labels=labels, guidance_scale=guided, **goal)
        return np.sqrt(np.mean((images - truth) ** 2))

    before = {w: rmse(w, w) for w in (0.0, 2.0, 6.0)}
    distiller.fit()
    for w, error in before.items():
        assert rmse(w, w) < 0.7 * error
    assert rmse(0.0, 0.0) < 0.95 * rmse(6.0, 0.0)
    assert rmse(6.0, 6.0) < 0.95 * rmse(0.0, 6.0)


def test_a_run_of_a_range_resumes_bit_for_bit(tmp_path):
    options = {**RANGE, "checkpointing_steps": 2, "output_dir": str(tmp_path)}
    first = make(**options, max_train_steps=4)
    first.fit()
    second = make(
        **options, max_train_steps=4, resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    assert second.state.step == 2
    second.fit()
    assert_same(weights_of(first), weights_of(second))


def test_the_range_is_checked_before_anything_is_built():
    with pytest.raises(ConfigError, match=r"guidance_scale_min must be < guidance_scale_max = 1"):
        make(guidance_scale_max=1.0)
    with pytest.raises(ConfigError, match=r"guidance_scale_min must be 1, .* without guidance_sc"):
        make(guidance_scale_min=3.0)
    with pytest.raises(ConfigError, match=r"guidance_scale must be .*1.0.*4.0.*got 5"):
        make(guidance_scale=5.0, **RANGE)
    with pytest.raises(ConfigError, match="guidance_scale_max must be .*100"):
        make(guidance_scale_max=101.0)
    with pytest.raises(ConfigError, match="guidance_scale_max must be None for 'tiny'"):
        make(PLAIN, **RANGE)
    assert make(guidance_scale_min=2.0, guidance_scale_max=3.0).config.guidance_scale == 2.0
    assert make(**RANGE).config.guidance_scale == 1.5


def test_a_range_that_starts_unguided_leaves_the_null_label_out():
    distiller = make(guidance_scale=1.0, train_batch_size=100, **RANGE)
    assert set(distiller._draw().labels) == {0, 1}
    assert distiller.student.inputs(4)[1].tolist() == [0, 1, 0, 1]


# ------------------------------------------------------------------------------ sampling, export


@pytest.mark.parametrize(
    "info, scale, problem, message",
    [
        (RANGED, 0.9, ValueError, r"guidance_scale must be in \[1, 4\].*got 0.9"),
        (RANGED, [1, 5], ValueError, r"guidance_scale must be in \[1, 4\].*got 5"),
        (RANGED, "2", TypeError, "guidance_scale must be numbers"),
        (RANGED, np.nan, ValueError, "guidance_scale must be finite"),
        (RANGED, [1, 2, 3], ValueError, "guidance_scale must be a number or have shape"),
        (INFO, 2.0, ValueError, "guidance_scale must be 1.5, which is built into"),
    ],
)
def test_scales_out_of_the_range_are_refused(info, scale, problem, message):
    student = make_student(info=info)
    with pytest.raises(problem, match=message):
        student.sample(2, guidance_scale=scale)
    with pytest.raises(problem, match=message):
        student(noise(2), 0.2, 0, scale)


def test_the_built_in_scale_may_be_named():
    student = make_student()
    np.testing.assert_array_equal(student.sample(2, guidance_scale=1.5), student.sample(2))


def test_one_scale_can_be_built_in_and_exported(tmp_path):
    student = make_student(info=RANGED)
    x, labels = student.inputs(4)
    expected = student(x, 0.3, labels, 3.0)
    fixed = student.with_guidance(3.0)
    np.testing.assert_allclose(fixed(x, 0.3, labels), expected, atol=1e-5)
    assert (fixed.info.guidance_scale, fixed.info.takes_scale) == (3.0, False)
    assert fixed.model.num_parameters < student.model.num_parameters
    student.save_pretrained(tmp_path / "three", guidance_scale=3.0)
    loaded = Student.from_pretrained(tmp_path / "three")
    np.testing.assert_allclose(loaded(x, 0.3, labels), expected, atol=1e-5)
    with pytest.raises(ValueError, match="guidance_scale must be 3"):
        loaded.sample(2, guidance_scale=2.0)
    student.save_pretrained(tmp_path / "all")
    for name, scale in (("three", "3, built in"), ("all", "1.5 with diffusers; 1 ... 4 with boot")):
        assert f"| guidance scale | {scale}" in (tmp_path / name / "README.md").read_text()
    whole = Student.from_pretrained(tmp_path / "all")
    assert whole.info == student.info
    np.testing.assert_allclose(whole(x, 0.3, labels, 3.0), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"guidance_scale must be in \[1, 4\]"):
        student.save_pretrained(tmp_path / "no", guidance_scale=7.0)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"guidance_scale_max": None}, "must be given together"),
        ({"guidance_scale_min": 5.0}, "guidance_scale_min must be finite"),
        ({"guidance_scale": 9.0}, "guidance_scale must be finite"),
        ({"guidance_scale_min": "1"}, "guidance_scale_min must be a number"),
        ({"guidance_scale_max": None, "guidance_scale_min": None}, "boot.safetensors must hold"),
    ],
)
def test_a_broken_range_in_boot_json_is_named(tmp_path, change, message):
    make_student(info=RANGED).save_pretrained(tmp_path / "s")
    edit(tmp_path / "s/boot.json", **change)
    with pytest.raises(FormatError, match=message):
        Student.from_pretrained(tmp_path / "s")


def test_the_command_line_chooses_the_scale(tmp_path, capsys):
    student = make_student(info=RANGED)
    student.save_pretrained(tmp_path / "s")
    out = ["--output", str(tmp_path / "a.png"), "--npz", str(tmp_path / "a.npz")]
    command = ["sample", str(tmp_path / "s"), "--num-images", "3", "--guidance-scale"]
    assert cli.main([*command, "3", *out]) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        expected = student.sample(3, guidance_scale=3.0)
        np.testing.assert_allclose(arrays["images"], expected, atol=1e-5)
    assert cli.main([*command, "5", *out]) == 1
    assert "guidance_scale must be in [1, 4]" in capsys.readouterr().err
    assert cli.main(["info", str(tmp_path / "s"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["guidance_scale_range"] == [1.0, 4.0]


def test_networks_without_the_embedding_refuse_a_scale():
    model = make_student().model
    with pytest.raises(ValueError, match="guidance_scale must be None"):
        model(noise(2), 5, 0, target_timestep=3, guidance_scale=2.0)
    with pytest.raises(TypeError, match="guidance_scale must be numbers"):
        make_student(info=RANGED).model(noise(2), 5, 0, target_timestep=3)
    with pytest.raises(ValueError, match="guidance embedding if and only if"):
        Student(model, make_teacher().scheduler, RANGED)


def test_evaluation_compares_at_the_default_scale():
    distiller = make(guidance_scale=2.0, **RANGE)
    assert distiller.evaluate(num_paired=4)["paired_rmse"] > 0
    assert isinstance(distiller, Distiller)
    assert CONFIG.num_class_embeds == 3
