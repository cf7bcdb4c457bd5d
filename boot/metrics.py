"""Sample quality without torch: statistics of real images, and how far samples are from them.

Features are the images' own pixels unless the caller brings a feature function, so the numbers
compare only with numbers made the same way. The distances themselves are in `boot.distances`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from boot.distances import (
    BLOCK_VALUES,
    MANIFOLD_NEIGHBOURS,
    Float64,
    check_covariance,
    check_matrix,
    frechet_distance,
    gaussian_statistics,
    paired_rmse,
    precision_recall,
    squared_distances,
)
from boot.errors import FormatError, check_int, check_labels, check_path, listed
from boot.files import write_atomically
from boot.reading import impostor, open_regular

__all__ = [
    "KernelClassifier",
    "Statistics",
    "frechet_distance",
    "gaussian_statistics",
    "image_features",
    "measure",
    "paired_rmse",
    "precision_recall",
]

FeatureFunction = Callable[[NDArray[np.float32]], Any]

MANIFOLD_SAMPLES = 1500  # images per side of precision and recall; both depend on this number
ARCHIVE_MAX_BYTES = 4 * 2**30  # unpacked

# ------------------------------------------------------------------------------------ classifier


def _largest(scores: Float64) -> NDArray[np.int64]:
    return np.asarray(scores.argmax(axis=1), np.int64)


@dataclass(frozen=True)
class KernelClassifier:
    """One-against-the-rest classifier on Gaussian kernels: small, stored as plain arrays.

    score(x)_c = sum_k coefficients[k, c] exp(-gamma |x - landmarks[k]|^2) + intercept[c].
    landmarks (K, D), coefficients (K, classes), intercept (classes,), gamma > 0.
    """

    landmarks: Float64
    coefficients: Float64
    intercept: Float64
    gamma: float

    def __post_init__(self) -> None:
        landmarks = check_matrix("landmarks", self.landmarks, (None, None))
        coefficients = check_matrix("coefficients", self.coefficients, (len(landmarks), None))
        intercept = check_matrix("intercept", self.intercept, (coefficients.shape[1],))
        if not (np.isfinite(self.gamma) and self.gamma > 0):
            raise ValueError(f"gamma must be finite and > 0, got {self.gamma}")
        object.__setattr__(self, "landmarks", landmarks)
        object.__setattr__(self, "coefficients", coefficients)
        object.__setattr__(self, "intercept", intercept)

    def scores(self, features: object) -> Float64:
        """Class scores (N, classes) of `features` (N, D)."""
        rows = check_matrix("features", features, (None, self.landmarks.shape[1]))
        out = np.empty((len(rows), len(self.intercept)))
        block = max(1, BLOCK_VALUES // len(self.landmarks))
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            kernel = np.exp(-self.gamma * squared_distances(rows[part], self.landmarks))
            out[part] = kernel @ self.coefficients + self.intercept
        return out

    def predict(self, features: object) -> NDArray[np.int64]:
        """Most likely class (N,) of each row of `features` (N, D)."""
        return _largest(self.scores(features))


# ------------------------------------------------------------------------------------ statistics


def image_features(images: object, features: FeatureFunction | None = None) -> Float64:
    """Feature rows (N, D) of `images` (N, C, H, W): `features(images)`, else the pixels in a row.

    `features` gets the images as float32 and returns anything an array can be made of, (N, D).
    """
    pixels = check_matrix("images", images, (None, None, None, None))
    if features is None:
        return pixels.reshape(len(pixels), -1)
    if not callable(features):
        raise TypeError(f"features must be a function of the images, got {type(features).__name__}")
    return check_matrix(
        "features(images)", features(pixels.astype(np.float32)), (len(pixels), None)
    )


@dataclass(frozen=True)
class Statistics:
    """What is kept of a set of real images: enough to measure samples without the images.

    mean (D,), cov (D, D): the Gaussian of the projected features. offset (P,), components (P, D):
    the projection (x - offset) @ components, absent when features are used as they are.
    reference (N, D): projected features for precision and recall. labels (N,): their classes.
    class_means (classes, D), classifier: for class accuracy; the classifier goes first.
    """

    mean: Float64
    cov: Float64
    offset: Float64 | None = None
    components: Float64 | None = None
    reference: Float64 | None = None
    labels: NDArray[np.int64] | None = None
    class_means: Float64 | None = None
    classifier: KernelClassifier | None = None

    def __post_init__(self) -> None:
        mean = check_matrix("mean", self.mean, (None,))
        size = len(mean)
        checked: dict[str, object] = {"mean": mean, "cov": check_covariance("cov", self.cov, size)}
        if (self.offset is None) != (self.components is None):
            raise ValueError("offset and components belong together: give both or neither")
        if self.offset is not None:
            checked["offset"] = offset = check_matrix("offset", self.offset, (None,))
            shape = (len(offset), size)
            checked["components"] = check_matrix("components", self.components, shape)
        if self.reference is not None:
            checked["reference"] = check_matrix("reference", self.reference, (None, size))
        if self.class_means is not None:
            checked["class_means"] = check_matrix("class_means", self.class_means, (None, size))
        if self.labels is not None:
            if self.reference is None:
                raise ValueError("labels belong to reference features, and there are none")
            count = len(cast(Float64, checked["reference"]))
            checked["labels"] = check_labels("labels", self.labels, count, 2**31)
        if self.classifier is not None and self.classifier.landmarks.shape[1] != size:
            found = self.classifier.landmarks.shape[1]
            raise ValueError(f"the classifier must take {size} features, got one for {found}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        kept = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        return f"Statistics({len(self.mean)} features; {', '.join(kept)})"

    @classmethod
    def from_features(
        cls,
        features: object,
        labels: object = None,
        *,
        num_components: int | None = None,
        classifier: KernelClassifier | None = None,
    ) -> Statistics:
        """Statistics of feature rows (N, D), kept as the reference; labels (N,) give class means.

        num_components: project on so many leading principal components first (None: use as is).
        """
        rows = check_matrix("features", features, (None, None))
        offset = components = None
        if num_components is not None:
            check_int("num_components", num_components, 1, rows.shape[1])
            offset, cov = gaussian_statistics(rows)
            components = np.linalg.eigh(cov)[1][:, ::-1][:, :num_components].copy()
            rows = (rows - offset) @ components
        mean, cov = gaussian_statistics(rows)
        classes = means = None
        if labels is not None:
            classes = check_labels("labels", labels, len(rows), 2**31)
            present = np.unique(classes)
            if len(present) != present[-1] + 1:
                raise ValueError(
                    f"labels must use every class of 0 ... {present[-1]} at least once"
                )
            means = np.stack([rows[classes == label].mean(axis=0) for label in present])
        return cls(mean, cov, offset, components, rows, classes, means, classifier)

    @classmethod
    def from_images(
        cls,
        images: object,
        labels: object = None,
        *,
        num_components: int | None = None,
        features: FeatureFunction | None = None,
    ) -> Statistics:
        """Statistics of real images (N, C, H, W); see `from_features` and `image_features`."""
        rows = image_features(images, features)
        return cls.from_features(rows, labels, num_components=num_components)

    def project(self, features: object) -> Float64:
        """Rows of raw features (N, P) -> the (N, D) that mean, cov and reference are made of."""
        if self.offset is None or self.components is None:
            return check_matrix("features", features, (None, len(self.mean)))
        rows = check_matrix("features", features, (None, len(self.offset)))
        return (rows - self.offset) @ self.components

    def classify(self, projected: object) -> NDArray[np.int64]:
        """Class (N,) of each projected row: by the classifier, else by the nearest class mean."""
        if self.classifier is not None:
            return self.classifier.predict(projected)
        if self.class_means is None:
            raise ValueError("these statistics hold neither a classifier nor class means")
        rows = check_matrix("projected", projected, (None, len(self.mean)))
        return _largest(-squared_distances(rows, self.class_means))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a compressed .npz under exactly this name, atomically; returns the path."""
        target = check_path("path", path)
        arrays = _to_arrays(self)
        write_atomically(target, lambda file: np.savez_compressed(file, **cast(Any, arrays)))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read what `save` wrote; pickled arrays are refused.

        Raises FileNotFoundError, IsADirectoryError, PermissionError, or FormatError naming the
        file and what is wrong with it.
        """
        source = check_path("path", path)
        arrays = read_archive(source)
        try:
            return _from_arrays(arrays)
        except (TypeError, ValueError) as problem:
            raise FormatError(f"{source}: {problem}") from None


_CLASSIFIER = "classifier_"  # its four arrays lie beside the others under this prefix


def read_archive(path: Path, only_with: str | None = None) -> dict[str, NDArray[Any]]:
    """Read the arrays of an .npz file: none of them if `only_with` is given and not among them.

    Raises FileNotFoundError, IsADirectoryError, PermissionError, or FormatError naming the file.
    """
    with open_regular(path) as file:
        head = file.read(64)
        file.seek(0)
        if not head.startswith(b"PK\x03\x04"):  # what an .npz is: a zip archive
            kind = impostor(head) or "not an .npz archive"
            raise FormatError(f"{path}: must be an .npz of statistics or images, but it is {kind}")
        try:
            with cast(Any, np.load(file, allow_pickle=False)) as archive:
                size = sum(entry.file_size for entry in archive.zip.infolist())
                if size > ARCHIVE_MAX_BYTES:
                    raise FormatError(
                        f"{path}: {size} bytes unpacked, at most {ARCHIVE_MAX_BYTES} are allowed"
                    )
                if only_with and only_with not in archive.files:
                    return {}
                return {name: archive[name] for name in archive.files}
        except FormatError:
            raise
        except Exception as problem:  # zip, zlib and NumPy raise a dozen kinds for broken input
            raise FormatError(f"{path} is not a readable .npz: {problem}") from None


def _to_arrays(statistics: Statistics) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for field in fields(statistics):
        value = getattr(statistics, field.name)
        if isinstance(value, KernelClassifier):
            for part in fields(value):
                arrays[_CLASSIFIER + part.name] = np.asarray(getattr(value, part.name))
        elif value is not None:
            arrays[field.name] = _smallest(value)
    return arrays


def _smallest(array: NDArray[Any]) -> NDArray[Any]:
    """The same values in the smallest type that holds every one of them exactly."""
    for dtype in (np.uint8, np.float16, np.float32):
        with np.errstate(over="ignore", invalid="ignore"):
            small = array.astype(dtype)
        if np.array_equal(small.astype(array.dtype), array):
            return small
    return array


def _from_arrays(arrays: dict[str, NDArray[Any]]) -> Statistics:
    plain = {f.name for f in fields(Statistics)} - {"classifier"}
    parts = {_CLASSIFIER + f.name for f in fields(KernelClassifier)}
    unknown = sorted(set(arrays) - plain - parts)
    if unknown:
        raise FormatError(f"unknown arrays: {listed(unknown)}; allowed: {listed(plain | parts)}")
    needed = {"mean", "cov"} | (parts if parts & set(arrays) else set())
    missing = sorted(needed - set(arrays))
    if missing:
        raise FormatError(f"missing arrays: {listed(missing)}")
    values: dict[str, Any] = {name: arrays[name] for name in plain & set(arrays)}
    if parts & set(arrays):
        kernel = {f.name: arrays[_CLASSIFIER + f.name] for f in fields(KernelClassifier)}
        gamma = float(check_matrix("classifier_gamma", kernel.pop("gamma"), ()))
        values["classifier"] = KernelClassifier(**kernel, gamma=gamma)
    return Statistics(**values)


# ------------------------------------------------------------------------------------ everything


def measure(
    images: object,
    statistics: Statistics,
    labels: object = None,
    *,
    features: FeatureFunction | None = None,
    k: int = MANIFOLD_NEIGHBOURS,
    manifold_samples: int = MANIFOLD_SAMPLES,
) -> dict[str, float]:
    """Measure sampled `images` (N, C, H, W) against `statistics` of real ones.

    Returns `frechet_distance`; with reference features also `precision` and `recall` (on at most
    `manifold_samples` of each side, spread evenly over both sets); with `labels` (N,) and a
    classifier or class means also `class_accuracy`. `features` must be the function that the
    statistics were made with (None: pixels).
    """
    rows = statistics.project(image_features(images, features))
    mean, cov = gaussian_statistics(rows)
    numbers = {"frechet_distance": frechet_distance(statistics.mean, statistics.cov, mean, cov)}
    if statistics.reference is not None:
        check_int("manifold_samples", manifold_samples, 2)
        real = _spread(statistics.reference, manifold_samples)
        precision, recall = precision_recall(real, _spread(rows, manifold_samples), k)
        numbers |= {"precision": precision, "recall": recall}
    if labels is not None:
        wanted = check_labels("labels", labels, len(rows), 2**31)
        numbers["class_accuracy"] = float((statistics.classify(rows) == wanted).mean())
    return numbers


def _spread(rows: Float64, count: int) -> Float64:
    """`count` rows at even distances: sets ordered by class keep their shares."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
