"""Schedule and Signal-ODE steps against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import noise

from boot import _core
from boot.schedule import Schedule, TableSchedule
from boot.scheduler_config import SchedulerConfig
from boot.signal_ode import diffuse, euler_step, heun_step, step, training_times, trajectory

LINEAR = Schedule.from_config(SchedulerConfig())
COSINE = Schedule.from_config(SchedulerConfig(beta_schedule="squaredcos_cap_v2"))
ZERO_SNR = Schedule.from_config(SchedulerConfig(rescale_betas_zero_snr=True))
LATENT = Schedule.from_config(
    SchedulerConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
)
ALL = [LINEAR, COSINE, ZERO_SNR, LATENT]


def test_the_tables_are_those_of_the_diffusers_formulas():
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(LINEAR.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-13)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(LATENT.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-13)
    i = np.arange(1001) / 1000
    bar = np.cos((i + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    np.testing.assert_allclose(COSINE.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-10)


def test_known_terminal_values():
    assert LINEAR.alpha_sigma(1.0)[0] == pytest.approx(0.0064, abs=5e-5)
    assert LATENT.alpha_sigma(1.0)[0] == pytest.approx(0.0683, abs=5e-5)
    assert LATENT.lambda_(1.0) == pytest.approx(2.68, abs=5e-3)
    assert ZERO_SNR.alpha_sigma(1.0) == (0.0, 1.0)


@pytest.mark.parametrize("schedule", ALL)
def test_index_and_time_are_inverse_and_exact_on_the_grid(schedule):
    i = np.arange(1000)
    assert (schedule.index(schedule.time(i)) == i).all()
    assert schedule.index(0.5004) == pytest.approx(499.4)
    alpha, sigma = schedule.alpha_sigma(schedule.time(i))
    np.testing.assert_allclose(alpha**2, schedule.alphas_cumprod, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)


def log_abar(schedule, t):
    """log abar by NumPy's interpolation; not for a last interval that ends at zero."""
    table = np.concatenate([[1.0], schedule.alphas_cumprod])
    with np.errstate(divide="ignore"):
        return np.interp(t, np.arange(len(table)) / (len(table) - 1), np.log(table))


def times_of(schedule):
    """Times all over [0, 1], on the grid, and beside it by one rounding."""
    grid = np.arange(schedule.num_train_timesteps + 1) / schedule.num_train_timesteps
    beside = np.concatenate([np.nextafter(grid, 0), np.nextafter(grid, 1)])
    t = np.concatenate([grid, beside, np.random.default_rng(0).random(500), [1e-12]])
    return t[(t <= 0.999) | (t == 1)]


@pytest.mark.parametrize("schedule", ALL, ids=["linear", "cosine", "zero_snr", "latent"])
def test_between_indices_log_alphas_cumprod_is_linear(schedule):
    t = times_of(schedule)
    wanted = log_abar(schedule, t)
    alpha, sigma = schedule.alpha_sigma(t)
    np.testing.assert_allclose(alpha, np.exp(0.5 * wanted), rtol=1e-12)
    np.testing.assert_allclose(sigma, np.sqrt(-np.expm1(wanted)), rtol=1e-11)
    with np.errstate(divide="ignore"):
        ratio = 0.5 * np.log(-np.expm1(wanted)) - 0.5 * wanted
    np.testing.assert_allclose(schedule.lambda_(t), ratio, rtol=1e-12, atol=1e-12)
    s, t = t * np.random.default_rng(1).random(len(t)), t
    s, t = s[t > 0], t[t > 0]
    with np.errstate(divide="ignore"):
        step = Schedule.step_coefficient(schedule, t, s)  # in NumPy, by lambda
    np.testing.assert_allclose(schedule.step_coefficient(t, s), step, rtol=1e-12)
    # At t = 0 the process is the image itself.
    assert schedule.alpha_sigma(0.0) == (1.0, 0.0)
    assert schedule.lambda_(0.0) == -np.inf


def test_times_may_have_any_shape():
    t = np.linspace(0.1, 1, 6)
    alpha, sigma = LINEAR.alpha_sigma(t)
    for shape in ((2, 3), (6, 1, 1), (1, 1, 2, 3, 1)):
        found = LINEAR.alpha_sigma(t.reshape(shape))
        np.testing.assert_array_equal(found[0], alpha.reshape(shape))
        np.testing.assert_array_equal(found[1], sigma.reshape(shape))
    assert isinstance(LINEAR.lambda_(0.5), float)
    assert LINEAR.alpha_sigma([1, 0])[0].tolist() == [alpha[-1], 1]  # whole numbers, too
    for kind in (object, np.longdouble, np.float32, ">f8"):
        np.testing.assert_allclose(LINEAR.alpha_sigma(t.astype(kind))[0], alpha, rtol=1e-6)
    steps = LINEAR.step_coefficient(t.reshape(2, 3), 0.1)
    assert steps.shape == (2, 3)
    assert steps[1, 2] == LINEAR.step_coefficient(1.0, 0.1)
    assert LINEAR.step_coefficient(t[1:], t[:-1]).shape == (5,)
    assert LINEAR.alpha_sigma(np.array([]))[0].shape == (0,)


def test_the_core_refuses_what_is_no_table_and_no_time():
    table = np.linspace(0, -9, 100)
    for bad in (table[:1], table[None], [[1, 2], [3, 4]]):
        with pytest.raises(ValueError, match="log_abar has"):
            _core.table_lambda(bad, 0.5)
    with pytest.raises(ValueError, match="different shapes"):
        _core.table_step_coefficient(table, [0.5, 0.6], [0.1])
    for bad in ("x", 1j, [[1], [1, 2]]):
        with pytest.raises((TypeError, ValueError)):
            _core.table_alpha_sigma(table, bad)
    with pytest.raises(TypeError):
        _core.table_alpha_sigma(3, 0.5)
    assert np.isnan(_core.table_lambda(table, np.nan))


def test_zero_terminal_snr_is_finite_inside_its_last_interval():
    t = np.array([0.999, 0.9995, 1.0])
    alpha, sigma = ZERO_SNR.alpha_sigma(t)
    assert alpha[0] > alpha[1] > alpha[2] == 0
    assert alpha[1] == pytest.approx(alpha[0] / 2, rel=1e-6)
    assert np.isfinite(sigma).all()
    assert ZERO_SNR.step_coefficient(1.0, 0.9) == 1


def test_sigma_keeps_its_digits_near_the_image():
    # 1 - abar would lose half of them here.
    sigma = LINEAR.alpha_sigma(1e-9)[1]
    assert sigma == pytest.approx(np.sqrt(1e-6 * 1e-4), rel=1e-4)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ALL), st.floats(0.0001, 1.0), st.floats(0.0, 0.9999))
def test_step_coefficient_is_the_ddim_step_and_lies_in_0_1(schedule, t, share):
    s = t * share
    c = schedule.step_coefficient(t, s)
    assert 0 <= c <= 1
    alpha_t, sigma_t = schedule.alpha_sigma(t)
    alpha_s, sigma_s = schedule.alpha_sigma(s)
    assert c == pytest.approx(1 - sigma_s * alpha_t / (alpha_s * sigma_t), abs=1e-9)


def test_step_coefficient_limits():
    assert LINEAR.step_coefficient(0.5, 0.0) == 1
    assert LINEAR.step_coefficient(0.5, 0.5) == 0
    c = LINEAR.step_coefficient(np.array([0.8, 0.8]), np.array([0.7, 0.6]))
    assert 0 < c[0] < c[1] < 1


@pytest.mark.parametrize("t, s", [(0.5, 0.6), (0.0, 0.0), (1.1, 0.5), (0.5, -0.1)])
def test_step_coefficient_refuses_steps_that_do_not_exist(t, s):
    with pytest.raises(ValueError, match="0 <= s <= t <= 1"):
        LINEAR.step_coefficient(t, s)


def test_snap_and_times_stay_on_the_grid():
    assert LINEAR.snap(0.80049) == 0.8
    assert LINEAR.snap(0.0) == 0.001
    times = LINEAR.times(0.8, 0.0, 7)
    assert times[0] == 0.8
    assert times[-1] == 0
    np.testing.assert_array_equal(times * 1000, np.rint(times * 1000))
    assert (np.diff(times) < 0).all()
    assert len(LINEAR.times(0.01, 0.0, 10)) == 11
    with pytest.raises(ValueError, match=r"steps must be 1 ... 10 between t = 0.01"):
        LINEAR.times(0.01, 0.0, 11)


def test_default_t_max_stays_where_an_epsilon_teacher_can_be_trusted():
    assert LINEAR.default_t_max("epsilon") == 0.8
    assert LINEAR.default_t_max("v_prediction") == 0.98
    assert LATENT.default_t_max("epsilon") == 0.98
    t_max = COSINE.default_t_max("epsilon")
    assert COSINE.alpha_sigma(t_max)[0] >= 0.039 > COSINE.alpha_sigma(t_max + 0.001)[0]


@pytest.mark.parametrize(
    "table, message",
    [
        ([[0.9, 0.5]], "shape"),
        ([0.9], "shape"),
        ([0.5, 0.9], "fall strictly"),
        ([1.0, 0.5], "fall strictly"),
        ([0.9, -0.1], "fall strictly"),
        ([0.9, np.nan], "fall strictly"),
    ],
)
def test_tables_that_are_no_noise_process_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        TableSchedule(table)


# ----------------------------------------------------------------------------------- Signal-ODE


def test_euler_step_is_the_ddim_step_written_in_the_signal():
    eps, y, f = noise(seed=1), noise(seed=2), noise(seed=3)
    t, s = np.array([0.9, 0.7, 0.5, 0.3]), np.array([0.8, 0.3, 0.49, 0.001])
    x_t = diffuse(LINEAR, y, eps, t)
    alpha_t, sigma_t = (a.reshape(-1, 1, 1, 1) for a in LINEAR.alpha_sigma(t))
    alpha_s, sigma_s = (a.reshape(-1, 1, 1, 1) for a in LINEAR.alpha_sigma(s))
    np.testing.assert_allclose(x_t, alpha_t * y + sigma_t * eps, atol=1e-6)
    ddim = alpha_s * f + sigma_s * (x_t - alpha_t * f) / sigma_t
    expected = (ddim - sigma_s * eps) / alpha_s
    np.testing.assert_allclose(euler_step(LINEAR, y, f, t, s), expected, atol=2e-5)


def test_heun_step_averages_the_two_signals():
    y, f, f_s = noise(seed=2), noise(seed=3), noise(seed=4)
    t, s = np.full(4, 0.6), np.full(4, 0.5)
    expected = euler_step(LINEAR, y, (f + f_s) / 2, t, s)
    np.testing.assert_allclose(heun_step(LINEAR, y, f, f_s, t, s), expected, atol=1e-6)


def test_heun_asks_for_the_signal_at_the_point_that_euler_predicts():
    eps, y, f = noise(seed=1), noise(seed=2), noise(seed=3)
    t, s = np.full(4, 0.6), np.full(4, 0.5)
    asked = []

    def signal(x, at):
        asked.append((x, at))
        return f

    step(LINEAR, signal, eps, y, f, t, s, "heun")
    (x, at), expected = asked[0], diffuse(LINEAR, euler_step(LINEAR, y, f, t, s), eps, s)
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(at, s)
    step(LINEAR, signal, eps, y, f, t, s, "euler")
    step(LINEAR, signal, eps, y, f, t, np.zeros(4), "heun")
    assert len(asked) == 1


def gaussian_signal(schedule, mean=0.3, std=0.5):
    """The exact denoiser of images whose pixels are N(mean, std^2)."""

    def signal(x, t):
        alpha, sigma = (a.reshape(-1, 1, 1, 1) for a in schedule.alpha_sigma(t))
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return (mean + gain * (x - alpha * mean)).astype(np.float32)

    return signal


def test_trajectories_start_at_the_boundary_condition_and_visit_every_time():
    eps, signal = noise(), gaussian_signal(LINEAR)
    times = training_times(LINEAR, 0.8, 0.001, 0.25)
    np.testing.assert_allclose(times, [0.8, 0.55, 0.3, 0.05, 0.001])
    path = trajectory(LINEAR, signal, eps, times)
    assert len(path) == 5
    np.testing.assert_array_equal(path[0], signal(eps, np.full(4, 0.8)))


def test_training_times_end_at_t_min_without_a_step_of_zero():
    np.testing.assert_allclose(training_times(LINEAR, 0.5, 0.1, 0.2), [0.5, 0.3, 0.1])
    np.testing.assert_allclose(training_times(LINEAR, 0.5, 0.4, 0.2), [0.5, 0.4])
