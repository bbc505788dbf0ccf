"""What the built-in worlds have in common: examples drawn by (seed, split, row), captions, splits."""

from __future__ import annotations

import hashlib
import operator

import numpy as np

from tokenizer_image.signals.examples import SignalExample

SPLITS = {"train": 0, "validation": 1, "held_out": 2}


class DrawnSignals:
    """Base of the built-in worlds: a `SignalSource` whose examples are drawn when they are asked for.

    `split`: "train" and "validation" have seen combinations and share no example, "held_out" has combinations that
    training never has. Example r depends on (seed, split, r) alone; the first of its captions is full.

    Raises:
        ValueError: an unknown split, or fewer than one example.
    """

    name: str
    version: int  # of the drawing and the wording
    label_names: list[str] | None = None

    def __init__(self, split: str, num_examples: int, seed: int, sizes: tuple[object, ...]) -> None:
        if split not in SPLITS:
            raise ValueError(f"{self.name} have no split {split!r}; they have: {', '.join(SPLITS)}")
        if num_examples < 1:
            raise ValueError(f"num_examples={num_examples} must be at least 1")
        self.split, self.num_examples, self.seed, self._sizes = split, num_examples, operator.index(seed), sizes

    def __len__(self) -> int:
        return self.num_examples

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the drawing, the wording, the split, the seed and the sizes."""
        identity = (self.version, self.split, self.seed, self.num_examples, *self._sizes)
        return hashlib.blake2b(repr(identity).encode(), digest_size=8).hexdigest()

    def __getitem__(self, row: int) -> SignalExample:
        raise NotImplementedError

    def texts(self, row: int) -> list[str]:
        """The captions of an example."""
        raise NotImplementedError

    def label(self, row: int) -> int:
        """There are no classes."""
        return -1

    def attributes(self, row: int) -> dict[str, str]:
        """What captions can say of an example, by name."""
        raise NotImplementedError

    def random(self, row: int, use: int) -> np.random.Generator:
        """The random numbers of an example for one use, such as its captions."""
        if not 0 <= row < self.num_examples:
            raise IndexError(f"row {row} is outside of this data set of {self.num_examples} {self.name}")
        return np.random.default_rng([self.version, self.seed, SPLITS[self.split], operator.index(row), use])
