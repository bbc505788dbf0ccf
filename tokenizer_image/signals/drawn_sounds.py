"""The built-in world of sounds: tones, chirps, noises and drums with captions, drawn on the fly.

Tones and drums are played as a synthesizer does: by notes of the scale, each wave from its beginning. With pitches and
phases of any value, sounds would hardly ever share a row of codes, and a language model would need hours to learn how a
wave goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenizer_image.signals.drawn_signals import DrawnSignals
from tokenizer_image.signals.examples import SignalExample

VERSION = 2  # of the drawing and the wording
# Notes are numbered as in MIDI: 69 is 440 Hz, and 12 notes are an octave.
PITCHES = {"low": (54, 60), "middle": (68, 74), "high": (82, 88)}  # first and last note: 185 to 1,319 Hz
MOTIONS = {"steady": 0, "rising": 8, "falling": -8}  # notes from the start of a tone to its end, without steps
NOISES = {"dark": 500.0, "bright": 4000.0}  # Hz, of a low-pass or a high-pass filter
DRUMS = {"deep": (33, 38), "light": (49, 54)}  # first and last note: 55 to 185 Hz
FADE = 0.01  # seconds at both ends of an event, so that none clicks


@dataclass(frozen=True)
class SoundEvent:
    """A part of a sound: `kind` "tone", "noise" or "drum", `pitch` of `PITCHES`, `NOISES` or `DRUMS`, and of a tone its
    `motion`."""

    kind: str
    pitch: str
    motion: str = ""

    @property
    def label(self) -> str:
        """What the event is, in as few words as tell all events apart."""
        return " ".join(word for word in (self.pitch, self.motion, self.kind) if word)


EVENTS = (
    *(SoundEvent("tone", pitch, motion) for pitch in PITCHES for motion in MOTIONS),
    *(SoundEvent("noise", pitch) for pitch in NOISES),
    *(SoundEvent("drum", pitch) for pitch in DRUMS),
)
PAIRS = [(first, second) for first in range(len(EVENTS)) for second in range(len(EVENTS))]
HELD_OUT = [pair for pair in PAIRS if (pair[0] + 3 * pair[1]) % 10 == 0]  # every event is in both places elsewhere
SEEN = [pair for pair in PAIRS if pair not in HELD_OUT]


class DrawnSounds(DrawnSignals):
    """Sounds of one event or of two in a row, as a data set (`SignalSource`).

    `split`: "train" and "validation" have pairs of events of `SEEN`, and share no sound; "held_out" has pairs of
    `HELD_OUT`. A sound has `captions_per_sound` captions; the first is full. Sound r depends on (seed, split, r) alone.

    Args:
        length, rate: samples of a sound, and samples a second.

    Raises:
        ValueError: an unknown split, or fewer than one example.
    """

    name = "sounds"
    version = VERSION
    captions_per_sound = 3

    def __init__(
        self, split: str = "train", num_examples: int = 20_000, seed: int = 0, length: int = 16_000, rate: int = 16_000
    ) -> None:
        super().__init__(split, num_examples, seed, (length, rate))
        self.length, self.rate = length, rate

    def events(self, row: int) -> tuple[SoundEvent, ...]:
        """What is heard in a sound: one event or two."""
        rng = self.random(row, 0)
        pairs = HELD_OUT if self.split == "held_out" else SEEN
        first, second = pairs[rng.integers(len(pairs))]
        single = self.split != "held_out" and rng.random() < 0.25
        return (EVENTS[first],) if single else (EVENTS[first], EVENTS[second])

    def __getitem__(self, row: int) -> SignalExample:
        events, rng = self.events(row), self.random(row, 1)
        bounds = np.linspace(0, self.length, len(events) + 1).astype(int)
        parts = [
            _draw(event, int(end - start), self.rate, rng)
            for event, start, end in zip(events, bounds[:-1], bounds[1:], strict=True)
        ]
        values = np.concatenate(parts).astype(np.float32)[None]
        return SignalExample("audio", values, None, self.rate, tuple(self.texts(row)), f"sound {row}")

    def texts(self, row: int) -> list[str]:
        events, rng = self.events(row), self.random(row, 2)
        return [_describe(events, rng, full=number == 0) for number in range(self.captions_per_sound)]

    def attributes(self, row: int) -> dict[str, str]:
        events = self.events(row)
        return {"first": events[0].label, "second": events[1].label if len(events) > 1 else "nothing"}


def _draw(event: SoundEvent, length: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """(length,) in [-1, 1]."""
    time = np.arange(length) / rate
    loudness = rng.uniform(0.4, 0.7)
    if event.kind == "noise":
        sound = _filtered(rng.standard_normal(length), NOISES[event.pitch], rate, keep_low=event.pitch == "dark")
        sound *= 0.15 * loudness / max(float(np.sqrt(np.mean(sound**2))), 1e-9)
    elif event.kind == "drum":
        base = _note(DRUMS[event.pitch], rng)
        phase = 2 * np.pi * (base * time + base * 0.03 * (1 - np.exp(-time / 0.03)))  # falls from twice the pitch
        sound = loudness * np.sin(phase) * np.exp(-time / rng.uniform(0.08, 0.14))
    else:
        start = _note(PITCHES[event.pitch], rng)
        slope = MOTIONS[event.motion] / 12 * np.log(2) / max(time[-1], 1e-9)
        phase = 2 * np.pi * (start * time if slope == 0 else start * np.expm1(slope * time) / slope)
        sound = loudness * (np.sin(phase) + 0.25 * np.sin(2 * phase)) / 1.25
    ramp = np.clip(np.minimum(time, time[::-1]) / FADE, 0, 1)
    return np.clip(sound * ramp, -1, 1)


def _note(notes: tuple[int, int], rng: np.random.Generator) -> float:
    """The frequency in Hz of one of the notes from the first to the last."""
    return float(440 * 2 ** ((rng.integers(notes[0], notes[1] + 1) - 69) / 12))


def _filtered(noise: np.ndarray, corner: float, rate: int, *, keep_low: bool) -> np.ndarray:
    """White noise below or above a corner in Hz, by its spectrum."""
    spectrum, frequencies = np.fft.rfft(noise), np.fft.rfftfreq(len(noise), 1 / rate)
    kept = frequencies < corner if keep_low else frequencies >= min(corner, rate / 4)
    return np.fft.irfft(spectrum * kept, len(noise))


def _describe(events: tuple[SoundEvent, ...], rng: np.random.Generator, *, full: bool) -> str:
    """A caption; one that is not full may leave out the pitch or the motion."""
    words = [_words(event, rng, full=full) for event in events]
    if len(words) == 1:
        return words[0]
    joint = ("{}, then {}", "{} followed by {}", "first {}, then {}", "{} before {}")
    return joint[0 if full else int(rng.integers(len(joint)))].format(*words)


def _words(event: SoundEvent, rng: np.random.Generator, *, full: bool) -> str:
    pitch = event.pitch if full or rng.random() < 0.8 else ""
    motion = event.motion if full or rng.random() < 0.8 else ""
    verb = {"rising": "rises", "falling": "falls"}.get(motion)
    if verb and not full and rng.random() < 0.4:
        return " ".join(word for word in ("a", pitch, event.kind, "that", verb) if word)
    return " ".join(word for word in ("a", pitch, motion, event.kind) if word)
