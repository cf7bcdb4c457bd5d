"""Correction by distribution: the critic's numbers, its part in a step, and what goes wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models import PLAIN, SMALL, assert_same, make, make_teacher, noise, poison, weights_of
from test_continuous import ALL as CONTINUOUS

from boot import Distiller, _core, toy
from boot.critic import alone, output_of
from boot.draws import drawn_scales
from boot.noise import Stream, normal, uniform

ON = {"correction": "distribution", "correction_start": 0.0, "max_train_steps": 8}
LABELS = np.array([0, 1, 0])


def per_image(a):
    return np.asarray(a, np.float32).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "flow"])
def test_output_of_is_the_inverse_of_the_signal(prediction_type):
    y, n = noise(3, seed=1), noise(3, seed=2)
    alpha, sigma = np.array([0.9, 0.5, 0.3]), np.array([0.3, 0.8, 0.7])
    x = per_image(alpha) * y + per_image(sigma) * n
    output = output_of(prediction_type, y, n, alpha, sigma)
    found = _core.signal_from_output(prediction_type, output, x, alpha, sigma, 0.0)
    if prediction_type == "v_prediction":  # only of a variance-preserving process
        alpha, sigma = np.array([0.6, 0.8, 0.28]), np.array([0.8, 0.6, 0.96])
        x = per_image(alpha) * y + per_image(sigma) * n
        output = output_of(prediction_type, y, n, alpha, sigma)
        found = _core.signal_from_output(prediction_type, output, x, alpha, sigma, 0.0)
    np.testing.assert_allclose(found, y, atol=3e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_judge_is_what_its_equations_say(prediction_type):
    teacher = make_teacher(prediction_type=prediction_type, clip_sample=False)
    run = make(teacher=teacher, correction_weight=0.3, correction_fraction=0.5, seed=5, **ON)
    critic, images = run._critic, noise(3, seed=4)
    critic.model.weights[...] *= np.float32(0.9)  # so that critic and teacher differ
    critic.model.weights_changed()
    pull = critic.judge(run.config, images, LABELS, 7, alone(run.config), None)
    n = normal(5, Stream.CORRECTION_NOISE, 7, 0, images.shape)
    t_max = run.config.t_max
    t = 0.02 + (1.0 - uniform(5, Stream.CORRECTION_TIME, 7, 0, 3)) * (t_max - 0.02)
    alpha, sigma = teacher.schedule.alpha_sigma(t)
    x = per_image(alpha) * images + per_image(sigma) * n
    index = teacher.schedule.index(t)
    wanted = teacher.signal(x, t, LABELS, teacher.guidance(1.15))  # three tenths of 0.5 above 1
    output = critic.model(x, index, LABELS)
    found = _core.signal_from_output(prediction_type, output, x, alpha, sigma, 0.0)
    size = np.abs(images - wanted).mean(axis=(1, 2, 3), keepdims=True) + 1e-3
    expected = 0.3 * (found - wanted) / size / images.size
    np.testing.assert_allclose(pull.gradient, expected, rtol=2e-3, atol=1e-5 * abs(expected).max())
    error = output - output_of(prediction_type, images, n, alpha, sigma)
    assert pull.loss == pytest.approx(np.mean(error**2), rel=1e-4)


def test_the_critics_gradient_is_that_of_its_loss():
    run = make(**ON, correction_fraction=0.5)
    critic, images = run._critic, noise(3, seed=4)
    critic.judge(run.config, images, LABELS, 0, 0, None)
    gradient = critic.model.core.grads.copy()
    name = "mid_block.resnets.0.conv1.weight"
    offset = next(o for n, _, o in critic.model.core.parameters if n == name)
    base, step = critic.model.weights.copy(), 0.02
    direction = np.zeros_like(base)
    part = slice(offset, offset + critic.model.parameters[name].size)
    direction[part] = gradient[part] / np.linalg.norm(gradient[part])
    losses = []
    for sign in (-1, 1):
        critic.model.weights[...] = base + np.float32(sign * step) * direction
        critic.model.weights_changed()
        losses.append(critic.judge(run.config, images, LABELS, 0, 0, None).loss)
    slope = (losses[1] - losses[0]) / (2 * step)
    assert slope == pytest.approx(np.linalg.norm(gradient[part]), rel=0.02)


def test_the_critic_learns_alone_first_and_then_pulls_the_first_rows():
    run = make(**{**ON, "max_train_steps": 40}, correction_fraction=0.5)
    assert alone(run.config) == 10
    for _ in range(5):
        run.step()
    plain = run._loss_and_gradient(run._draw(), corrected=False)
    first = run._loss_and_gradient(run._draw())
    assert plain.critic is None and first.critic > 0
    rows = run.config.train_batch_size + run._boundary_rows
    assert len(first.gradient) == rows + 3 and not first.gradient[rows:].any()
    np.testing.assert_allclose(first.gradient[:rows], plain.gradient, rtol=1e-3, atol=1e-6)
    run.state.critic_updates = 10
    pulled = run._loss_and_gradient(run._draw()).gradient[rows:]
    assert (np.abs(pulled).max(axis=(1, 2, 3)) > 0).all()


def test_the_critic_sets_in_at_its_part_of_the_run(tmp_path):
    options = {**ON, "correction_start": 0.5, "logging_steps": 1, "output_dir": str(tmp_path)}
    run = make(**options)
    start = run._critic.model.weights.copy()
    run.fit()
    logs = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert ["loss_critic" in line for line in logs] == [False] * 4 + [True] * 4
    assert run.state.critic_updates == 4
    assert not np.array_equal(run._critic.model.weights, start)


def test_it_sets_in_by_the_steps_that_fit_is_asked_for():
    run = make(**{**ON, "correction_start": 0.5, "max_train_steps": 1000})
    run.fit(max_train_steps=8)
    assert run.state.critic_updates == 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_number_in_the_critic_changes_nothing(value, caplog):
    run = make(**ON)
    run.step()
    run._critic.model.weights[3] = value
    run._critic.model.weights_changed()
    before = weights_of(run)
    run.step()
    assert_same(weights_of(run), before)
    assert (run.state.skipped, run.state.critic_updates) == (1, 1)
    assert "the critic's output has" in caplog.text


def test_a_gradient_that_only_the_critic_cannot_use_changes_nothing(caplog, monkeypatch):
    run = make(**ON, max_grad_norm=0.0)
    run.step()
    backward = run._critic.model.backward
    monkeypatch.setattr(run._critic.model, "backward", lambda dy: backward(dy * np.float32(1e25)))
    before = weights_of(run)
    run.step()
    assert_same(weights_of(run), before)
    assert (run.state.skipped, run.state.updates, run.state.critic_updates) == (1, 1, 1)
    assert "the critic's gradient norm is" in caplog.text and "as large as" in caplog.text


@pytest.mark.parametrize(("every", "kept"), [(0, 0), (2, 2)], ids=["the start", "a copy in memory"])
def test_a_roll_back_brings_the_critic_back(every, kept):
    run = make(**ON, checkpointing_steps=every)
    for _ in range(kept):
        run.step()
    good = weights_of(run)
    run.step()
    poison(run, on=True)
    for _ in range(3):
        run.step()
    assert run.state.rollbacks == 1 and run.state.critic_updates == kept
    assert_same(weights_of(run), good)


def test_a_roll_back_to_a_checkpoint_brings_the_critics_count_back(tmp_path):
    run = make(**ON, output_dir=str(tmp_path))
    run.step()
    run.step()
    run.save_checkpoint()
    good = weights_of(run)
    run.step()
    poison(run, on=True)
    for _ in range(3):
        run.step()
    assert run.state.rollbacks == 1 and run.state.critic_updates == run.state.updates == 2
    assert_same(weights_of(run), good)


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=lambda s: repr(s)[:16])
def test_images_like_the_teachers_are_pulled_less_and_less_on_any_schedule(schedule):
    mixture = toy.GaussianMixture.random((1, 2, 2), components=2, std=0.2)
    teacher = mixture.teacher(schedule, "sample")
    options = {**SMALL, **ON, "train_batch_size": 128, "correction_learning_rate": 1e-2}
    run = Distiller(teacher, student=toy.small_network(teacher), **options)
    images, pulls = teacher.sample(run._critic.rows, num_inference_steps=20, seed=1), []
    for i in range(alone(run.config), 150):
        pull = run._critic.judge(run.config, images, None, i, i, None)
        pulls.append(float(np.linalg.norm(pull.gradient)))
        run._critic.update(run.config, i)
    assert np.median(pulls[-30:]) < 0.6 * np.median(pulls[:3])


def test_an_unconditional_teacher_may_have_a_critic():
    run = make(PLAIN, **ON)
    assert np.isfinite([run.step()["loss_critic"] for _ in range(3)]).all()


def test_the_plan_counts_the_critic():
    plain, run = make(**{**ON, "correction": "none"}), make(**{**ON, "correction_start": 0.5})
    without, plan = plain.plan(timed=False), run.plan(timed=False)
    assert plan.parts["critic weights"] == run._critic.model.core.memory()["weights"]
    assert plan.parts["moments of AdamW"] > without.parts["moments of AdamW"]
    assert any(name.startswith("critic x3 and backward") for name in plan.working)
    assert any(name.startswith("training x8 ") for name in plan.working)  # the steps before it
    assert run.state.step == 0 and run.state.critic_updates == 0


def test_its_guidance_follows_that_of_the_run_at_a_distance():
    def scale_of(**options):
        run = make(**ON, **options)
        return run._critic._guidance, run.config.correction_guidance_scale

    assert [scale_of(guidance_scale=w)[1] for w in (1.0, 1.5, 4.0)] == [1.0, 1.15, 1.9]
    guidance, scale = scale_of(guidance_scale=4.0, negative_class_label=1, guidance_rescale=0.5)
    assert (guidance.scale, scale) == (1.9, 1.9)
    assert (guidance.negative_label, guidance.rescale) == (1, 0.5)
    assert scale_of(guidance_scale=4.0, correction_guidance_scale=1.0)[1] == 1.0
    plain = Distiller(make_teacher(PLAIN), **{**SMALL, **ON})
    assert plain.config.correction_guidance_scale == 1.0


def test_in_a_range_of_scales_the_critic_knows_each(monkeypatch):
    run = make(**{**ON, "guidance_scale_max": 3.0, "guidance_scale": 2.0})
    seen = []
    real = run.teacher.signal

    def signal(x, t, labels, guidance, clip, w=None):
        seen.append(w)
        return real(x, t, labels, guidance, clip, w)

    monkeypatch.setattr(run.teacher, "signal", signal)
    before = run._critic.model.weights.copy()
    run.step()
    drawn = run._critic.rows
    w = drawn_scales(run.config, 0)
    np.testing.assert_allclose(seen[0], 1.0 + 0.3 * (w[:drawn] - 1.0))  # the critic's call
    assert not np.array_equal(run._critic.model.weights, before)
    name = "boot_guidance_embedding.linear_2.weight"
    assert run._critic.model.parameters[name].any()  # zero at the start: it has learnt of w
    assert run.config.correction_guidance_scale is None
    run._critic.begin()
    np.testing.assert_array_equal(run._critic.model.weights, before)
    fixed = make(**{**ON, "guidance_scale_max": 3.0, "correction_guidance_scale": 1.0})
    assert not fixed._critic._guidance.active
