"""Sound files: which are read, and how a file of any rate and number of channels becomes mono samples of one rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tokenizer_image.pictures.reading_notes import ending

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
INSTALL = "pip install -e '.[signals]'"


@dataclass(frozen=True)
class SoundInfo:
    """What a file's header says: samples of a channel, samples a second, channels."""

    frames: int
    rate: int
    channels: int


def is_sound(file: str) -> bool:
    """Whether a file's ending is that of a sound."""
    return ending(file) in SOUND_SUFFIXES


def sound_info(file: Path) -> SoundInfo:
    """What a file's header says.

    Raises:
        ValueError: a file that cannot be read, is cut off, or has no samples.
    """
    soundfile = _soundfile()
    try:
        info = soundfile.info(str(file), verbose=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"it cannot be read ({error})") from error
    if "should be" in info.extra_info.lower():  # libsndfile's words for a data chunk that is longer than the file
        raise ValueError("it is cut off: its header says more samples than there are")
    if info.frames == 0:
        raise ValueError("it has no samples")
    return SoundInfo(info.frames, info.samplerate, info.channels)


def read_sound(file: Path, rate: int) -> np.ndarray:
    """A whole file as mono float32 (samples,) in [-1, 1] at `rate` samples a second: channels are averaged, another
    rate is resampled by soxr, and samples beyond full scale are clipped.

    Raises:
        ValueError: a file that cannot be read, or with NaN or infinity.
    """
    info = sound_info(file)
    try:
        samples, _ = _soundfile().read(str(file), dtype="float32", always_2d=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"it cannot be read ({error})") from error
    if len(samples) < info.frames:
        raise ValueError(f"it is cut off: {len(samples):,} of {info.frames:,} samples are there")
    if not np.isfinite(samples).all():
        raise ValueError("it has NaN or infinity among its samples")
    mono = samples.mean(axis=1)
    if info.rate != rate:
        import soxr

        mono = soxr.resample(mono, info.rate, rate)
    return np.clip(mono, -1, 1).astype(np.float32)


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise ValueError(f"sounds are read by a package that is not installed: {INSTALL}") from error
    return soundfile


def write_sound(file: Path | BinaryIO, samples: np.ndarray, rate: int) -> None:
    """Write float samples (time,) in [-1, 1] as 16-bit WAV, by the standard library."""
    import wave

    with wave.open(str(file) if isinstance(file, Path) else file, "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
