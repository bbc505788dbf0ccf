"""Which guidance a finished model draws best with: a short search over captions that say which picture is meant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.text_to_image import TextToImagePipeline
from pipelines.training.captions_drawn import CaptionsDrawn

SCALES = (1.0, 1.5, 2.0, 3.0)
BUDGET_SHARE = 0.03  # of the rows that training read, that the search may draw
LEAST_CAPTIONS, MOST_DRAWN = 16, 400  # captions without which there is no search; pictures drawn at each scale
MARGIN = 2.0  # standard errors by which another scale has to be better than the usual one


@dataclass
class GuidanceFound:
    """The result of a search.

    Attributes:
        scale: the guidance scale to draw with.
        right: for each scale that was tried, the share of captions that drew their own picture.
        drawn: pictures at each scale.
    """

    scale: float
    right: dict[float, float]
    drawn: int

    def __str__(self) -> str:
        tried = ", ".join(f"{share:.1%} at {scale:g}" for scale, share in self.right.items())
        return f"guidance {self.scale:g} by default: of {self.drawn} captions, {tried} drew their own picture"


def search_guidance(
    captions: CaptionsDrawn, pipe: TextToImagePipeline, usual: float, rows_trained: float
) -> GuidanceFound | None:
    """Draw captions at each of `SCALES`, one sample each with the same random numbers, and take the scale at which most
    drew their own picture; the `usual` one unless another is better by more than chance.

    Args:
        captions: half of them held out and half learned from, as far as there are both.
        usual: the scale without a search.
        rows_trained: how many sequences training has read, which bounds the search.

    Returns:
        None where the budget is too small for a search.
    """
    scales = sorted({*SCALES, usual})
    cost = sum(1 if scale == 1 else 2 for scale in scales)  # rows that one caption takes
    count = len(captions.held_out) + len(captions.seen)
    drawn = min(int(BUDGET_SHARE * rows_trained / cost), MOST_DRAWN)
    if min(drawn, count) < LEAST_CAPTIONS:
        return None
    right: dict[float, list[np.ndarray]] = {scale: [] for scale in scales}
    order = _alternating(len(captions.held_out), len(captions.seen))
    for start in range(0, drawn, count):
        rows = order[: drawn - start]
        for scale in scales:
            right[scale].append(captions.right(pipe, rows, scale, temperature=1.0, seed=start))
    found = {scale: np.concatenate(parts).astype(float) for scale, parts in right.items()}
    best = max(scales, key=lambda scale: (found[scale].mean(), -abs(scale - usual)))
    gain = found[best] - found[usual]
    if gain.mean() <= MARGIN * gain.std() / np.sqrt(len(gain)):
        best = usual
    return GuidanceFound(best, {scale: float(each.mean()) for scale, each in found.items()}, drawn)


def _alternating(first: int, second: int) -> list[int]:
    """0 .. first + second - 1, one of the first kind after one of the second."""
    return sorted(range(first + second), key=lambda row: (row if row < first else row - first, row >= first))
