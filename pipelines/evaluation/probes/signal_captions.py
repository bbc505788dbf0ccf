"""Sounds and videos drawn from captions of the built-in worlds, beside real ones and reconstructions, and what a probe
reads in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.evaluation.metrics.intervals import shares
from pipelines.evaluation.probes.sound_probe import halves_of, train_probe
from pipelines.evaluation.probes.video_probe import QUESTIONS, load_video_probe, read_videos
from pipelines.machine.batches import index_batches
from pipelines.options.evaluation import EvaluationOptions
from pipelines.text_to_signal import TextToSignalPipeline
from tokenizer_image.preprocessing import to_pixel_values
from tokenizer_image.signals.drawn_sounds import DrawnSounds
from tokenizer_image.signals.loading import drawn_signals
from tokenizer_image.signals.settings import SignalSettings

DRAWN_AT_ONCE = 50
KEPT = 8  # signals of each kind, for the page of a report
KINDS = {"drawn": "", "reconstructed": "reconstructions_"}  # what is judged, and how its figures begin

Answers = dict[str, Any]  # of a sound its "events"; of a video its "thing", "colour" and "direction"
Reader = Callable[[Tensor], list[Answers]]


@dataclass
class CaptionedSignals:
    """Real signals of one split of a built-in world, their reconstructions, and what was drawn from their captions.

    Attributes:
        split: "validation" or "held_out".
        captions, wanted: of each signal; what a probe should read in it.
        read: by kind, "reconstructed" and "drawn", what the probe reads in each.
        signals: by kind, and "real", (k, ...) float32, the first of them.
    """

    split: str
    captions: list[str]
    wanted: list[Answers]
    read: dict[str, list[Answers]]
    signals: dict[str, Tensor]

    def figures(self) -> dict[str, Any]:
        """The shares of signals in which the probe reads all right, and where there are several questions each of
        them, with intervals."""
        names = self.wanted[0] if len(self.wanted[0]) > 1 else ()
        counts: dict[str, int] = {}
        for kind, start in KINDS.items():
            pairs = list(zip(self.read[kind], self.wanted, strict=True))
            counts |= {f"{start}{name}": sum(one[name] == other[name] for one, other in pairs) for name in names}
            counts[f"{start}right"] = sum(one == other for one, other in pairs)
        return {**shares(counts, len(self.wanted)), "n": len(self.wanted)}


def trained_reader(settings: SignalSettings) -> tuple[Any, Reader]:
    """A trained probe's accuracy, and what it reads in sounds (B, 1, time) or videos.

    Raises:
        RuntimeError: it does not read real ones.
    """
    if settings.signal == "video":
        video_probe = load_video_probe(settings.length)
        return video_probe.accuracies, partial(read_videos, video_probe)
    probe = train_probe(settings.length, settings.rate)
    return probe.accuracy, lambda values: [{"events": halves} for halves in probe.read(values[:, 0].cpu())]


def captioned_signals(
    pipe: TextToSignalPipeline, read: Reader, split: str, options: EvaluationOptions
) -> CaptionedSignals:
    """Draw from --num_captions captions of a split, each from a stream of its own."""
    source = drawn_signals(pipe.settings, split, options.num_captions, options.seed)
    rows = range(len(source))
    captions = [source.texts(row)[0] for row in rows]
    found = CaptionedSignals(split, captions, [_stated(source, row) for row in rows], {kind: [] for kind in KINDS}, {})
    for part in index_batches(len(source), DRAWN_AT_ONCE):
        generators = [torch.Generator().manual_seed(options.seed * len(source) + row) for row in part]
        stored = np.stack([source[row].input_values for row in part])
        real = to_pixel_values(stored if stored.dtype == np.uint8 else stored.astype(np.float16))
        made = {
            "reconstructed": pipe.decode_codes(pipe.image_tokenizer.encode(real.to(pipe.device))),
            "drawn": pipe([captions[row] for row in part], generator=generators, **options.sampling()).values,
        }
        for kind, values in made.items():
            found.read[kind] += read(values)
        if not found.signals:
            found.signals = {"real": real[:KEPT], **{kind: values[:KEPT].cpu() for kind, values in made.items()}}
    return found


def _stated(source: Any, row: int) -> Answers:
    """What a probe should read in an example of a built-in world."""
    if isinstance(source, DrawnSounds):
        return {"events": halves_of(source.events(row))}
    attributes = source.attributes(row)
    return {name: attributes[name] for name in QUESTIONS}
