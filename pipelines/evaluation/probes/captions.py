"""Do captions state what their pictures show? Sprites' captions are read by their grammar, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from pipelines.evaluation.metrics.intervals import shares
from pipelines.evaluation.probes.alignment import AlignmentSet
from pipelines.image_to_text import ImageToTextPipeline
from pipelines.machine.batches import index_batches
from pipelines.multimodal import MultimodalPipeline
from tokenizer_image.sprites.caption_reading import is_true, read_caption
from tokenizer_image.sprites.scenes import Scene, draw_scene, drawn_size

# Score -> what a caption must state, and rightly, to count; for scenes of one object and of two.
ONE_OBJECT = {"thing": ("thing",), "colour": ("colour",), "thing_and_colour": ("thing", "colour")}
TWO_OBJECTS = {
    "things": ("thing", "other_thing"),
    "colours": ("colour", "other_colour"),
    "things_and_colours": ("thing", "other_thing", "colour", "other_colour"),
}
NUM_EXAMPLES = 8  # captions of each set that the report quotes
PICTURE_SEEDS = 1_000_000  # the seeds of a report's pictures start at this times the report's seed


def caption_report(
    pipeline: MultimodalPipeline,
    sets: Sequence[AlignmentSet],
    *,
    best_of: int = 1,
    batch_size: int = 50,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Describe the real pictures of each set's scenes, and read the captions.

    Args:
        pipeline: its model has learned to describe.
        best_of: beside the likeliest caption of each picture, also take the best of so many; 1: do not.
        seed: of the captions that are sampled.

    Returns:
        for each set's name, the figures of `score_captions` for the likeliest captions; under `best_of` the same for
        the best of n, with n as `captions_each`.
    """
    describer = ImageToTextPipeline(pipeline.image_tokenizer, pipeline.model, pipeline.vocabulary)
    report: dict[str, Any] = {}
    total = sum(len(scene_set.scenes) for scene_set in sets)
    side = drawn_size(pipeline.image_tokenizer.config.image_size)
    with tqdm(total=total, desc="captions", unit=" pictures", disable=not progress) as bar:
        for scene_set in sets:
            likeliest: list[str] = []
            best: list[str] = []
            for rows in index_batches(len(scene_set.scenes), batch_size):
                images = [draw_scene(scene, side) for scene in scene_set.scenes[rows.start : rows.stop]]
                likeliest += describer(images).texts
                if best_of > 1:
                    # One seed for each picture: with a shared seed the captions of different pictures would be
                    # correlated, and the intervals, which take them for independent, too narrow.
                    seeds = [PICTURE_SEEDS * seed + row for row in rows]
                    best += describer(images, best_of=best_of, seed=seeds).texts
                bar.update(len(images))
            report[scene_set.name] = score_captions(scene_set.scenes, likeliest)
            if best_of > 1:
                report[scene_set.name]["best_of"] = {
                    "captions_each": best_of,
                    **score_captions(scene_set.scenes, best),
                }
    return report


def score_captions(scenes: Sequence[Scene], texts: Sequence[str]) -> dict[str, Any]:
    """Shares of captions that state the thing, the colour, and both, and state them right (`ONE_OBJECT`; `TWO_OBJECTS`
    for scenes of two).

    A caption need not mention a colour: `states_colour` is the share that does, and `true` the share in which nothing
    that is stated is wrong. With `n`, 95% Wilson intervals under `interval`, and a few captions under `examples`.
    """
    scores = TWO_OBJECTS if scenes[0].relation else ONE_OBJECT
    colours = scores["colours" if scenes[0].relation else "colour"]
    statements = [read_caption(text) for text in texts]
    pairs = list(zip(scenes, statements, strict=True))
    counts = {
        score: sum(_states_rightly(scene, stated, names) for scene, stated in pairs) for score, names in scores.items()
    }
    counts["true"] = sum(is_true(scene, stated) for scene, stated in pairs)
    counts["states_colour"] = sum(all(name in stated for name in colours) for stated in statements)
    return {**shares(counts, len(scenes)), "n": len(scenes), "examples": list(texts[:NUM_EXAMPLES])}


def _states_rightly(scene: Scene, stated: dict[str, str], names: Sequence[str]) -> bool:
    """Whether a caption states all of `names` rightly, and the right number of objects in the right relation."""
    relevant = {name: stated[name] for name in (*names, "num_objects", "relation") if name in stated}
    return all(name in stated for name in names) and is_true(scene, relevant)
