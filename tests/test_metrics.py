"""Metrics against closed forms, brute force, and real digits that the classifier has not seen."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

import boot
from boot import distances
from boot.errors import FormatError
from boot.metrics import (
    KernelClassifier,
    Statistics,
    frechet_distance,
    gaussian_statistics,
    measure,
    paired_rmse,
    precision_recall,
)

REFERENCE = Path(boot.__file__).parent / "data" / "digits_reference.npz"


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def random_covariance(rng, size, rank=None):
    factor = rng.standard_normal((size, rank or size))
    return factor @ factor.T / size


# ------------------------------------------------------------------------------ Fréchet distance


def test_frechet_distance_of_diagonal_gaussians(rng):
    m1, m2 = rng.standard_normal((2, 9))
    s1, s2 = rng.uniform(0.1, 3, (2, 9))
    wanted = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet_distance(m1, np.diag(s1**2), m2, np.diag(s2**2)) == pytest.approx(wanted)


def test_frechet_distance_of_one_dimension():
    assert frechet_distance([1.0] * np.ones(1), [[4.0]] * np.ones(1), np.zeros(1), np.eye(1)) == 2.0


def test_frechet_distance_of_two_by_two_matrices(rng):
    """Tr sqrt(M) of a 2x2 matrix is sqrt(tr M + 2 sqrt(det M)): no eigenvalues needed."""
    c1, c2 = random_covariance(rng, 2), random_covariance(rng, 2)
    product = c1 @ c2
    root_trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    wanted = np.trace(c1) + np.trace(c2) - 2 * root_trace
    assert frechet_distance(np.zeros(2), c1, np.zeros(2), c2) == pytest.approx(wanted)


def test_frechet_distance_is_the_cost_of_the_optimal_map(rng):
    """N(0, C) moved by a positive definite A becomes N(0, A C A) at cost tr((A - I) C (A - I))."""
    c = random_covariance(rng, 12)
    a = random_covariance(rng, 12) + 0.1 * np.eye(12)
    shift = a - np.eye(12)
    wanted = np.trace(shift @ c @ shift)
    assert frechet_distance(np.zeros(12), c, np.zeros(12), a @ c @ a) == pytest.approx(wanted)


def test_frechet_distance_to_itself_is_zero_even_if_rank_deficient(rng):
    c = random_covariance(rng, 40, rank=5)
    assert frechet_distance(np.ones(40), c, np.ones(40), c) < 1e-12


def test_frechet_distance_of_disjoint_directions_is_the_sum_of_traces():
    c1, c2 = np.diag([2.0, 0, 0]), np.diag([0, 0, 3.0])
    assert frechet_distance(np.zeros(3), c1, np.zeros(3), c2) == pytest.approx(5.0)


def test_frechet_distance_is_symmetric_and_ignores_rotation(rng):
    m, c1, c2 = rng.standard_normal(6), random_covariance(rng, 6), random_covariance(rng, 6)
    q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    wanted = frechet_distance(m, c1, np.zeros(6), c2)
    assert frechet_distance(np.zeros(6), c2, m, c1) == pytest.approx(wanted)
    turned = frechet_distance(q @ m, q @ c1 @ q.T, np.zeros(6), q @ c2 @ q.T)
    assert turned == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((np.zeros(3), np.eye(3), np.zeros(2), np.eye(2)), ValueError, "mean2"),
        ((np.zeros(3), np.eye(2), np.zeros(3), np.eye(3)), ValueError, "cov1"),
        ((np.zeros((3, 1)), np.eye(3), np.zeros(3), np.eye(3)), ValueError, "mean1"),
        ((np.zeros(2), -np.eye(2), np.zeros(2), np.eye(2)), ValueError, "positive semi-definite"),
        ((np.zeros(2), np.eye(2), np.zeros(2), np.array([[1, 0.5], [0, 1]])), ValueError, "cov2"),
        ((np.zeros(2), np.eye(2), np.array([0, np.nan]), np.eye(2)), ValueError, "finite"),
        ((np.zeros(2), np.eye(2), np.array(["a", "b"]), np.eye(2)), TypeError, "real numbers"),
        ((0.0, np.eye(2), np.zeros(2), np.eye(2)), TypeError, "mean1"),
    ],
)
def test_frechet_distance_refuses(arguments, error, says):
    with pytest.raises(error, match=says):
        frechet_distance(*arguments)


def test_gaussian_statistics_of_a_known_set():
    mean, cov = gaussian_statistics(np.array([[0, 0], [2, 0], [0, 4], [2, 4]], np.float32))
    assert mean.tolist() == [1, 2]
    assert cov == pytest.approx(np.diag([4 / 3, 16 / 3]))
    with pytest.raises(ValueError, match="at least 2"):
        gaussian_statistics(np.zeros((1, 2)))


# -------------------------------------------------------------------------- precision and recall


def slow_coverage(queries, points, k):
    """Share of queries in a ball, one pair at a time."""
    covered = 0
    radii = []
    for i, p in enumerate(points):
        others = sorted(np.linalg.norm(p - q) for j, q in enumerate(points) if j != i)
        radii.append(others[k - 1])
    for q in queries:
        covered += any(np.linalg.norm(q - p) <= r for p, r in zip(points, radii, strict=True))
    return covered / len(queries)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_matches_brute_force(rng, k):
    real = rng.standard_normal((60, 4)) + 5.0
    fake = 0.7 * rng.standard_normal((45, 4)) + 5.3
    wanted = slow_coverage(fake, real, k), slow_coverage(real, fake, k)
    assert precision_recall(real, fake, k) == wanted
    assert 0.1 < wanted[1] < 0.95


def test_precision_recall_does_not_depend_on_the_block(rng, monkeypatch):
    real, fake = rng.standard_normal((2, 90, 3))
    wanted = precision_recall(real, fake)
    monkeypatch.setattr(distances, "BLOCK_VALUES", 7 * 90)
    assert precision_recall(real, fake) == wanted


def test_precision_recall_of_equal_and_of_distant_sets(rng):
    points = rng.standard_normal((50, 6))
    assert precision_recall(points, points.copy()) == (1.0, 1.0)
    assert precision_recall(points, points + 100.0) == (0.0, 0.0)


def test_recall_sees_a_missing_mode_and_precision_a_made_up_one(rng):
    two = np.concatenate([rng.standard_normal((50, 2)), rng.standard_normal((50, 2)) + 50])
    one = rng.standard_normal((50, 2))
    precision, recall = precision_recall(two, one)
    assert precision > 0.9 and recall < 0.55
    precision, recall = precision_recall(one, two)
    assert precision < 0.55 and recall > 0.9


@pytest.mark.parametrize("k", [0, 10, 11])
def test_precision_recall_refuses_a_k_that_has_no_neighbour(k):
    with pytest.raises(ValueError, match=r"k must be an integer >= 1 and <= 9"):
        precision_recall(np.zeros((10, 2)), np.zeros((12, 2)), k)


def test_paired_rmse():
    assert paired_rmse(np.zeros((2, 1, 2, 2), np.float32), np.full((2, 1, 2, 2), 3.0)) == 3.0
    assert paired_rmse(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0
    with pytest.raises(ValueError, match=r"b must have shape \(2, 3\)"):
        paired_rmse(np.zeros((2, 3)), np.zeros((3, 2)))


# ---------------------------------------------------------------------------------- statistics


def some_images(rng, count=40, classes=4):
    labels = np.arange(count) % classes
    images = rng.uniform(-1, 1, (count, 1, 3, 3)).astype(np.float32) + labels[:, None, None, None]
    return images, labels


def test_statistics_come_back_from_a_file_exactly(rng, tmp_path):
    images, labels = some_images(rng)
    made = Statistics.from_images(images, labels, num_components=5)
    path = made.save(tmp_path / "stats.npz")
    loaded = Statistics.load(path)
    for name in ("mean", "cov", "offset", "components", "reference", "labels", "class_means"):
        assert np.array_equal(getattr(made, name), getattr(loaded, name)), name
    assert loaded.classifier is None
    assert [p.name for p in tmp_path.iterdir()] == ["stats.npz"]


def test_classifier_comes_back_from_a_file(rng, tmp_path):
    made = KernelClassifier(
        rng.standard_normal((6, 3)), rng.standard_normal((6, 2)), np.array([0.5, -0.5]), 0.3
    )
    statistics = Statistics(np.zeros(3), np.eye(3), classifier=made)
    loaded = Statistics.load(statistics.save(tmp_path / "s.npz")).classifier
    rows = rng.standard_normal((5, 3))
    assert loaded is not None
    assert np.array_equal(loaded.scores(rows), made.scores(rows))


def test_principal_components_keep_distances_when_all_are_kept(rng):
    images, _ = some_images(rng)
    others = images[::-1] * 0.9
    plain = measure(others, Statistics.from_images(images))
    turned = measure(others, Statistics.from_images(images, num_components=9))
    assert turned == pytest.approx(plain)


def test_projection_is_on_the_leading_components(rng):
    rows = rng.standard_normal((500, 3)) * [1.0, 5.0, 0.1] + 2.0
    statistics = Statistics.from_features(rows, num_components=1)
    assert statistics.components is not None
    assert abs(statistics.components[1, 0]) > 0.99
    assert statistics.mean == pytest.approx(0.0, abs=1e-12)
    assert statistics.cov[0, 0] == pytest.approx(rows[:, 1].var(ddof=1), rel=0.01)


def test_measure_of_the_reference_itself_is_perfect(rng):
    images, labels = some_images(rng)
    numbers = measure(images, Statistics.from_images(images, labels), labels)
    assert numbers["frechet_distance"] < 1e-6
    assert (numbers["precision"], numbers["recall"]) == (1.0, 1.0)
    assert numbers["class_accuracy"] > 0.9  # nearest class mean


def test_measure_uses_the_feature_function(rng):
    images, _ = some_images(rng)

    def mean_and_first(x):
        assert x.dtype == np.float32 and x.shape[1:] == (1, 3, 3)
        return np.stack([x.mean(axis=(1, 2, 3)), x[:, 0, 0, 0]], axis=1)

    statistics = Statistics.from_images(images, features=mean_and_first)
    assert statistics.mean.shape == (2,)
    numbers = measure(images + 1, statistics, features=mean_and_first)
    assert numbers["frechet_distance"] == pytest.approx(2.0, rel=1e-5)
    with pytest.raises(ValueError, match=r"features\(images\)"):
        measure(images, statistics, features=lambda x: x[:3, 0, 0])
    with pytest.raises(ValueError, match=r"features must have shape \(any, 2\)"):
        measure(images, statistics)


def test_measure_takes_the_stated_number_of_samples_from_each_side(rng, monkeypatch):
    images, labels = some_images(rng)
    statistics = Statistics.from_images(images, labels)
    seen = []

    def record(real, fake, k):
        seen.append((len(real), len(fake), k))
        return 0.25, 0.75

    monkeypatch.setattr("boot.metrics.precision_recall", record)
    numbers = measure(images[:30], statistics, k=2, manifold_samples=35)
    assert seen == [(35, 30, 2)]
    assert (numbers["precision"], numbers["recall"]) == (0.25, 0.75)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"offset": np.zeros(3)}, "belong together"),
        ({"reference": np.zeros((4, 3))}, "reference"),
        ({"labels": np.zeros(4, int)}, "labels"),
        ({"class_means": np.zeros((4, 5))}, "class_means"),
        ({"cov": np.eye(3)}, "cov"),
        ({"offset": np.zeros(3), "components": np.zeros((2, 3))}, "components"),
        (
            {"classifier": KernelClassifier(np.zeros((1, 4)), np.zeros((1, 2)), np.zeros(2), 1.0)},
            "classifier must take 2",
        ),
    ],
)
def test_statistics_refuse_parts_that_do_not_fit(fields, says):
    with pytest.raises(ValueError, match=says):
        Statistics(**{"mean": np.zeros(2), "cov": np.eye(2), **fields})


def test_labels_must_use_every_class():
    with pytest.raises(ValueError, match="every class of 0"):
        Statistics.from_features(np.eye(3), np.array([0, 2, 2]))


def write(path, **arrays):
    np.savez(path, **arrays)


def damage(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = b"\x55" * 40
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: write(p, mean=np.zeros(2)), "missing arrays: cov"),
        (lambda p: write(p, mean=np.zeros(2), cov=np.eye(2), extra=np.zeros(1)), "extra"),
        (lambda p: write(p, mean=np.zeros(2), cov=np.eye(3)), "cov must have shape"),
        (lambda p: write(p, mean=np.zeros(2), cov=np.full((2, 2), np.nan)), "finite"),
        (lambda p: write(p, mean=np.zeros(2), cov=np.eye(2), classifier_gamma=1.0), "missing"),
        (lambda p: write(p, mean=np.array([None, 1]), cov=np.eye(2)), "not a readable"),
        (lambda p: p.write_bytes(pickle.dumps([1])), "pickle"),
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "LFS"),
        (lambda p: p.write_bytes(b""), "not an .npz"),
        (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(100)), "not a readable"),
        (lambda p: (write(p, mean=np.ones(50), cov=np.eye(50)), damage(p)), "not a readable"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_load_refuses(tmp_path, make, says):
    path = tmp_path / "stats.npz"
    make(path)
    with pytest.raises(FormatError, match=says) as caught:
        Statistics.load(path)
    assert "stats.npz" in str(caught.value)


def test_load_refuses_what_would_not_fit_into_memory(tmp_path, monkeypatch):
    path = tmp_path / "stats.npz"
    Statistics(np.zeros(100), np.eye(100)).save(path)
    monkeypatch.setattr("boot.metrics.ARCHIVE_MAX_BYTES", 9_000)
    with pytest.raises(FormatError, match="at most 9000"):
        Statistics.load(path)


def test_load_of_nothing_and_of_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        Statistics.load(tmp_path / "none.npz")
    with pytest.raises(IsADirectoryError):
        Statistics.load(tmp_path)


# ------------------------------------------------------------------------------- packaged digits


def test_packaged_reference_is_the_digits():
    statistics = Statistics.load(REFERENCE)
    assert statistics.reference is not None and statistics.labels is not None
    assert statistics.reference.shape == (1797, 64)
    assert sorted(set(((statistics.reference + 1) * 8).ravel())) == list(range(17))
    assert np.bincount(statistics.labels).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180
    ]  # fmt: skip
    mean, cov = gaussian_statistics(statistics.reference)
    assert frechet_distance(mean, cov, statistics.mean, statistics.cov) < 1e-10


def test_packaged_classifier_on_digits_it_was_not_trained_with():
    """Every fifth image was held out when it was trained: see golden/make_digits_data.py."""
    statistics = Statistics.load(REFERENCE)
    assert statistics.reference is not None and statistics.labels is not None
    assert statistics.classifier is not None
    held_out = np.arange(1797) % 5 == 4
    landmarks = {row.tobytes() for row in statistics.classifier.landmarks}
    rows = statistics.reference[held_out]
    assert not any(row.tobytes() in landmarks for row in rows)
    right = statistics.classify(rows) == statistics.labels[held_out]
    assert right.mean() >= 0.98


def test_packaged_classifier_is_not_fooled_by_shuffled_labels():
    statistics = Statistics.load(REFERENCE)
    assert statistics.reference is not None and statistics.labels is not None
    images = statistics.reference.reshape(-1, 1, 8, 8)
    numbers = measure(images, statistics, (statistics.labels + 1) % 10, manifold_samples=100)
    assert numbers["class_accuracy"] < 0.02


def test_archive_is_compressed():
    with zipfile.ZipFile(REFERENCE) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_DEFLATED}
