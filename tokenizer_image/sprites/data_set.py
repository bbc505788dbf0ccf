"""The built-in world as a data set."""

from __future__ import annotations

import hashlib
import operator
from typing import Literal

from PIL import Image

from tokenizer_image.sprites.captions import describe
from tokenizer_image.sprites.scenes import (
    IMAGE_SIZE,
    Pairs,
    Scene,
    check_choice,
    draw_scene,
    keyed_random,
    sample_scene,
    world_hash,
)

Split = Literal["train", "validation", "held_out"]
SPLITS: dict[str, tuple[Pairs, int]] = {  # pairs and the number of the first scene
    "train": ("seen", 0),
    "validation": ("seen", 1 << 40),
    "held_out": ("held_out", 0),
}


class SpriteDataset:
    """The built-in world as a picture data set (see `tokenizer_image.pictures.loading.PictureDataset`).

    `split`: "train" and "validation" show seen pairs and share no scene; "held_out" shows only held-out
    pairs. Row r of the training split is `sample_scene(r, seed=seed)`. A row has `captions_per_image`
    captions; the first is full. There are no class labels. Pictures are drawn at `image_size` pixels a side.
    """

    name = "sprites"
    label_names: list[str] | None = None

    def __init__(
        self,
        split: Split = "train",
        num_examples: int = 100_000,
        seed: int = 0,
        captions_per_image: int = 4,
        image_size: int = IMAGE_SIZE,
    ) -> None:
        check_choice("split", split, tuple(SPLITS))
        if not 1 <= num_examples <= 1 << 40:
            raise ValueError(f"num_examples={num_examples} must be at least 1 (and at most 2**40)")
        if captions_per_image < 1:
            raise ValueError(f"captions_per_image={captions_per_image} must be at least 1")
        self.split, self.num_examples = split, num_examples
        self.seed, self.captions_per_image = operator.index(seed), captions_per_image
        self.image_size = image_size

    def __len__(self) -> int:
        return self.num_examples

    @property
    def fingerprint(self) -> str:
        """16 hex digits that depend on the drawing, wording, split, seed, size and number of examples."""
        wording = [self.texts(row) for row in range(min(32, len(self)))]
        identity = [world_hash(), self.split, self.seed, self.num_examples, self.captions_per_image, wording]
        if self.image_size != IMAGE_SIZE:
            identity.append(self.image_size)
        return hashlib.blake2b(repr(tuple(identity)).encode(), digest_size=8).hexdigest()

    def scene(self, row: int) -> Scene:
        if not 0 <= row < self.num_examples:
            raise IndexError(f"row {row} is outside this data set of {self.num_examples} examples")
        pairs, start = SPLITS[self.split]
        return sample_scene(start + row, seed=self.seed, pairs=pairs)

    def image(self, row: int) -> Image.Image:
        return draw_scene(self.scene(row), self.image_size)

    def texts(self, row: int) -> list[str]:
        scene, rng = self.scene(row), keyed_random("texts", self.seed, self.split, operator.index(row))
        return [describe(scene, rng, full=number == 0) for number in range(self.captions_per_image)]

    def label(self, row: int) -> int:
        return -1

    def attributes(self, row: int) -> dict[str, str]:
        return self.scene(row).attributes
