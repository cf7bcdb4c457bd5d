"""The training loop: its numbers against NumPy, its randomness, and its manners around a run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from models import (
    CONFIG,
    PLAIN,
    assert_same,
    make,
    make_teacher,
    pin_like,
    save_teacher,
    weights_of,
)

from boot.config import DistillConfig
from boot.distiller import Distiller
from boot.errors import ConfigError, UnsupportedModel
from boot.network import Network
from boot.scheduler_config import SchedulerConfig
from boot.teacher import Teacher


def per_image(a):
    return np.asarray(a, np.float64).reshape(-1, 1, 1, 1)


def reference_step(distiller):
    """Section 1 of the design in float64 NumPy, from network calls alone: losses and gradient."""
    config, teacher = distiller.config, distiller.teacher
    student = distiller._training
    eps, labels, t, w = distiller._draw()
    table = np.concatenate([[0.0], np.log(teacher.schedule.alphas_cumprod)])

    def alpha_sigma(t):
        abar = np.exp(np.interp(np.asarray(t) * 1000, np.arange(1001), table))
        return per_image(np.sqrt(abar)), per_image(np.sqrt(1 - abar))

    alpha_end, sigma_end = alpha_sigma(np.full(len(eps), config.t_max))

    def y(t):
        index = 1000 * config.t_max - 1
        times = 1000 * t - 1
        output = student.model(eps, index, labels, target_timestep=times, guidance_scale=w)
        return alpha_end * eps - sigma_end * output

    def f(x, t):
        x = x.astype(np.float32)
        output = teacher.model(x, 1000 * t - 1, labels).astype(np.float64)
        if labels is not None and config.guidance_scale != 1:
            null = teacher.model(x, 1000 * t - 1, config.null_class_label).astype(np.float64)
            scale = config.guidance_scale if w is None else per_image(w)
            output = null + scale * (output - null)
        alpha, sigma = alpha_sigma(t)
        kind = teacher.scheduler.prediction_type
        image = (x - sigma * output) / alpha if kind == "epsilon" else alpha * x - sigma * output
        return np.clip(image, -1, 1)

    s = np.maximum(t - config.delta, config.t_min)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
    c = 1 - sigma_s * alpha_t / (alpha_s * sigma_t)
    y_t = y(t)
    f_t = f(alpha_t * y_t + sigma_t * eps, t)
    target = y_t + c * (f_t - y_t)
    if config.solver == "heun":
        target = y_t + c * ((f_t + f(alpha_s * target + sigma_s * eps, s)) / 2 - y_t)
    rows = max(1, round(config.train_batch_size * config.boundary_fraction))
    end = np.full(len(eps), config.t_max)
    y_s, y_end, f_end = y(s), y(end)[:rows], f(eps, end)[:rows]
    power = {"inverse_c2": 2, "inverse_c": 1, "uniform": 0}[config.loss_weight]
    omega = 1 / np.maximum(c, config.c_floor) ** power
    pixels = eps[0].size
    bootstrap = (omega.ravel() * ((y_s - target) ** 2).mean(axis=(1, 2, 3))).mean()
    boundary = config.boundary_weight * ((y_end - f_end) ** 2).mean()
    gradient = np.concatenate(
        [
            2 * omega * (y_s - target) / pixels / len(eps),
            2 * config.boundary_weight * (y_end - f_end) / pixels / rows,
        ]
    )
    return bootstrap, boundary, gradient


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 1.0, "loss_weight": "inverse_c"},
        {"guidance_scale": 3.0, "loss_weight": "uniform", "boundary_weight": 0.5},
        {"guidance_scale_min": 0.5, "guidance_scale_max": 6.0},
        {"config": PLAIN, "delta": 0.2, "c_floor": 0.5, "boundary_fraction": 1.0},
        {"prediction_type": "v_prediction", "t_max": 0.95, "t_min": 0.05},
    ],
)
def test_losses_and_gradient_are_those_of_the_design(options, solver):
    options = dict(options)
    kind = options.pop("prediction_type", "epsilon")
    teacher = make_teacher(options.pop("config", CONFIG), prediction_type=kind)
    distiller = make(teacher=teacher, solver=solver, **options)
    for _ in range(3):  # away from the start, where the target embedding is zero
        distiller.step()
    bootstrap, boundary, gradient = reference_step(distiller)
    found = distiller._loss_and_gradient(distiller._draw())
    assert found.bootstrap == pytest.approx(bootstrap, rel=2e-3)
    assert found.boundary == pytest.approx(boundary, rel=2e-3)
    error = np.linalg.norm(found.gradient - gradient) / np.linalg.norm(gradient)
    assert error < 2e-3


def test_without_a_boundary_term_there_are_no_extra_rows():
    for options in ({"boundary_weight": 0.0}, {"boundary_fraction": 0.0}):
        distiller = make(**options)
        losses = distiller._loss_and_gradient(distiller._draw())
        assert losses.boundary == 0
        assert len(losses.gradient) == 6
    assert len(make()._loss_and_gradient(make()._draw()).gradient) == 8
    assert len(make(train_batch_size=1)._loss_and_gradient(make()._draw()).gradient) == 7


def test_the_first_boundary_loss_of_a_v_teacher_is_zero():
    teacher = make_teacher(prediction_type="v_prediction", clip_sample=False)
    losses = (d := make(teacher=teacher, guidance_scale=1.0))._loss_and_gradient(d._draw())
    assert losses.boundary < 1e-10
    assert losses.bootstrap > 1e-3


def test_an_update_is_adamw_with_clipping_and_a_warmed_up_average():
    distiller = make(learning_rate=0.01, max_grad_norm=0.5, adam_weight_decay=0.1)
    model = distiller._training.model
    w = model.weights.astype(np.float64)
    m, v, ema = np.zeros_like(w), np.zeros_like(w), w.copy()
    for n in range(1, 4):
        logs = distiller.step()
        g = model.core.grads.astype(np.float64)
        norm = np.linalg.norm(g)
        assert logs["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert logs["learning_rate"] == pytest.approx(0.01 * n / 4)
        g *= min(1, 0.5 / norm)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        rate = logs["learning_rate"]
        update = m / (1 - 0.9**n) / (np.sqrt(v / (1 - 0.99**n)) + 1e-8)
        w = w - rate * 0.1 * w - rate * update
        keep = min(0.998, n / (9 + n))
        ema = keep * ema + (1 - keep) * w
        np.testing.assert_allclose(model.weights, w, atol=2e-5)
        np.testing.assert_allclose(distiller.student.model.weights, ema, atol=2e-5)
        w, ema = model.weights.astype(np.float64), distiller.student.model.weights.astype(float)


def test_step_returns_the_numbers_of_the_step():
    distiller = make()
    logs = [distiller.step() for _ in range(3)]
    assert [line["step"] for line in logs] == [1, 2, 3]
    for line in logs:
        assert set(line) == {
            *("step", "loss", "loss_bootstrap", "loss_boundary"),
            *("learning_rate", "grad_norm", "skipped", "rollbacks"),
        }
        assert line["loss"] == line["loss_bootstrap"] + line["loss_boundary"]
        assert all(np.isfinite(value) for value in line.values())


def test_training_brings_the_student_to_the_teacher():
    """On a random v teacher, which the student equals at t_max only: both losses' terms matter."""
    teacher = make_teacher(PLAIN, prediction_type="v_prediction")
    distiller = make(teacher=teacher, max_train_steps=120, train_batch_size=16, delta=0.2)
    options = {"num_paired": 64}
    before = distiller.evaluate(**options)["paired_rmse"]
    distiller.fit()
    assert distiller.evaluate(**options)["paired_rmse"] < before / 2


# ------------------------------------------------------------------------------------ randomness


def test_draws_follow_from_seed_and_step_alone():
    one, two = make(), make(train_batch_size=3)
    a, b = one._draw(), two._draw()
    np.testing.assert_array_equal(a.eps[:3], b.eps)
    np.testing.assert_array_equal(a.labels[:3], b.labels)
    np.testing.assert_array_equal(a.t[:3], b.t)
    one.step()
    assert not np.array_equal(one._draw().eps, a.eps)
    assert not np.array_equal(make(seed=1)._draw().eps, a.eps)


def test_times_fill_the_range_and_labels_are_the_trained_ones():
    guided, free = (
        make(train_batch_size=400, guidance_scale=w, t_max=0.6, t_min=0.1) for w in (1.5, 1.0)
    )
    t = guided._draw().t
    assert t.min() >= 0.101
    assert t.max() <= 0.6
    assert np.histogram(t, 5, (0.1, 0.6))[0].min() > 50
    assert set(guided._draw().labels) == {0, 1}
    assert set(free._draw().labels) == {0, 1, 2}
    assert set(make(train_batch_size=400, null_class_label=0)._draw().labels) == {1, 2}
    assert make(PLAIN)._draw().labels is None


def test_networks_with_a_table_of_times_get_whole_timesteps():
    config = dataclasses.replace(PLAIN, time_embedding_type="learned", num_train_timesteps=1000)
    distiller = make(config, delta=0.0404)
    index = distiller.teacher.schedule.index(distiller._draw().t)
    np.testing.assert_array_equal(index, np.rint(index))
    assert np.isfinite(distiller.step()["loss"])


def test_two_runs_with_the_same_kernels_are_the_same_bit_for_bit():
    one = make()
    for _ in range(4):
        one.step()
    two = make()
    pin_like(two, one)
    three = make()
    pin_like(three, one)
    for distiller in (two, three):
        for _ in range(4):
            distiller.step()
    assert_same(weights_of(two), weights_of(three))
    different = make(seed=1)
    different.step()
    assert not np.array_equal(weights_of(different)[0], weights_of(two)[0])


# ---------------------------------------------------------------------------------- the settings


def test_open_settings_are_filled_in_for_the_teacher():
    config = make(train_batch_size=2).config
    assert config.guidance_scale == 1.5
    assert config.null_class_label == 2
    assert config.t_max == 0.8
    assert config.learning_rate == 2e-3
    config = make(PLAIN).config
    assert config.guidance_scale == 1.0
    assert config.null_class_label is None
    assert make(teacher=make_teacher(prediction_type="v_prediction")).config.t_max == 0.98
    config = make(t_max=0.50049, t_min=0.00151).config
    assert (config.t_max, config.t_min) == (0.5, 0.002)


def test_the_clip_is_the_teachers_unless_the_config_changes_it():
    teacher = make_teacher(clip_sample_range=0.7)
    assert make(teacher=teacher).student.info.clip_sample_range == 0.7
    assert make(teacher=teacher, clip_sample_range=0.5)._clip.limit == 0.5
    off = make(teacher=teacher, clip_sample=False)
    assert off._clip.limit == 0
    assert off.student.info.clip_sample is False
    free = make_teacher(clip_sample=False)
    assert make(teacher=free)._clip.limit == 0
    assert make(teacher=free, clip_sample=True)._clip.limit == 1
    dynamic = make(teacher=make_teacher(clip_sample=False, thresholding=True))
    assert dynamic._clip.thresholding
    assert dynamic.student.info.clip_sample is True


def test_a_teacher_may_be_a_path_and_a_config_may_be_given(tmp_path):
    folder = save_teacher(tmp_path / "teacher")
    config = DistillConfig(train_batch_size=2, seed=5)
    distiller = Distiller(folder, config, boundary_weight=0.3)
    assert distiller.config.seed == 5
    assert distiller.config.boundary_weight == 0.3
    assert distiller.teacher.name == "teacher"
    assert np.isfinite(distiller.step()["loss"])


def test_teachers_that_cannot_be_distilled_are_named():
    fourier = dataclasses.replace(PLAIN, time_embedding_type="fourier")
    with pytest.raises(UnsupportedModel, match="time_embedding_type: fourier"):
        make(fourier)
    identity = dataclasses.replace(CONFIG, class_embed_type="identity", num_class_embeds=None)
    with pytest.raises(UnsupportedModel, match="class_embed_type"):
        make(identity)
    with pytest.raises(UnsupportedModel, match="sample_size"):
        make(dataclasses.replace(PLAIN, sample_size=None))
    with pytest.raises(ConfigError, match="alpha is 0"):
        make(teacher=make_teacher(rescale_betas_zero_snr=True), t_max=1.0)
    with pytest.raises(ConfigError, match="t_min must be < t_max on the teacher's grid"):
        make(t_max=0.0011, t_min=0.001)
    with pytest.raises(ConfigError, match="no class but the null label"):
        make(dataclasses.replace(CONFIG, num_class_embeds=1), guidance_scale=2.0)


# ------------------------------------------------------------------------------------ evaluation


def test_evaluate_compares_with_the_ode_at_equal_noise():
    distiller = make(PLAIN, delta=0.1)
    numbers = distiller.evaluate(num_paired=8)
    assert numbers["teacher_steps"] == 8
    assert numbers["solver"] == "heun"
    assert numbers["paired_rmse"] > 0
    assert set(numbers) == {"paired_rmse", "paired_images", "teacher_steps", "delta", "solver"}
    euler = distiller.evaluate(num_paired=8, solver="euler", delta=0.4)
    assert euler["teacher_steps"] == 2


def test_the_paired_error_is_the_rms_difference_of_two_known_images():
    """Networks of zero: the teacher says 0 everywhere, the student y = alpha eps at t_max."""
    network = Network(PLAIN, max_timestep=999.0)
    teacher = Teacher(network, SchedulerConfig(prediction_type="sample", clip_sample=True))
    distiller = make(teacher=teacher)
    alpha = float(teacher.schedule.alpha_sigma(distiller.config.t_max)[0])
    noise = teacher.inputs(32)[0]
    numbers = distiller.evaluate(num_paired=32)
    assert numbers["paired_rmse"] == pytest.approx(alpha * np.sqrt((noise**2).mean()), rel=1e-4)


def test_evaluate_measures_against_real_images():
    distiller = make()
    real = np.clip(np.random.default_rng(0).normal(0, 0.5, (60, 1, 8, 8)), -1, 1)
    numbers = distiller.evaluate(num_images=50, num_paired=4, reference=real)
    assert {"frechet_distance", "precision", "recall", "num_images"} <= set(numbers)
    own = distiller.student.sample(60)
    same = distiller.evaluate(num_images=60, num_paired=4, reference=own)
    assert same["frechet_distance"] < 1e-3 < numbers["frechet_distance"]


def test_a_teacher_of_other_images_is_refused():
    distiller = make()
    other = make_teacher(dataclasses.replace(CONFIG, num_class_embeds=5))
    from boot.evaluation import evaluate_student

    with pytest.raises(ValueError, match="num_class_embeds must be 3, got 5"):
        evaluate_student(distiller.student, other)
