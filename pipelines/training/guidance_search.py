"""Which guidance and temperature a finished model draws best with: a search over captions that say which picture is
meant, or, where pictures share their captions, over how near all drawn pictures are to real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from pipelines.options.language_model import LanguageModelOptions
from pipelines.text_to_image import TextToImagePipeline
from pipelines.training.captions_drawn import CaptionsDrawn, Pipeline
from pipelines.training.captions_shared import EXTRACTOR, CaptionsShared

SCALES, TEMPERATURES = (1.0, 1.5, 2.0, 3.0), (1.0, 0.3)
SCALES_OF_SHARED = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)  # temperatures below 1 leave pictures of a class too much alike
BUDGET_SHARE = 0.03  # of the rows that training read, that the search may draw
LEAST_CAPTIONS, MOST_DRAWN = 16, 400  # captions without which there is no search; pictures drawn at each setting
LEAST_SHARED = 100  # pictures at each setting, without which distances, or the best of edits, say nothing
MARGIN = 2.0  # standard errors within which two shares of right pictures count as equal

Setting = tuple[float, float]  # guidance scale and temperature


@dataclass
class GuidanceFound:
    """The result of a search.

    Attributes:
        scale, temperature: what to draw with.
        right: for each setting that was tried, the share of captions that drew their own picture.
        distance: for each, the mean distance from it (`DrawnRows`).
        drawn: pictures at each setting.
        drew: what those captions drew.
        edits: whether results of edits were drawn, not captions.
    """

    scale: float
    temperature: float
    right: dict[Setting, float]
    distance: dict[Setting, float]
    drawn: int
    drew: str = "their own picture"
    edits: bool = False

    def __str__(self) -> str:
        tried = ", ".join(
            f"{share:.1%} at {scale:g} and {temperature:g} (distance {self.distance[scale, temperature]:.3f})"
            for (scale, temperature), share in self.right.items()
        )
        return (
            f"guidance {self.scale:g} and temperature {self.temperature:g} by default: of {self.drawn} "
            f"{'instructions' if self.edits else 'captions'}, "
            f"{tried} drew {self.drew}"
        )


@dataclass
class GuidanceByDistance:
    """The result of a search over captions that pictures share.

    Attributes:
        scale, temperature: what to draw with.
        distance: for each scale that was tried, the Frechet distance of the pictures drawn.
        drawn: pictures at each scale.
    """

    scale: float
    temperature: float
    distance: dict[float, float]
    drawn: int

    def __str__(self) -> str:
        tried = ", ".join(f"{distance:.1f} at {scale:g}" for scale, distance in self.distance.items())
        return (
            f"guidance {self.scale:g} by default: the Frechet distance over {EXTRACTOR} of {self.drawn} pictures, "
            f"drawn for captions that several share, from validation's is {tried}"
        )


def search_guidance(
    captions: CaptionsDrawn,
    pipe: Pipeline,
    usual: Setting,
    rows_trained: float,
    *,
    scales: tuple[float, ...] = SCALES,
    temperatures: tuple[float, ...] = TEMPERATURES,
) -> GuidanceFound | None:
    """Draw captions at each scale and temperature, one sample each with the same random numbers. Of the settings at
    which most drew their own picture, or about as many, the one whose pictures are nearest to it is taken; of edits,
    the one at which most drew their own result.

    Args:
        captions: half of them held out and half learned from, as far as there are both.
        usual: the setting without a search, which is tried, too.
        rows_trained: how many sequences training has read, which bounds the search.
        scales, temperatures: that are tried.

    Returns:
        None where the budget is too small for a search; the usual setting where no caption drew its picture.
    """
    settings = list(product(sorted({*scales, usual[0]}), sorted({*temperatures, usual[1]}, reverse=True)))
    count = len(captions.held_out) + len(captions.seen)
    drawn = _pictures_to_draw([scale for scale, _ in settings], rows_trained)
    if captions.edits:
        drawn //= 2  # each has the codes of its source before it
    if min(drawn, count) < (LEAST_SHARED if captions.edits else LEAST_CAPTIONS):
        return None
    right: dict[Setting, list[np.ndarray]] = {setting: [] for setting in settings}
    distance: dict[Setting, list[np.ndarray]] = {setting: [] for setting in settings}
    order = _alternating(len(captions.held_out), len(captions.seen))
    for start in range(0, drawn, count):
        rows = order[: drawn - start]
        for setting in settings:
            found = captions.drawn(pipe, rows, *setting, seed=start)
            right[setting].append(found.right)
            distance[setting].append(found.distance)
    shares = {setting: np.concatenate(parts).astype(float) for setting, parts in right.items()}
    means = {setting: float(np.concatenate(parts).mean()) for setting, parts in distance.items()}
    best = max(settings, key=lambda setting: shares[setting].mean())
    about_as_many = [setting for setting in settings if not _is_less(shares[setting], shares[best])]
    if captions.edits:  # a result that is left as it was is near to the right one
        about_as_many = [setting for setting in settings if shares[setting].mean() == shares[best].mean()]
    if not shares[best].any():  # the model draws nothing yet: distances say nothing
        about_as_many = [usual]
    scale, temperature = min(about_as_many, key=lambda setting: means[setting])
    right_share = {one: float(each.mean()) for one, each in shares.items()}
    return GuidanceFound(scale, temperature, right_share, means, drawn, captions.drew, captions.edits)


def search_guidance_of_shared(
    captions: CaptionsShared,
    pipe: TextToImagePipeline,
    usual: Setting,
    rows_trained: float,
    scales: tuple[float, ...] = SCALES_OF_SHARED,
) -> GuidanceByDistance | None:
    """Draw the captions at each scale and at the usual temperature, with the same random numbers, and take the scale
    whose pictures are nearest to real ones.

    Args:
        usual, rows_trained, scales: as in `search_guidance`.

    Returns:
        None where the budget is too small for a search.
    """
    tried = sorted({*scales, usual[0]})
    drawn = _pictures_to_draw(tried, rows_trained)
    if drawn < LEAST_SHARED:
        return None
    distance = {scale: captions.distance(pipe, drawn, scale, usual[1]) for scale in tried}
    return GuidanceByDistance(min(distance, key=lambda scale: distance[scale]), usual[1], distance, drawn)


def _pictures_to_draw(scales: Sequence[float], rows_trained: float) -> int:
    """At each of the settings with these scales: guidance takes two rows for each picture, and the budget is a share of
    the rows that training has read."""
    rows = sum(1 if scale == 1 else 2 for scale in scales)
    return min(int(BUDGET_SHARE * rows_trained / rows), MOST_DRAWN)


def _is_less(one: np.ndarray, best: np.ndarray) -> bool:
    """Whether fewer pictures were right than with the best, by more than chance."""
    gain = best - one
    return bool(gain.mean() > MARGIN * gain.std() / np.sqrt(len(gain)))


def _alternating(first: int, second: int) -> list[int]:
    """0 .. first + second - 1, one of the first kind after one of the second."""
    return sorted(range(first + second), key=lambda row: (row if row < first else row - first, row >= first))


def settle_defaults(
    options: LanguageModelOptions,
    pipe: Any,
    captions: Callable[[], CaptionsDrawn | None],
    shared: Callable[[], CaptionsShared | None],
    rows: int,
    tell: Callable[[str], None],
) -> None:
    """Give the pipeline's vocabulary the guidance and the temperature that are found, where the options leave them open
    and there are captions to draw.

    Args:
        pipe: the model's pipeline, of pictures or of signals.
        captions: that say which picture is meant; called where there is something to find.
        shared: those that several pictures have; called where there are none of the former.
        rows: that the model has learned from.
        tell: is called with what was found, or why nothing was.
    """
    vocabulary, fixed = pipe.vocabulary, dict[str, tuple[float, ...]]()
    if options.default_guidance is not None or vocabulary.default_guidance == 1:
        fixed["scales"] = (vocabulary.default_guidance,)
    if options.default_temperature is not None:
        fixed["temperatures"] = (vocabulary.default_temperature,)
    if len(fixed) == 2:
        return
    usual = vocabulary.default_guidance, vocabulary.default_temperature
    found: GuidanceFound | GuidanceByDistance | None = None
    try:
        if drawn := captions():
            found = search_guidance(drawn, pipe, usual, rows, **fixed)
        elif "scales" not in fixed and (of_classes := shared()):
            found = search_guidance_of_shared(of_classes, pipe, usual, rows)
    except (ValueError, RuntimeError) as error:  # the model is worth more than its guidance
        tell(f"no search for the default guidance: {error}")
        return
    if found:
        vocabulary.default_guidance, vocabulary.default_temperature = found.scale, found.temperature
        tell(str(found))
