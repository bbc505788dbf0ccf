"""Sounds drawn from captions of the built-in world, beside real ones and reconstructions, and what the probe reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.evaluation.intervals import shares
from pipelines.evaluation.sound_probe import SoundProbe, halves_of
from pipelines.machine.batches import index_batches
from pipelines.options.evaluation import EvaluationOptions
from pipelines.text_to_signal import TextToSignalPipeline
from tokenizer_image.signals.drawn_sounds import DrawnSounds

DRAWN_AT_ONCE = 50
KEPT = 8  # sounds of each kind, for the page of a report

Halves = tuple[str, str]


@dataclass
class CaptionedSounds:
    """Real sounds of one split of the built-in world, their reconstructions, and what was drawn from their captions.

    Attributes:
        split: "validation" or "held_out".
        captions, wanted: of each sound; what its halves are.
        read: by kind, "reconstructed" and "drawn", what the probe reads of each.
        sounds: by kind, and "real", (k, 1, time) float32, the first of them.
    """

    split: str
    captions: list[str]
    wanted: list[Halves]
    read: dict[str, list[Halves]]
    sounds: dict[str, Tensor]

    def figures(self) -> dict[str, Any]:
        """The shares of sounds that the probe reads right, with intervals."""
        names = {"right": "drawn", "reconstructions_right": "reconstructed"}
        counts = {
            name: sum(one == other for one, other in zip(self.read[kind], self.wanted, strict=True))
            for name, kind in names.items()
        }
        return {**shares(counts, len(self.wanted)), "n": len(self.wanted)}


def captioned_sounds(
    pipe: TextToSignalPipeline, probe: SoundProbe, split: str, options: EvaluationOptions
) -> CaptionedSounds:
    """Draw from --num_captions captions of a split, each from a stream of its own."""
    settings = pipe.settings
    source = DrawnSounds(split, options.num_captions, options.seed, settings.length, settings.rate)
    rows = range(len(source))
    captions, wanted = [source.texts(row)[0] for row in rows], [halves_of(source.events(row)) for row in rows]
    found = CaptionedSounds(split, captions, wanted, {"reconstructed": [], "drawn": []}, {})
    for part in index_batches(len(source), DRAWN_AT_ONCE):
        seeds = [options.seed * len(source) + row for row in part]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        real = torch.from_numpy(np.stack([source[row].values for row in part]))
        made = {
            "reconstructed": pipe.decode_codes(pipe.image_tokenizer.encode(real.to(pipe.device))),
            "drawn": pipe([captions[row] for row in part], generator=generators, **options.sampling()).values,
        }
        for kind, values in made.items():
            found.read[kind] += probe.read(values[:, 0].cpu())
        if not found.sounds:
            found.sounds = {"real": real[:KEPT], **{kind: values[:KEPT].cpu() for kind, values in made.items()}}
    return found
