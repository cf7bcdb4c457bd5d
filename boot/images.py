"""Images for people: 8-bit pixels, grids, a captioned side-by-side figure, and PNG files.

Everything drawn is an `ImageGrid`, which a notebook shows by itself and `save` writes as a PNG.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from boot.errors import check_array, check_int, check_path
from boot.files import write_atomically

Pixels = NDArray[np.uint8]

TILE_PIXELS = 48  # tiny images are enlarged to about this size, or a person sees nothing
WHITE, INK, GREY, TINT = (255, 255, 255), (25, 25, 30), (115, 115, 125), (226, 238, 250)
LABEL_SIZE, NOTE_SIZE, TITLE_SIZE = 15, 12, 18  # pixels of text height
MARGIN, TILE_GAP, GROUP_GAP, ROW_GAP = 18, 3, 14, 12


def to_uint8(images: Any) -> Pixels:
    """Images (N,C,H,W) in [-1, 1] -> 8-bit pixels (N,H,W,C); values beyond are clipped.

    Raises TypeError for other than floating-point arrays, ValueError for another rank or NaN.
    """
    array = check_array("images", images, (None, None, None, None))
    levels = np.rint((np.clip(array, -1.0, 1.0) + 1.0) * np.float32(127.5))
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(0, 2, 3, 1))


class ImageGrid:
    """One drawn picture: `array` (H,W,3) uint8. Notebooks show it; `save` writes a PNG."""

    def __init__(self, array: Pixels) -> None:
        """Hold the pixels (H,W,3) of a picture."""
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
            found = f"{array.dtype} {array.shape}"
            raise ValueError(f"array must be uint8 of shape (height, width, 3), got {found}")
        self.array = array

    def __repr__(self) -> str:
        """Show the size in pixels."""
        return f"ImageGrid({self.array.shape[1]} x {self.array.shape[0]} pixels)"

    def _repr_png_(self) -> bytes:
        """Return the picture as PNG, the way notebooks ask for it."""
        buffer = io.BytesIO()
        Image.fromarray(self.array).save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a PNG, atomically; ValueError unless the name ends in .png."""
        target = check_path("path", path)
        if target.suffix.lower() != ".png":
            raise ValueError(f"path must end in .png, got {str(target)!r}")
        write_atomically(target, self._repr_png_())
        return target


def _tiles(images: Any, scale: int | None) -> Pixels:
    """Enlarged RGB tiles (N,H,W,3). Other than 1 or 3 channels: side by side, in grey."""
    pixels = to_uint8(images)
    count, height, width, channels = pixels.shape
    if channels not in (1, 3):
        pixels = pixels.transpose(0, 1, 3, 2).reshape(count, height, channels * width, 1)
    if scale is None:
        scale = max(1, round(TILE_PIXELS / max(height, width)))
    scale = check_int("scale", scale, 1, 256)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:3], 3)))


def make_grid(images: Any, *, columns: int | None = None, scale: int | None = None) -> ImageGrid:
    """Lay out images (N,C,H,W) in [-1, 1], row by row, on white.

    columns: None for a square grid. scale: enlargement by whole pixels; None: about 48 pixels for
    tiny images, 1 for large ones. Images with other than 1 or 3 channels show them side by side.
    """
    tiles = _tiles(images, scale)
    count, height, width, _ = tiles.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else check_int("columns", columns, 1)
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    step_y, step_x = height + TILE_GAP, width + TILE_GAP
    canvas = np.full((rows * step_y + TILE_GAP, columns * step_x + TILE_GAP, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = TILE_GAP + i // columns * step_y, TILE_GAP + i % columns * step_x
        canvas[y : y + height, x : x + width] = tile
    return ImageGrid(canvas)


def save_grid(path: str | os.PathLike[str], images: Any, *, columns: int | None = None) -> Path:
    """Write images (N,C,H,W) in [-1, 1] as one PNG; see `make_grid` and `ImageGrid.save`."""
    return make_grid(images, columns=columns).save(path)


# --------------------------------------------------------------------------- side-by-side figure


@dataclass(frozen=True)
class FigureRow:
    """A row of `side_by_side`: images (N,C,H,W), what they are, a smaller note, a tint or not."""

    label: str
    images: Any
    note: str = ""
    highlight: bool = False


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font in a size; its fixed bitmap font where Pillow lacks FreeType."""
    try:
        return ImageFont.load_default(size)
    except (ImportError, OSError, TypeError):
        return ImageFont.load_default()


def _text_width(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(text))


@dataclass(frozen=True)
class _Layout:
    """Where things go in a figure, in pixels."""

    left: int  # width of the row captions
    top: int
    tile: tuple[int, int]  # height, width
    per_group: int
    groups: int
    rows: int

    def x(self, i: int) -> int:
        return self.left + i * (self.tile[1] + TILE_GAP) + i // self.per_group * GROUP_GAP

    def y(self, row: int) -> int:
        return self.top + row * (self.tile[0] + ROW_GAP)

    @property
    def right(self) -> int:
        return self.x(self.per_group * self.groups - 1) + self.tile[1]


def side_by_side(
    rows: Sequence[FigureRow],
    columns: Sequence[str],
    *,
    title: str = "",
    footer: str = "",
    scale: int | None = None,
) -> ImageGrid:
    """Draw rows of images under column captions: the same column is to be the same thing.

    Every row holds the same number of images, a multiple of len(columns): so many tiles stand
    under each caption. title and footer: one line each. Raises ValueError for unequal rows.
    """
    if not rows or not columns:
        raise ValueError(f"rows and columns must not be empty, got {len(rows)} and {len(columns)}")
    tiles = [_tiles(row.images, scale) for row in rows]
    shapes = sorted({t.shape for t in tiles})
    if len(shapes) > 1 or shapes[0][0] % len(columns):
        counts = [len(t) for t in tiles]
        raise ValueError(
            f"every row must hold images of one size, in a multiple of {len(columns)}; got "
            f"{counts} images, drawn as {shapes}"
        )
    captions = [_text_width(row.label, LABEL_SIZE) for row in rows]
    captions += [_text_width(row.note, NOTE_SIZE) for row in rows]
    height, width = shapes[0][1:3]
    layout = _Layout(
        left=MARGIN + max(captions) + MARGIN,
        top=MARGIN + (TITLE_SIZE + ROW_GAP if title else 0) + LABEL_SIZE + ROW_GAP,
        tile=(height, width),
        per_group=shapes[0][0] // len(columns),
        groups=len(columns),
        rows=len(rows),
    )
    return ImageGrid(_draw(layout, rows, tiles, columns, title, footer))


def _draw(
    layout: _Layout,
    rows: Sequence[FigureRow],
    tiles: Sequence[Pixels],
    columns: Sequence[str],
    title: str,
    footer: str,
) -> Pixels:
    height, width = layout.tile
    text_width = MARGIN + max(_text_width(title, TITLE_SIZE), _text_width(footer, NOTE_SIZE))
    bottom = layout.y(layout.rows) + (NOTE_SIZE + ROW_GAP if footer else 0)
    size = (max(layout.right, text_width) + MARGIN, bottom + ROW_GAP)
    image = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), title, INK, _font(TITLE_SIZE), anchor="lt")
    for i, caption in enumerate(columns):
        first = i * layout.per_group
        middle = (layout.x(first) + layout.x(first + layout.per_group - 1) + width) // 2
        top = layout.top - ROW_GAP
        draw.text((middle, top), caption, INK, _font(LABEL_SIZE), anchor="mb")
    for r, row in enumerate(rows):
        top = layout.y(r)
        if row.highlight:
            inset = ROW_GAP // 2 - 1
            box = (MARGIN // 2, top - inset, layout.right + MARGIN // 2, top + height - 1 + inset)
            draw.rectangle(box, TINT)
        middle = top + height // 2
        label_y = middle - 2 if row.note else middle + LABEL_SIZE // 2
        draw.text((MARGIN, label_y), row.label, INK, _font(LABEL_SIZE), anchor="ls")
        draw.text((MARGIN, middle + 5), row.note, GREY, _font(NOTE_SIZE), anchor="lt")
        for i, tile in enumerate(tiles[r]):
            image.paste(Image.fromarray(tile), (layout.x(i), top))
    draw.text((MARGIN, layout.y(layout.rows)), footer, GREY, _font(NOTE_SIZE), anchor="lt")
    return np.asarray(image, np.uint8)
