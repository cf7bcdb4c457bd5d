"""The exact mixture teacher, the callables that teachers may be, and students made from nothing."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from models import noise
from test_continuous import ALL as CONTINUOUS
from test_schedule import COSINE, LINEAR

from boot import toy
from boot.continuous import EDMSchedule, FlowSchedule, TrigFlowSchedule
from boot.scheduler_config import TEACHER_PREDICTIONS

SCHEDULES = [LINEAR, COSINE, *CONTINUOUS]
MIXTURE = toy.GaussianMixture.random((1, 4, 4), components=3, classes=2, std=0.3)


def test_the_docstring_example_runs():
    found = doctest.testmod(toy)
    assert found.attempted >= 6 and found.failed == 0


def test_the_denoiser_is_the_average_of_images_weighted_by_their_likelihood():
    mixture = toy.GaussianMixture.random((1, 1, 2), components=3, std=0.4)
    images = mixture.sample(40_000)[0].astype(np.float64)
    x, alpha, sigma = np.array([[[[0.3, -0.2]]]]), 0.8, 0.6
    weight = np.exp(-((x - alpha * images) ** 2).sum((1, 2, 3)) / (2 * sigma**2))
    expected = (weight[:, None, None, None] * images).sum(0) / weight.sum()
    found = mixture.denoise(x, np.array([alpha]), np.array([sigma]))[0]
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_one_gaussian_and_far_modes_are_known():
    one = toy.GaussianMixture(np.full((1, 1, 1, 1), 0.3), np.array([0.5]), np.ones(1))
    x, a, s = noise(4, size=1), np.full(4, 0.7), np.full(4, 0.5)
    gain = 0.7 * 0.25 / (0.49 * 0.25 + 0.25)
    np.testing.assert_allclose(one.denoise(x, a, s), 0.3 + gain * (x - 0.21), atol=1e-6)
    far = toy.GaussianMixture(np.array([-1.0, 1.0]).reshape(2, 1, 1, 1), [1e-3, 1e-3], [1, 1])
    near = far.denoise(np.array([[[[0.5]]]]), np.array([0.9]), np.array([0.05]))
    assert near.item() == pytest.approx(1.0, abs=1e-3)


def test_classes_are_groups_of_components_and_the_last_label_is_all_of_them():
    x, a, s = noise(2, size=4), np.full(2, 0.6), np.full(2, 0.8)
    group = toy.GaussianMixture(
        MIXTURE.means[[0, 2]], MIXTURE.stds[[0, 2]], MIXTURE.weights[[0, 2]]
    )
    np.testing.assert_allclose(
        MIXTURE.denoise(x, a, s, np.zeros(2, int)), group.denoise(x, a, s), rtol=1e-12
    )
    free = toy.GaussianMixture(MIXTURE.means, MIXTURE.stds, MIXTURE.weights).denoise(x, a, s)
    np.testing.assert_allclose(MIXTURE.denoise(x, a, s, np.full(2, 2)), free, rtol=1e-12)
    images, labels = MIXTURE.sample(3000)
    for k in (0, 1):
        mean = MIXTURE.means[MIXTURE.classes == k].mean(0)
        np.testing.assert_allclose(images[labels == k].mean(0), mean, atol=0.05)


@pytest.mark.parametrize("prediction_type", TEACHER_PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_every_prediction_type_says_the_same_signal(schedule, prediction_type):
    teacher = MIXTURE.teacher(schedule, prediction_type)
    t, labels = np.array([0.02, 0.5, 0.9]), np.array([0, 1, 2])
    alpha, sigma = schedule.alpha_sigma(t)
    x = (noise(3, size=4) * np.hypot(alpha, sigma).reshape(-1, 1, 1, 1)).astype(np.float32)
    found = teacher.signal(x, t, labels)
    expected = MIXTURE.denoise(x, alpha, sigma, labels)
    # Float32 rounding of an epsilon is multiplied by sigma / alpha.
    np.testing.assert_allclose(found, expected, atol=1e-6 * max(4.0, (sigma / alpha).max()))


def test_the_teacher_is_fed_what_the_schedule_hands_out():
    t = np.array([0.001, 0.3, 1.0])
    for schedule in SCHEDULES:
        np.testing.assert_allclose(schedule.time_of(schedule.timestep(t)), t, rtol=1e-9)


def test_guidance_is_the_formula_of_signals():
    teacher = MIXTURE.teacher(FlowSchedule(), "flow")
    x, t, c = noise(3, size=4), np.full(3, 0.6), np.array([0, 1, 0])
    cond, null = (teacher.signal(x, t, labels) for labels in (c, np.full(3, 2)))
    found = teacher.signal(x, t, c, teacher.guidance(3.0))
    np.testing.assert_allclose(found, null + 3 * (cond - null), atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm"])
@pytest.mark.parametrize("schedule", [COSINE, EDMSchedule(), TrigFlowSchedule()])
def test_sampling_gives_the_mixture(schedule, sampler):
    mixture = toy.GaussianMixture.random((1, 2, 2), components=2, std=0.15, seed=3)
    teacher = mixture.teacher(schedule, "v_prediction")
    images = teacher.sample(1000, num_inference_steps=40, sampler=sampler, t_start=1.0)
    expected = mixture.sample(4000)[0]
    np.testing.assert_allclose(images.mean(0), expected.mean(0), atol=0.06)
    np.testing.assert_allclose(images.std(0), expected.std(0), rtol=0.15)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"means": np.zeros((2, 3))}, "means must be finite"),
        ({"stds": [0.1]}, "stds must be 3 numbers"),
        ({"weights": [1, 1, 0]}, "weights must be 3 numbers > 0"),
        ({"classes": [0, 2, 0]}, "classes must be 3 labels"),
    ],
)
def test_bad_mixtures_are_refused(values, message):
    good = {"means": MIXTURE.means, "stds": MIXTURE.stds, "weights": MIXTURE.weights}
    with pytest.raises(ValueError, match=message):
        toy.GaussianMixture(**{**good, **values})
