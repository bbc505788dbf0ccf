"""Do captions state what their pictures show? Sprites' captions are read by their grammar, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from pipelines.evaluation.alignment import AlignmentSet, wilson_interval
from pipelines.image_to_text import ImageToTextPipeline
from tokenizer_image.sprites.caption_reading import is_true, read_caption
from tokenizer_image.sprites.world import Scene, draw_scene

# What a caption must state, and rightly, to count: of one object, of two.
ONE_OBJECT = {"thing": ("thing",), "colour": ("colour",), "thing_and_colour": ("thing", "colour")}
TWO_OBJECTS = {
    "things": ("thing", "other_thing"),
    "colours": ("colour", "other_colour"),
    "things_and_colours": ("thing", "other_thing", "colour", "other_colour"),
}


_SEEDS = 1_000_000  # seeds of pictures for each seed of a report


def caption_report(
    pipeline: Any,
    sets: Sequence[AlignmentSet],
    *,
    best_of: int = 1,
    batch_size: int = 50,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Describe the real pictures of each set's scenes, and read the captions.

    Args:
        pipeline: one whose model has learned to describe.
        best_of: beside the likeliest caption of each picture, also take the best of so many; 1: do not.
        seed: of the captions that are drawn.

    Returns:
        for each set's name, what `score_captions` says of the likeliest captions; of the best of n, the same under
        `best_of`, with n as `captions_each`.
    """
    describer = ImageToTextPipeline(pipeline.image_tokenizer, pipeline.model, pipeline.vocabulary)
    report: dict[str, Any] = {}
    total = sum(len(one.scenes) for one in sets)
    with tqdm(total=total, desc="captions", unit=" pictures", disable=not progress) as bar:
        for one in sets:
            likeliest: list[str] = []
            best: list[str] = []
            for start in range(0, len(one.scenes), batch_size):
                images = [draw_scene(scene) for scene in one.scenes[start : start + batch_size]]
                likeliest += describer(images).texts
                if best_of > 1:
                    # Streams of their own, or the pictures' luck would be the same and the intervals too narrow.
                    seeds = [_SEEDS * seed + start + number for number in range(len(images))]
                    best += describer(images, best_of=best_of, seed=seeds).texts
                bar.update(len(images))
            report[one.name] = score_captions(one.scenes, likeliest)
            if best_of > 1:
                report[one.name]["best_of"] = {"captions_each": best_of, **score_captions(one.scenes, best)}
    return report


def score_captions(scenes: Sequence[Scene], texts: Sequence[str]) -> dict[str, Any]:
    """Shares of captions that state the thing, the colour, and both, and state them right (`ONE_OBJECT`; `TWO_OBJECTS`
    for scenes of two).

    A caption need not mention a colour: `states_colour` is the share that does, and `true` the share in which nothing
    that is stated is wrong. With `n`, 95% Wilson intervals under `interval`, and a few captions under `examples`.
    """
    scores = TWO_OBJECTS if scenes[0].relation else ONE_OBJECT
    read = [read_caption(text) for text in texts]
    counts = {name: sum(map(_right, scenes, read, [keys] * len(read))) for name, keys in scores.items()}
    counts["true"] = sum(map(is_true, scenes, read))
    counts["states_colour"] = sum(all(name in stated for name in list(scores.values())[1]) for stated in read)
    n = len(scenes)
    return {
        **{name: count / n for name, count in counts.items()},
        "n": n,
        "interval": {name: list(wilson_interval(count, n)) for name, count in counts.items()},
        "examples": list(texts[:8]),
    }


def _right(scene: Scene, stated: dict[str, str], names: Sequence[str]) -> bool:
    """Whether a caption states all of `names` rightly, and the right number of objects in the right relation."""
    kept = {name: stated[name] for name in (*names, "num_objects", "relation") if name in stated}
    return all(name in stated for name in names) and is_true(scene, kept)
