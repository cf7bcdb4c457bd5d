"""Schedules over continuous time: their formulas, their limits, and agreement with the tables."""

from __future__ import annotations

import numpy as np
import pytest
from models import noise
from test_schedule import COSINE, LINEAR, gaussian_signal

from boot.continuous import (
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LinearSchedule,
    TrigFlowSchedule,
)
from boot.samplers import SAMPLERS
from boot.schedule import Schedule, betas_of
from boot.signal_ode import diffuse, trajectory
from boot.teacher import Teacher

ALL = [CosineSchedule(), LinearSchedule(), EDMSchedule(), FlowSchedule(), TrigFlowSchedule()]
GRID = np.arange(1, 1001) / 1000
each = pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)


def test_the_formulas():
    t = np.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(FlowSchedule().alpha_sigma(t), [1 - t, t])
    angle = np.pi / 2 * t
    trig = TrigFlowSchedule().alpha_sigma(t)
    np.testing.assert_allclose(trig, [np.cos(angle), np.sin(angle)], atol=1e-15)
    alpha, sigma = EDMSchedule(0.01, 50.0, 5.0).alpha_sigma(t)
    np.testing.assert_array_equal(alpha, 1)
    assert sigma[0] == 0 and sigma[2] == pytest.approx(50)
    assert sigma[1] == pytest.approx((0.01**0.2 + 0.25 * (50**0.2 - 0.01**0.2)) ** 5)
    abar = np.exp(-(0.1 * t + 19.9 * t**2 / 2))
    np.testing.assert_allclose(LinearSchedule().alpha_sigma(t)[0] ** 2, abar, rtol=1e-12)
    cosine = CosineSchedule().alpha_sigma(0.25)[0]
    expected = np.cos(0.258 / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
    assert cosine == pytest.approx(expected, rel=1e-14)


@each
def test_every_schedule_goes_from_the_image_to_noise(schedule):
    alpha, sigma = schedule.alpha_sigma(np.concatenate([[0.0], GRID]))
    assert (alpha[0], sigma[0]) == (1, 0)
    ratio = np.log(alpha[1:-1] / sigma[1:-1])
    assert (np.diff(ratio) < 0).all()
    if not isinstance(schedule, (EDMSchedule, FlowSchedule)):
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)
    assert schedule.step_coefficient(0.5, 0.0) == 1
    c = schedule.step_coefficient(np.array([0.8, 1.0]), np.array([0.7, 0.3]))
    assert 0 < c[0] < c[1] <= 1


@each
def test_sigma_keeps_its_digits_near_the_image(schedule):
    if isinstance(schedule, EDMSchedule):
        assert schedule.alpha_sigma(1e-12)[1] == pytest.approx(0.002, rel=1e-9)
        return
    # sigma^2 is smooth at 0: linear or quadratic in t.
    small, half = (schedule.alpha_sigma(t)[1] for t in (1e-9, 0.5e-9))
    order = np.log2(small / half)
    assert min(abs(order - 0.5), abs(order - 1.0)) < 1e-6


@each
def test_the_variance_preserving_form_is_a_table_with_the_same_snr(schedule):
    config = schedule.to_config(prediction_type="v_prediction")
    table = Schedule.from_config(config)
    t = np.array([0.001, 0.02, 0.3, 0.7, 0.98])
    np.testing.assert_allclose(table.lambda_(t), schedule.lambda_(t), rtol=1e-9, atol=1e-9)
    assert table.alphas_cumprod[-1] >= 0
    found = table.step_coefficient(0.8, 0.4)
    assert found == pytest.approx(schedule.step_coefficient(0.8, 0.4), rel=1e-9)
    np.testing.assert_allclose(betas_of(table.alphas_cumprod)[:-1], config.trained_betas[:-1])


def test_the_cosine_table_is_the_continuous_one_but_for_its_cap():
    t = GRID[:-1]
    found, expected = CosineSchedule().alpha_sigma(t), COSINE.alpha_sigma(t)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    between = np.array([0.1003, 0.5007, 0.9001])  # where the table interpolates
    close = CosineSchedule().lambda_(between), COSINE.lambda_(between)
    np.testing.assert_allclose(*close, rtol=1e-3)


def test_the_linear_table_is_near_the_continuous_one():
    def log_abar(schedule):
        return 2 * np.log(schedule.alpha_sigma(GRID)[0])

    difference = np.abs(log_abar(LinearSchedule()) - log_abar(LINEAR))
    assert 0.05 < difference.max() < 0.07  # why the table is to be used for its models


@pytest.mark.parametrize(
    "table, continuous, limit", [(COSINE, CosineSchedule(), 2e-4), (LINEAR, LinearSchedule(), 0.02)]
)
def test_trajectories_of_table_and_formula_agree(table, continuous, limit):
    x, times = noise(8), COSINE.times(0.95, 0.0, 50)
    found, expected = (
        trajectory(schedule, gaussian_signal(schedule, 0.3, 0.5), x, times)[-1]
        for schedule in (continuous, table)
    )
    assert np.abs(found - expected).max() < limit
    assert np.abs(found - x).max() > 0.5


@each
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_follow_the_exact_solution_on_every_schedule(schedule, name):
    # All processes with equal SNR have the same trajectories up to the scale of x, and the ODE of
    # a Gaussian N(0.3, 0.5^2) keeps (x - alpha mean) / std_t.
    x = noise(4)
    start = schedule.start(x, 0.98)
    errors = []
    for steps in (40, 80):
        times = schedule.times(0.98, 0.05, steps)
        found = SAMPLERS[name](schedule, gaussian_signal(schedule, 0.3, 0.5), start, times)
        alpha, sigma = schedule.alpha_sigma(times[[0, -1]])
        std = np.sqrt((0.5 * alpha) ** 2 + sigma**2)
        exact = alpha[1] * 0.3 + std[1] / std[0] * (start - alpha[0] * 0.3)
        errors.append(np.abs(found - exact).max())
    order = np.log2(errors[0] / errors[1])
    assert (0.85 if name == "ddim" else 1.7) < order < 2.4
    assert errors[1] < (0.05 if name == "ddim" else 0.01)


@each
def test_samplers_in_x_are_the_signal_ode(schedule):
    x, t = noise(4), 0.9
    signal, times = gaussian_signal(schedule), schedule.times(t, 0.1, 5)
    y = trajectory(schedule, signal, x, times)
    start = diffuse(schedule, y[0], x, np.full(4, t))
    found = SAMPLERS["ddim"](schedule, signal, start, times)
    expected = diffuse(schedule, y[-1], x, np.full(4, 0.1))
    scale = np.abs(start).max()
    np.testing.assert_allclose(found, expected, atol=3e-6 * max(1, scale))


@each
def test_times_start_and_default_t_max(schedule):
    times = schedule.times(0.98, 0.0, 3)
    assert times[0] == 0.98 and times[-1] == 0 and len(times) == 4
    with pytest.raises(ValueError, match="steps must be >= 1"):
        schedule.times(0.98, 0.0, 0)
    assert schedule.default_t_max("flow") == 0.98
    t_max = schedule.default_t_max("epsilon")
    alpha, sigma = schedule.alpha_sigma(np.array([t_max, t_max + 0.001]))
    strength = alpha / np.hypot(alpha, sigma)
    assert strength[0] >= 0.039 and (t_max == 0.98 or strength[1] < 0.039)
    assert schedule.start(noise(), t_max).std() == pytest.approx(
        np.hypot(alpha[0], sigma[0]) * noise().std(), rel=1e-5
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EDMSchedule(sigma_min=0), "sigma_min must be finite and > 0"),
        (lambda: EDMSchedule(sigma_max=0.001), "sigma_max must be finite and > 0.002"),
        (lambda: EDMSchedule(rho=-1), "rho must be finite and > 0"),
        (lambda: LinearSchedule(beta_max=0.01), "beta_max must be finite and >= 0.1"),
        (lambda: LinearSchedule(beta_min=np.nan), "beta_min"),
        (lambda: CosineSchedule(-1), "offset must be"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "formula, problem, message",
    [
        (lambda t: (t, 1 - t), ValueError, r"Mine: sigma / alpha must grow.*got 999 at t = 0.001"),
        (
            lambda t: (1 - t, np.where(t > 0.5, np.nan, t)),
            ValueError,
            r"Mine.*\(0.501\) must be fi",
        ),
        (lambda t: (1 - t, 0 * t), ValueError, r"got 0 at t = 0 and 0 at t = 0.001"),
        (lambda t: (1.5 - 2 * t, t), ValueError, r"not negative, got -0.002 and 0.751"),
        (lambda t: (1.0, t), TypeError, r"Mine.alpha_sigma must return two arrays of the shape"),
        (lambda t: 1 - t, TypeError, r"must return two arrays of the shape of t, \(1000,\)"),
    ],
)
def test_a_schedule_of_ones_own_must_go_from_image_to_noise(formula, problem, message):
    class Mine(Schedule):
        def alpha_sigma(self, t):
            return formula(np.asarray(t, np.float64))

    known = {"prediction_type": "sample", "sample_shape": (1, 4, 4)}
    with pytest.raises(problem, match=message):
        Teacher.from_callable(lambda x, t, c: x, schedule=Mine(), **known)
    with pytest.raises(NotImplementedError, match="Schedule must have a method alpha_sigma"):
        Teacher.from_callable(lambda x, t, c: x, schedule=Schedule(), **known)


def test_what_models_are_fed():
    t = np.array([0.001, 0.5])
    for schedule in (CosineSchedule(), LinearSchedule(), FlowSchedule()):
        np.testing.assert_array_equal(schedule.timestep(t), t)
    np.testing.assert_allclose(TrigFlowSchedule().timestep(t), np.pi / 2 * t)
    np.testing.assert_array_equal(EDMSchedule().timestep(t), EDMSchedule().alpha_sigma(t)[1])
    np.testing.assert_array_equal(COSINE.timestep(t), [0, 499])
    for schedule in ALL:
        np.testing.assert_array_equal(schedule.index(t), [0, 499])
