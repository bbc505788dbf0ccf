"""What the sprites probe reads in sets of pictures: real ones, their reconstructions, and what a model draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.evaluation.metrics.reconstruction import NUM_EXAMPLES
from pipelines.evaluation.probes.sprites_probe import SpritesProbe
from pipelines.machine.batches import index_batches
from tokenizer_image.preprocessing import Preprocessing, preprocess, to_pixel_values
from tokenizer_image.sprites import scenes as sprites

PictureKind = Literal["real", "reconstructed", "sampled"]
SAMPLED: PictureKind = "sampled"


def judged_kinds(draws: bool) -> list[PictureKind]:
    """The kinds of pictures that the probe reads: without `sampled` where nothing is drawn."""
    return ["real", "reconstructed", *([SAMPLED] if draws else [])]


@dataclass
class SetReadings:
    """What the probe reads in a set.

    Attributes:
        readings: by kind of picture, its answers about each.
        pictures: uint8 (n, C, H, W) of the first `NUM_EXAMPLES`, by kind, those that are not read among them.
    """

    readings: dict[PictureKind, list[dict[str, str]]]
    pictures: dict[str, Tensor]


def read_sets(
    sizes: Mapping[str, int],
    make: Callable[[int, range], dict[str, Tensor]],
    kinds: list[PictureKind],
    probe: SpritesProbe,
    *,
    batch_size: int,
    unit: str,
    progress: bool = True,
) -> Iterator[SetReadings]:
    """Make the pictures of each set, batch by batch, and read them.

    Args:
        sizes: how many pictures of each kind a set has, by its name.
        make: the number of a set, and rows of it, to their pictures, uint8 (B, C, H, W) by kind.
        kinds: those that the probe reads.
        unit: what the progress bar counts, in the plural.
    """
    with tqdm(total=sum(sizes.values()), desc=unit, unit=f" {unit}", disable=not progress) as bar:
        for number, size in enumerate(sizes.values()):
            readings: dict[PictureKind, list[dict[str, str]]] = {kind: [] for kind in kinds}
            examples: dict[str, list[Tensor]] = {}
            for rows in index_batches(size, batch_size):
                pictures = make(number, rows)
                for kind in kinds:
                    readings[kind] += probe.read(to_pixel_values(pictures[kind]))
                for name, part in pictures.items():
                    examples.setdefault(name, []).append(part[: max(0, NUM_EXAMPLES - rows.start)])
                bar.update(len(rows))
            yield SetReadings(readings, {name: torch.cat(parts) for name, parts in examples.items()})


def real_pictures(scenes: list[sprites.Scene], settings: Preprocessing) -> Tensor:
    """uint8 (B, C, H, W), preprocessed as the tokenizer's training pictures are."""
    side = sprites.drawn_size(settings.image_size)
    return torch.from_numpy(np.stack([preprocess(sprites.draw_scene(scene, side), settings) for scene in scenes]))
