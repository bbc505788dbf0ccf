"""Beside plain drawing: do best of n and completion show what sprites' captions say? The sprites probe reads them.

Both are compared with plain drawing of the same captions, one picture each, of held-out thing-colour pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lm.generation.images import UNDRAWN, generate_codes
from pipelines.drawing.best_of import best_rows, caption_scores, check_can_rank
from pipelines.drawing.completion import kept_places, to_redraw
from pipelines.drawing.request import drawing_request
from pipelines.evaluation.alignment import AlignmentSet, alignment_sets, picture_streams, real_pictures, wilson_interval
from pipelines.evaluation.reconstruction import as_8_bit
from pipelines.evaluation.sprites_probe import SpritesProbe, answers
from tokenizer_image.preprocessing import preprocessing_of, to_pixel_values

SCORES = {"thing": ("thing",), "colour": ("colour",), "thing_and_colour": ("thing", "colour")}
Sampling = Mapping[str, Any]


def best_of_report(
    pipeline: Any, probe: SpritesProbe, best_of: int, *, num_captions: int = 2000, batch_size: int = 50, seed: int = 0,
    sampling: Sampling | None = None, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Draw `best_of` pictures for each caption: the first one is `single`, the one after which the model finds the
    caption likeliest is `best`.

    Args:
        pipeline: a `TextToImagePipeline` that has learned `image_to_caption`.
        sampling: settings of the pipeline's call other than its defaults.

    Returns:
        `single` and `best` with shares of `SCORES` and their 95% Wilson intervals; `misses_removed`, the share of
        single's misses that best has not, with 95% bootstrap intervals over captions (null where there are no misses).
    """
    one = _held_out(num_captions, seed)
    check_can_rank(pipeline, one.captions)
    right: dict[str, list[np.ndarray]] = {"single": [], "best": []}
    for chosen in _batches(one, batch_size, progress, "best of n"):
        captions = one.captions[chosen]
        streams = picture_streams((seed, index, n) for index in _numbers(chosen) for n in range(best_of))
        codes = pipeline(
            captions, num_images_per_prompt=best_of, generator=streams, output_type="pt", **(sampling or {})
        ).codes
        best = best_rows(caption_scores(pipeline, captions, codes), 1)
        for name, own in (("single", codes[::best_of]), ("best", codes[best])):
            right[name].append(_right(pipeline, probe, one, chosen, own))
    single, best_right = (np.concatenate(right[name]) for name in ("single", "best"))
    return {
        "best_of": best_of,
        "n": len(single),
        "single": _shares(single),
        "best": _shares(best_right),
        "misses_removed": _compared(single, best_right, _misses_removed),
    }


def completion_report(
    pipeline: Any, probe: SpritesProbe, *, num_captions: int = 500, batch_size: int = 50, seed: int = 0,
    sampling: Sampling | None = None, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Keep the upper half of the real picture of each caption and draw the rest with the caption.

    Returns:
        `kept_exactly`, the share of kept codes that came back as they were; `plain` and `completed` with shares of
        `SCORES` and their 95% Wilson intervals; `difference`, completed less plain, with 95% bootstrap intervals.
    """
    one, vocabulary = _held_out(num_captions, seed), pipeline.vocabulary
    settings = preprocessing_of(pipeline.image_tokenizer)
    kept = kept_places(vocabulary.layout, to_redraw(vocabulary.image_size, keep_rows=vocabulary.image_size[0] // 2))
    right: dict[str, list[np.ndarray]] = {"plain": [], "completed": []}
    same = 0
    for chosen in _batches(one, batch_size, progress, "completion"):
        captions = one.captions[chosen]
        pixels = to_pixel_values(real_pictures(one.scenes[chosen], settings)).to(pipeline.device)
        given = pipeline.image_tokenizer.encode(pixels)
        for name, forced in (("plain", None), ("completed", torch.where(kept.to(given.device), given, UNDRAWN))):
            streams = picture_streams((seed, index) for index in _numbers(chosen))
            asked = drawing_request(pipeline.model, vocabulary, captions, generator=streams, **(sampling or {}))
            codes = generate_codes(
                pipeline.model, vocabulary, forced=forced, max_batch_rows=pipeline.max_batch_rows, **asked
            )
            right[name].append(_right(pipeline, probe, one, chosen, codes))
        same += int((codes == given)[:, kept].sum())
    plain, completed = (np.concatenate(right[name]) for name in ("plain", "completed"))
    return {
        "n": len(plain),
        "kept_exactly": same / (len(plain) * int(kept.sum())),
        "plain": _shares(plain),
        "completed": _shares(completed),
        "difference": _compared(plain, completed, lambda before, after: float(after.mean() - before.mean())),
    }


def _held_out(num_captions: int, seed: int) -> AlignmentSet:
    """The captions of `alignment_sets`, as many as are asked for."""
    return next(
        one for one in alignment_sets(num_captions, num_relation_captions=1, seed=seed) if one.name == "held_out"
    )


def _batches(one: AlignmentSet, batch_size: int, progress: bool, what: str) -> Any:
    count = len(one.scenes)
    starts = tqdm(range(0, count, batch_size), desc=what, unit=" batches", disable=not progress)
    return (slice(start, min(start + batch_size, count)) for start in starts)


def _numbers(chosen: slice) -> range:
    return range(chosen.start, chosen.stop)


@torch.no_grad()
def _right(pipeline: Any, probe: SpritesProbe, one: AlignmentSet, chosen: slice, codes: Tensor) -> np.ndarray:
    """(n, scores) bool: which scores the pictures of these codes have."""
    pictures = as_8_bit(pipeline.decode_codes(codes)).cpu()
    read = probe.read(to_pixel_values(pictures))
    expected = [answers(scene) for scene in one.scenes[chosen]]
    return np.array(
        [
            [all(reading[q] == wanted[q] for q in questions) for questions in SCORES.values()]
            for reading, wanted in zip(read, expected, strict=True)
        ]
    )


def _shares(right: np.ndarray) -> dict[str, Any]:
    counts = dict(zip(SCORES, right.sum(0).tolist(), strict=True))
    return {
        **{name: count / len(right) for name, count in counts.items()},
        "interval": {name: list(wilson_interval(count, len(right))) for name, count in counts.items()},
    }


def _misses_removed(before: np.ndarray, after: np.ndarray) -> float:
    misses = (~before).sum()
    return float(1 - (~after).sum() / misses) if misses else float("nan")


def _compared(
    before: np.ndarray, after: np.ndarray, figure: Callable[[np.ndarray, np.ndarray], float], draws: int = 2000
) -> dict[str, Any]:
    """A figure of each score, (n, scores) bool before and after, with the middle 95% of it over captions drawn anew."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"interval": {}}
    for column, name in enumerate(SCORES):
        pair = before[:, column], after[:, column]
        value = figure(*pair)
        if np.isnan(value):
            found[name] = found["interval"][name] = None
            continue
        again = [
            figure(*(part[rows] for part in pair)) for rows in rng.integers(len(before), size=(draws, len(before)))
        ]
        found[name] = value
        found["interval"][name] = np.nanpercentile(again, [2.5, 97.5]).tolist()
    return found


def use_reports(
    pipeline: Any, probe: SpritesProbe, *, best_of: int, best_of_captions: int, completion_captions: int,
    **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Those of the two reports that are asked for: a `best_of` above 1, any `completion_captions`."""
    found: dict[str, Any] = {}
    if best_of > 1:
        found["best_of"] = best_of_report(pipeline, probe, best_of, num_captions=best_of_captions, **settings)
    if completion_captions:
        found["completion"] = completion_report(pipeline, probe, num_captions=completion_captions, **settings)
    return found
