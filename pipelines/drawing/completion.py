"""Pictures of which a part is kept: completion, editing under a mask, variations.

The picture is encoded, the codes of kept places are forced in every level and depth, and the model draws the others. A
place is kept only where none of its pixels is to be drawn again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from pipelines.drawing.arguments import whole_number
from pipelines.drawing.streams import keyed_stream

Layout = Mapping[str, Sequence[int]]


def check_picture(image: Any, sizes: Collection[tuple[int, int]]) -> tuple[int, int]:
    """(height, width) of a PIL picture, one of the model's sizes.

    Raises:
        TypeError, ValueError: no such picture, or another size.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"image must be one PIL picture, got {type(image).__name__}")
    size = (image.size[1], image.size[0])
    if size not in sizes:
        known = ", ".join(f"{width}x{height}" for height, width in sizes)
        raise ValueError(
            f"the picture is {image.size[0]}x{image.size[1]} (width x height), this model's are {known}: "
            "resize or crop it first"
        )
    return size


def to_redraw(
    image_size: Sequence[int], keep_rows: int | None = None, mask: Image.Image | np.ndarray | None = None
) -> torch.Tensor:
    """Which pixels are to be drawn again, (H, W) bool: those below the first `keep_rows` rows, or those of `mask`.

    Args:
        mask: a PIL picture or an array (H, W): drawn again where it is white (not 0), kept where it is black (0).

    Raises:
        TypeError, ValueError: neither or both of the two, more rows than the picture has, a mask of another size.
    """
    height, width = image_size
    if (keep_rows is None) == (mask is None):
        raise ValueError("say what is kept: either keep_rows (rows of pixels at the top) or a mask (white: draw again)")
    if keep_rows is not None:
        if whole_number(keep_rows, "keep_rows", 0) > height:
            raise ValueError(f"keep_rows={keep_rows}: this model's pictures have {height} rows of pixels")
        return (torch.arange(height) >= keep_rows)[:, None].expand(height, width)
    values = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask)
    if values.shape != (height, width):
        raise ValueError(
            f"the mask has the shape {values.shape}, this model's pictures are ({height}, {width}) (height, width): "
            "resize the mask"
        )
    return torch.from_numpy(values != 0)


def kept_places(layout: Layout, redraw: torch.Tensor) -> torch.Tensor:
    """(T,) bool: positions of which no pixel is in `redraw` (H, W) bool."""
    level, rows, columns = (torch.tensor(layout[name]) for name in ("level", "row", "column"))
    kept = torch.ones(len(level), dtype=torch.bool)
    for index in level.unique().tolist():
        members = level == index
        grid = (int(rows[members].max()) + 1, int(columns[members].max()) + 1)
        touched = functional.adaptive_max_pool2d(redraw[None, None].float(), grid)[0, 0] > 0
        kept[members] = ~touched[rows[members], columns[members]]
    return kept


def kept_levels(layout: Layout, keep_levels: int) -> torch.Tensor:
    """(T,) bool: positions of the `keep_levels` coarsest levels.

    Raises:
        TypeError, ValueError: not a whole number, or one that leaves no level to draw.
    """
    levels = torch.tensor(layout["level"])
    count = int(levels.max()) + 1
    if count == 1:
        raise ValueError("this model's pictures have one level of codes: give redraw, the share of it to draw again")
    if whole_number(keep_levels, "keep_levels", 1) >= count:
        raise ValueError(f"keep_levels={keep_levels}: this model's pictures have {count} levels; keep fewer")
    return levels < keep_levels


def scattered_places(layout: Layout, image_size: Sequence[int], redraw: float, seed: Any) -> torch.Tensor:
    """(T,) bool: positions that are kept when a share of the picture, spread at random, is drawn again.

    Args:
        redraw: share of the coarsest level's places, in (0, 1]; in finer levels, the same parts of the picture.
        seed: of the random choice; None chooses differently at each call.

    Raises:
        TypeError, ValueError: no number, or one out of range.
    """
    if isinstance(redraw, bool) or not isinstance(redraw, (int, float)):
        raise TypeError(f"redraw must be a number, got {redraw!r}")
    if not 0 < redraw <= 1:
        raise ValueError(f"redraw must be in (0, 1], the share of the picture to draw again, got {redraw}")
    coarsest = torch.tensor(layout["level"]) == 0
    grid = tuple(int(torch.tensor(layout[name])[coarsest].max()) + 1 for name in ("row", "column"))
    stream = None if seed is None else keyed_stream(seed, "places")
    order = torch.rand(grid, generator=stream).flatten().argsort()
    chosen = torch.zeros(grid[0] * grid[1])
    chosen[order[: max(1, round(redraw * len(order)))]] = 1
    pixels = functional.interpolate(chosen.view(1, 1, *grid), size=tuple(image_size), mode="nearest")
    return kept_places(layout, pixels[0, 0] > 0)
