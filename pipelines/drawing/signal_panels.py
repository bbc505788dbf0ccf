"""Signals as pictures, for sheets: waveform above spectrogram."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from tokenizer_image.signals.settings import SignalSettings

WIDTH, WAVE_HEIGHT, SPECTRUM_HEIGHT = 192, 48, 96  # pixels
PAPER, INK, AXIS = (255, 255, 255), (32, 60, 120), (200, 200, 200)
SHADES = ((255, 255, 255), (120, 170, 220), (30, 60, 140), (10, 10, 40))  # silent to loud
RANGE_DB = 60.0  # below the loudest of full scale, a frequency is white
WINDOW = 512  # samples of the spectrogram's window


def signal_panels(values: torch.Tensor, settings: SignalSettings) -> list[Image.Image]:
    """Signals (B, C, time), as a tokenizer takes them, to one picture each: (192, 144) pixels.

    Raises:
        ValueError: a signal with NaN: the model that made it has diverged.
    """
    if torch.isnan(values).any():
        raise ValueError("a signal has NaN; the model that made it has diverged")
    return [_sound_panel(sound) for sound in values.float().numpy()[:, 0]]


def _sound_panel(samples: np.ndarray) -> Image.Image:
    pixels = np.full((WAVE_HEIGHT + SPECTRUM_HEIGHT, WIDTH, 3), 255, np.uint8)
    pixels[:WAVE_HEIGHT] = _waveform(samples)
    pixels[WAVE_HEIGHT:] = _spectrogram(samples)
    pixels[WAVE_HEIGHT] = AXIS
    return Image.fromarray(pixels)


def _waveform(samples: np.ndarray) -> np.ndarray:
    """(WAVE_HEIGHT, WIDTH, 3) uint8: in each column the range of its samples, full scale from top to bottom."""
    parts = np.array_split(samples, WIDTH) if len(samples) >= WIDTH else [samples] * WIDTH
    low, high = (np.asarray([function(part) for part in parts]) for function in (np.min, np.max))
    rows = np.linspace(1, -1, WAVE_HEIGHT)[:, None]
    half = 1 / (WAVE_HEIGHT - 1)
    inked = (rows <= high + half) & (rows >= low - half)
    return np.where(inked[..., None], INK, PAPER).astype(np.uint8)


def _spectrogram(samples: np.ndarray) -> np.ndarray:
    """(SPECTRUM_HEIGHT, WIDTH, 3) uint8: frequencies up to half the rate, low at the bottom, on a square-root scale."""
    window = np.hanning(WINDOW)
    padded = np.pad(samples, WINDOW // 2)
    starts = np.linspace(0, len(padded) - WINDOW, WIDTH).astype(int)
    frames = np.stack([padded[start : start + WINDOW] for start in starts])
    magnitude = np.abs(np.fft.rfft(frames * window)) * 2 / window.sum()
    loudness = np.clip(1 + 20 * np.log10(np.maximum(magnitude, 1e-9)) / RANGE_DB, 0, 1)
    places = np.linspace(1, 0, SPECTRUM_HEIGHT) ** 2 * (loudness.shape[1] - 1)
    rows = loudness[:, np.rint(places).astype(int)].T
    steps = np.linspace(0, 1, len(SHADES))
    return np.stack([np.interp(rows, steps, shade) for shade in zip(*SHADES, strict=True)], -1).astype(np.uint8)
