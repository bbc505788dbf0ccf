"""Do edits change what they should, and nothing else? The sprites probe reads results, attribute by attribute.

Two sets of fresh edits, none of which is in a data set: of seen thing-colour pairs, and with results that show held-out
pairs alone. One result is drawn for each. The probe also reads the real pictures after the edits and their
reconstructions by the tokenizer: results cannot be expected to score higher.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from pipelines.drawing.captions import cut_caption
from pipelines.drawing.editing import instruction_room
from pipelines.drawing.streams import scene_streams
from pipelines.evaluation.metrics.intervals import shares
from pipelines.evaluation.metrics.reconstruction import NUM_EXAMPLES, as_8_bit, reconstruct
from pipelines.evaluation.probes.probe_readings import SAMPLED, judged_kinds, read_sets, real_pictures
from pipelines.evaluation.probes.sprites_probe import SpritesProbe, answers
from pipelines.text_to_image import TextToImagePipeline
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.preprocessing import Preprocessing, preprocessing_of
from tokenizer_image.sprites.edits import KINDS, Edit, sample_edit
from tokenizer_image.sprites.instructions import instruct

MEASURED_SEED = 41_207  # far from the data sets' small seeds: they share no edit with these
SCORES = ("changed", "kept", "both")


@dataclass
class EditSet:
    """Edits of one kind of pairs, an instruction for each, and, once they are measured, example pictures.

    Attributes:
        pictures: uint8 (n, C, H, W) of the first `NUM_EXAMPLES` edits, by kind of picture; "source" are those before.
        verdicts: about these edits' results.
    """

    name: str
    edits: list[Edit]
    instructions: list[str]
    pictures: dict[str, Tensor] = field(default_factory=dict)
    verdicts: list[dict[str, bool]] = field(default_factory=list)


def edit_sets(count: int, seed: int = 0) -> list[EditSet]:
    """Sets `seen` and `held_out` of `count` edits each, of all kinds in turn."""
    if count < 1:
        raise ValueError(f"the number of edits must be at least 1, got {count}")
    names: tuple[Literal["seen", "held_out"], ...] = ("seen", "held_out")
    sets = []
    for name in names:
        edits = [
            sample_edit(index, seed=MEASURED_SEED + seed, pairs=name, kind=KINDS[index % len(KINDS)])
            for index in range(count)
        ]
        rng = random.Random(f"edits {name} {seed}")
        sets.append(EditSet(name, edits, [instruct(edit, rng) for edit in edits]))
    return sets


def expected_answers(edit: Edit) -> tuple[dict[str, str], dict[str, str]]:
    """The probe's right answers about the picture after an edit: those that the edit changes, and those that stay.

    Where an object is added, its thing, colour and place among the two are what changes; where one is removed, the
    number of objects and which thing is shown, and everything about the thing that is shown stays.
    """
    before, after = answers(edit.before), answers(edit.after)
    if edit.kind == "add":
        in_order = edit.after.relation in ("left of", "above")
        new = "first" if (edit.number == 0) == in_order else "second"
        changed = {"num_objects", "axis", f"{new}_thing", f"{new}_colour"}
    elif edit.kind == "remove":
        kept = set(after) - {"num_objects"}
        return {name: after[name] for name in ("num_objects", "thing")}, {name: after[name] for name in kept}
    else:
        changed = {name for name, answer in after.items() if before[name] != answer}
    return {n: a for n, a in after.items() if n in changed}, {n: a for n, a in after.items() if n not in changed}


def edit_report(
    pipeline: TextToImagePipeline | None,
    image_tokenizer: ImageTokenizer,
    probe: SpritesProbe,
    sets: Sequence[EditSet],
    *,
    batch_size: int = 50,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Share of edits after which the probe reads what has changed, and what has not.

    Args:
        pipeline: draws the results; None reports only real pictures and reconstructions.
        image_tokenizer: makes the reconstructions.
        sets: of `edit_sets`, which afterwards hold example pictures.
        sampling: settings of the pipeline's call other than its defaults.

    Returns:
        `seen` and `held_out` of one result for each edit, and `real` and `reconstructed` with the same two. Each has,
        over `n` edits, the shares `changed` (all that should change has), `kept` (all that should not has not) and
        `both`, under `interval` a 95% Wilson interval for each, and under `kinds` the same for each kind of edit.
    """
    kinds = judged_kinds(pipeline is not None)
    report: dict[str, Any] = {kind: {} for kind in kinds}
    settings = preprocessing_of(image_tokenizer)

    def make(number: int, rows: range) -> dict[str, Tensor]:
        keys = [(seed, number, row) for row in rows]
        return _pictures(pipeline, image_tokenizer, settings, sets[number], rows, keys, sampling or {})

    sizes = {edit_set.name: len(edit_set.edits) for edit_set in sets}
    found = read_sets(sizes, make, kinds, probe, batch_size=batch_size, unit="edits", progress=progress)
    for edit_set, read in zip(sets, found, strict=True):
        edit_set.pictures = read.pictures
        shown = zip(edit_set.edits, read.readings[kinds[-1]][:NUM_EXAMPLES], strict=False)
        edit_set.verdicts = [verdict(edit, reading) for edit, reading in shown]
        for kind in kinds:
            report[kind][edit_set.name] = scored(edit_set.edits, read.readings[kind])
    return {**report.pop(SAMPLED, {}), **report}


def scored(edits: Sequence[Edit], readings: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Shares, intervals and counts of the probe's answers about results, of all edits and of each kind."""
    verdicts = [(edit.kind, verdict(edit, reading)) for edit, reading in zip(edits, readings, strict=True)]
    kinds = {name: [one for kind, one in verdicts if kind == name] for name in KINDS}
    return {
        **_shares([one for _, one in verdicts]),
        "kinds": {name: _shares(part) for name, part in kinds.items() if part},
    }


def verdict(edit: Edit, reading: Mapping[str, str]) -> dict[str, bool]:
    """For each of `SCORES`, whether the probe's answers about a result are those of the edit."""
    changes, stays = (all(reading[q] == a for q, a in part.items()) for part in expected_answers(edit))
    return {"changed": changes, "kept": stays, "both": changes and stays}


def _shares(verdicts: Sequence[Mapping[str, bool]]) -> dict[str, Any]:
    return {**shares({name: sum(one[name] for one in verdicts) for name in SCORES}, len(verdicts)), "n": len(verdicts)}


def _pictures(
    pipeline: TextToImagePipeline | None,
    image_tokenizer: ImageTokenizer,
    settings: Preprocessing,
    edit_set: EditSet,
    rows: range,
    keys: Sequence[tuple[int, ...]],
    sampling: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Pictures of some edits of a set, uint8 (B, C, H, W) by kind; each result is drawn from its own random stream."""
    edits = edit_set.edits[rows.start : rows.stop]
    source = real_pictures([edit.before for edit in edits], settings)
    real = real_pictures([edit.after for edit in edits], settings)
    pictures = {"source": source, "real": real, "reconstructed": reconstruct(image_tokenizer, real)[0]}
    if pipeline is not None:
        room = instruction_room(pipeline.model, pipeline.vocabulary)
        texts = [cut_caption(pipeline.vocabulary, edit_set.instructions[row], room) for row in rows]
        images = pipeline.edit(
            [to_pil_image(picture) for picture in source], texts, generator=scene_streams(keys), output_type="pt",
            **sampling,
        ).images  # fmt: skip
        assert isinstance(images, Tensor)  # [0, 1]
        pictures[SAMPLED] = as_8_bit(images * 2 - 1).cpu()
    return pictures
