"""Do sampled pictures show what their captions say? The sprites probe reads them, attribute by attribute.

Three sets of fresh scenes, none of which is in a data set: one object of a seen thing-colour pair, one object of a
held-out pair, and two objects in a relation. One picture is drawn for each caption. The probe also reads the real
pictures of the same scenes and their reconstructions by the tokenizer: samples cannot be expected to score higher.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from pipelines.drawing.captions import caption_room, cut_caption
from pipelines.drawing.streams import scene_streams
from pipelines.evaluation.metrics.intervals import shares
from pipelines.evaluation.metrics.reconstruction import NUM_EXAMPLES, as_8_bit, reconstruct
from pipelines.evaluation.probes.probe_readings import SAMPLED, PictureKind, judged_kinds, read_sets, real_pictures
from pipelines.evaluation.probes.sprites_probe import SpritesProbe, answers
from pipelines.text_to_image import TextToImagePipeline
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.preprocessing import preprocessing_of
from tokenizer_image.sprites import scenes as sprites
from tokenizer_image.sprites.captions import describe

# Score -> the probe's questions that must all be answered right for it. `all` includes the number of objects: a second
# object that the caption does not mention makes a sample wrong.
ONE_OBJECT = {
    "thing": ("thing",),
    "colour": ("colour",),
    "size": ("size",),
    "position": ("position",),
    "background": ("background",),
    "num_objects": ("num_objects",),
    "all": ("thing", "colour", "size", "position", "background", "num_objects"),
}
TWO_OBJECTS = {
    "things": ("axis", "first_thing", "second_thing"),  # both, each in its place
    "colours": ("axis", "first_colour", "second_colour"),
    "num_objects": ("num_objects",),
    "all": ("axis", "first_thing", "second_thing", "first_colour", "second_colour", "num_objects"),
}


@dataclass
class AlignmentSet:
    """Scenes of one kind, a caption for each, and, once they are measured, example pictures.

    Attributes:
        pictures: uint8 (n, C, H, W) of the first `NUM_EXAMPLES` scenes, by kind of picture.
        readings: the probe's answers about these pictures.
    """

    name: str
    scenes: list[sprites.Scene]
    captions: list[str]
    pictures: dict[PictureKind, Tensor] = field(default_factory=dict)
    readings: dict[PictureKind, list[dict[str, str]]] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, tuple[str, ...]]:
        """`ONE_OBJECT` or `TWO_OBJECTS`."""
        return scores_of(self.scenes[0])


def alignment_sets(
    num_captions: int = 500, *, num_relation_captions: int | None = None, seed: int = 0
) -> list[AlignmentSet]:
    """Sets `seen` and `held_out` of `num_captions` scenes each, and `relation` (default: half as many)."""
    if num_captions < 1:
        raise ValueError(f"num_captions must be at least 1, got {num_captions}")
    num_relations = -(-num_captions // 2) if num_relation_captions is None else num_relation_captions
    kinds: list[tuple[str, Literal["seen", "held_out"], int, int]] = [
        ("seen", "seen", 1, num_captions),
        ("held_out", "held_out", 1, num_captions),
        ("relation", "seen", 2, num_relations),
    ]
    sets = []
    for name, pairs, num_objects, count in kinds:
        # Scenes are keyed by num_objects, too, which data sets leave open: none of these is in a data set.
        scenes = [
            sprites.sample_scene(index, seed=seed, pairs=pairs, num_objects=num_objects) for index in range(count)
        ]
        rng = random.Random(f"{name} {seed}")
        sets.append(AlignmentSet(name, scenes, [describe(scene, rng, full=True) for scene in scenes]))
    return sets


def alignment_report(
    pipeline: TextToImagePipeline | None,
    image_tokenizer: ImageTokenizer,
    probe: SpritesProbe,
    num_captions: int = 500,
    *,
    num_relation_captions: int | None = None,
    batch_size: int = 50,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
    sets: list[AlignmentSet] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Share of pictures in which the probe reads what the caption says.

    Args:
        pipeline: draws the samples; None reports only the real pictures and the reconstructions.
        image_tokenizer: makes the reconstructions.
        num_captions: captions of one object with all five attributes, for seen and held-out pairs each.
        num_relation_captions: captions of two objects; by default half of `num_captions`.
        sampling: settings of the pipeline's call (`guidance_scale`, ...) other than its defaults.
        sets: measure these (from `alignment_sets`), which afterwards hold example pictures.

    Returns:
        `seen`, `held_out` (accuracies `thing`, `colour`, `size`, `position`, `background`, `num_objects`, and
        `all` at once) and `relation` (`things`, `colours`: both right and in their places; `num_objects`;
        `all`) of one sample for each caption; `real` and `reconstructed` with the same three; `probe`. Each
        group of accuracies has `n` and, under `interval`, a 95% Wilson interval for each.
    """
    if sets is None:
        sets = alignment_sets(num_captions, num_relation_captions=num_relation_captions, seed=seed)
    kinds = judged_kinds(pipeline is not None)
    report: dict[str, Any] = {kind: {} for kind in kinds}
    settings = preprocessing_of(image_tokenizer)

    def make(number: int, rows: range) -> dict[str, Tensor]:
        scene_set = sets[number]
        real = real_pictures(scene_set.scenes[rows.start : rows.stop], settings)
        pictures = {"real": real, "reconstructed": reconstruct(image_tokenizer, real)[0]}
        if pipeline is not None:
            # Each scene draws from its own streams, so that samples do not depend on the batches.
            keys = [(seed, number, row) for row in rows]
            pictures[SAMPLED] = _samples(pipeline, scene_set.captions[rows.start : rows.stop], keys, sampling or {})
        return pictures

    sizes = {scene_set.name: len(scene_set.scenes) for scene_set in sets}
    found = read_sets(sizes, make, kinds, probe, batch_size=batch_size, unit="captions", progress=progress)
    for scene_set, read in zip(sets, found, strict=True):
        scene_set.pictures = {kind: read.pictures[kind] for kind in kinds}
        scene_set.readings = {kind: read.readings[kind][:NUM_EXAMPLES] for kind in kinds}
        for kind in kinds:
            report[kind][scene_set.name] = score(scene_set, read.readings[kind])
    sampled = report.pop(SAMPLED, {})
    return {**sampled, **report, "probe": {"accuracies": probe.accuracies}}


def score(scene_set: AlignmentSet, readings: list[dict[str, str]]) -> dict[str, Any]:
    """Accuracies of the probe's answers about the scenes of a set, with `n` and 95% intervals."""
    verdicts = [is_right(scene, reading) for scene, reading in zip(scene_set.scenes, readings, strict=True)]
    counts = {name: sum(verdict[name] for verdict in verdicts) for name in scene_set.scores}
    return {**shares(counts, len(verdicts)), "n": len(verdicts)}


def scores_of(scene: sprites.Scene) -> dict[str, tuple[str, ...]]:
    """The scores that apply to a scene, each with the questions that it takes."""
    return TWO_OBJECTS if scene.relation else ONE_OBJECT


def is_right(scene: sprites.Scene, reading: Mapping[str, str]) -> dict[str, bool]:
    """For each score that applies to the scene: whether all questions that it takes were answered right."""
    expected = answers(scene)
    return {name: all(reading[q] == expected[q] for q in questions) for name, questions in scores_of(scene).items()}


def _samples(
    pipeline: TextToImagePipeline,
    captions: Sequence[str],
    keys: Sequence[tuple[int, ...]],
    sampling: Mapping[str, Any],
) -> Tensor:
    """One picture for each caption, each from its own random stream: uint8 (B, C, H, W). Captions that leave no room
    for the picture lose their last words, as in training."""
    room = caption_room(pipeline.model, pipeline.vocabulary)
    captions = [cut_caption(pipeline.vocabulary, caption, room) for caption in captions]
    images = pipeline(captions, generator=scene_streams(keys), output_type="pt", **sampling).images
    assert isinstance(images, Tensor)  # [0, 1]
    return as_8_bit(images * 2 - 1).cpu()
