"""Pictures as a page shows them: PNG in the page itself, transparent where they are not drawn yet."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

Layout = Mapping[str, Sequence[int]]


def grid_of(layout: Layout) -> tuple[int, int]:
    """(rows, columns) of the coarsest level's places."""
    coarsest = np.asarray(layout["level"]) == 0
    return int(np.asarray(layout["row"])[coarsest].max()) + 1, int(np.asarray(layout["column"])[coarsest].max()) + 1


def drawn_places(layout: Layout, is_drawn: np.ndarray) -> np.ndarray:
    """Which places of a picture show something, (rows, columns) bool: those that have all codes of the coarsest level.

    Args:
        is_drawn: (T,) bool, which of the picture's codes there are.
    """
    level, row, column = (np.asarray(layout[name]) for name in ("level", "row", "column"))
    places = np.ones(grid_of(layout), bool)
    missing = (level == 0) & ~is_drawn
    places[row[missing], column[missing]] = False
    return places


def spread_over_pixels(places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(rows, columns) places to the pixels (H, W) that they cover."""
    height, width = size
    rows = np.arange(height) * places.shape[0] // height
    columns = np.arange(width) * places.shape[1] // width
    return places[rows[:, None], columns[None, :]]


def half_drawn(image: Image.Image, places: np.ndarray) -> Image.Image:
    """The picture, RGBA, transparent at places (rows, columns) that are not drawn."""
    shown = image.convert("RGBA")
    visible = spread_over_pixels(places, (image.height, image.width))
    shown.putalpha(Image.fromarray(visible.astype(np.uint8) * 255))
    return shown


def png_of(image: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_address(png: bytes) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """The picture, each pixel as a square of equal pixels, so that its longer side is about `side`, at least its own.

    The factor is whole, so that every pixel has the same size.
    """
    factor = max(1, round(side / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def painted_pixels(layers: Sequence[Image.Image], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: pixels of a picture of this size that are painted over, at least half of each.

    Args:
        layers: what was painted, RGBA of any one size, transparent where nothing was.
    """
    height, width = size
    painted = np.zeros(size, bool)
    for layer in layers:
        cover = layer.convert("RGBA").getchannel("A").resize((width, height), Image.Resampling.BOX)
        painted |= np.asarray(cover) >= 128
    return painted
