"""The built-in world of time series: trends, seasons and steps with captions, drawn on the fly."""

from __future__ import annotations

import hashlib
import itertools
import operator
from dataclasses import dataclass

import numpy as np

from tokenizer_image.signals.examples import SignalExample

VERSION = 1  # of the drawing and the wording
TRENDS = {"rising": 1.0, "flat": 0.0, "falling": -1.0}
SEASONS = {"daily": 24, "half-daily": 12, "no": 0}  # steps
STEPS = {"no": 0.0, "up": 1.0, "down": -1.0}
PERIOD = 24  # steps after which any of the seasons repeats
SPLITS = {"train": 0, "validation": 1, "held_out": 2}


@dataclass(frozen=True)
class SeriesKind:
    """What a series does: names in `TRENDS`, `SEASONS` and `STEPS`."""

    trend: str
    season: str
    step: str


KINDS = [SeriesKind(*names) for names in itertools.product(TRENDS, SEASONS, STEPS)]
HELD_OUT = [kind for number, kind in enumerate(KINDS) if number in (1, 11, 24)]
SEEN = [kind for kind in KINDS if kind not in HELD_OUT]


class DrawnSeries:
    """Series of one channel in units of their own, as a data set (`SignalSource`).

    `split`: "train" and "validation" have kinds of `SEEN` and share no series, "held_out" has kinds of `HELD_OUT`.
    Series r depends on (seed, split, r) alone.

    Raises:
        ValueError: an unknown split, or fewer than one example.
    """

    name = "seasons"
    label_names: list[str] | None = None
    captions_per_series = 2

    def __init__(self, split: str = "train", num_examples: int = 20_000, seed: int = 0, length: int = 192) -> None:
        if split not in SPLITS:
            raise ValueError(f"seasons have no split {split!r}; they have: {', '.join(SPLITS)}")
        if num_examples < 1:
            raise ValueError(f"num_examples={num_examples} must be at least 1")
        self.split, self.num_examples, self.seed = split, num_examples, operator.index(seed)
        self.length = length

    def __len__(self) -> int:
        return self.num_examples

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the drawing, the wording, the split, the seed and the sizes."""
        identity = (VERSION, self.split, self.seed, self.num_examples, self.length)
        return hashlib.blake2b(repr(identity).encode(), digest_size=8).hexdigest()

    def kind(self, row: int) -> SeriesKind:
        """What a series does."""
        kinds = HELD_OUT if self.split == "held_out" else SEEN
        return kinds[self._random(row, 0).integers(len(kinds))]

    def __getitem__(self, row: int) -> SignalExample:
        kind, rng = self.kind(row), self._random(row, 1)
        time = np.arange(self.length)
        values = TRENDS[kind.trend] * rng.uniform(1.5, 3.0) * time / self.length
        if period := SEASONS[kind.season]:
            angle = 2 * np.pi * (time / period + rng.random())
            values = values + rng.uniform(0.8, 1.5) * (np.sin(angle) + 0.3 * np.sin(2 * angle + rng.uniform(0, 6)))
        place = rng.integers(self.length // 4, 3 * self.length // 4)
        values = values + STEPS[kind.step] * rng.uniform(1.5, 2.5) * (time >= place)
        values = values + 0.3 * rng.standard_normal(self.length)
        values = rng.uniform(-100, 100) + np.exp(rng.uniform(0, 3)) * values
        texts = tuple(self.texts(row))
        return SignalExample("series", values.astype(np.float32)[None], None, None, texts, f"series {row}")

    def texts(self, row: int) -> list[str]:
        kind, rng = self.kind(row), self._random(row, 2)
        parts = ["a trend that stays" if kind.trend == "flat" else f"a {kind.trend} trend"]
        parts += [f"a {kind.season} season"] if kind.season != "no" else []
        parts += [f"a step {kind.step}"] if kind.step != "no" else []
        others = [part for part in parts if rng.random() < 0.7] or parts
        return [_joined(parts), _joined([others[place] for place in rng.permutation(len(others))])]

    def label(self, row: int) -> int:
        """There are no classes."""
        return -1

    def attributes(self, row: int) -> dict[str, str]:
        kind = self.kind(row)
        return {"trend": kind.trend, "season": kind.season, "step": kind.step}

    def _random(self, row: int, use: int) -> np.random.Generator:
        if not 0 <= row < self.num_examples:
            raise IndexError(f"row {row} is outside of this data set of {self.num_examples} series")
        return np.random.default_rng([VERSION, self.seed, SPLITS[self.split], operator.index(row), use])


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
