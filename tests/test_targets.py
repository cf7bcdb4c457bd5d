"""Targets: sub-steps, midpoint, course of delta and times, weights, losses, and the rollout."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from models import CONFIG, make

from boot import signal_ode
from boot.choices import LOSS_WEIGHTS, SOLVERS
from boot.config import DistillConfig
from boot.correction import Aims
from boot.errors import ConfigError
from boot.schedule import Schedule
from boot.scheduler_config import SchedulerConfig
from boot.targets import delta, distance, lowest_time, weights

SCHEDULE = Schedule.from_config(SchedulerConfig(beta_schedule="squaredcos_cap_v2"))
FULL = np.ones(4)


def gaussian_signal(x, t):
    """The exact denoiser of images drawn from N(0.3, 0.25): E[x_0 | x_t]."""
    alpha, sigma = (a.reshape(-1, 1, 1, 1) for a in SCHEDULE.alpha_sigma(t))
    gain = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
    return (0.3 + gain * (x - alpha * 0.3)).astype(np.float32)


def solved(solver, count, t=0.9, s=0.3):
    """The error of y_s after `count` sub-steps, against 400 of Heun's."""
    eps = np.random.RandomState(0).standard_normal((4, 1, 4, 4)).astype(np.float32)
    y = np.full_like(eps, 0.1)
    t, s = t * FULL, s * FULL

    def end(solver, count):
        f = gaussian_signal(signal_ode.diffuse(SCHEDULE, y, eps, t), t)
        args = (SCHEDULE, gaussian_signal, eps, y, f, t, s, solver, count)
        return signal_ode.substeps(*args)

    return float(np.abs(end(solver, count) - end("heun", 400)).max())


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_error_of_substeps_falls_with_the_order_of_the_solver(solver, order):
    ratio = solved(solver, 8) / solved(solver, 16)
    assert 2**order * 0.8 < ratio < 2**order * 1.35
    assert solved(solver, 8) < solved(solver, 1)


def test_second_order_solvers_beat_euler_at_equal_calls():
    assert solved("heun", 4) < 0.5 * solved("euler", 8)
    assert solved("midpoint", 4) < 0.5 * solved("euler", 8)


def test_substeps_stay_on_the_grid():
    seen = []

    def signal(x, t):
        seen.append(t)
        return np.zeros_like(x)

    zero = np.zeros((2, 1, 2, 2), np.float32)
    t, s = np.array([0.5, 0.007]), np.array([0.45, 0.002])
    for solver in SOLVERS:
        args = (SCHEDULE, signal, zero, zero, zero, t, s, solver, 3, 1000)
        signal_ode.substeps(*args)
    times = np.stack(seen)
    np.testing.assert_allclose(times * 1000, np.rint(times * 1000), atol=1e-9)
    assert (times <= t).all() and (times >= s).all()


def test_delta_goes_from_start_to_end():
    config = DistillConfig(delta_schedule="linear", delta_start=0.2, delta=0.1, max_train_steps=11)
    found = [delta(config, step) for step in range(11)]
    np.testing.assert_allclose(found, np.linspace(0.2, 0.1, 11))
    assert delta(config, 10**6) == pytest.approx(0.1)
    assert delta(DistillConfig(delta=0.1), 0) == 0.1


def test_progressive_times_grow_from_noise_to_image():
    config = DistillConfig(
        t_distribution="progressive", progressive_fraction=0.5, max_train_steps=101
    )
    found = [lowest_time(config, step, 0.1, 0.9) for step in (0, 25, 50, 100)]
    np.testing.assert_allclose(found, [0.9, 0.5, 0.1, 0.1])
    assert lowest_time(DistillConfig(), 0, 0.1, 0.9) == 0.1


def test_weights_are_their_definitions():
    t, s = np.array([0.02, 0.5, 0.98]), np.array([0.01, 0.45, 0.94])
    alpha, sigma = SCHEDULE.alpha_sigma(s)
    c, snr = SCHEDULE.step_coefficient(t, s), (alpha / sigma) ** 2
    expected = {
        "inverse_c2": np.maximum(c, 0.02) ** -2,
        "inverse_c": 1 / np.maximum(c, 0.02),
        "uniform": np.ones(3),
        "truncated_snr": np.maximum(snr, 1),
        "snr_plus_one": snr + 1,
        "min_snr_gamma": np.minimum(snr, 5),
    }
    assert set(expected) == set(LOSS_WEIGHTS)
    for name, value in expected.items():
        np.testing.assert_allclose(
            weights(DistillConfig(loss_weight=name), SCHEDULE, t, s), value, rtol=1e-9
        )
    low = weights(DistillConfig(loss_weight="min_snr_gamma", snr_gamma=0.5), SCHEDULE, t, s)
    assert low.max() == 0.5


def test_the_loss_setting_chooses_the_distance():
    y, target = np.full((1, 1, 2, 2), 0.5, np.float32), np.zeros((1, 1, 2, 2), np.float32)
    weight = np.array([2.0])
    assert distance(DistillConfig(), y, target, weight)[0] == pytest.approx(0.5)
    config = DistillConfig(loss="pseudo_huber", huber_c=0.5)
    assert distance(config, y, target, weight)[0] == pytest.approx(2 * (math.sqrt(0.5) - 0.5))


# --------------------------------------------------------------------------------- the rollout


def test_a_rollout_follows_the_first_rows_to_the_end():
    calls = []

    def go(rows, y, t, s):
        calls.append((rows.tolist(), t.tolist(), s.tolist()))
        return y + 1

    t, s = np.array([0.9, 0.3, 0.8]), np.array([0.7, 0.1, 0.6])
    target = np.zeros((3, 1, 1, 1), np.float32)
    aims = Aims(np.arange(3), t, s, target).rollout(2, 3, 0.25, 0.1, go)
    # the first row takes 0.7 -> 0.45 -> 0.2 -> 0.1; the second is at t_min and stays
    assert [c[0] for c in calls] == [[0, 1]] * 3
    np.testing.assert_allclose([c[1] for c in calls], [[0.7, 0.1], [0.45, 0.1], [0.2, 0.1]])
    np.testing.assert_allclose([c[2] for c in calls], [[0.45, 0.1], [0.2, 0.1], [0.1, 0.1]])
    np.testing.assert_allclose(aims.s, [0.7, 0.1, 0.6, 0.45, 0.1, 0.2, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(aims.t, [0.9, 0.3, 0.8, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1])
    assert aims.rows.tolist() == [0, 1, 2, 0, 1, 0, 1, 0, 1]
    assert aims.target.ravel().tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_rollout_targets_are_the_teachers_path_from_the_students_signal():
    options = {"boundary_weight": 0.0, "train_batch_size": 8, "delta": 0.1}
    plain = make(**options)
    rolled = make(**options, correction="rollout", correction_fraction=0.25, correction_steps=3)
    seen = {}

    def spy(eps, t, *rest):
        seen["eps"], seen["t"] = eps, t
        return type(rolled._training).signal_train(rolled._training, eps, t, *rest)

    rolled._training.signal_train = spy
    draw = rolled._draw()
    losses = rolled._loss_and_gradient(draw)
    assert len(losses.gradient) == len(seen["t"]) == 8 + 2 * 3
    # the plain part of the batch is what it was, whatever rides along
    expected = plain._loss_and_gradient(draw).gradient
    np.testing.assert_allclose(losses.gradient[:8], expected, rtol=1e-4, atol=1e-6)
    t, t_min, step = draw.t[:2], rolled._t_min, rolled.config.delta
    for k in range(4):  # the plain step, then three more, each delta further
        rows = slice(0, 2) if k == 0 else slice(6 + 2 * k, 8 + 2 * k)
        np.testing.assert_array_equal(seen["eps"][rows], draw.eps[:2])
        np.testing.assert_allclose(seen["t"][rows], np.maximum(t - (k + 1) * step, t_min))
        arrived = t - k * step <= t_min
        assert (np.abs(losses.gradient[rows]).max(axis=(1, 2, 3)) > 0).tolist() == list(~arrived)
    assert (t - 3 * step <= t_min).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "midpoint"},
        {"teacher_substeps": 3, "solver": "euler"},
        {"delta_schedule": "linear"},
        {"t_distribution": "progressive"},
        {"loss": "pseudo_huber"},
        {"loss_weight": "min_snr_gamma"},
        {"correction": "rollout", "correction_weight": 0.5},
        {"correction": "distribution", "correction_start": 0.0, "max_train_steps": 3},
    ],
    ids=lambda settings: "-".join(map(str, next(iter(settings.items())))),
)
@pytest.mark.parametrize("embedding", ["positional", "learned"])
def test_every_setting_trains_and_changes_the_run(settings, embedding):
    def weights_after(**more):
        kind = {"time_embedding_type": embedding, "num_train_timesteps": 1000}
        run = make(dataclasses.replace(CONFIG, **kind), **more)
        for _ in range(3):
            assert math.isfinite(run.step()["loss"])
        assert run.state.skipped == 0
        return run._training.model.weights.copy()

    assert not np.array_equal(weights_after(), weights_after(**settings))


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("solver", "rk4", "'heun', 'midpoint', 'euler'; got 'rk4'"),
        ("teacher_substeps", 0, "teacher_substeps must be an integer >= 1 and <= 64, got 0"),
        ("delta_schedule", "cosine", "'constant', 'linear'; got 'cosine'"),
        ("delta_start", 0.9, "delta_start must be 0.16, its default, without delta_schedule lin"),
        ("delta_start", 0, "delta_start must be finite and > 0 and <= 1, got 0"),
        ("t_distribution", "normal", "'uniform', 'progressive'; got 'normal'"),
        ("progressive_fraction", 0, "progressive_fraction must be finite and > 0 and <= 1"),
        ("loss", "l1", "'l2', 'pseudo_huber'; got 'l1'"),
        ("huber_c", 0, "huber_c must be finite and > 0 and <= 100, got 0"),
        ("loss_weight", "snr", "'min_snr_gamma'; got 'snr'"),
        ("snr_gamma", -1, "snr_gamma must be finite and > 0, got -1"),
        ("correction", "roll", "'rollout', 'distribution'; got 'roll'"),
        ("correction_fraction", 1.5, "correction_fraction must be finite and > 0 and <= 1"),
        ("correction_steps", 0, "correction_steps must be an integer >= 1"),
        ("correction_start", 1, "correction_start must be finite and >= 0 and < 1, got 1"),
        ("correction_guidance_scale", -1, "correction_guidance_scale must be finite and >= 0"),
        ("correction_learning_rate", 0, "correction_learning_rate must be finite and > 0"),
        ("correction_weight", -1, "correction_weight must be finite and >= 0"),
    ],
)
def test_bad_settings_are_refused(key, value, text):
    with pytest.raises(ConfigError, match=text):
        DistillConfig(**{key: value})
