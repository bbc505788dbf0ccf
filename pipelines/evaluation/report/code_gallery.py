"""What the most frequent codes look like, each in the place of the picture where it is most used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.drawing.grids import labelled_grid
from pipelines.evaluation.metrics.reconstruction import as_8_bit, device_of
from pipelines.evaluation.report.sheets import side_by_side, to_images
from tokenizer_image.layout import CodeLayout, ImageTokenizer

CODES = 32  # that are shown, of all levels and depths together
EXAMPLES, AVERAGED = 5, 24  # pictures with a code in its place: shown, and averaged
TILES = 3  # side of what is shown of a picture, in tiles of the code's level
SIDE = 80  # pixels of a picture on the sheet, at least
FRAME = (224, 32, 32)


@dataclass(frozen=True)
class FrequentCode:
    """A code, and where it is most used.

    Attributes:
        level, depth: of the code.
        code: its number, counted from the first of its level and depth.
        share: of all codes of this level and depth, in [0, 1].
        uses: (rows, columns) int64, how many pictures have it at each place of its level's grid.
        pictures: those that have it at its most used place, at most `AVERAGED`, increasing.
    """

    level: int
    depth: int
    code: int
    share: float
    uses: np.ndarray
    pictures: np.ndarray

    @property
    def place(self) -> tuple[int, int]:
        """(row, column) where it is most used, the first of several."""
        row, column = np.unravel_index(self.uses.argmax(), self.uses.shape)
        return int(row), int(column)


def frequent_codes(codes: Tensor, layout: CodeLayout, count: int = CODES) -> list[FrequentCode]:
    """The most frequent codes of each level and depth, which share `count` evenly; those that occur alone.

    Args:
        codes: (n, T) int64, of pictures of one layout.
    """
    parts = sorted(set(zip(layout.level.tolist(), layout.depth.tolist(), strict=True)))
    found = []
    for level, depth in parts:
        positions = np.flatnonzero((layout.level == level) & (layout.depth == depth))
        low, high = int(layout.low[positions[0]]), int(layout.high[positions[0]])
        own = codes[:, torch.from_numpy(positions)].numpy() - low
        counts = np.bincount(own.reshape(-1), minlength=high - low)
        grid = int(layout.row[positions].max()) + 1, int(layout.column[positions].max()) + 1
        for code in np.argsort(-counts, kind="stable")[: max(1, count // len(parts))].tolist():
            if counts[code]:
                # Inside a level, positions go row by row.
                uses = (own == code).sum(axis=0).reshape(grid)
                pictures = np.flatnonzero(own[:, int(uses.argmax())] == code)[:AVERAGED]
                found.append(FrequentCode(level, depth, code, counts[code] / own.size, uses, pictures))
    return found


def gallery_sheet(image_tokenizer: ImageTokenizer, codes: Tensor, pictures: DecodedPictures) -> Image.Image:
    """A row for each frequent code: where it is used, the mean of reconstructions that have it at its most used place,
    and pictures that are encoded with it there. A frame is around the place, of tokenizers whose positions are places.

    Args:
        codes: (n, T) int64, of `pictures`.
    """
    height, width = pictures.batch([0]).shape[-2:]
    layout = image_tokenizer.layout((height, width))
    rows: list[tuple[str, list[Image.Image]]] = []
    for one in frequent_codes(codes, layout):
        window = _Window.around(one, (height, width), _is_local(image_tokenizer))
        decoded = _decoded(image_tokenizer, codes[torch.from_numpy(one.pictures)], (height, width))
        mean = decoded.float().mean(dim=0, keepdim=True).round().to(torch.uint8)
        shown = torch.from_numpy(np.ascontiguousarray(pictures.batch(one.pictures[:EXAMPLES])))
        cells = [window.of(image) for image in to_images(torch.cat([mean, shown]))]
        rows.append((_title(one, layout), [_where(one, cells[0].size), *cells]))
    half = -(-len(rows) // 2)
    columns = [rows[start : start + half] for start in range(0, len(rows), half)]
    return side_by_side([labelled_grid(part, min_side=SIDE, font_size=13, margin=4, smooth=False) for part in columns])


@dataclass(frozen=True)
class _Window:
    """The part of a picture that is shown, and the place in it, in pixels (left, top, right, bottom)."""

    box: tuple[int, int, int, int]
    place: tuple[int, int, int, int] | None

    @classmethod
    def around(cls, one: FrequentCode, size: tuple[int, int], is_local: bool) -> _Window:
        height, width = size
        if not is_local:
            return cls((0, 0, width, height), None)
        (row, column), (rows, columns) = one.place, one.uses.shape
        tile = height // rows, width // columns
        top, shown_height = _span(row, tile[0], height)
        left, shown_width = _span(column, tile[1], width)
        y, x = row * tile[0] - top, column * tile[1] - left
        return cls((left, top, left + shown_width, top + shown_height), (x, y, x + tile[1], y + tile[0]))

    def of(self, image: Image.Image) -> Image.Image:
        """The part of the image, enlarged, with a frame around the place."""
        part = image.convert("RGB").crop(self.box)
        factor = max(1, -(-SIDE // min(part.size)))
        part = part.resize((part.width * factor, part.height * factor), Image.Resampling.NEAREST)
        if self.place is not None:
            left, top, right, bottom = (factor * side for side in self.place)
            ImageDraw.Draw(part).rectangle((left, top, right - 1, bottom - 1), outline=FRAME, width=2)
        return part


def _span(position: int, tile: int, whole: int) -> tuple[int, int]:
    """First pixel and number of pixels, along one axis, of the part around a tile that lies inside the picture."""
    length = min(whole, TILES * tile)
    return min(max(0, position * tile - (length - tile) // 2), whole - length), length


def _where(one: FrequentCode, size: tuple[int, int]) -> Image.Image:
    """The grid of a code's uses: white where it is used most, black where never."""
    shades = (255 * one.uses / one.uses.max()).round().astype(np.uint8)
    return Image.fromarray(shades).resize(size, Image.Resampling.NEAREST)


def _title(one: FrequentCode, layout: CodeLayout) -> str:
    row, column = one.place
    level = f"level {one.level}, " if layout.level.max() else ""
    depth = f"depth {one.depth}, " if layout.depth.max() else ""
    return f"{level}{depth}code {one.code}: {one.share:.1%} of codes, most in row {row + 1}, column {column + 1}"


def _is_local(image_tokenizer: ImageTokenizer) -> bool:
    """Whether a position of the grid stands for a place of the picture: not in fully connected networks."""
    return getattr(image_tokenizer.config, "network", "conv") == "conv"


@torch.inference_mode()
def _decoded(image_tokenizer: ImageTokenizer, codes: Tensor, size: tuple[int, int]) -> Tensor:
    return as_8_bit(image_tokenizer.decode(codes.to(device_of(image_tokenizer)), size)).cpu()
