"""`SignalExample`, a sound, series or video with its captions, and `SignalSource`, what every source of them offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Kind = Literal["audio", "series", "video"]


@dataclass(frozen=True)
class SignalExample:
    """One example of a data set.

    Attributes:
        kind: what it is.
        values: float32 (channels, time) of audio, in [-1, 1], and of series, in their own units; uint8
            (frames, height, width, 3) of video.
        mask: bool (time,), False in gaps; None without any.
        rate: samples, or frames, a second; None where it is unknown.
        texts: its captions.
        name: its file, or its number, for messages.
    """

    kind: Kind
    values: np.ndarray
    mask: np.ndarray | None
    rate: float | None
    texts: tuple[str, ...]
    name: str

    @property
    def input_values(self) -> np.ndarray:
        """`values` as tokenizers take them; of videos a column of frames, uint8 (3, frames * height, width)."""
        if self.kind != "video":
            return self.values
        channels_first = np.moveaxis(self.values, -1, 0)
        return channels_first.reshape(3, -1, self.values.shape[2])


class SignalSource(Protocol):
    """One split of a data set of signals; also what token caches ask of a data set (`PictureDataset`)."""

    split: str

    @property
    def name(self) -> str:
        """What the source is called in messages."""

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the signals, the captions and the split."""

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes, None without classes."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> SignalExample:
        """An example. ValueError, with the reason, for one that cannot be read."""

    def texts(self, row: int) -> list[str]:
        """Its captions, [] without. Reads no signal."""

    def attributes(self, row: int) -> dict[str, str] | None:
        """What is known about it (drawn signals), else None."""
