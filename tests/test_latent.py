"""Helpers for the latent space: what stays still, what moves, and spherical interpolation."""

from __future__ import annotations

import numpy as np
import pytest
from models import PLAIN, noise
from test_student import RANGED, make_student

from boot.errors import BootWarning
from boot.latent import as_grid, class_swap, guidance_sweep, interpolate, slerp


def test_slerp_is_the_great_circle_of_each_sample():
    a, b = noise(3), noise(3, seed=2)
    a[0], b[0] = 0, 0
    a[0, 0, 0, 0], b[0, 0, 0, 1] = 2, 2  # a right angle, of length 2
    share = np.array([1 / 3, 0.5, 0.2])
    found = slerp(a, b, share)
    assert found[0, 0, 0, 0] == pytest.approx(2 * np.cos(np.pi / 6), rel=1e-6)
    assert found[0, 0, 0, 1] == pytest.approx(2 * np.sin(np.pi / 6), rel=1e-6)
    for i in (1, 2):
        u, v = (x[i].ravel().astype(float) for x in (a, b))
        theta = np.arccos(u @ v / np.sqrt((u @ u) * (v @ v)))
        expected = np.sin((1 - share[i]) * theta) * u + np.sin(share[i] * theta) * v
        np.testing.assert_allclose(found[i].ravel(), expected / np.sin(theta), atol=1e-5)
    np.testing.assert_allclose(slerp(a, b, 0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1), b, atol=1e-6)


def test_slerp_keeps_the_length_of_noise_and_a_straight_line_does_not():
    a, b = noise(50), noise(50, seed=2)
    for mean, expected in ((slerp(a, b, 0.5), 1.0), ((a + b) / 2, np.sqrt(0.5))):
        lengths = np.sqrt((mean.astype(float) ** 2).mean(axis=(1, 2, 3)))
        assert lengths.mean() == pytest.approx(expected, abs=0.05)


def test_slerp_of_parallel_and_of_zero_vectors_is_linear():
    a = noise(1)
    np.testing.assert_allclose(slerp(a, a, 0.3), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, 3 * a, 0.5), 2 * a, atol=1e-5)
    np.testing.assert_array_equal(slerp(0 * a, 0 * a, 0.5), 0 * a)


@pytest.mark.parametrize(
    "a, b, share, message",
    [
        (noise(2), noise(3), 0.5, "b must have shape"),
        (noise(2), noise(2), 1.5, "share must be finite"),
        (noise(2), noise(2), [0.1, 0.2, 0.3], "share must be a number or have shape"),
        (noise(2) * np.nan, noise(2), 0.5, "a must be finite|a must|NaN"),
        (noise(2)[0], noise(2), 0.5, "a must have"),
    ],
)
def test_bad_input_of_slerp_is_named(a, b, share, message):
    with pytest.raises(ValueError, match=message):
        slerp(a, b, share)


def test_swapping_the_class_keeps_the_noise():
    student = make_student()
    images = class_swap(student, 3, seed=4)
    assert images.shape == (3, 2, 1, 8, 8)  # without the null label
    eps = student.inputs(3, seed=4)[0]
    for column in range(2):
        expected = student.sample(noise=eps, class_labels=column)
        np.testing.assert_allclose(images[:, column], expected, atol=1e-5)
    with pytest.warns(BootWarning, match="label 2 means 'no class'"):
        assert class_swap(student, 2, class_labels=[1, 2, 0]).shape == (2, 3, 1, 8, 8)
    with pytest.raises(ValueError, match="class-conditional"):
        class_swap(make_student(PLAIN), 2)
    with pytest.raises(ValueError, match="class_labels"):
        class_swap(student, 2, class_labels=[7])


def test_a_sweep_moves_the_scale_alone():
    student = make_student(info=RANGED)
    images = guidance_sweep(student, [1.0, 2.5, 4.0], 2)
    eps, labels = student.inputs(2)
    for column, w in enumerate((1.0, 2.5, 4.0)):
        expected = student.sample(noise=eps, class_labels=labels, guidance_scale=w)
        np.testing.assert_allclose(images[:, column], expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"guidance_scale must be in \[1, 4\]"):
        guidance_sweep(student, [1, 9], 2)
    with pytest.raises(ValueError, match="which is built into this student"):
        guidance_sweep(make_student(), [1, 2], 2)


@pytest.mark.parametrize("values, problem", [([], ValueError), (2, TypeError), ("12", TypeError)])
def test_what_is_swept_must_be_a_list_of_one_or_more(values, problem):
    student = make_student(info=RANGED)
    message = "must not be empty" if problem is ValueError else f"must be a list, got {values!r}"
    with pytest.raises(problem, match=f"guidance_scales {message}"):
        guidance_sweep(student, values, 2)
    with pytest.raises(problem, match=f"class_labels {message}"):
        class_swap(student, 2, class_labels=values)
    assert guidance_sweep(student, np.array([1.0, 2.0]), 2).shape == (2, 2, 1, 8, 8)


def test_a_walk_starts_and_ends_at_the_noises_of_the_seed():
    student = make_student()
    images = interpolate(student, 2, steps=4, class_labels=1, seed=3)
    eps = student.inputs(4, seed=3)[0]
    assert images.shape == (2, 4, 1, 8, 8)
    for column, ends in ((0, eps[:2]), (3, eps[2:])):
        expected = student.sample(noise=ends, class_labels=1)
        np.testing.assert_allclose(images[:, column], expected, atol=1e-5)
    middle = slerp(eps[:2], eps[2:], 1 / 3)
    expected = student.sample(noise=middle, class_labels=1)
    np.testing.assert_allclose(images[:, 1], expected, atol=1e-5)
    with pytest.raises(ValueError, match="steps"):
        interpolate(student, 2, steps=1)
    assert interpolate(make_student(PLAIN), 1, steps=2).shape == (1, 2, 1, 8, 8)


def test_a_grid_has_the_rows_and_columns_of_the_table(tmp_path):
    images = interpolate(make_student(), 2, steps=5)
    grid = as_grid(images, scale=1)
    assert grid.array.shape[1] > 2 * grid.array.shape[0]
    grid.save(tmp_path / "walk.png")
    with pytest.raises(ValueError, match=r"\(rows, columns, C, H, W\)"):
        as_grid(images[0])
