"""The latent space of a student, its start noise: swap classes, sweep the guidance, interpolate.

A student is a function of (noise, class, guidance scale). Each helper here holds two of them still
and moves the third. All return images (rows, columns, C, H, W) float32 in [-1, 1], for `as_grid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boot.errors import check_array, check_int, check_timesteps, shown, type_name
from boot.images import ImageGrid, make_grid
from boot.inputs import drawn_labels
from boot.network import Images
from boot.student import Student


def slerp(a: Any, b: Any, share: Any) -> Images:
    """Return the spherical interpolation between two noises, sample by sample.

    a, b: (N,C,H,W) float; share: a number or (N,) in [0, 1], 0 gives a and 1 gives b. Returns
    (N,C,H,W) float32. With theta the angle between a_i and b_i (Shoemake 1985),

        (sin((1 - share) theta) a + sin(share theta) b) / sin(theta)

    which keeps the length of noise, where a straight line would pass through shorter vectors than
    the student has ever seen. Parallel vectors are interpolated linearly. Raises ValueError for
    shapes that differ, shares out of range or numbers that are not finite.
    """
    a = check_array("a", a, (None, None, None, None)).astype(np.float64)
    b = check_array("b", b, a.shape).astype(np.float64)
    s = check_timesteps("share", share, len(a), 0.0, 1.0)
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    lengths = np.linalg.norm(flat_a, axis=1) * np.linalg.norm(flat_b, axis=1)
    dots = (flat_a * flat_b).sum(axis=1)
    cosine = np.divide(dots, lengths, out=np.ones_like(dots), where=lengths > 0)
    theta = np.arccos(np.clip(cosine, -1.0, 1.0))
    sine = np.sin(theta)
    apart = sine > 1e-6
    safe = np.where(apart, sine, 1.0)
    left = np.where(apart, np.sin((1.0 - s) * theta) / safe, 1.0 - s)
    right = np.where(apart, np.sin(s * theta) / safe, s)
    shape = (-1, 1, 1, 1)
    result: Images = (left.reshape(shape) * a + right.reshape(shape) * b).astype(np.float32)
    return result


def class_swap(
    student: Student,
    n: int = 4,
    *,
    class_labels: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
) -> Images:
    """Draw each of `n` noises as every class: rows are noises, columns classes.

    class_labels: a list of one or more classes; None: all that were trained. Raises ValueError for
    a student without classes, or as `Student.sample` does.
    """
    rows = check_int("n", n, 1)
    if class_labels is None:
        labels = drawn_labels(student.model, student.info.guidance)
        if labels is None:
            raise ValueError("student must be class-conditional to swap classes")
    else:
        count = _check_list("class_labels", class_labels)
        labels = student.model.check_labels("class_labels", class_labels, count)
        assert labels is not None
    eps = _noise(student, rows, seed)
    return _table(student, eps, len(labels), np.tile(labels, rows), guidance_scale)


def guidance_sweep(
    student: Student,
    guidance_scales: Sequence[float],
    n: int = 4,
    *,
    class_labels: Any = None,
    seed: int = 0,
) -> Images:
    """Draw each of `n` noises at every guidance scale: rows are noises, columns scales.

    guidance_scales: a list of one or more; the student must have been distilled for a range that
    holds them. class_labels: as for
    `Student.sample`, one a row. Raises TypeError or ValueError before computing.
    """
    columns = _check_list("guidance_scales", guidance_scales)
    scales = student.check_scales(guidance_scales, columns)
    eps, labels = student.inputs(n, class_labels=class_labels, seed=seed)
    rows = len(eps)
    labels = None if labels is None else np.repeat(labels, columns)
    return _table(student, eps, columns, labels, np.tile(scales, rows))


def interpolate(
    student: Student,
    n: int = 4,
    *,
    steps: int = 8,
    class_labels: Any = None,
    guidance_scale: float | None = None,
    seed: int = 0,
) -> Images:
    """Walk from one noise to another in `steps` images (2 or more), ends included: `n` rows.

    Row i goes from noise i to noise n + i of the seed by `slerp`, with one class. class_labels: as
    for `Student.sample`, one a row. Raises TypeError or ValueError before computing.
    """
    columns, rows = check_int("steps", steps, 2), check_int("n", n, 1)
    labels = student.inputs(rows, class_labels=class_labels, seed=seed)[1]
    ends = _noise(student, 2 * rows, seed)
    shares = np.tile(np.linspace(0.0, 1.0, columns), rows)
    a, b = (np.repeat(end, columns, axis=0) for end in (ends[:rows], ends[rows:]))
    labels = None if labels is None else np.repeat(labels, columns)
    path = slerp(a, b, shares)
    images = student.sample(noise=path, class_labels=labels, guidance_scale=guidance_scale)
    return images.reshape(rows, columns, *images.shape[1:])


def as_grid(images: Any, *, scale: int | None = None) -> ImageGrid:
    """Return images (rows, columns, C, H, W) as one picture, see `images.make_grid`."""
    array = np.asarray(images)
    if array.ndim != 5:
        raise ValueError(f"images must have shape (rows, columns, C, H, W), got {array.shape}")
    return make_grid(array.reshape(-1, *array.shape[2:]), columns=array.shape[1], scale=scale)


def _check_list(name: str, value: Any) -> int:
    """Return the length of a list of values; TypeError for what is none, ValueError if empty."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or np.ndim(value) == 0:
        raise TypeError(f"{name} must be a list, got {shown(value)} ({type_name(value)})")
    if len(value) == 0:
        raise ValueError(f"{name} must not be empty")
    return len(value)


def _noise(student: Student, count: int, seed: int) -> Images:
    return student.inputs(count, seed=seed)[0]


def _table(
    student: Student, eps: Images, columns: int, labels: NDArray[Any] | None, scales: Any
) -> Images:
    """Sample every noise `columns` times; labels and scales go row by row."""
    repeated = np.repeat(eps, columns, axis=0)
    images = student.sample(noise=repeated, class_labels=labels, guidance_scale=scales)
    return images.reshape(len(eps), columns, *images.shape[1:])
