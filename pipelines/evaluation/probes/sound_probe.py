"""The sound probe: a small network that reads which events the built-in sounds have, so that samples can be scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tokenizer_image.losses.own_classifier import CaptionClassifier
from tokenizer_image.losses.spectral import FLOOR, stft_magnitude
from tokenizer_image.signals.drawn_sounds import EVENTS, DrawnSounds, SoundEvent

WINDOW, BANDS = 512, 48  # samples of the STFT's window; frequencies that it is read at
BATCH_SIZE, LEARNING_RATE = 64, 2e-3


def halves_of(events: Sequence[SoundEvent]) -> tuple[str, str]:
    """The classes of both halves of a sound of one event or two: an event, or the rest of one that fills the whole
    sound. What does not change in time, a steady tone or a noise, is its own rest."""
    first, changes = events[0].label, events[0].kind == "drum" or events[0].motion in ("rising", "falling")
    if len(events) > 1:
        return first, events[1].label
    return first, f"rest of {first}" if changes else first


CLASSES = list(dict.fromkeys(half for event in EVENTS for half in halves_of([event])))


class SoundProbe(nn.Module):
    """Halves of sounds (B, time) to logits (B, classes), from their log spectrum on a square-root scale of frequency.

    The network's two other inputs are where each frequency is, without which it could not tell pitches apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = CaptionClassifier(len(CLASSES), (16, 32, 64))
        self.accuracy = 0.0  # on fresh real sounds: both halves right

    def forward(self, halves: Tensor) -> Tensor:
        """As the class says; float32 in [-1, 1]."""
        magnitude = stft_magnitude(halves.float(), torch.hann_window(WINDOW, device=halves.device))
        places = torch.linspace(0, 1, BANDS, device=halves.device)
        chosen = (places.square() * (magnitude.shape[1] - 1)).round().long()
        loudness = 1 + magnitude[:, chosen, ::2].clamp(min=FLOOR).log() / -np.log(FLOOR)  # hops of half a window
        where = places[None, :, None].expand_as(loudness)
        return self.network(torch.stack([loudness, where, loudness * where], dim=1))[1]

    @torch.no_grad()
    def read(self, sounds: Tensor) -> list[tuple[str, str]]:
        """The classes of both halves of sounds (B, time)."""
        self.eval()
        numbers = torch.cat([self(part).argmax(1) for part in _halves(sounds).split(256)]).view(-1, 2)
        return [(CLASSES[first], CLASSES[second]) for first, second in numbers.tolist()]


def train_probe(
    length: int, rate: int, *, sounds: int = 4_000, epochs: int = 8, required_accuracy: float = 0.95
) -> SoundProbe:
    """A probe of real sounds, half of them of held-out pairs; its accuracy is measured on others.

    Raises:
        RuntimeError: it reads fewer than `required_accuracy` of the fresh sounds right.
    """
    values, labels = _real(length, rate, sounds // 2, seed=1)
    halves, numbers = _halves(values), labels.flatten()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = SoundProbe()
    generator = torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(len(halves), generator=generator) for _ in range(epochs)]).split(BATCH_SIZE)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=len(order))
    for chosen in tqdm(order, desc="sound probe", leave=False):
        loss = F.cross_entropy(probe(halves[chosen]), numbers[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    fresh, right = _real(length, rate, 250, seed=2)
    wanted = [(CLASSES[first], CLASSES[second]) for first, second in right.tolist()]
    probe.accuracy = float(np.mean([read == one for read, one in zip(probe.read(fresh), wanted, strict=True)]))
    if probe.accuracy < required_accuracy:
        raise RuntimeError(
            f"the sound probe must read {required_accuracy:.0%} of real sounds right, but reads {probe.accuracy:.1%} "
            f"after {sounds:,} sounds"
        )
    return probe


def _halves(sounds: Tensor) -> Tensor:
    """(B, time) to (2 B, time / 2), both halves of a sound after each other."""
    half = sounds.shape[1] // 2
    return sounds[:, : 2 * half].reshape(-1, half)


def _real(length: int, rate: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Real sounds (2 count, time), of seen and of held-out pairs, and the classes of their halves (2 count, 2)."""
    values, labels = [], []
    for split in ("train", "held_out"):
        source = DrawnSounds(split, count, 1_000_000 + seed, length, rate)
        values += [source[row].values[0] for row in range(count)]
        labels += [[CLASSES.index(half) for half in halves_of(source.events(row))] for row in range(count)]
    return torch.from_numpy(np.stack(values)), torch.tensor(labels)
