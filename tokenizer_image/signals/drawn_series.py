"""The built-in world of time series: trends, seasons and steps with captions, drawn on the fly."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from tokenizer_image.signals.drawn_signals import DrawnSignals
from tokenizer_image.signals.examples import SignalExample

VERSION = 1  # of the drawing and the wording
TRENDS = {"rising": 1.0, "flat": 0.0, "falling": -1.0}
SEASONS = {"daily": 24, "half-daily": 12, "no": 0}  # steps
STEPS = {"no": 0.0, "up": 1.0, "down": -1.0}
PERIOD = 24  # steps after which any of the seasons repeats


@dataclass(frozen=True)
class SeriesKind:
    """What a series does: names in `TRENDS`, `SEASONS` and `STEPS`."""

    trend: str
    season: str
    step: str


KINDS = [SeriesKind(*names) for names in itertools.product(TRENDS, SEASONS, STEPS)]
HELD_OUT = [kind for number, kind in enumerate(KINDS) if number in (1, 11, 24)]
SEEN = [kind for kind in KINDS if kind not in HELD_OUT]


class DrawnSeries(DrawnSignals):
    """Series of one channel in units of their own, as a data set (`SignalSource`).

    `split`: "train" and "validation" have kinds of `SEEN` and share no series, "held_out" has kinds of `HELD_OUT`.
    Series r depends on (seed, split, r) alone.

    Raises:
        ValueError: an unknown split, or fewer than one example.
    """

    name = "seasons"
    version = VERSION
    captions_per_series = 2

    def __init__(self, split: str = "train", num_examples: int = 20_000, seed: int = 0, length: int = 192) -> None:
        super().__init__(split, num_examples, seed, (length,))
        self.length = length

    def kind(self, row: int) -> SeriesKind:
        """What a series does."""
        kinds = HELD_OUT if self.split == "held_out" else SEEN
        return kinds[self.random(row, 0).integers(len(kinds))]

    def __getitem__(self, row: int) -> SignalExample:
        kind, rng = self.kind(row), self.random(row, 1)
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
        kind, rng = self.kind(row), self.random(row, 2)
        parts = ["a trend that stays" if kind.trend == "flat" else f"a {kind.trend} trend"]
        parts += [f"a {kind.season} season"] if kind.season != "no" else []
        parts += [f"a step {kind.step}"] if kind.step != "no" else []
        others = [part for part in parts if rng.random() < 0.7] or parts
        return [_joined(parts), _joined([others[place] for place in rng.permutation(len(others))])]

    def attributes(self, row: int) -> dict[str, str]:
        kind = self.kind(row)
        return {"trend": kind.trend, "season": kind.season, "step": kind.step}


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
