"""Signals as pictures, for sheets: waveform above spectrogram of a sound, lines of a series, frames of a video."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw

from tokenizer_image.preprocessing import postprocess
from tokenizer_image.signals.settings import SignalSettings

WIDTH, WAVE_HEIGHT, SPECTRUM_HEIGHT = 192, 48, 96  # pixels
PAPER, INK, AXIS = (255, 255, 255), (32, 60, 120), (200, 200, 200)
SHADES = ((255, 255, 255), (120, 170, 220), (30, 60, 140), (10, 10, 40))  # silent to loud
LINES = (INK, (200, 90, 30), (40, 140, 70), (140, 60, 150))  # channels of series
RANGE_DB = 60.0  # below the loudest of full scale, a frequency is white
WINDOW = 512  # samples of the spectrogram's window


def signal_panels(values: torch.Tensor, settings: SignalSettings) -> list[Image.Image]:
    """Signals (B, C, time), as a tokenizer takes them, to one picture each: (192, 144) pixels; of videos (B, 3, frames
    * side, side) the frames in a row.

    Raises:
        ValueError: a signal with NaN: the model that made it has diverged.
    """
    if torch.isnan(values).any():
        raise ValueError("a signal has NaN; the model that made it has diverged")
    if settings.signal == "video":
        return postprocess(values.unflatten(2, (-1, values.shape[3])).movedim(2, 3).flatten(3))
    arrays = values.float().numpy()
    return [_sound_panel(one[0]) if settings.signal == "audio" else _series_panel(one) for one in arrays]


def _series_panel(series: np.ndarray) -> Image.Image:
    """Channels (C, time), each as a line in a colour of its own, from the lowest value to the highest."""
    height = WAVE_HEIGHT + SPECTRUM_HEIGHT
    panel = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(panel)
    low, high = float(series.min()), float(series.max())
    across = np.linspace(2, WIDTH - 3, series.shape[1])
    for number, channel in enumerate(series):
        down = height - 4 - (channel - low) / max(high - low, 1e-9) * (height - 8)
        pen.line(list(zip(across.tolist(), down.tolist(), strict=True)), fill=LINES[number % len(LINES)], width=1)
    return panel


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
