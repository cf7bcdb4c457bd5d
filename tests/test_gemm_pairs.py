"""Products of pairs (csrc/base/gemm_pairs.h) in convolutions: exact for numbers of any size."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from cases import Case, attrs_of, make_inputs
from test_ops import KERNELS, SAME_SIZE, attempt, is_close

from boot import _core


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


@pytest.mark.parametrize("usual", [0.0, 1e-6, 1.0])
def test_products_of_pairs_where_one_pixel_is_unlike_the_others(usual):
    """Samples do not show its size: its rows are made smaller when they are found."""
    case = Case("conv2d", {"x": (2, 16, 16, 64), "weight": (96, 64, 3, 3)}, SAME_SIZE)
    kernel = KERNELS.index("winograd_pairs")
    for size in (1e-3, 1.0, 30.0, 1e3, 1e5, 1e12):
        inputs = make_inputs(case)
        inputs["x"] *= np.float32(usual)
        inputs["x"][1, 5, 6] += np.float32(size)
        y = attempt(lambda i=inputs: _core.op_forward("conv2d", i, attrs_of(case, kernel)), kernel)
        expected = oracle.forward("conv2d", inputs, case.attrs)
        assert is_close(y, expected, 3e-5 if usual else 1e-4)


def test_products_of_pairs_of_an_image_of_zeros_are_next_to_nothing():
    case = Case("conv2d", {"x": (1, 8, 8, 64), "weight": (64, 64, 3, 3)}, SAME_SIZE)
    inputs = make_inputs(case)
    kernel = KERNELS.index("winograd_pairs")
    usual, y = (
        attempt(lambda i=i: _core.op_forward("conv2d", i, attrs_of(case, kernel)), kernel)
        for i in (inputs, {**inputs, "x": 0 * inputs["x"]})
    )
    assert np.linalg.norm(y) <= 1e-5 * np.linalg.norm(usual)
