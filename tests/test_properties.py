"""Properties that hold for every schedule, conversion, shape and file, tried on drawn ones."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as hnp  # noqa: E402
from models import PLAIN, make_teacher  # noqa: E402

from boot import _core, distances, noise  # noqa: E402
from boot.config import LR_SCHEDULERS, DistillConfig  # noqa: E402
from boot.errors import FormatError, check_array, check_int  # noqa: E402
from boot.network import Network  # noqa: E402
from boot.safetensors_io import load_tensors, read_header, save_tensors  # noqa: E402
from boot.schedule import Schedule  # noqa: E402
from boot.scheduler_config import BETA_SCHEDULES, PREDICTION_TYPES, SchedulerConfig  # noqa: E402

# The same examples on every machine, and no clock that a busy machine could trip.
settings.register_profile(
    "boot",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("boot")

# ---------------------------------------------------------------------------------- schedules

schedules = st.builds(
    lambda name, steps, low, high, zero: SchedulerConfig(
        num_train_timesteps=steps,
        beta_start=low,
        beta_end=high,
        beta_schedule=name,
        rescale_betas_zero_snr=zero,
    ),
    st.sampled_from(BETA_SCHEDULES),
    st.integers(2, 1200),
    st.floats(1e-5, 1e-3),
    st.floats(2e-3, 0.05),
    st.booleans(),
)
unit = st.floats(0.0, 1.0)


@given(schedules, st.lists(unit, min_size=2, max_size=8))
def test_alpha_falls_sigma_rises_and_their_squares_add_up_to_one(config, times):
    schedule = Schedule.from_config(config)
    alpha, sigma = schedule.alpha_sigma(np.sort(times))
    assert np.all(np.diff(alpha) <= 0) and np.all(np.diff(sigma) >= 0)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-12)
    assert np.all((alpha >= 0) & (alpha <= 1))


@given(schedules, st.tuples(unit, unit, unit).map(sorted))
def test_two_steps_forget_what_one_long_step_forgets(config, times):
    schedule, (u, s, t) = Schedule.from_config(config), times
    hypothesis.assume(t > 0 and s > 0)
    keep = 1 - schedule.step_coefficient(t, u)
    parts = (1 - schedule.step_coefficient(t, s)) * (1 - schedule.step_coefficient(s, u))
    assert 0 <= keep <= 1
    np.testing.assert_allclose(parts, keep, rtol=1e-9, atol=1e-12)


@given(schedules, unit)
def test_time_and_index_are_inverse_and_snap_is_on_the_grid(config, t):
    schedule = Schedule.from_config(config)
    assert schedule.time(schedule.index(t)) == pytest.approx(
        t, abs=1e-6 / len(schedule.alphas_cumprod) + 1e-12
    )
    snapped = schedule.snap(t)
    assert schedule.index(snapped) == np.rint(schedule.index(snapped)) >= 0
    assert abs(snapped - t) <= 1.0 / schedule.num_train_timesteps + 1e-12


@given(schedules, st.integers(1, 40), st.tuples(unit, unit).map(sorted))
def test_times_fall_strictly_on_the_grid_or_are_refused(config, steps, ends):
    schedule = Schedule.from_config(config)
    try:
        times = schedule.times(ends[1], ends[0], steps)
    except ValueError:
        span = round(ends[1] * schedule.num_train_timesteps) - round(
            ends[0] * schedule.num_train_timesteps
        )
        assert steps > span
        return
    assert len(times) == steps + 1 and np.all(np.diff(times) < 0)
    on_grid = times * schedule.num_train_timesteps
    np.testing.assert_allclose(on_grid, np.rint(on_grid), atol=1e-9)


# -------------------------------------------------------------------------------- conversions

levels = st.floats(0.05, 0.9987)
small_images = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    elements=st.floats(-3, 3, width=32),
)


@given(small_images, small_images, levels, st.sampled_from(PREDICTION_TYPES))
def test_every_prediction_type_finds_the_signal_that_was_diffused(y, other, alpha, kind):
    eps = np.resize(other, y.shape)
    n, sigma = len(y), math.sqrt(1 - alpha**2)
    a, s = np.full(n, alpha), np.full(n, sigma)
    x = _core.diffuse(y, eps, a, s)
    np.testing.assert_allclose(x, alpha * y + sigma * eps, atol=1e-5)
    output = {"epsilon": eps, "sample": y, "v_prediction": alpha * eps - sigma * y}[kind]
    found = _core.signal_from_output(kind, output.astype(np.float32), x, a, s, 0.0)
    np.testing.assert_allclose(found, y, atol=2e-4)
    clipped = _core.signal_from_output(kind, output.astype(np.float32), x, a, s, 1.0)
    np.testing.assert_array_equal(clipped, np.clip(found, -1, 1))


@given(small_images, small_images, st.floats(0, 1))
def test_a_signal_step_stays_between_its_ends_and_heun_of_equals_is_euler(y, other, c):
    f, coefficient = np.resize(other, y.shape), np.full(len(y), c)
    step = _core.signal_step(y, f, coefficient)
    assert np.all(step <= np.maximum(y, f) + 1e-5) and np.all(step >= np.minimum(y, f) - 1e-5)
    np.testing.assert_allclose(_core.signal_step_heun(y, f, f, coefficient), step, atol=1e-6)
    np.testing.assert_allclose(_core.guide(f, y, coefficient), step, atol=1e-5)


@given(small_images, st.floats(0.1, 4))
def test_the_gradient_of_the_loss_is_its_derivative(y, weight):
    target, w = np.zeros_like(y), np.full(len(y), weight)
    loss, gradient = _core.weighted_mse(y, target, w)
    np.testing.assert_allclose(
        loss, weight * (y.astype(float) ** 2).mean(axis=(1, 2, 3)).sum(), rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(gradient, 2 * weight * y / y[0].size, rtol=1e-4, atol=1e-7)


# -------------------------------------------------------------------- random numbers and settings


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(1, 6), st.integers(0, 5))
def test_noise_does_not_depend_on_how_a_batch_is_cut(seed, step, count, cut):
    cut = min(cut, count)
    whole = noise.normal(seed, noise.Stream.TRAIN_NOISE, step, 0, (count, 1, 2, 3))
    parts = [
        noise.normal(seed, noise.Stream.TRAIN_NOISE, step, first, (size, 1, 2, 3))
        for first, size in ((0, cut), (cut, count - cut))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(st.sampled_from(LR_SCHEDULERS), st.integers(1, 50), st.integers(0, 60))
def test_the_learning_rate_rises_then_never_rises_again(name, total, warmup):
    config = DistillConfig(max_train_steps=total, lr_warmup_steps=warmup, lr_scheduler=name)
    factors = [config.learning_rate_factor(step) for step in range(total)]
    assert all(0 <= f <= 1 for f in factors)
    rising, after = factors[:warmup], factors[warmup:]
    assert rising == sorted(rising) and after == sorted(after, reverse=True)
    assert DistillConfig.from_dict(config.to_dict()) == config


@given(st.integers(), st.integers(-5, 5), st.integers(0, 9))
def test_integers_are_accepted_exactly_inside_their_range(value, lo, width):
    if lo <= value <= lo + width:
        assert check_int("x", value, lo, lo + width) == value
    else:
        with pytest.raises(ValueError, match="x must be"):
            check_int("x", value, lo, lo + width)


# ------------------------------------------------------------------------------------- shapes

TEACHER = make_teacher(PLAIN)
any_array = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6),
    elements=st.floats(-4, 4, width=16),
)


@given(any_array)
def test_a_network_runs_or_refuses_images_of_any_shape(x):
    right = x.ndim == 4 and x.size and x.shape[1] == 1 and not (x.shape[2] % 2 or x.shape[3] % 2)
    if right:
        y = TEACHER.model(x, 5)
        assert y.shape == x.shape and y.dtype == np.float32 and np.isfinite(y).all()
    else:
        with pytest.raises(ValueError, match="sample"):
            TEACHER.model(x, 5)


@given(any_array, st.permutations(range(3)))
def test_checked_arrays_hold_the_same_numbers_whatever_their_strides(x, axes):
    if x.ndim == 3:
        x = x.transpose(axes)[::-1]
    if not x.size:
        with pytest.raises(ValueError, match="must not be empty"):
            check_array("x", x)
        return
    out = check_array("x", x)
    assert out.flags.c_contiguous and out.dtype == np.float32
    np.testing.assert_array_equal(out, x.astype(np.float32))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_a_plan_has_room_for_its_widest_layer(n, height, width, train):
    core = Network(PLAIN).core
    plan = core.plan(n, 2 * height, 2 * width, train)
    widest = 4 * n * 4 * height * width * PLAIN.block_out_channels[0]
    assert plan["activation_bytes"] >= widest
    assert plan["peak_bytes"] >= plan["weight_bytes"] + plan["activation_bytes"]


# --------------------------------------------------------------------------------------- files

names = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20
)
tensors = st.dictionaries(
    names.filter(lambda name: name != "__metadata__" and name.isprintable()),
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        elements=st.floats(allow_nan=True, width=16),
    ),
    max_size=4,
)


@given(tensors, st.dictionaries(names, names, max_size=3))
def test_safetensors_round_trip(arrays, metadata):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_tensors(path, arrays, metadata)
        loaded = load_tensors(path)
        header = read_header(path)
    assert header.metadata == metadata
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name], array.astype(np.float32))


@given(tensors.filter(bool), st.data())
def test_a_safetensors_file_cut_or_stretched_anywhere_is_refused(arrays, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_tensors(path, arrays)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(whole[:cut] if data.draw(st.booleans()) else whole + b"\0" * (cut + 1))
        with pytest.raises(FormatError, match="x.safetensors"):
            load_tensors(path)


@given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(3, 12), st.integers(1, 3)), elements=st.floats(-9, 9)
    )
)
def test_the_distance_of_a_set_to_itself_is_zero_and_to_a_moved_one_the_move(rows):
    mean, cov = distances.gaussian_statistics(rows)
    assert distances.frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-6)
    moved = distances.frechet_distance(mean, cov, mean + 2.0, cov)
    assert moved == pytest.approx(4.0 * len(mean), abs=1e-5)
