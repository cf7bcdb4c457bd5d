"""What sampling starts from, checked in one place for teacher and student: noise and labels."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot.errors import UnsupportedModel, check_int, check_seed
from boot.guidance import Guidance
from boot.image_model import ImageModel, Images
from boot.noise import Stream, normal

Labels = NDArray[np.int64]


@functools.lru_cache(maxsize=64)
def repeated(value: float, count: int) -> NDArray[np.float64]:
    """Return (count,) times `value`, read-only and kept: serving single images asks every time."""
    array = np.full(count, value, np.float64)
    array.flags.writeable = False
    return array


def drawn_labels(model: ImageModel, guidance: Guidance) -> Labels | None:
    """Return the labels to draw from or to go through: (K,) int64, or None if unconditional.

    All rows of the class table, without the null row if guidance is on. Raises UnsupportedModel
    for class embeddings that are not a table: their conditions cannot be enumerated.
    """
    kind = model.config.class_embed_type
    if kind is not None:
        raise UnsupportedModel(
            f"class_embed_type: labels of a {kind!r} embedding cannot be drawn; give class_labels, "
            "or use a model with num_class_embeds"
        )
    if model.config.num_classes is None:
        return None
    labels = np.arange(model.config.num_classes, dtype=np.int64)
    return labels[labels != guidance.null_label] if guidance.active else labels


def sampling_inputs(
    model: ImageModel, guidance: Guidance, n: Any, class_labels: Any, seed: Any, noise: Any
) -> tuple[Images, NDArray[Any] | None]:
    """Return noise (n,C,H,W) float32 and labels (n,) or None, from a seed or as given.

    Teacher and student both come through here, so the same seed gives both the same noise and
    labels, image by image. Raises TypeError, ValueError or OverflowError.
    """
    seed = check_seed("seed", seed)
    if noise is not None:
        noise = model.check_sample("noise", noise)
        if n is not None and check_int("n", n, 1) != len(noise):
            raise ValueError(f"n must be {len(noise)}, the number of images in noise, got {n}")
    elif n is None:
        raise TypeError("n, the number of images, or noise must be given")
    else:
        shape = model.image_shape()
        if shape is None:
            raise ValueError("noise must be given: the model's config has no sample_size")
        noise = normal(seed, Stream.SAMPLE_NOISE, 0, 0, (check_int("n", n, 1, 2**31), *shape))
    if class_labels is None:
        options = drawn_labels(model, guidance)
        return noise, None if options is None else options[np.arange(len(noise)) % len(options)]
    return noise, model.check_labels("class_labels", class_labels, len(noise))
