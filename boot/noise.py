"""Random numbers that depend on (seed, stream, step, sample) only, never on how a batch is split.

Each sample has its own counter range of NumPy's Philox 4x64: key = (seed, stream), counter =
(0, 0, sample, step). So image i of a seed is the same alone, in any batch, for teacher and student,
and the whole state of a training run's randomness is its seed and its step number.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
from numpy.typing import NDArray


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


class _Generator:
    """One Philox generator that can be moved to the start of any sample's counter range."""

    def __init__(self, seed: int, stream: Stream, step: int) -> None:
        self._philox = np.random.Philox(key=np.array([seed, int(stream)], np.uint64))
        self.generator = np.random.Generator(self._philox)
        self._state: Any = self._philox.state  # setting this dict back is 3x faster than a new one
        self._counter = self._state["state"]["counter"]
        self._counter[:] = (0, 0, 0, step)

    def move_to(self, sample: int) -> None:
        self._counter[2] = sample
        self._philox.state = self._state


def normal(
    seed: int, stream: Stream, step: int, first: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Draw standard normal noise of shape (count, ...) for samples first, first + 1, ..."""
    out = np.empty(shape, np.float32)
    source = _Generator(seed, stream, step)
    for i in range(shape[0]):
        source.move_to(first + i)
        source.generator.standard_normal(out=out[i], dtype=np.float32)
    return out


def uniform(seed: int, stream: Stream, step: int, first: int, count: int) -> NDArray[np.float64]:
    """Draw (count,) float64 numbers, uniform in [0, 1), for samples first ... first + count - 1."""
    out = np.empty(count, np.float64)
    source = _Generator(seed, stream, step)
    for i in range(count):
        source.move_to(first + i)
        out[i] = source.generator.random()
    return out


def uniform_array(
    seed: int, stream: Stream, step: int, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Draw one array of float64 numbers, uniform in [0, 1): for weights, not for samples."""
    source = _Generator(seed, stream, step)
    source.move_to(0)
    return source.generator.random(shape)


def choice(
    seed: int, stream: Stream, step: int, first: int, count: int, options: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Draw (count,) elements of `options`, each equally likely."""
    return options[(uniform(seed, stream, step, first, count) * len(options)).astype(np.int64)]
