"""Best of n and completion, compared with plain drawing: which pictures show what sprites' captions say?

Both are compared on the same captions, of held-out thing-colour pairs; the sprites probe reads the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lm.generation.images import generate_codes
from lm.generation.task import UNDRAWN
from pipelines.drawing.best_of import best_rows, caption_scores, check_can_rank
from pipelines.drawing.captions import caption_room, cut_caption, ranking_room
from pipelines.drawing.completion import kept_places, to_redraw
from pipelines.drawing.request import DrawingRequest
from pipelines.drawing.streams import scene_streams
from pipelines.evaluation.metrics.intervals import (
    difference_of_shares,
    paired_comparison,
    share_of_misses_removed,
    shares,
)
from pipelines.evaluation.metrics.reconstruction import as_8_bit
from pipelines.evaluation.probes.alignment import AlignmentSet, alignment_sets
from pipelines.evaluation.probes.probe_readings import real_pictures
from pipelines.evaluation.probes.sprites_probe import SpritesProbe, answers
from pipelines.machine.batches import index_batches
from pipelines.text_to_image import TextToImagePipeline
from tokenizer_image.preprocessing import preprocessing_of, to_pixel_values
from tokenizer_image.sprites.scenes import Scene

SCORES = {"thing": ("thing",), "colour": ("colour",), "thing_and_colour": ("thing", "colour")}
Verdicts = dict[str, np.ndarray]  # score -> (n,) bool, one verdict for each caption


def best_of_report(
    pipeline: TextToImagePipeline,
    probe: SpritesProbe,
    best_of: int,
    *,
    num_captions: int = 2000,
    batch_size: int = 50,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Draw `best_of` pictures for each caption, and choose the one after which the model finds the caption likeliest.

    Args:
        pipeline: its model has learned to describe (`image_to_caption` or `image_and_caption`).
        sampling: settings of the pipeline's call other than its defaults.

    Returns:
        `single`, of the first picture, and `best`, of the chosen one: shares of `SCORES` and their 95% Wilson
        intervals; `misses_removed`, the share of single's misses that best has not, with 95% bootstrap intervals over
        captions (null where there are no misses).

    Raises:
        ValueError: the model cannot rank its pictures by their captions.
    """
    held_out = _held_out(num_captions, seed, pipeline, ranking_room(pipeline.model, pipeline.vocabulary))
    check_can_rank(pipeline, held_out.captions)
    single: list[Verdicts] = []
    best: list[Verdicts] = []
    for rows in _batches(num_captions, batch_size, progress, "best of n"):
        scenes, captions = _cases(held_out, rows)
        streams = scene_streams((seed, row, number) for row in rows for number in range(best_of))
        codes = pipeline(
            captions, num_images_per_prompt=best_of, generator=streams, output_type="pt", **(sampling or {})
        ).codes
        chosen = best_rows(caption_scores(pipeline, captions, codes), 1)
        single.append(_verdicts(pipeline, probe, scenes, codes[::best_of]))
        best.append(_verdicts(pipeline, probe, scenes, codes[chosen]))
    single_verdicts, best_verdicts = _joined(single), _joined(best)
    return {
        "best_of": best_of,
        "n": num_captions,
        "single": _shares(single_verdicts),
        "best": _shares(best_verdicts),
        "misses_removed": paired_comparison(share_of_misses_removed, single_verdicts, best_verdicts),
    }


def completion_report(
    pipeline: TextToImagePipeline,
    probe: SpritesProbe,
    *,
    num_captions: int = 500,
    batch_size: int = 50,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Keep the upper half of the real picture of each caption and draw the rest with the caption.

    Returns:
        `kept_exactly`, the share of kept codes that came back as they were; `plain` and `completed` with shares of
        `SCORES` and their 95% Wilson intervals; `difference`, completed less plain, with 95% bootstrap intervals.
    """
    vocabulary = pipeline.vocabulary
    held_out = _held_out(num_captions, seed, pipeline, caption_room(pipeline.model, vocabulary))
    settings = preprocessing_of(pipeline.image_tokenizer)
    kept = kept_places(vocabulary.layout, to_redraw(vocabulary.image_size, keep_rows=vocabulary.image_size[0] // 2))
    verdicts: dict[str, list[Verdicts]] = {"plain": [], "completed": []}
    same = 0
    for rows in _batches(num_captions, batch_size, progress, "completion"):
        scenes, captions = _cases(held_out, rows)
        pixel_values = to_pixel_values(real_pictures(scenes, settings)).to(pipeline.device)
        given = pipeline.image_tokenizer.encode(pixel_values)
        upper_half = torch.where(kept.to(given.device), given, UNDRAWN)
        for name, forced in (("plain", None), ("completed", upper_half)):
            streams = scene_streams((seed, row) for row in rows)
            task = DrawingRequest(captions, generator=streams, **(sampling or {})).task(pipeline)
            codes = generate_codes(pipeline.model, vocabulary, replace(task, forced=forced))
            verdicts[name].append(_verdicts(pipeline, probe, scenes, codes))
        same += int((codes == given)[:, kept].sum())  # of the completed ones, which came last
    plain, completed = _joined(verdicts["plain"]), _joined(verdicts["completed"])
    return {
        "n": num_captions,
        "kept_exactly": same / (num_captions * int(kept.sum())),
        "plain": _shares(plain),
        "completed": _shares(completed),
        "difference": paired_comparison(difference_of_shares, plain, completed),
    }


def _held_out(num_captions: int, seed: int, pipeline: TextToImagePipeline, room: int) -> AlignmentSet:
    """The first scenes of the set `held_out` of `alignment_sets`, with captions of at most `room` tokens."""
    sets = alignment_sets(num_captions, num_relation_captions=1, seed=seed)
    held_out = next(scenes for scenes in sets if scenes.name == "held_out")
    held_out.captions = [cut_caption(pipeline.vocabulary, caption, room) for caption in held_out.captions]
    return held_out


def _batches(count: int, batch_size: int, progress: bool, description: str) -> Iterator[range]:
    yield from tqdm([*index_batches(count, batch_size)], desc=description, unit=" batches", disable=not progress)


def _cases(held_out: AlignmentSet, rows: range) -> tuple[list[Scene], list[str]]:
    """Scenes of these rows, and their captions."""
    return held_out.scenes[rows.start : rows.stop], held_out.captions[rows.start : rows.stop]


@torch.no_grad()
def _verdicts(pipeline: TextToImagePipeline, probe: SpritesProbe, scenes: Sequence[Scene], codes: Tensor) -> Verdicts:
    """For each score, which of the pictures of these codes (n, T) show what their scenes have."""
    readings = probe.read(to_pixel_values(as_8_bit(pipeline.decode_codes(codes)).cpu()))
    pairs = [(reading, answers(scene)) for reading, scene in zip(readings, scenes, strict=True)]
    return {
        score: np.array([all(reading[q] == expected[q] for q in questions) for reading, expected in pairs])
        for score, questions in SCORES.items()
    }


def _joined(batches: Sequence[Verdicts]) -> Verdicts:
    return {score: np.concatenate([verdicts[score] for verdicts in batches]) for score in SCORES}


def _shares(verdicts: Verdicts) -> dict[str, Any]:
    """The share of right verdicts for each score, with intervals."""
    n = len(next(iter(verdicts.values())))
    return shares({score: int(right.sum()) for score, right in verdicts.items()}, n)
