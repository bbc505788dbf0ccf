"""Do sampled pictures show what their captions say? The sprites probe reads them, attribute by attribute.

Three sets of fresh scenes, none of which was trained on: one object of a seen thing-colour pair, one object
of a held-out pair, and two objects in a relation. One picture is drawn for each caption. Beside the samples,
the probe reads the real pictures of the same scenes and their reconstructions through the tokenizer, which no
sample can be expected to beat.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.evaluation.reconstruction import as_8_bit, reconstruct
from pipelines.evaluation.sprites_probe import SpritesProbe, answers
from tokenizer_image.preprocessing import Preprocessing, preprocess, preprocessing_of, to_pixel_values
from tokenizer_image.sprites import world as sprites

# What a set of scenes is scored by, and the probe's questions that must all be answered right for it.
# `all` also asks how many objects there are: a second one that nobody asked for makes a sample wrong.
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
NUM_EXAMPLES = 32  # pictures of each set that are kept for showing


@dataclass
class AlignmentSet:
    """Scenes of one kind, a caption for each, and, once measured, examples of what was read in pictures.

    `pictures` and `readings` have the keys "real", "reconstructed" and "sampled": uint8 (n, C, H, W), and the
    probe's answers, of the first `NUM_EXAMPLES` scenes.
    """

    name: str
    scenes: list[sprites.Scene]
    captions: list[str]
    pictures: dict[str, Tensor] = field(default_factory=dict)
    readings: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, tuple[str, ...]]:
        """Score -> the questions that it takes (`ONE_OBJECT` or `TWO_OBJECTS`)."""
        return TWO_OBJECTS if self.scenes[0].relation else ONE_OBJECT


def alignment_sets(
    num_captions: int = 500, *, num_relation_captions: int | None = None, seed: int = 0
) -> list[AlignmentSet]:
    """Sets `seen` and `held_out` of `num_captions` scenes each, and `relation` (default: half as many)."""
    if num_captions < 1:
        raise ValueError(f"num_captions must be at least 1, not {num_captions}.")
    num_relations = -(-num_captions // 2) if num_relation_captions is None else num_relation_captions
    kinds: list[tuple[str, Literal["seen", "held_out"], int, int]] = [
        ("seen", "seen", 1, num_captions),
        ("held_out", "held_out", 1, num_captions),
        ("relation", "seen", 2, num_relations),
    ]
    sets = []
    for name, pairs, num_objects, count in kinds:
        # Data sets leave num_objects open, and scenes are keyed by it too: none of these is in a data set.
        scenes = [
            sprites.sample_scene(index, seed=seed, pairs=pairs, num_objects=num_objects) for index in range(count)
        ]
        rng = random.Random(f"{name} {seed}")
        sets.append(AlignmentSet(name, scenes, [sprites.describe(scene, rng, full=True) for scene in scenes]))
    return sets


def alignment_report(
    pipeline: Any,
    image_tokenizer: Any,
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
        pipeline: a `TextToImagePipeline`; None reports only the real pictures and the reconstructions.
        image_tokenizer: a `VQVAE` or another tokenizer with its doors, for the reconstructions.
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
    kinds = ["real", "reconstructed"] + ([] if pipeline is None else ["sampled"])
    report: dict[str, Any] = {kind: {} for kind in kinds}
    settings = preprocessing_of(image_tokenizer)
    total = sum(len(one.scenes) for one in sets)
    with tqdm(total=total, desc="alignment", unit=" captions", disable=not progress) as bar:
        for number, one in enumerate(sets):
            readings: dict[str, list[dict[str, str]]] = {kind: [] for kind in kinds}
            kept: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
            for chosen in _batches(len(one.scenes), batch_size):
                real = real_pictures(one.scenes[chosen], settings)
                pictures = {"real": real, "reconstructed": reconstruct(image_tokenizer, real)[0]}
                if pipeline is not None:
                    # Each scene draws from streams of its own, whatever the batches.
                    keys = [(seed, number, index) for index in range(chosen.start, chosen.stop)]
                    pictures["sampled"] = _samples(pipeline, one.captions[chosen], keys, sampling or {})
                for kind in kinds:
                    readings[kind] += probe.read(to_pixel_values(pictures[kind]))
                    kept[kind].append(pictures[kind][: max(0, NUM_EXAMPLES - chosen.start)])
                bar.update(len(real))
            one.pictures = {kind: torch.cat(kept[kind]) for kind in kinds}
            one.readings = {kind: readings[kind][:NUM_EXAMPLES] for kind in kinds}
            for kind in kinds:
                report[kind][one.name] = score(one, readings[kind])
    sampled = report.pop("sampled", {})
    return {**sampled, **report, "probe": {"accuracies": probe.accuracies}}


def score(one: AlignmentSet, readings: list[dict[str, str]]) -> dict[str, Any]:
    """Accuracies of the probe's answers about the scenes of a set, with `n` and 95% intervals."""
    right = [is_right(scene, reading) for scene, reading in zip(one.scenes, readings, strict=True)]
    counts = {name: sum(verdict[name] for verdict in right) for name in one.scores}
    n = len(right)
    return {
        **{name: count / n for name, count in counts.items()},
        "n": n,
        "interval": {name: list(wilson_interval(count, n)) for name, count in counts.items()},
    }


def is_right(scene: sprites.Scene, reading: Mapping[str, str]) -> dict[str, bool]:
    """For each score of this kind of scene: whether all questions that it takes were answered right."""
    expected = answers(scene)
    scores = TWO_OBJECTS if scene.relation else ONE_OBJECT
    return {name: all(reading[q] == expected[q] for q in questions) for name, questions in scores.items()}


def wilson_interval(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95% confidence interval of a share `right / n` (Wilson, JASA 1927)."""
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"{right} right of {n} is not a share.")
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return max(0.0, centre - half), min(1.0, centre + half)


def _batches(count: int, batch_size: int) -> Iterator[slice]:
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))


def real_pictures(scenes: list[sprites.Scene], settings: Preprocessing) -> Tensor:
    """uint8 (B, C, H, W), prepared as the tokenizer's pictures are."""
    return torch.from_numpy(np.stack([preprocess(sprites.draw_scene(scene), settings) for scene in scenes]))


def _samples(
    pipeline: Any, captions: list[str], keys: Sequence[tuple[int, ...]], sampling: Mapping[str, Any]
) -> Tensor:
    """One picture for each caption, from a stream of random numbers of its own: uint8 (B, C, H, W)."""
    output = pipeline(captions, generator=picture_streams(keys), output_type="pt", **sampling)
    return as_8_bit(output.images * 2 - 1).cpu()


def picture_streams(keys: Iterable[tuple[int, ...]]) -> list[torch.Generator]:
    """A random stream for each picture, by its keys: under one seed, all prompts would be drawn from the same one."""
    states = [np.random.SeedSequence(key).generate_state(1, np.uint64)[0] for key in keys]
    return [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]
