"""Distances between sets of samples: Fréchet distance, precision and recall, paired RMSE.

Everything is computed in float64 with NumPy, in blocks where a full matrix could be large.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from boot.errors import as_ndarray, check_int

Float64 = NDArray[np.float64]

BLOCK_VALUES = 2_000_000  # distances held at once: 16 MB, whatever the number of samples
MANIFOLD_NEIGHBOURS = 5
NEGATIVE_EIGENVALUE = 1e-8  # a covariance may miss being positive by this much of its largest


# --------------------------------------------------------------------------------- input checks


def check_matrix(name: str, value: object, shape: tuple[int | None, ...]) -> Float64:
    """Return a finite C-contiguous float64 array of the given shape (None: any size >= 1)."""
    array = as_ndarray(name, value)
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    right_rank = array.ndim == len(shape)
    if not right_rank or any(
        found == 0 or wanted not in (None, found)
        for found, wanted in zip(array.shape, shape, strict=True)
    ):
        text = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape ({text}), got {array.shape}")
    out = array.astype(np.float64, order="C", copy=False)
    if not np.isfinite(out).all():
        raise ValueError(f"{name} must be finite, got NaN or Inf")
    return out


def check_covariance(name: str, value: object, size: int) -> Float64:
    cov = check_matrix(name, value, (size, size))
    scale = float(np.abs(cov).max())
    if float(np.abs(cov - cov.T).max()) > 1e-6 * scale:
        raise ValueError(f"{name} must be symmetric")
    return (cov + cov.T) / 2


# ------------------------------------------------------------------------------ Fréchet distance


def gaussian_statistics(features: object) -> tuple[Float64, Float64]:
    """Mean (D,) and unbiased covariance (D, D) in float64 of `features` (N, D), N >= 2."""
    rows = check_matrix("features", features, (None, None))
    if len(rows) < 2:
        raise ValueError(f"features must have at least 2 rows for a covariance, got {len(rows)}")
    mean = rows.mean(axis=0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def _square_root(name: str, cov: Float64) -> Float64:
    """Symmetric square root of a positive semi-definite matrix, rounding noise clipped to zero."""
    values, vectors = np.linalg.eigh(cov)
    if values[0] < -NEGATIVE_EIGENVALUE * max(float(values[-1]), 0.0) - 1e-300:
        raise ValueError(
            f"{name} must be positive semi-definite, got an eigenvalue of {values[0]:.3g} "
            f"beside a largest one of {values[-1]:.3g}"
        )
    root: Float64 = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root


def frechet_distance(mean1: object, cov1: object, mean2: object, cov2: object) -> float:
    """Fréchet distance (squared 2-Wasserstein) between two Gaussians, in float64.

    |mean1 - mean2|^2 + tr(cov1) + tr(cov2) - 2 tr((cov1 cov2)^(1/2)); means (D,), covariances
    (D, D) symmetric positive semi-definite. The last trace is taken as the sum of the singular
    values of cov1^(1/2) cov2^(1/2): no square root of a small difference, so rank-deficient
    covariances lose no digits. Source: Dowson and Landau, J. Multivariate Analysis 12 (1982).
    Raises TypeError or ValueError for wrong kinds, shapes, NaN, or a matrix that is no covariance.
    """
    m1 = check_matrix("mean1", mean1, (None,))
    m2 = check_matrix("mean2", mean2, (len(m1),))
    c1 = check_covariance("cov1", cov1, len(m1))
    c2 = check_covariance("cov2", cov2, len(m1))
    product = _square_root("cov1", c1) @ _square_root("cov2", c2)
    overlap = float(np.linalg.svd(product, compute_uv=False).sum())
    distance = float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2.0 * overlap)
    return max(distance, 0.0)


# ------------------------------------------------------------------------- precision and recall


def squared_distances(rows: Float64, columns: Float64) -> Float64:
    """Squared Euclidean distances of all pairs: (N, D), (M, D) -> (N, M)."""
    squares = (rows**2).sum(axis=1)[:, None] + (columns**2).sum(axis=1)[None, :]
    return np.asarray(np.maximum(squares - 2.0 * (rows @ columns.T), 0.0))


def neighbour_radii(points: Float64, k: int) -> Float64:
    """Squared distance of each point to its k-th nearest other point: (N, D) -> (N,)."""
    radii = np.empty(len(points))
    block = max(1, BLOCK_VALUES // len(points))
    for start in range(0, len(points), block):
        distances = squared_distances(points[start : start + block], points)
        own = np.arange(len(distances))
        distances[own, start + own] = np.inf  # a point is not its own neighbour
        radii[start : start + block] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def covered_share(queries: Float64, points: Float64, radii: Float64) -> float:
    """Share of `queries` that lie in the ball of at least one of `points`."""
    covered = 0
    block = max(1, BLOCK_VALUES // len(points))
    for start in range(0, len(queries), block):
        inside = squared_distances(queries[start : start + block], points) <= radii
        covered += int(inside.any(axis=1).sum())
    return covered / len(queries)


def precision_recall(
    real: object, fake: object, k: int = MANIFOLD_NEIGHBOURS
) -> tuple[float, float]:
    """Precision and recall of `fake` (M, D) against `real` (N, D) by k-nearest-neighbour manifolds.

    A set's manifold is the union of balls round its points that reach their k-th nearest other
    point. Precision: share of fake points in the real manifold; recall: share of real points in
    the fake manifold. Both depend on N and M: compare only equal numbers. Distances are made in
    blocks, so memory stays near 16 MB above the inputs. Source: Kynkäänniemi et al. 2019.
    Raises ValueError for k < 1, k not below both N and M, other shapes, NaN or Inf.
    """
    a = check_matrix("real", real, (None, None))
    b = check_matrix("fake", fake, (None, a.shape[1]))
    check_int("k", k, 1, min(len(a), len(b)) - 1)
    centre = a.mean(axis=0)  # near the origin the expanded square keeps its digits
    a, b = a - centre, b - centre
    precision = covered_share(b, a, neighbour_radii(a, k))
    recall = covered_share(a, b, neighbour_radii(b, k))
    return precision, recall


# ----------------------------------------------------------------------------------- paired RMSE


def paired_rmse(a: object, b: object) -> float:
    """Root mean square difference between two arrays of the same shape, pixel by pixel."""
    first = as_ndarray("a", a)
    x = check_matrix("a", first, (None,) * first.ndim)
    y = check_matrix("b", b, x.shape)
    return float(np.sqrt(((x - y) ** 2).mean()))
