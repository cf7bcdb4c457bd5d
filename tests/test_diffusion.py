"""Schedules, conversions, Signal-ODE steps, losses and the optimiser against NumPy in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boot import _core

Array = NDArray[Any]

N = 1000
SCHEDULES = {
    "linear": ("linear", N, 1e-4, 0.02),
    "scaled_linear": ("scaled_linear", N, 0.00085, 0.012),
    "squaredcos_cap_v2": ("squaredcos_cap_v2", N, 1e-4, 0.02),
    "sigmoid": ("sigmoid", N, 1e-4, 0.02),
    "short": ("linear", 10, 0.01, 0.3),
    "one step": ("linear", 1, 0.01, 0.3),
}


# ---------------------------------------------------------------------------------- schedules


def betas_of(name: str, count: int, start: float, end: float) -> Array:
    """The definitions of the diffusers schedulers, in float64."""
    if name == "linear":
        return np.linspace(start, end, count)
    if name == "scaled_linear":
        return np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
    if name == "sigmoid":
        return start + (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, count)))
    assert name == "squaredcos_cap_v2"
    u = np.arange(count + 1) / count
    bar = np.cos((u + 0.008) / 1.008 * math.pi / 2.0) ** 2
    return np.minimum(1.0 - bar[1:] / bar[:-1], 0.999)


def rescaled(alphas_cumprod: Array) -> Array:
    """Zero terminal SNR: shift and scale sqrt(abar) so that the last is 0 and the first stays."""
    root = np.sqrt(alphas_cumprod)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@pytest.mark.parametrize("key", SCHEDULES)
def test_schedule_matches_its_definition(key):
    schedule = SCHEDULES[key]
    found = _core.alphas_cumprod(*schedule, None, False)
    assert found.dtype == np.float64 and found.shape == (schedule[1],)
    np.testing.assert_allclose(found, np.cumprod(1.0 - betas_of(*schedule)), rtol=1e-11)


@pytest.mark.parametrize("key", [key for key in SCHEDULES if key != "one step"])
def test_rescaled_schedule_ends_without_signal(key):
    plain = _core.alphas_cumprod(*SCHEDULES[key], None, False)
    found = _core.alphas_cumprod(*SCHEDULES[key], None, True)
    assert 0.0 <= found[-1] <= 1e-12
    np.testing.assert_allclose(found[:-1], rescaled(plain)[:-1], rtol=1e-9)
    assert found[0] == pytest.approx(plain[0], rel=1e-12)
    assert (np.diff(found) < 0).all()


def test_trained_betas_win():
    betas = np.array([0.1, 0.25, 0.5])
    found = _core.alphas_cumprod("linear", 3, 1e-4, 0.02, betas, False)
    np.testing.assert_allclose(found, [0.9, 0.9 * 0.75, 0.9 * 0.75 * 0.5], rtol=1e-15)


def test_known_ends_of_the_common_schedules():
    def last(key: str) -> float:
        return math.sqrt(_core.alphas_cumprod(*SCHEDULES[key], None, False)[-1])

    assert last("linear") == pytest.approx(0.00635, abs=2e-5)
    assert last("scaled_linear") == pytest.approx(0.0683, abs=5e-5)
    assert last("squaredcos_cap_v2") == pytest.approx(4.93e-5, abs=2e-7)


@pytest.mark.parametrize(
    "arguments",
    [
        ("quadratic", N, 1e-4, 0.02, None, False),
        ("linear", 0, 1e-4, 0.02, None, False),
        ("linear", -3, 1e-4, 0.02, None, False),
        ("linear", N, 1e-4, 1.5, None, False),
        ("linear", N, -1e-4, 0.02, None, False),
        ("linear", N, float("nan"), 0.02, None, False),
        ("linear", 3, 1e-4, 0.02, np.array([0.1, 0.2]), False),
        ("linear", 2, 1e-4, 0.02, np.array([0.1, np.nan]), False),
    ],
)
def test_bad_schedule_is_refused(arguments):
    with pytest.raises(ValueError):
        _core.alphas_cumprod(*arguments)


# --------------------------------------------------------------------------- element-wise method


def images(seed: int, shape: tuple[int, ...] = (3, 2, 5, 7)) -> Array:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def column(values: Array) -> Array:
    return np.asarray(values, np.float64)[:, None, None, None]


ABAR = np.array([0.999, 0.4, 4e-5])
ALPHA, SIGMA = np.sqrt(ABAR), np.sqrt(1.0 - ABAR)
KINDS = ["epsilon", "v_prediction", "sample", "flow"]


def close(found: Array, expected: Array, tolerance: float = 3e-7) -> None:
    """Within a rounding or two of float32, image by image, of the image's largest value."""
    assert found.dtype == np.float32 and found.shape == expected.shape
    for f, e in zip(found, expected, strict=True):
        assert np.abs(f - e).max() <= tolerance * np.abs(e).max()


def signal(kind: str, output: Array, x: Array) -> Array:
    a, s = column(ALPHA), column(SIGMA)
    output, x = output.astype(np.float64), x.astype(np.float64)
    return {
        "epsilon": (x - s * output) / a,
        "v_prediction": (a * x - s * output) / (a**2 + s**2),
        "sample": output,
        "flow": (x - s * output) / (a + s),
    }[kind]


@pytest.mark.parametrize("clip", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_signal_from_output_matches_definition(kind, clip):
    output, x = images(1), images(2)
    found = _core.signal_from_output(kind, output, x, ALPHA, SIGMA, clip)
    expected = signal(kind, output, x)
    if clip:
        expected = np.clip(expected, -clip, clip)
        assert np.abs(found).max() <= np.float32(clip)
    close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "alpha, sigma",
    [(ALPHA, SIGMA), (np.ones(3), np.array([0.002, 1.0, 20.0])), (1 - ABAR, ABAR)],
    ids=["vp", "edm", "flow"],
)
def test_signal_of_a_perfect_network_is_the_image(kind, alpha, sigma):
    y, eps = images(3), images(4)
    x = _core.diffuse(y, eps, alpha, sigma)
    a, s = column(alpha), column(sigma)
    output = {"epsilon": eps, "v_prediction": a * eps - s * y, "sample": y, "flow": eps - y}[kind]
    found = _core.signal_from_output(kind, output.astype(np.float32), x, alpha, sigma, 0.0)
    # An epsilon network's rounding is multiplied by sigma / alpha.
    limits = 1e-5 * np.maximum(1.0, sigma / alpha if kind == "epsilon" else 1.0)
    for n, limit in zip(range(3), np.broadcast_to(limits, 3), strict=True):
        np.testing.assert_allclose(found[n], y[n], atol=limit)


def test_signal_stays_safe_where_the_image_is_gone():
    output, x = images(5, (1, 1, 2, 2)), images(6, (1, 1, 2, 2))
    tiny = np.array([4.93e-5])
    found = _core.signal_from_output("epsilon", output, x, tiny, np.sqrt(1 - tiny**2), 1.0)
    assert np.isfinite(found).all() and np.abs(found).max() <= 1.0
    zero, one = np.zeros(1), np.ones(1)
    with pytest.raises(ValueError):
        _core.signal_from_output("epsilon", output, x, zero, one, 1.0)
    np.testing.assert_array_equal(
        _core.signal_from_output("v_prediction", output, x, zero, one, 0.0), -output
    )


def test_unknown_prediction_type_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="v_prediction"):
        _core.signal_from_output("score", images(1), images(2), ALPHA, SIGMA, 0.0)


def test_diffuse_and_guide_match_definition():
    y, eps = images(7), images(8)
    exact = column(ALPHA) * y.astype(np.float64) + column(SIGMA) * eps.astype(np.float64)
    close(_core.diffuse(y, eps, ALPHA, SIGMA), exact)
    w = np.array([0.0, 1.5, -2.0])
    exact = eps.astype(np.float64) + column(w) * (y.astype(np.float64) - eps)
    close(_core.guide(y, eps, w), exact)
    np.testing.assert_array_equal(_core.guide(y, eps, np.zeros(3)), eps)


def test_signal_steps_match_definition():
    y, f, f2, c = images(9), images(10), images(11), np.array([0.0, 0.31, 1.0])
    exact = y + column(c) * (f.astype(np.float64) - y)
    close(_core.signal_step(y, f, c), exact)
    exact = y + column(c) * ((f.astype(np.float64) + f2) / 2.0 - y)
    close(_core.signal_step_heun(y, f, f2, c), exact)
    np.testing.assert_array_equal(_core.signal_step(y, f, np.zeros(3)), y)
    np.testing.assert_allclose(_core.signal_step(y, f, np.ones(3)), f, atol=1e-6)


def test_signal_step_is_the_ddim_step():
    """y_s = (x_s - sigma_s eps) / alpha_s, where x_s comes from DDIM's own formula."""
    y, eps, f = images(12).astype(np.float64), images(13).astype(np.float64), images(14)
    a_t, s_t, abar_s = ALPHA, SIGMA, np.array([0.9995, 0.6, 1e-3])
    a_s, s_s = np.sqrt(abar_s), np.sqrt(1.0 - abar_s)
    x_t = column(a_t) * y + column(s_t) * eps
    noise = (x_t - column(a_t) * f) / column(s_t)
    x_s = column(a_s) * f + column(s_s) * noise
    c = 1.0 - s_s * a_t / (a_s * s_t)
    found = _core.signal_step(y.astype(np.float32), f, c)
    close(found, (x_s - column(s_s) * eps) / column(a_s), tolerance=1e-6)


def mean_square(d: Array) -> Array:
    return (d**2).mean(axis=(1, 2, 3))


LOSSES = {
    "mse": (_core.weighted_mse, (), mean_square),
    "huber": (_core.weighted_huber, (0.3,), lambda d: np.sqrt(mean_square(d) + 0.09) - 0.3),
    "tiny c": (_core.weighted_huber, (1e-6,), lambda d: np.sqrt(mean_square(d) + 1e-12) - 1e-6),
}


@pytest.mark.parametrize("key", LOSSES)
def test_losses_match_definition_and_derivative(key):
    function, more, distance = LOSSES[key]
    y, target, weight = images(15), images(16), np.array([1.0, 0.0, 2500.0])

    def loss_of(values: Array) -> float:
        return float(weight @ distance(values - target.astype(np.float64)))

    loss, dy = function(y, target, weight, *more)
    assert isinstance(loss, float)
    assert loss == pytest.approx(loss_of(y.astype(np.float64)), rel=1e-6)
    v, step = np.random.RandomState(0).standard_normal(y.shape), 1e-6
    slope = (loss_of(y + step * v) - loss_of(y - step * v)) / (2 * step)
    assert float(np.vdot(dy.astype(np.float64), v)) == pytest.approx(slope, rel=1e-5)
    assert not dy[1].any()
    same, nothing = function(y, y, weight, *more)
    assert same == 0.0 and not nothing.any()


def test_pseudo_huber_is_between_half_square_and_root():
    y, target, weight = images(15), images(16), np.ones(3)
    square = mean_square(y.astype(np.float64) - target)
    near = _core.weighted_huber(y, target, weight, 1e4)[0]
    assert near == pytest.approx(square.sum() / 2e4, rel=1e-4)
    far = _core.weighted_huber(y, target, weight, 1e-9)[0]
    assert far == pytest.approx(np.sqrt(square).sum(), rel=1e-6)
    for c in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="> 0"):
            _core.weighted_huber(y, target, weight, c)
    with pytest.raises(FloatingPointError):
        _core.weighted_huber(y * np.float32(np.nan), target, weight, 1.0)


@pytest.mark.parametrize("function", ["diffuse", "guide", "signal_step", "weighted_mse"])
@pytest.mark.parametrize("damage", ["shape", "rank", "count", "dtype"])
def test_bad_images_are_refused(function, damage):
    a, b, vector = images(1), images(2), np.ones(3)
    if damage == "shape":
        b = b[:, :1]
    elif damage == "rank":
        b = b[0]
    elif damage == "count":
        vector = vector[:2]
    else:
        b = np.array(["x"])
    vectors = [vector, vector] if function == "diffuse" else [vector]
    with pytest.raises((ValueError, TypeError)):
        getattr(_core, function)(a, b, *vectors)


def test_inputs_are_not_modified():
    arrays = [images(1), images(2), images(3)]
    copies = [a.copy() for a in arrays]
    _core.signal_step_heun(*arrays, np.full(3, 0.5))
    _core.weighted_mse(*arrays[:2], np.ones(3))
    _core.signal_from_output("epsilon", *arrays[:2], ALPHA, SIGMA, 1.0)
    for a, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(a, copy)
