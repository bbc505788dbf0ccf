"""What a tokenizer of signals takes: kind, length, rate and channels, stored in its config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

AUDIO_RATES = range(8_000, 24_001)
# The names of the built-in worlds, and what several signals of a kind are called.
BUILT_IN = {"audio": "sounds", "series": "seasons", "video": "moving-sprites"}
WORDS = {"audio": "sounds", "series": "series", "video": "videos"}


@dataclass(frozen=True)
class SignalSettings:
    """How signals of any length become examples of one.

    Args:
        signal: "audio", "series" or "video".
        length: samples of an example, or frames.
        rate: samples a second; 0 of series and videos.
        num_channels: of an example; sounds are mono, videos RGB. 0 of series in files: as many as the first has.
        horizon: of series, the last steps of an example, which a forecast is of: a series is normalised by the steps
            before them.
        frame_size: of videos, the side of a frame in pixels.
        location, scale: of series, for each channel, the median over training of the means and deviations that they
            are normalised by: the units of a series that is drawn from a text.

    Raises:
        ValueError: a value out of range.
    """

    signal: str
    length: int
    rate: int = 0
    num_channels: int = 1
    horizon: int = 0
    frame_size: int = 0
    location: list[float] = dataclasses.field(default_factory=list)
    scale: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length} must be at least 1 sample")
        if not 0 <= self.horizon < self.length:
            raise ValueError(f"horizon={self.horizon} must be at least 0 and below the length, {self.length}")
        if self.signal == "video" and (self.length < 2 or self.frame_size < 1 or self.num_channels != 3):
            raise ValueError(
                f"length={self.length}, frame_size={self.frame_size}, num_channels={self.num_channels}: a video has "
                "two frames or more, of at least one pixel, in RGB"
            )
        if self.signal != "audio":
            return
        if self.num_channels != 1 or self.rate not in AUDIO_RATES:
            raise ValueError(
                f"rate={self.rate}, num_channels={self.num_channels}: sounds are mono, of {AUDIO_RATES[0]} to "
                f"{AUDIO_RATES[-1]} samples a second"
            )

    @property
    def context(self) -> int:
        """The steps of an example before its horizon."""
        return self.length - self.horizon

    @property
    def image_size(self) -> int:
        """What `NetworkConfig` calls the length, or the side of a frame."""
        return self.frame_size or self.length

    @property
    def example_shape(self) -> tuple[int, int]:
        """(height, width) of an example: (1, samples), of videos a column of frames."""
        return (self.length * self.frame_size, self.frame_size) if self.frame_size else (1, self.length)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> SignalSettings:
        """Inverse of `to_dict`. Raises ValueError for a name that is not a setting."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(f"unknown signal setting {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**settings)


def signal_settings_of(image_tokenizer: Any) -> SignalSettings | None:
    """The settings of a tokenizer of signals; None for one of pictures."""
    stored = getattr(image_tokenizer.config, "preprocessing", None) or {}
    return SignalSettings.from_dict(stored) if "signal" in stored else None
