"""Products of pairs (csrc/base/gemm_pairs.h) in convolutions: exact for numbers of any size."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import oracle
import pytest
from cases import Case, attrs_of, make_inputs
from models import CONFIG
from test_ops import KERNELS, SAME_SIZE, attempt, is_close

from boot import _core
from boot.network import Network
from boot.student_init import random_weights


@pytest.mark.parametrize("size", [1e-30, 1e-12, 0.05, 1.0, 30.0, 1e9, 1e25])
@pytest.mark.parametrize("kernel", ["winograd", "winograd_pairs"])
def test_winograd_is_as_exact_for_pixels_of_any_size(kernel, size):
    """Products of pairs add pixels to weights: both have to be of one size."""
    case = Case("conv2d", {"x": (2, 7, 12, 64), "weight": (96, 64, 3, 3)}, SAME_SIZE)
    inputs, attrs = make_inputs(case), attrs_of(case, KERNELS.index(kernel))
    inputs["x"] *= np.float32(size)
    y = attempt(lambda: _core.op_forward("conv2d", inputs, attrs), attrs["kernel"])
    assert is_close(y / size, oracle.forward("conv2d", inputs, case.attrs) / size, 5e-6)
    dy = np.random.default_rng(2).standard_normal(y.shape).astype(np.float32) * np.float32(size)
    inputs["x"] /= np.float32(size)
    plain = {**attrs, "kernel": KERNELS.index("plain")}
    found, exact = (
        _core.op_backward("conv2d", inputs, a, dy)["x"].astype(np.float64) / size
        for a in (attrs, plain)
    )
    assert is_close(found, exact, 5e-6)


PAIRS, WINOGRAD = KERNELS.index("winograd_pairs"), KERNELS.index("winograd")
LAYERS = {"blocks": (4, 16, 16, 64), "few tiles": (1, 8, 8, 64), "upsampled": (2, 8, 8, 64)}


def layer(name):
    """Inputs of a layer of 64 to 96 channels, and its attributes."""
    case = Case("conv2d", {"x": LAYERS[name], "weight": (96, 64, 3, 3)}, SAME_SIZE)
    attrs = {**case.attrs, "upsampled": 1} if name == "upsampled" else case.attrs
    return make_inputs(case), attrs


def forward(inputs, attrs, kernel=PAIRS):
    attrs = {**attrs, "kernel": kernel}
    return attempt(lambda: _core.op_forward("conv2d", inputs, attrs), kernel)


def dx_of(inputs, attrs, dy, kernel=PAIRS):
    attrs = {**attrs, "kernel": kernel}
    return attempt(lambda: _core.op_backward("conv2d", inputs, attrs, dy)["x"], kernel)


def each_is_close(found, exact, axis, limit):
    """Whether every image (axis 0) or channel (axis 3) is close by itself."""
    found, exact = (np.moveaxis(a.astype(np.float64), axis, 0) for a in (found, exact))
    pairs = zip(found, exact, strict=True)
    return max(np.linalg.norm(f - e) / np.linalg.norm(e) for f, e in pairs) <= limit


@pytest.mark.parametrize("name", LAYERS)
def test_products_with_nothing_are_nothing(name):
    """Both sides of a pair are added up: what is left of their difference is not noise."""
    inputs, attrs = layer(name)
    dy = np.random.default_rng(0).standard_normal(forward(inputs, attrs).shape).astype(np.float32)
    nothing = {**inputs, "weight": 0 * inputs["weight"]}
    assert not forward({**inputs, "x": 0 * inputs["x"]}, attrs).any()
    assert not forward(nothing, attrs).any()
    assert not dx_of(nothing, attrs, dy).any()
    assert not dx_of(inputs, attrs, 0 * dy).any()


def test_an_image_of_zeros_and_an_output_of_zeros_among_others():
    inputs, attrs = layer("blocks")
    inputs["x"][2] = 0
    inputs["weight"][7] = 0
    inputs["weight"][:, 9] = 0
    y = forward(inputs, attrs)
    exact = oracle.forward("conv2d", inputs, attrs)
    assert np.array_equal(y == 0, exact == 0)
    assert each_is_close(np.delete(y, 7, 3), np.delete(exact, 7, 3), 3, 8e-6)
    dx = dx_of(inputs, attrs, y)
    assert not dx[..., 9].any()
    assert not dx[2].any()


@pytest.mark.parametrize("size", [1e3, 1e12])
def test_a_pixel_unlike_the_others_does_not_matter_to_other_images(size):
    """Whether it is among the rows that the scale is found from, or not."""
    inputs, attrs = layer("blocks")
    usual = inputs["x"].copy()
    for place in range(24, 56):  # 32 samples of 1,024 rows: one of these
        inputs["x"] = usual.copy()
        inputs["x"][1].reshape(256, 64)[place] += np.float32(size)
        y = forward(inputs, attrs)
        exact = oracle.forward("conv2d", inputs, attrs)
        assert each_is_close(y, exact, 0, 1.5e-5 if size < 1e6 else 3e-5)
        assert each_is_close(y[[0, 2, 3]], exact[[0, 2, 3]], 0, 5e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e-3, 1e3, 1e6])
def test_images_of_different_sizes_are_each_exact(size):
    inputs, attrs = layer("blocks")
    inputs["x"][1] *= np.float32(size)
    exact = oracle.forward("conv2d", inputs, attrs)
    assert each_is_close(
        forward(inputs, attrs) / [[[[1]]], [[[size]]], [[[1]]], [[[1]]]],
        exact / [[[[1]]], [[[size]]], [[[1]]], [[[1]]]],
        0,
        1e-5,
    )


@pytest.mark.parametrize("size", [1e-40, 1e-36, 1e-33, 1e-20, 1e-3, 1e3, 1e25])
def test_weights_of_any_size(size):
    inputs, attrs = layer("blocks")
    inputs["weight"] *= np.float32(size)
    y = forward(inputs, attrs)
    assert np.isfinite(y).all()
    if size > 1e-35:  # below, Winograd's own transforms lose digits
        exact = oracle.forward("conv2d", inputs, attrs)
        assert is_close(y / size, exact / size, 1.5e-5)


@pytest.mark.parametrize("spread", [10, 100, 1000])
def test_channels_of_different_sizes(spread):
    """Weights that make up for pixels' sizes are the hard case: products are of one size then."""
    rng = np.random.default_rng(1)
    sizes = np.exp(np.log(spread) * (rng.random(64) - 0.5)).astype(np.float32)
    across = np.exp(np.log(spread) * (rng.random(96) - 0.5)).astype(np.float32)
    inputs, attrs = layer("blocks")
    x, weight = inputs["x"], inputs["weight"]
    for by_x, by_weight in (
        (sizes, 1 / sizes),
        (sizes, sizes),
        (1, sizes),
        (sizes, 1),
        (1, across[:, None]),
    ):
        inputs["x"] = x * by_x
        inputs["weight"] = weight * np.broadcast_to(by_weight, (96, 64))[:, :, None, None]
        exact = oracle.forward("conv2d", inputs, attrs)
        assert each_is_close(forward(inputs, attrs), exact, 3, 1.2e-5)


@pytest.mark.parametrize("small", [1e-8, 1e-18, 1e-30, 1e-36])
@pytest.mark.parametrize("other", [1e-6, 1e-8, 1e-18])
def test_an_output_and_an_input_that_are_dead_at_once(small, other):
    """Their scales multiply: in weights, and with pixels that make up for them."""
    inputs, attrs = layer("blocks")
    inputs["weight"][5] *= np.float32(small)
    inputs["weight"][:, 9] *= np.float32(other)
    for by_pixels in (1, 1e-30):
        inputs["x"][..., 9] *= np.float32(by_pixels)
        y = forward(inputs, attrs)
        exact = oracle.forward("conv2d", inputs, attrs)
        assert np.isfinite(y).all()
        assert each_is_close(np.delete(y, 5, 3), np.delete(exact, 5, 3), 3, 1.2e-5)
        assert np.isfinite(dx_of(inputs, attrs, y)).all()


def test_the_largest_weights_of_all():
    inputs, attrs = layer("blocks")
    inputs["weight"][:, 9] = 3e38
    inputs["x"][..., 9] = 0
    assert not np.isnan(forward(inputs, attrs)).all()


def test_pixels_that_no_weight_reads_do_not_matter():
    inputs, attrs = layer("blocks")
    inputs["weight"][:, 9] = 0
    exact = oracle.forward("conv2d", inputs, attrs)
    for size in (10, 1e3, 1e6, 1e20):
        inputs["x"][..., 9] *= np.float32(size)
        assert each_is_close(forward(inputs, attrs), exact, 3, 8e-6)


def test_weights_that_differ_at_every_so_many_outputs():
    inputs, attrs = layer("blocks")
    for every in (2, 3, 6, 8, 12):
        inputs["weight"] = make_inputs(Case("conv2d", {"weight": (96, 64, 3, 3)}))["weight"]
        inputs["weight"][::every, 9] *= np.float32(1e-3)
        exact = oracle.forward("conv2d", inputs, attrs)
        assert each_is_close(forward(inputs, attrs), exact, 3, 1.2e-5)


def test_what_is_not_finite_stays_so():
    inputs, attrs = layer("blocks")
    for bad in (np.nan, np.inf):
        inputs["x"][1, 5, 6, 7] = bad
        y = forward(inputs, attrs)
        assert not np.isfinite(y[1, 4:7, 5:8]).any()
        assert np.isfinite(y[[0, 2, 3]]).all()


def test_weights_before_an_output_of_zeros_have_no_gradient():
    """As in the first step of a student of random weights: Adam would make noise a whole step."""
    config = dataclasses.replace(CONFIG, block_out_channels=(32, 64), norm_num_groups=8)
    net = Network(config)
    net.load(random_weights(config, 0))
    x = np.random.default_rng(0).standard_normal((2, config.in_channels, 8, 8)).astype(np.float32)
    labels = None if config.num_classes is None else np.zeros(2, np.int64)
    net.forward_train(x, np.full(2, 500.0), labels, None)
    able = [
        key for key in net.kernels if re.match(r"(forward|data) .*x(32|64) o(32|64) k3 s1", key)
    ]
    assert any(key.startswith("data") for key in able)
    net.pin_kernels(net.kernels | dict.fromkeys(able, "winograd_pairs"))
    attempt(lambda: net.forward_train(x, np.full(2, 500.0), labels, None), PAIRS)
    net.backward(x)
    for name, shape, offset in net.core.parameters:
        gradient = net.core.grads[offset : offset + int(np.prod(shape))]
        assert gradient.any() == name.startswith("conv_out"), name
