"""What a tokenizer of signals takes: kind, length, rate and channels, stored in its config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

AUDIO_RATES = range(8_000, 24_001)
BUILT_IN = {"audio": "sounds"}  # the names of the built-in worlds, by kind


@dataclass(frozen=True)
class SignalSettings:
    """How signals of any length become examples of one.

    Args:
        signal: "audio" or "series".
        length: samples of an example.
        num_channels: of an example; audio has 1.
        rate: samples a second, of audio.
        horizon: of series, the last steps of an example, which a forecast is of: series are normalised by the steps
            before them alone, as a forecast knows no others.
        location, scale: of series, for each channel, the median over the training examples of what they are normalised
            by: the units of a series that is drawn from a text.

    Raises:
        ValueError: a value out of range.
    """

    signal: str
    length: int
    num_channels: int = 1
    rate: int | None = None
    horizon: int = 0
    location: list[float] = dataclasses.field(default_factory=list)
    scale: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length} must be at least 1 sample")
        if self.signal == "audio" and (self.num_channels != 1 or self.rate is None or self.rate not in AUDIO_RATES):
            raise ValueError(
                f"rate={self.rate}, num_channels={self.num_channels}: audio is mono, of {AUDIO_RATES[0]} to "
                f"{AUDIO_RATES[-1]} samples a second"
            )
        if not 0 <= self.horizon < self.length:
            raise ValueError(f"horizon={self.horizon} must be at least 0 and below the length, {self.length}")

    @property
    def image_size(self) -> int:
        """What `NetworkConfig` calls the length."""
        return self.length

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without those that are not set."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value}

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
    stored = image_tokenizer.config.preprocessing or {}
    return SignalSettings.from_dict(stored) if "signal" in stored else None
