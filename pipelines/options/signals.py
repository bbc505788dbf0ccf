"""Options of stage 1 that concern signals: sounds in place of pictures."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from pipelines.options.option import option
from tokenizer_image.signals.settings import SignalSettings

# Options of pictures that have no meaning for signals.
PICTURE_OPTIONS = (
    "image_size", "num_channels", "resize", "sixteen_bit", "random_flip", "image_column", "max_image_pixels", "network",
    "num_levels", "photographs", "codes_from", "perceptual_weight", "adversarial_weight", "feature_matching_weight",
    "extractor", "frequency_weight", "bottleneck",
)  # fmt: skip
RATE, DOWNSAMPLING = 16_000, 320  # of audio by default: 50 positions a second


@dataclass
class SignalOptions:
    """What is learned from in place of pictures."""

    signal: str | None = option(None, "'audio': sounds in place of pictures", choices=("audio",))
    sample_rate: int = option(RATE, "audio: samples a second", within="[8000, 24000]")
    length: int | None = option(
        None, "signals: samples of an example; longer ones are cut (default: one second)", above_zero=True
    )
    causal: bool = option(False, "signals: codes depend on no later samples, as streaming needs")
    depth_dropout: float | None = option(
        None, "residual: share of examples that are quantized by fewer depths, so that the first ones stand alone"
    )
    spectral_weight: float | None = option(
        None, "audio: share of the gradient that the STFT's magnitudes get, beside 1 for samples (default 0.3)",
        not_negative=True,
    )  # fmt: skip

    signal_names: ClassVar[tuple[str, ...]] = ("sample_rate", "length", "causal", "spectral_weight")

    def check_signal(self) -> None:
        """Raise ValueError for options of signals without --signal, or of pictures with it."""
        defaults = {one.name: one.default for one in fields(self)}
        names = self.signal_names if self.signal is None else PICTURE_OPTIONS
        given = [f"--{name}" for name in names if getattr(self, name) != defaults[name]]
        if not given:
            return
        if self.signal is None:
            raise ValueError(f"{', '.join(given)}: for signals; give --signal audio, too")
        raise ValueError(f"--signal {self.signal} has no use for {', '.join(given)}, which concern pictures: leave out")

    def signal_settings(self) -> SignalSettings:
        """What a new tokenizer takes."""
        length = self.length or -(-self.sample_rate // DOWNSAMPLING) * DOWNSAMPLING
        return SignalSettings(str(self.signal), length, self.sample_rate)

    def signal_configuration(self, own: dict[str, Any]) -> dict[str, Any]:
        """Settings of `VQVAEConfig` for a new tokenizer of signals.

        Args:
            own: those that the command line gives for any kind of tokenizer, which override the preset's.
        """
        from tokenizer_image.configuration import SIGNAL_PRESETS

        settings = self.signal_settings()
        return {
            **SIGNAL_PRESETS[settings.signal], **own, "image_size": settings.length,
            "num_channels": settings.num_channels, "signal": settings.signal, "causal": self.causal,
            "preprocessing": settings.to_dict(),
        }  # fmt: skip
