"""Options that concern signals, sounds, series and videos in place of pictures: of the commands that read them before
there is a tokenizer, and of stage 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines.options.option import given_options, option
from tokenizer_image.signals.settings import BUILT_IN, SignalSettings

# Options of pictures that have no meaning for signals.
PICTURE_OPTIONS = (
    "num_channels", "resize", "sixteen_bit", "random_flip", "image_column", "max_image_pixels", "network",
    "num_levels", "photographs", "codes_from", "perceptual_weight", "adversarial_weight", "feature_matching_weight",
    "extractor", "frequency_weight", "bottleneck",
)  # fmt: skip
RATE, DOWNSAMPLING = 16_000, 320  # of audio by default: 50 positions a second
SERIES_LENGTH = 192
FRAMES, FRAME_SIZE = 8, 32  # of videos


@dataclass
class SignalDataOptions:
    """What is read in place of pictures."""

    signal: str | None = option(
        None,
        "'audio', 'series' or 'video': sounds, time series or videos in place of pictures",
        choices=tuple(BUILT_IN),
    )
    sample_rate: int = option(RATE, "audio: samples a second", within="[8000, 24000]")
    length: int | None = option(
        None, "signals: samples of an example (default: one second; 192 steps of series; 8 frames)", above_zero=True
    )
    horizon: int = option(24, "series: the last steps of an example, which forecasts are of", not_negative=True)

    # Options of signals, and those of all that a kind has no use for.
    signal_names: ClassVar[tuple[str, ...]] = ("sample_rate", "length", "horizon")
    foreign_names: ClassVar[dict[str, tuple[str, ...]]] = {
        "audio": ("image_size", "horizon"),
        "series": ("image_size", "sample_rate"),
        "video": ("sample_rate", "horizon"),
    }

    def check_signal(self) -> None:
        """Raise ValueError for options of signals without --signal, or of pictures with it."""
        names = self.signal_names if self.signal is None else (*self.foreign_names[self.signal], *PICTURE_OPTIONS)
        given = given_options(self, names)
        if not given:
            return
        if self.signal is None:
            raise ValueError(f"{', '.join(given)}: for signals; give --signal, too")
        raise ValueError(f"--signal {self.signal} has no use for {', '.join(given)}, which concern others: leave out")

    def signal_settings(self) -> SignalSettings:
        """What a new tokenizer takes."""
        if self.signal == "video":
            side: int | None = self.image_size  # type: ignore[attr-defined]
            return SignalSettings("video", self.length or FRAMES, num_channels=3, frame_size=side or FRAME_SIZE)
        if self.signal == "series":
            return SignalSettings("series", self.length or SERIES_LENGTH, num_channels=0, horizon=self.horizon)
        length = self.length or -(-self.sample_rate // DOWNSAMPLING) * DOWNSAMPLING
        return SignalSettings(str(self.signal), length, self.sample_rate)


@dataclass
class SignalOptions(SignalDataOptions):
    """What stage 1 learns from in place of pictures, and how."""

    frame_patch: int | None = option(
        None, "video: frames that one position of the codes stands for (default: 4)", above_zero=True
    )
    causal: bool = option(False, "audio: codes depend on no later samples, as streaming needs (series: always)")
    depth_dropout: float | None = option(
        None, "residual: share of examples that are quantized by fewer depths, so that the first ones stand alone"
    )
    spectral_weight: float | None = option(
        None, "audio: the STFT's share of the gradient at the end of training, beside 1 for samples (default 20)",
        not_negative=True,
    )  # fmt: skip

    signal_names = (*SignalDataOptions.signal_names, "frame_patch", "causal", "spectral_weight")
    foreign_names = {
        "audio": ("image_size", "horizon", "frame_patch"),
        "series": ("image_size", "sample_rate", "causal", "spectral_weight", "frame_patch"),
        "video": ("sample_rate", "horizon", "causal", "spectral_weight"),
    }

    def signal_configuration(self, own: dict[str, Any], settings: SignalSettings | None) -> dict[str, Any]:
        """Settings of `VQVAEConfig` for a new tokenizer of signals.

        Args:
            settings: with what was found in the data (default: what the options say, and one channel).
            own: those that the command line gives for any kind of tokenizer, which override the preset's.
        """
        from tokenizer_image.configuration import SIGNAL_PRESETS

        settings = settings or self.signal_settings()
        own = {**own, **({"causal": True} if self.causal else {})}
        own |= {"frame_patch": self.frame_patch} if self.frame_patch else {}
        own |= {"num_frames": settings.length} if settings.signal == "video" else {}
        return {
            **SIGNAL_PRESETS[settings.signal], **own, "image_size": settings.image_size,
            "num_channels": settings.num_channels or 1, "signal": settings.signal,
            "preprocessing": settings.to_dict(),
        }  # fmt: skip
