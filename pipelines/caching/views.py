"""Further views of a data set's training pictures: crops and mirror images, each encoded into a token cache of its own.

Beside the cache of the plain pictures, `train`, lie `train-crop-1`, `train-crop-2`, ... (or `train-mirrored`), with the
same rows. Training takes one view of a row in each epoch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lm.data.sequence_source import keyed_generator
from tokenizer_image.pictures.loading import PictureDataset

ROOM = 8  # a picture is decoded larger by one part in so many, and cropped at random to its size
EXAMPLES = 3
# Words that are no longer true of a mirrored picture.
DIRECTIONS = re.compile(
    r"\b(left|right|leftward|rightward|leftmost|rightmost|(?:counter|anti)?-?clockwise|links?e?[rnms]?|rechte?[rnms]?|"
    r"gauche|droite|izquierd[ao]|derech[ao]|sinistr[ao]|destr[ao]|esquerd[ao]|direit[ao])\b|[左右]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class View:
    """How the pictures of one further view differ from the plain ones. It depends on the row, not on a seed.

    Attributes:
        number: from 1; by it, one view's crops differ from another's.
        crops: cut out at random from pictures that are larger by a `ROOM`th.
        mirrored: share of the rows that are mirrored.
    """

    number: int
    crops: bool
    mirrored: float

    @property
    def name(self) -> str:
        """For folders."""
        if not self.crops:
            return "mirrored"
        return f"crop{'-mirrored' if self.mirrored else ''}-{self.number}"

    def decoded_sizes(self, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The (height, width) that pictures are decoded at, for crops of these `sizes`."""
        if not self.crops:
            return list(sizes)
        return [(height + -(-height // ROOM), width + -(-width // ROOM)) for height, width in sizes]

    def applied(
        self, pictures: np.ndarray, numbers: Iterable[int], size: tuple[int, int], is_fixed: Iterable[bool]
    ) -> np.ndarray:
        """The view of some pictures, uint8 (b, C, `size`).

        Args:
            pictures: (b, C, H, W) uint8 of the size that they are decoded at.
            numbers: of their rows in the data set.
            size: (height, width) of the crop.
            is_fixed: for each, whether its caption forbids mirroring it.
        """
        views = np.empty((*pictures.shape[:2], *size), np.uint8)
        for place, (number, fixed) in enumerate(zip(numbers, is_fixed, strict=True)):
            down, right, mirror = keyed_generator(self.number, int(number)).random(3)
            top = int(down * (pictures.shape[2] - size[0] + 1))
            left = int(right * (pictures.shape[3] - size[1] + 1))
            view = pictures[place, :, top : top + size[0], left : left + size[1]]
            views[place] = view[..., ::-1] if mirror < self.mirrored and not fixed else view
        return views


def views_of(crops: int, random_flip: bool) -> list[View]:
    """The further views that --crops and --random_flip ask for: so many crops, half of them mirrored; without crops,
    one view of mirrored pictures."""
    if not crops:
        return [View(1, False, 1.0)] if random_flip else []
    return [View(number, True, 0.5 if random_flip else 0.0) for number in range(1, crops + 1)]


def has_direction(texts: Iterable[str]) -> bool:
    """Whether one of a picture's captions has a word such as "left"."""
    return any(DIRECTIONS.search(text) for text in texts)


def directions_warning(source: PictureDataset, view: View) -> str | None:
    """A warning with examples where the view mirrors pictures and captions tell left from right; of several views, the
    first one warns for all."""
    if not view.mirrored or view.number > 1:
        return None
    found = [row for row in range(len(source)) if has_direction(source.texts(row))]
    if not found:
        return None
    texts = [next(text for text in source.texts(row) if DIRECTIONS.search(text)) for row in found[:EXAMPLES]]
    examples = "; ".join(repr(text if len(text) <= 100 else text[:97] + "...") for text in texts)
    return (
        f"WARNING: {len(found):,} of {len(source):,} captions tell left from right, and their pictures are not "
        f"mirrored: {examples}"
    )
