"""A teacher's model that is any Python callable: `function(x_t, t, condition) -> array`.

It is asked for values only, never for gradients, so anything that computes will do: NumPy, an ONNX
Runtime session, a torch module under `no_grad`, a process on another machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot.errors import TeacherError, check_array, check_computed, check_int, shown, type_name
from boot.image_model import ImageModel, Images
from boot.noise import Stream, normal
from boot.schedule import Schedule

Function = Callable[[Images, NDArray[np.float64], NDArray[np.int64] | None], Any]

# A call takes about this many numbers: bounds the memory of a callable that we know nothing about.
_CHUNK_NUMBERS = 2**18
_CHUNK_IMAGES = 256

_PROBE_TIMES = (0.05, 0.5, 0.95)  # what the fingerprint looks at


class BadOutput(TeacherError):
    """A callable returned something of another type, shape or kind of number than it must."""


@dataclass(frozen=True)
class CallableConfig:
    """What is known of a callable: the shape of its images and its number of class labels."""

    in_channels: int
    sample_size: int | tuple[int, int]
    num_class_embeds: int | None = None
    class_embed_type: str | None = None
    time_embedding_type: str = "callable"
    time_dim: int = 0
    size_multiple: int = 1

    @property
    def num_classes(self) -> int | None:
        """Number of class labels, the null label included; None if unconditional."""
        return self.num_class_embeds


class CallableModel(ImageModel):
    """A function behind checks of what it returns. `null_label`: the label of "no class", or None.

    The function gets copies, and what it returns is copied: it may reuse and overwrite both.
    """

    def __init__(
        self,
        function: Function,
        sample_shape: Any,
        num_classes: int | None,
        null_class_label: int | None,
        name: str,
        fingerprint: str | None = None,
    ) -> None:
        """Check the arguments, see `Teacher.from_callable`; the function is not called yet."""
        if not callable(function):
            raise TypeError(
                f"function must be callable, got {shown(function)} ({type_name(function)})"
            )
        channels, height, width = _check_shape(sample_shape)
        if num_classes is not None:
            num_classes = check_int("num_classes", num_classes, 1, 2**31)
        if null_class_label is not None:
            if num_classes is None:
                raise ValueError("null_class_label must be None where num_classes is None")
            null_class_label = check_int("null_class_label", null_class_label, 0, num_classes - 1)
        size = height if height == width else (height, width)
        self.config = CallableConfig(channels, size, num_classes)
        self.function, self.null_label, self.name = function, null_class_label, name
        self.shape = (channels, height, width)
        self._given_fingerprint = fingerprint
        for key, text in (("name", name), ("fingerprint", fingerprint)):
            if not (isinstance(text, str) and text) and (key == "name" or text is not None):
                raise TypeError(f"{key} must be a text, got {shown(text)} ({type_name(text)})")

    def __repr__(self) -> str:
        """Show the function and the shape of its images."""
        return f"CallableModel({shown(self.function)}, {self.shape})"

    def chunk_size(self, height: int, width: int) -> int:
        """Return how many images one call of the function takes at most."""
        per_image = height * width * self.config.in_channels
        return max(1, min(_CHUNK_IMAGES, _CHUNK_NUMBERS // per_image))

    def check_sample(self, name: str, value: Any) -> Images:
        """Return images as (N,C,H,W) float32 of the declared shape; TypeError or ValueError."""
        return check_array(name, value, (None, *self.shape))

    def forward(
        self,
        sample: Images,
        timesteps: NDArray[np.float64],
        class_labels: NDArray[Any] | None = None,
    ) -> Images:
        """Call the function on chunks. Raises TeacherError for what it must not return.

        FloatingPointError where its input is not finite: that is not the function's fault.
        """
        check_computed("the teacher's input", sample)
        out = np.empty_like(sample)
        size = self.chunk_size(sample.shape[2], sample.shape[3])
        for begin in range(0, len(sample), size):
            rows = slice(begin, begin + size)
            labels = None if class_labels is None else class_labels[rows].copy()
            out[rows] = self._call(sample[rows].copy(), timesteps[rows].copy(), labels)
        return out

    def _call(self, x: Images, t: NDArray[np.float64], labels: NDArray[np.int64] | None) -> Images:
        shape, times = x.shape, t.copy()
        value = self.function(x, t, labels)
        where = (
            f"t = {times[0]:g}" if len(times) == 1 else f"t in {times.min():g} ... {times.max():g}"
        )
        try:
            output = check_array("the output", value, shape, finite=False)
        except (TypeError, ValueError) as problem:
            raise BadOutput(f"{self.name}: {problem}, when called with {where}") from None
        finite = np.isfinite(output.reshape(len(output), -1))
        if not finite.all():
            image = int(np.argmin(finite.all(axis=1)))
            count = finite.shape[1] - int(np.count_nonzero(finite[image]))
            raise TeacherError(
                f"{self.name}: the output has {count} NaN or Inf of {finite.shape[1]} numbers at "
                f"t = {times[image]:g} (image {image} of {len(output)})"
            )
        return output

    def fingerprint(self, schedule: Schedule, prediction_type: str) -> str:
        """Return a SHA-256 (hex) of the settings, and of the given text or the outputs on probes.

        Probes: fixed noise at three times, in one call.
        """
        if self._given_fingerprint is not None:
            probed = self._given_fingerprint
        else:
            probed = self._probe(schedule)
        table = hashlib.sha256(schedule.table().tobytes()).hexdigest()
        settings: list[Any] = [type(schedule).__name__, table, prediction_type, self.shape]
        settings += [self.config.num_classes, self.null_label, probed]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def _probe(self, schedule: Schedule) -> str:
        times = np.array(_PROBE_TIMES)
        alpha, sigma = schedule.alpha_sigma(times)
        noise = normal(0, Stream.PROBE_NOISE, 0, 0, (len(times), *self.shape))
        x = noise * np.hypot(alpha, sigma).astype(np.float32).reshape(-1, 1, 1, 1)
        rows = self.config.num_classes
        labels = None if rows is None else np.arange(len(times), dtype=np.int64) % rows
        output = self.forward(x, schedule.timestep(times), labels)
        return hashlib.sha256(output.astype("<f4").tobytes()).hexdigest()


def _check_shape(value: Any) -> tuple[int, int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise TypeError(f"sample_shape must be (channels, height, width), got {shown(value)}")
    channels, height, width = (
        check_int(f"sample_shape[{i}]", size, 1, 2**20) for i, size in enumerate(value)
    )
    return channels, height, width
