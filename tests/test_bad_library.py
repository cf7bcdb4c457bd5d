"""Wrong calls of everything beside the models: schedules, metrics, images, files, checks."""

from __future__ import annotations

import re

import numpy as np
import pytest
from models import DDPM, noise

from boot import distances, images, metrics
from boot.config import DistillConfig
from boot.errors import FormatError, UnsupportedModel
from boot.schedule import Schedule, TableSchedule
from boot.scheduler_config import SchedulerConfig
from boot.unet_config import UNet2DConfig

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((20, 3))
MEAN, COV = ROWS.mean(0), np.cov(ROWS.T)
SCHEDULE = Schedule.from_config(DDPM)
STATS = metrics.Statistics.from_features(ROWS, labels=np.arange(20) % 2)
NAN = np.where(np.arange(60).reshape(20, 3) == 7, np.nan, ROWS)

CALLS = [
    # ---------------------------------------------------------------------------------- schedules
    (lambda: TableSchedule([0.9]), ValueError, r"alphas_cumprod must have shape \(N >= 2,\)"),
    (lambda: TableSchedule([[0.9, 0.8]]), ValueError, r"shape \(N >= 2,\), got \(1, 2\)"),
    (lambda: TableSchedule([0.8, 0.9]), ValueError, "must fall strictly from below 1"),
    (lambda: TableSchedule([1.0, 0.9]), ValueError, "must fall strictly from below 1"),
    (lambda: TableSchedule([0.9, -0.1]), ValueError, "to 0 or more"),
    (lambda: TableSchedule([0.9, np.nan]), ValueError, "must fall strictly"),
    (lambda: TableSchedule([0.9, 0.9]), ValueError, "must fall strictly"),
    (lambda: SCHEDULE.snap(2.0), ValueError, "t must be finite and >= 0 and <= 1, got 2.0"),
    (lambda: SCHEDULE.snap("1"), TypeError, "t must be a number"),
    (lambda: SCHEDULE.times(0.5, 0.4, 0), ValueError, r"steps must be 1 \.\.\. 100"),
    (lambda: SCHEDULE.times(0.5, 0.4, 101), ValueError, r"steps must be 1 \.\.\. 100 .*got 101"),
    (lambda: SCHEDULE.times(0.4, 0.5, 1), ValueError, "steps must be"),
    (lambda: SCHEDULE.step_coefficient(0.2, 0.3), ValueError, "0 <= s <= t <= 1"),
    (lambda: SCHEDULE.step_coefficient(0.0, 0.0), ValueError, "t > 0"),
    (lambda: SCHEDULE.step_coefficient(1.5, 0.3), ValueError, "t <= 1"),
    (lambda: SCHEDULE.step_coefficient(np.nan, 0.3), ValueError, "step_coefficient needs"),
    (lambda: SchedulerConfig.from_dict({"_class_name": "No"}), UnsupportedModel, "_class_name"),
    (lambda: SchedulerConfig.from_dict({"_class_name": 3}), TypeError, "_class_name must be a str"),
    # ------------------------------------------------------------------------------------ distances
    (lambda: distances.gaussian_statistics(ROWS[:1]), ValueError, "at least 2 rows"),
    (lambda: distances.gaussian_statistics(NAN), ValueError, "features must be finite"),
    (lambda: distances.gaussian_statistics(ROWS[0]), ValueError, "features must have shape"),
    (lambda: distances.gaussian_statistics("x"), TypeError, "features must be an array"),
    (lambda: distances.gaussian_statistics(ROWS.astype(complex)), TypeError, "real numbers"),
    (lambda: distances.frechet_distance(MEAN, COV, MEAN[:2], COV), ValueError, "mean2 must"),
    (lambda: distances.frechet_distance(MEAN, COV[:2], MEAN, COV), ValueError, "cov1 must have"),
    (lambda: distances.frechet_distance(MEAN, COV, MEAN, np.triu(COV)), ValueError, "cov2 must"),
    (lambda: distances.frechet_distance(MEAN, -COV, MEAN, COV), ValueError, "cov1"),
    (lambda: distances.frechet_distance(MEAN * np.nan, COV, MEAN, COV), ValueError, "mean1 must"),
    (lambda: distances.precision_recall(ROWS, ROWS, k=0), ValueError, "k must be an integer >= 1"),
    (lambda: distances.precision_recall(ROWS, ROWS, k=20), ValueError, "k must be .*<= 19"),
    (lambda: distances.precision_recall(ROWS, ROWS[:, :2]), ValueError, "fake must have shape"),
    (lambda: distances.precision_recall(ROWS, ROWS, k=1.0), TypeError, "k must be an integer"),
    (lambda: distances.paired_rmse(ROWS, ROWS[:2]), ValueError, "b must have shape"),
    (lambda: distances.paired_rmse(ROWS, NAN), ValueError, "b must be finite"),
    (lambda: distances.paired_rmse(None, ROWS), TypeError, "a must be an array"),
    # -------------------------------------------------------------------------------------- metrics
    (lambda: metrics.Statistics(MEAN, COV[:2]), ValueError, "cov must have shape"),
    (lambda: metrics.Statistics(ROWS, COV), ValueError, "mean must have shape"),
    (lambda: metrics.Statistics(MEAN, COV, offset=MEAN), ValueError, "offset and components bel"),
    (lambda: metrics.Statistics(MEAN, COV, reference=ROWS[:, :2]), ValueError, "reference must"),
    (lambda: metrics.Statistics(MEAN, COV, labels=[0]), ValueError, "labels belong to reference"),
    (lambda: metrics.Statistics(MEAN, COV, class_means=MEAN), ValueError, "class_means must have"),
    (lambda: metrics.Statistics.from_features(ROWS, num_components=0), ValueError, "num_comp"),
    (lambda: metrics.Statistics.from_features(ROWS, num_components=4), ValueError, "num_comp"),
    (lambda: metrics.Statistics.from_features(ROWS, labels=[0, 1]), ValueError, "labels must have"),
    (lambda: metrics.Statistics.from_features(ROWS, labels=np.full(20, 5)), ValueError, "every"),
    (lambda: metrics.Statistics(MEAN, COV).classify(ROWS), ValueError, "neither a classifier nor"),
    (lambda: STATS.classify(ROWS[:, :2]), ValueError, "projected must have shape"),
    (lambda: STATS.project(ROWS[:, :2]), ValueError, "features must have shape"),
    (lambda: metrics.measure(ROWS, STATS), ValueError, "images must have shape"),
    (lambda: metrics.measure(noise(4), STATS), ValueError, "must have shape"),
    (lambda: metrics.image_features(noise(2), 3), TypeError, "features must be a function"),
    (lambda: metrics.image_features(noise(2), lambda x: x[0]), ValueError, r"features\(images\)"),
    (lambda: metrics.Statistics.load("/no/such.npz"), FileNotFoundError, "no/such"),
    (lambda: metrics.Statistics.load("/"), IsADirectoryError, ""),
    (lambda: metrics.Statistics.load(3), TypeError, "path must be a path"),
    (lambda: metrics.Statistics.load(__file__), FormatError, "test_bad_library.py"),
    (lambda: STATS.save(""), ValueError, "path must be a non-empty path"),
    (lambda: STATS.save("a\0b"), ValueError, "without NUL"),
    # --------------------------------------------------------------------------------------- images
    (lambda: images.to_uint8(noise(2)[0]), ValueError, "images must have shape"),
    (lambda: images.to_uint8(noise(2).astype(int)), TypeError, "images must hold float"),
    (lambda: images.to_uint8(np.full((1, 1, 2, 2), np.nan)), ValueError, "images must be finite"),
    (lambda: images.make_grid(noise(2), columns=0), ValueError, "columns must be an integer >= 1"),
    (lambda: images.make_grid(noise(2), columns=1.5), TypeError, "columns must be an integer"),
    (lambda: images.make_grid(noise(2), scale=0), ValueError, "scale must be an integer >= 1"),
    (lambda: images.make_grid(noise(2), scale=257), ValueError, "scale must be .*<= 256"),
    (lambda: images.make_grid(noise(2)[:0]), ValueError, "images must not be empty"),
    (lambda: images.save_grid("x.jpg", noise(2)), ValueError, "path must end in .png"),
    (lambda: images.save_grid(3, noise(2)), TypeError, "path must be a path"),
    (lambda: images.ImageGrid(noise(2)), ValueError, "array must be uint8"),
    # ------------------------------------------------------------------------------------- settings
    (lambda: DistillConfig.from_dict([]), TypeError, "settings must be a mapping, got list"),
    (lambda: DistillConfig.from_dict({1: 2}), TypeError, "names of settings must be strings"),
    (lambda: DistillConfig.load("/no/such.json"), FileNotFoundError, "no/such"),
    (lambda: DistillConfig.load(None), TypeError, "path must be a path"),
    (lambda: DistillConfig().save("/no/such/folder/x.json"), FileNotFoundError, "no/such"),
    (lambda: UNet2DConfig.from_dict({"_class_name": "VAE"}), UnsupportedModel, "VAE"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", CALLS, ids=range(len(CALLS)))
def test_a_bad_call_of_the_library_is_refused_and_changes_nothing(call, error, message):
    arrays = [ROWS, MEAN, COV, SCHEDULE.alphas_cumprod, STATS.mean, STATS.cov]
    before = [array.copy() for array in arrays]
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error
    assert re.search(message, str(caught.value)), str(caught.value)
    for a, b in zip(before, arrays, strict=True):
        np.testing.assert_array_equal(a, b)
