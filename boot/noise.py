"""Random numbers that depend on (seed, stream, step, sample) only, never on how a batch is split.

Each sample has its own counter range of NumPy's Philox 4x64: key = (seed, stream), counter =
(0, 0, sample, step); its numbers are those that a `numpy.random.Generator` draws there. So image i
of a seed is the same alone, in any batch, for teacher and student, and the whole state of a
training run's randomness is its seed and its step number.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

from boot import _core


class Stream(enum.IntEnum):
    """What a number is for. Values are part of the file format: a resumed run must agree."""

    TRAIN_NOISE = 0
    TRAIN_TIME = 1
    TRAIN_LABEL = 2
    TRAIN_GUIDANCE = 3
    CORRECTION_NOISE = 4
    CORRECTION_TIME = 5
    SAMPLE_NOISE = 16
    SECOND_NOISE = 17  # fresh noise for images that are made already
    CHECK_NOISE = 18
    FIRST_WEIGHTS = 32
    STUDENT_WEIGHTS = 33
    PROBE_NOISE = 48
    TOY = 49


def normal(
    seed: int, stream: Stream, step: int, first: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Draw standard normal noise of shape (count, ...) for samples first, first + 1, ..."""
    return _core.normal(seed, stream, step, first, shape)


def uniform(seed: int, stream: Stream, step: int, first: int, count: int) -> NDArray[np.float64]:
    """Draw (count,) float64 numbers, uniform in [0, 1), for samples first ... first + count - 1."""
    return _core.uniform(seed, stream, step, first, count)


def uniform_array(
    seed: int, stream: Stream, step: int, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Draw one array of float64 numbers, uniform in [0, 1): for weights, not for samples."""
    key = np.array([seed, stream], np.uint64)
    counter = np.array([0, 0, 0, step], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key)).random(shape)


def choice(
    seed: int, stream: Stream, step: int, first: int, count: int, options: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Draw (count,) elements of `options`, each equally likely."""
    return options[(uniform(seed, stream, step, first, count) * len(options)).astype(np.int64)]
