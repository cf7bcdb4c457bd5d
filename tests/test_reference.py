"""Files of reference images and statistics from strangers: read strictly, refused by name."""

from __future__ import annotations

import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from boot.errors import FormatError
from boot.evaluation import load_reference
from boot.metrics import Statistics

IMAGES = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 1, 2, 2)


def archive(path, **arrays):
    np.savez(path, **{"images": IMAGES, **arrays})


def with_member(path, name, data):
    archive(path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, data)


def cut(path):
    """An array whose header asks for more than there is."""
    archive(path)
    with zipfile.ZipFile(path) as file:
        data = file.read("images.npy").replace(b"(6,", b"(7,")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images.npy", data)


def encrypted(path):
    """The flag that says so is set, at both places."""
    archive(path)
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


def damaged(path):
    np.savez_compressed(path, images=IMAGES)
    data = bytearray(path.read_bytes())
    data[60:70] = b"\xff" * 10
    path.write_bytes(data)


@pytest.mark.parametrize("labels", [None, np.arange(6) % 2])
def test_images_and_statistics_are_told_apart(tmp_path, labels):
    path = tmp_path / "r.npz"
    archive(path, **({} if labels is None else {"labels": labels}))
    made = load_reference(path)
    np.testing.assert_array_equal(made.mean, Statistics.from_images(IMAGES, labels).mean)
    made.save(path)
    again = load_reference(path)
    np.testing.assert_array_equal(again.cov, made.cov)
    assert (again.class_means is None) == (labels is None)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p.write_bytes(b"\x80\x04\x95"), "but it is a pickle"),
        (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(99)), "is not a readable .npz"),
        (lambda p: archive(p, images=np.array([None])), "is not a readable .npz"),
        (cut, "is not a readable .npz"),
        (encrypted, "is not a readable .npz"),
        (damaged, "is not a readable .npz"),
        (lambda p: with_member(p, "labels", b"abc"), "labels must"),
        (lambda p: archive(p, images=IMAGES[0]), "images must have shape"),
        (lambda p: archive(p, labels=np.arange(6) + 1), "labels must use every class of 0 ... 6"),
        (lambda p: archive(p, labels=np.arange(6) - 1), "labels must be 0 ..."),
        (os.mkfifo, "is not a regular file"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_files_are_refused_by_name(tmp_path, make, says):
    path = tmp_path / "r.npz"
    make(path)
    with pytest.raises(FormatError, match=f"r.npz.*{says}"):
        load_reference(path)


def test_images_that_unpack_to_too_much_are_refused_first(tmp_path, monkeypatch):
    path = tmp_path / "r.npz"
    archive(path)
    monkeypatch.setattr("boot.metrics.ARCHIVE_MAX_BYTES", 200)
    with pytest.raises(FormatError, match="bytes unpacked, at most 200"):
        load_reference(path)


def test_a_large_label_takes_no_memory(tmp_path):
    path = tmp_path / "r.npz"
    archive(path, labels=[0, 1, 2, 3, 4, 2**24])
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="every class of 0 ... 16777216"):
            load_reference(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
