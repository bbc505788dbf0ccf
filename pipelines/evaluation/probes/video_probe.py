"""The probe of moving sprites: the sprites probe's network, with the frames of a video as channels of one picture."""

from __future__ import annotations

import numpy as np
import torch

from lm.files import cache_root
from pipelines.evaluation.probes.probe_training import PROBE_VERSION, fit, kept_probe
from pipelines.evaluation.probes.sprites_probe import SpritesProbe
from tokenizer_image.frame_networks import frames_to_channels
from tokenizer_image.preprocessing import to_pixel_values
from tokenizer_image.signals.moving_sprites import DIRECTIONS, MovingSprites
from tokenizer_image.sprites.drawing import COLOURS
from tokenizer_image.sprites.things import THINGS

QUESTIONS = {"thing": tuple(THINGS), "colour": tuple(COLOURS), "direction": tuple(DIRECTIONS)}
DRAWING_SEED = 1_000_000  # far from the data sets' small seeds


def train_video_probe(
    length: int, *, videos: int = 16_000, epochs: int = 4, required_accuracy: float = 0.95
) -> SpritesProbe:
    """A probe of real videos, half of them of held-out combinations; its accuracies are measured on others.

    Raises:
        RuntimeError: it reads fewer than `required_accuracy` of the fresh videos right in one of `QUESTIONS`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = SpritesProbe(QUESTIONS, num_channels=3 * length)
    values, labels = _real(length, videos // 2, seed=1)
    fit(probe, values, labels, epochs, progress=True)
    fresh, right = _real(length, 500, seed=2)
    read = probe.read(to_pixel_values(fresh))
    for question, (name, choices) in enumerate(QUESTIONS.items()):
        wanted = [choices[number] for number in right[:, question].tolist()]
        probe.accuracies[name] = float(np.mean([one[name] == other for one, other in zip(read, wanted, strict=True)]))
    if min(probe.accuracies.values()) < required_accuracy:
        found = ", ".join(f"{name} {share:.1%}" for name, share in probe.accuracies.items())
        raise RuntimeError(
            f"the video probe must read {required_accuracy:.0%} of each of real videos right, but after {videos:,} "
            f"videos it reads {found}"
        )
    return probe


def load_video_probe(length: int) -> SpritesProbe:
    """The probe of videos of `length` frames of this version of the built-in world, trained on first use and kept in
    the cache folder, as that of sprites is.

    Raises:
        RuntimeError: as `train_video_probe`.
    """
    identity = MovingSprites(length=length).fingerprint
    folder = cache_root(None) / f"video-probe-{PROBE_VERSION}-{identity}"
    untrained = SpritesProbe(QUESTIONS, num_channels=3 * length)
    return kept_probe(folder, untrained, lambda: train_video_probe(length))


def read_videos(probe: SpritesProbe, values: torch.Tensor) -> list[dict[str, str]]:
    """The answers to `QUESTIONS` of videos (B, 3, frames * side, side) in [-1, 1]."""
    return probe.read(frames_to_channels(values, probe.num_channels // 3))


def _real(length: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Real videos, uint8 (2 count, 3 * length, 32, 32), of seen and of held-out combinations, and the numbers of the
    right answers (2 count, questions)."""
    values = torch.empty(2 * count, 3 * length, 32, 32, dtype=torch.uint8)
    labels = torch.empty(2 * count, len(QUESTIONS), dtype=torch.int64)
    for part, split in enumerate(("train", "held_out")):
        source = MovingSprites(split, count, DRAWING_SEED + seed, length)
        for row in range(count):
            frames = np.moveaxis(source[row].values, -1, 1).reshape(3 * length, 32, 32)
            values[part * count + row] = torch.from_numpy(frames)
            found = source.attributes(row)
            labels[part * count + row] = torch.tensor([QUESTIONS[name].index(found[name]) for name in QUESTIONS])
    return values, labels
