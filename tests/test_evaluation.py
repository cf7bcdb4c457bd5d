"""Evaluation: references that would give a number without a meaning are refused."""

from __future__ import annotations

import numpy as np
import pytest
from models import PLAIN, make_teacher
from test_student import make_student

from boot.evaluation import evaluate_student


@pytest.fixture(scope="module")
def pair():
    return make_student(PLAIN), make_teacher(PLAIN)


def images(count=12, channels=3, side=8):
    return np.random.default_rng(0).uniform(-1, 1, (count, channels, side, side)).astype("f4")


def evaluate(pair, reference, num_images=12):
    return evaluate_student(*pair, num_images=num_images, num_paired=2, reference=reference)


def test_images_of_the_right_kind(pair):
    shape = pair[0].model.image_shape()
    found = evaluate(pair, images(12, *shape[:2]))
    assert {"frechet_distance", "precision", "recall", "paired_rmse"} <= set(found)


def test_bytes_are_refused_and_numbers_from_0_to_1_warned_of(pair, tmp_path, caplog):
    right = images(12, *pair[0].model.image_shape()[:2])
    as_bytes = ((right + 1) * 127.5).astype(np.uint8)
    np.savez(tmp_path / "bytes.npz", images=as_bytes)
    for reference in (as_bytes, tmp_path / "bytes.npz"):
        with pytest.raises(ValueError, match=r"must be in \[-1, 1\], got 0 ... 25\d; bytes of 0"):
            evaluate(pair, reference)
    evaluate(pair, (right + 1) / 2)
    assert "boot's are in [-1, 1]" in caplog.text


def test_images_of_another_size_are_refused(pair):
    channels = pair[0].model.image_shape()[0]
    with pytest.raises(ValueError, match=r"reference must be of images of \d+ numbers"):
        evaluate(pair, images(12, channels + 1))


def test_too_few_images_are_refused_before_anything_is_computed(pair):
    right = images(12, *pair[0].model.image_shape()[:2])
    with pytest.raises(ValueError, match="num_images: precision and recall need more than 5"):
        evaluate(pair, right, num_images=3)
    with pytest.raises(ValueError, match="reference: precision and recall need more than 5"):
        evaluate(pair, right[:4])
