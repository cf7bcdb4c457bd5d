"""How far a student is from its teacher, at equal noise, and how good its images are."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np

from boot.choices import SOLVERS
from boot.distances import MANIFOLD_NEIGHBOURS
from boot.errors import FormatError, check_choice, check_float, check_int, check_path
from boot.metrics import (
    FeatureFunction,
    Statistics,
    measure,
    paired_rmse,
    read_archive,
)
from boot.network import Images
from boot.refine import check_pair
from boot.resolve import teaching_of
from boot.schedule import Float64
from boot.signal_ode import training_times, trajectory
from boot.student import Student
from boot.teacher import Teacher

_log = logging.getLogger("boot")


def teacher_signals(
    student: Student,
    teacher: Teacher,
    noise: Images,
    labels: Any,
    *,
    delta: float = 0.0,
    solver: str = "euler",
    times: Float64 | None = None,
) -> tuple[Float64, list[Images]]:
    """Return the times and signals y of the teacher's ODE from t_max to t_min in steps of delta.

    noise: (N,C,H,W); labels: (N,) or None. times: falling, instead of steps of delta. Guidance is
    the student's. This is the path that the student was trained to jump along: with its own delta
    and solver, the fixed point of its loss.
    """
    info = student.info
    if times is None:
        times = training_times(teacher.schedule, info.t_max, info.t_min, delta)
    guidance, clip = teaching_of(info, teacher)
    size = teacher.model.chunk_size(noise.shape[2], noise.shape[3])
    learned = teacher.model.config.time_embedding_type == "learned"
    grid = teacher.schedule.num_train_timesteps if learned else None
    parts: list[list[Images]] = []
    for begin in range(0, len(noise), size):
        rows = slice(begin, begin + size)
        chosen = None if labels is None else labels[rows]

        def signal(x: Images, t: Float64, chosen: Any = chosen) -> Images:
            return teacher.signal(x, t, chosen, guidance, clip)

        parts.append(trajectory(teacher.schedule, signal, noise[rows], times, solver, grid))
    return times, [np.concatenate(images) for images in zip(*parts, strict=True)]


def evaluate_student(
    student: Student,
    teacher: Teacher,
    *,
    num_images: int = 2000,
    num_paired: int = 256,
    reference: Any = None,
    features: FeatureFunction | None = None,
    delta: float | None = None,
    solver: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a student; needs no data unless a reference is given.

    paired_rmse: root mean square difference between student and teacher ODE at equal noise and
    labels, over num_paired images in [-1, 1]; solver ("euler" is DDIM) and delta (of a sub-step)
    default to those of the training. With `reference` - a Statistics, the path of one, or real
    images (N,C,H,W) as an array or a file with `images` - also frechet_distance, precision, recall,
    and class_accuracy if the reference has classes, over num_images. features: a function from
    images (N,C,H,W) to rows (N,D) for the Fréchet distance, precision and recall; None: pixels.
    Raises TypeError, ValueError or FormatError before computing.
    """
    count = check_int("num_images", num_images, 2)
    paired = check_int("num_paired", num_paired, 1)
    trained = student.info.settings()
    if delta is None:
        delta = trained.delta / trained.teacher_substeps
    delta = check_float("delta", delta, 0, 1, above=True)
    solver = check_choice("solver", trained.solver if solver is None else solver, SOLVERS)
    check_pair(student, teacher)
    statistics = None if reference is None else load_reference(reference, features)
    if statistics is not None:
        _check_counts(statistics, count, student, features)
    noise, labels = student.inputs(paired, seed=seed)
    times, signals = teacher_signals(student, teacher, noise, labels, delta=delta, solver=solver)
    images = student.sample(noise=noise, class_labels=labels)
    result: dict[str, Any] = {
        "paired_rmse": paired_rmse(images, np.clip(signals[-1], -1.0, 1.0)),
        "paired_images": paired,
        "teacher_steps": len(times) - 1,
        "delta": delta,
        "solver": solver,
    }
    if statistics is not None:
        noise, labels = student.inputs(count, seed=seed)
        images = student.sample(noise=noise, class_labels=labels)
        classes = statistics.classifier is not None or statistics.class_means is not None
        result["num_images"] = count
        result |= measure(images, statistics, labels if classes else None, features=features)
    return result


def _check_counts(
    statistics: Statistics, count: int, student: Student, features: FeatureFunction | None
) -> None:
    """Require images of the student's shape, and enough of them on both sides."""
    shape = student.model.image_shape()
    pixels = len(statistics.mean if statistics.offset is None else statistics.offset)
    if features is None and shape is not None and pixels != np.prod(shape):
        size = "x".join(map(str, shape))
        raise ValueError(
            f"reference must be of images of {np.prod(shape)} numbers ({size}), got {pixels}"
        )
    if statistics.reference is None:
        return
    for name, number in (("num_images", count), ("reference", len(statistics.reference))):
        if number <= MANIFOLD_NEIGHBOURS:
            raise ValueError(
                f"{name}: precision and recall need more than {MANIFOLD_NEIGHBOURS} images, got "
                f"{number}"
            )


def _check_range(images: Any) -> None:
    """Require real images in [-1, 1], or nearly; warn of those that look like [0, 1]."""
    array = np.asarray(images)
    if array.dtype.kind not in "fiu" or array.size == 0:
        return  # others say what is wrong
    low, high = float(array.min()), float(array.max())
    if max(-low, high) > 10:
        raise ValueError(
            f"reference images must be in [-1, 1], got {low:g} ... {high:g}; bytes of 0 ... 255 "
            "become so by / 127.5 - 1"
        )
    if low >= 0 or max(-low, high) > 1.01:
        _log.warning("reference images are in [%g, %g]; boot's are in [-1, 1]", low, high)


def load_reference(reference: Any, features: FeatureFunction | None = None) -> Statistics:
    """Return statistics of real images from a Statistics, images (N,C,H,W), or a file of either.

    A file is an `.npz` written by `Statistics.save`, or one with an array `images` in [-1, 1] and
    perhaps `labels`. Raises FileNotFoundError, IsADirectoryError or FormatError for bad files.
    """
    if isinstance(reference, Statistics):
        return reference
    if not isinstance(reference, (str, os.PathLike)):
        _check_range(reference)
        return Statistics.from_images(reference, features=features)
    path = check_path("reference", reference)
    if path.is_dir():
        raise IsADirectoryError(f"reference must be a file, but {str(path)!r} is a folder")
    if not path.exists():
        raise FileNotFoundError(f"reference: there is no file {str(path)!r}")
    arrays = read_archive(path, only_with="images")
    if not arrays:
        return Statistics.load(path)
    try:
        _check_range(arrays["images"])
        return Statistics.from_images(
            arrays["images"], arrays.get("labels", arrays.get("class_labels")), features=features
        )
    except (TypeError, ValueError) as problem:
        raise FormatError(f"{path}: {problem}") from None
