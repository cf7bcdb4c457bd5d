"""Pixels, grids, the side-by-side figure and PNG files, read back with Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from boot.images import (
    FigureRow,
    ImageGrid,
    make_grid,
    save_grid,
    side_by_side,
    to_uint8,
)


def constant(value, count=1, channels=1, size=8):
    return np.full((count, channels, size, size), value, np.float32)


@pytest.mark.parametrize(
    ("value", "level"), [(-1, 0), (1, 255), (0, 128), (-7, 0), (7, 255), (0.5, 191), (-0.999, 0)]
)
def test_levels(value, level):
    assert (to_uint8(constant(value)) == level).all()


def test_every_8_bit_level_comes_back():
    levels = np.arange(256)
    images = (levels / 127.5 - 1).astype(np.float32).reshape(1, 1, 16, 16)
    assert np.array_equal(to_uint8(images).ravel(), levels)


def test_channels_go_last():
    images = np.stack([constant(v)[:, 0] for v in (-1, 0, 1)], axis=1)
    pixels = to_uint8(images)
    assert pixels.shape == (1, 8, 8, 3) and pixels.flags.c_contiguous
    assert pixels[0, 3, 3].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (np.zeros((8, 8), np.float32), ValueError),
        (np.zeros((1, 1, 8, 8), np.uint8), TypeError),
        (np.zeros((0, 1, 8, 8), np.float32), ValueError),
        (np.full((1, 1, 8, 8), np.nan, np.float32), ValueError),
        ("image.png", TypeError),
    ],
)
def test_other_than_images_are_refused(images, error):
    with pytest.raises(error, match="images must"):
        to_uint8(images)


def tile_of(grid, i, columns, size):
    y, x = 3 + i // columns * (size + 3), 3 + i % columns * (size + 3)
    return grid.array[y : y + size, x : x + size]


def test_grid_places_images_row_by_row():
    images = np.concatenate([constant(v) for v in (-1, -0.5, 0, 0.5, 1)])
    grid = make_grid(images, columns=3, scale=2)
    assert grid.array.shape == (2 * 19 + 3, 3 * 19 + 3, 3)
    for i, level in enumerate((0, 64, 128, 191, 255)):
        assert (tile_of(grid, i, 3, 16) == level).all()
    assert (grid.array[22:, 41:] == 255).all()  # the place without an image


def test_enlargement_repeats_pixels():
    image = np.random.default_rng(0).uniform(-1, 1, (1, 1, 8, 8)).astype(np.float32)
    tile = tile_of(make_grid(image), 0, 1, 48)
    assert np.array_equal(tile[::6, ::6, 0], to_uint8(image)[0, :, :, 0])
    assert np.array_equal(tile[5::6, 5::6, 0], to_uint8(image)[0, :, :, 0])


def test_large_images_are_not_enlarged_and_columns_are_square():
    grid = make_grid(constant(0, count=5, channels=3, size=64))
    assert grid.array.shape == (2 * 67 + 3, 3 * 67 + 3, 3)


def test_odd_channel_counts_stand_side_by_side():
    images = np.concatenate([constant(-1), constant(0), constant(1), constant(-1)], axis=1)
    tile = make_grid(images, scale=1).array[3:11, 3:35]
    assert tile[0, ::8, 0].tolist() == [0, 128, 255, 0]


def test_png_files_hold_the_picture(tmp_path):
    images = np.random.default_rng(1).uniform(-1, 1, (6, 3, 8, 8)).astype(np.float32)
    grid = make_grid(images)
    path = save_grid(tmp_path / "grid.png", images)
    with Image.open(path) as saved, Image.open(io.BytesIO(grid._repr_png_())) as shown:
        assert saved.format == "PNG"
        assert np.array_equal(np.asarray(saved), grid.array)
        assert np.array_equal(np.asarray(shown), grid.array)
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_save_replaces_a_file_and_refuses_other_names(tmp_path):
    target = tmp_path / "a.png"
    target.write_text("old")
    make_grid(constant(0)).save(target)
    assert target.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"\.png"):
        make_grid(constant(0)).save(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError):
        make_grid(constant(0)).save(tmp_path / "none" / "a.png")


def test_image_grid_refuses_other_arrays():
    with pytest.raises(ValueError, match="uint8"):
        ImageGrid(np.zeros((4, 4), np.uint8))
    assert "6 x 4" in repr(ImageGrid(np.zeros((4, 6, 3), np.uint8)))


@pytest.mark.parametrize("arguments", [{"columns": 0}, {"scale": 0}, {"scale": 1000}])
def test_grid_refuses_senseless_sizes(arguments):
    with pytest.raises(ValueError, match="must be an integer"):
        make_grid(constant(0), **arguments)


# --------------------------------------------------------------------------- side-by-side figure


def blocks_of(array, level):
    """Number of separate runs of `level` along the row of pixels that has most of them."""
    hits = (array == level).all(axis=2)
    line = hits[hits.sum(axis=1).argmax()]
    return int(line[0]) + int((np.diff(line.astype(int)) == 1).sum())


def test_figure_shows_every_tile_of_every_row():
    dark, grey = constant(-1, count=6), constant(0, count=6)
    rows = [FigureRow("first", dark, "a note"), FigureRow("second", grey, highlight=True)]
    figure = side_by_side(rows, ["0", "1", "2"], title="title", footer="footer")
    assert blocks_of(figure.array, 0) == 6
    assert blocks_of(figure.array, 128) == 6
    first = np.nonzero((figure.array == 0).all(axis=2).any(axis=1))[0]
    second = np.nonzero((figure.array == 128).all(axis=2).any(axis=1))[0]
    assert second.max() - second.min() >= 47 and second.max() > first.min() + 47


def test_figure_has_its_captions():
    images = constant(-1, count=2)
    plain = side_by_side([FigureRow("", images)], [""]).array
    named = side_by_side([FigureRow("teacher", images)], [""]).array
    assert named.shape[1] > plain.shape[1]
    assert (named != 255).any(axis=2).sum() > (plain != 255).any(axis=2).sum() + 50
    titled = side_by_side([FigureRow("", images)], [""], title="A long title " * 4).array
    assert titled.shape[0] > plain.shape[0] and titled.shape[1] > plain.shape[1]


def test_highlighted_row_is_tinted():
    images = constant(-1, count=2)
    tint = np.array([226, 238, 250])

    def tinted(highlight):
        array = side_by_side([FigureRow("", images, highlight=highlight)], ["a"]).array
        return int((array == tint).all(axis=2).sum())

    assert tinted(True) > 500 and tinted(False) == 0


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([], ["a"]),
        ([FigureRow("", constant(0))], []),
        ([FigureRow("", constant(0, 3))], ["a", "b"]),
        ([FigureRow("", constant(0, 2)), FigureRow("", constant(0, 4))], ["a", "b"]),
        ([FigureRow("", constant(0)), FigureRow("", constant(0, size=4))], ["a"]),
    ],
)
def test_figure_refuses_rows_that_do_not_line_up(rows, columns):
    with pytest.raises(ValueError, match="must"):
        side_by_side(rows, columns, scale=1)
