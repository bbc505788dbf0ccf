"""Edits of the built-in world as a data set of pictures, with a document of each edit."""

from __future__ import annotations

import hashlib
import operator
from typing import NamedTuple

import numpy as np
from PIL import Image

from tokenizer_image.sprites.data_set import SPLITS, Split
from tokenizer_image.sprites.edits import Edit, sample_edit
from tokenizer_image.sprites.instructions import instruct
from tokenizer_image.sprites.scenes import IMAGE_SIZE, Scene, check_choice, draw_scene, keyed_random, world_hash


class EditDocument(NamedTuple):
    """One edit: its parts in order, "t" or "i" each; its instruction; the rows of its two pictures."""

    order: str
    texts: tuple[str, ...]
    pictures: tuple[int, ...]


class SpriteEditDataset:
    """Edits of the built-in world: a picture data set (see `tokenizer_image.pictures.loading.PictureDataset`) in which
    pictures 2 n and 2 n + 1 are those before and after edit n, and `documents` that join them by an instruction.

    `split`: "train" and "validation" show seen pairs and share no edit; the results of "held_out" show only held-out
    pairs. Edit n of the training split is `sample_edit(n, seed=seed)`. Pictures have no captions and no labels.

    numbers: of the edits that it has (default: the first `num_examples`).
    """

    name = "sprites-edits"
    label_names: list[str] | None = None

    def __init__(
        self,
        split: Split = "train",
        num_examples: int = 100_000,
        seed: int = 0,
        image_size: int = IMAGE_SIZE,
        numbers: np.ndarray | None = None,
    ) -> None:
        check_choice("split", split, tuple(SPLITS))
        if not 1 <= num_examples <= 1 << 40:
            raise ValueError(f"num_examples={num_examples} must be at least 1 (and at most 2**40)")
        self.split, self.num_examples = split, num_examples
        self.seed, self.image_size = operator.index(seed), image_size
        self.numbers = numbers

    def __len__(self) -> int:
        return 2 * len(self.documents)

    @property
    def documents(self) -> EditDocuments:
        """The edits, made as they are asked for."""
        return EditDocuments(self)

    def part(self, rows: np.ndarray) -> SpriteEditDataset:
        """Some of these edits, by their place in `documents`."""
        numbers = rows if self.numbers is None else self.numbers[rows]
        return SpriteEditDataset(self.split, self.num_examples, self.seed, self.image_size, numbers)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that depend on the drawing, the edits, their wording, split, seed, size and number."""
        wording = [(repr(self.edit(place)), self.instruction(place)) for place in range(min(64, len(self.documents)))]
        chosen = None if self.numbers is None else self.numbers.tobytes()
        identity = (world_hash(), self.name, self.split, self.seed, self.num_examples, self.image_size, wording, chosen)
        return hashlib.blake2b(repr(identity).encode(), digest_size=8).hexdigest()

    def edit(self, place: int) -> Edit:
        """The edit at this place of `documents`."""
        pairs, start = SPLITS[self.split]
        return sample_edit(start + self._number(place), seed=self.seed, pairs=pairs)

    def instruction(self, place: int) -> str:
        """What asks for it."""
        rng = keyed_random("instruction", self.seed, self.split, self._number(place))
        return instruct(self.edit(place), rng)

    def _number(self, place: int) -> int:
        return operator.index(place) if self.numbers is None else int(self.numbers[place])

    def scene(self, row: int) -> Scene:
        """The scene that picture number `row` shows."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside this data set of {len(self)} pictures")
        edit = self.edit(row // 2)
        return edit.after if row % 2 else edit.before

    def image(self, row: int) -> Image.Image:
        return draw_scene(self.scene(row), self.image_size)

    def texts(self, row: int) -> list[str]:
        return []

    def label(self, row: int) -> int:
        return -1

    def attributes(self, row: int) -> dict[str, str]:
        return self.scene(row).attributes


class EditDocuments:
    """The documents of a `SpriteEditDataset`, each made when it is asked for."""

    def __init__(self, source: SpriteEditDataset) -> None:
        self._source = source

    def __len__(self) -> int:
        return self._source.num_examples if self._source.numbers is None else len(self._source.numbers)

    def __getitem__(self, place: int) -> EditDocument:
        if not 0 <= place < len(self):
            raise IndexError(f"document {place} of a data set of {len(self)} edits")
        return EditDocument("iti", (self._source.instruction(place),), (2 * place, 2 * place + 1))
