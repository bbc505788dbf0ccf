"""A small classifier of a data set's own captions, whose features compare its pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from tokenizer_image.losses.extractors import Extractor, register_extractor

PREFIX = "classifier="
CONFIGURATION, WEIGHTS = "classifier.json", "classifier.safetensors"
HIDDEN_SIZES = (24, 48, 96, 192)
GROUPS = 8  # of channels, normalised together


class CaptionClassifier(nn.Module):
    """Pictures (B, 3, H, W) to feature maps, shallow to deep, and logits (B, classes).

    3x3 convolutions with group normalisation (Wu and He 2018), the second of each resolution around a shortcut; each
    resolution but the first halves the one before.

    Args:
        num_classes: at least 2.
        hidden_sizes: channels of each resolution.
    """

    def __init__(self, num_classes: int, hidden_sizes: Sequence[int] = HIDDEN_SIZES) -> None:
        super().__init__()
        sizes = [3, *hidden_sizes]
        self.hidden_sizes, self.num_classes = list(hidden_sizes), num_classes
        self.first = nn.ModuleList(
            _normalized(before, after, 1 if place == 0 else 2)
            for place, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
        )
        self.second = nn.ModuleList(_normalized(size, size, 1) for size in hidden_sizes)
        self.head = nn.Linear(sizes[-1], num_classes)

    def forward(self, pixels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """As the class says."""
        maps: list[torch.Tensor] = []
        hidden = pixels
        for first, second in zip(self.first, self.second, strict=True):
            hidden = F.relu(first(hidden))
            hidden = F.relu(hidden + second(hidden))
            maps.append(hidden)
        return maps, self.head(hidden.mean(dim=(2, 3)))

    def save(self, folder: Path, captions: Sequence[str]) -> None:
        """Write classifier.json, with the caption of each class, and classifier.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)
        values = {"hidden_sizes": self.hidden_sizes, "captions": list(captions)}
        (folder / CONFIGURATION).write_text(json.dumps(values, ensure_ascii=False) + "\n")


def _normalized(before: int, after: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(math.gcd(after, GROUPS), after))


def build_own_classifier(name: str) -> Extractor:
    """ "classifier=FOLDER": what `CaptionClassifier.save` wrote there.

    Raises:
        ValueError: the folder has no such classifier.
    """
    folder = Path(name.removeprefix(PREFIX))
    try:
        values = json.loads((folder / CONFIGURATION).read_text())
        network = CaptionClassifier(len(values["captions"]), values["hidden_sizes"])
        network.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # files that are not there or are of something else
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"extractor {name!r}: no classifier could be read ({reason}); give the folder that train_tokenizer.py "
            "--extractor captions leaves, OUTPUT_DIR/classifier"
        ) from error
    return classifier_extractor(name, network, values["captions"])


def classifier_extractor(name: str, network: CaptionClassifier, captions: Sequence[str]) -> Extractor:
    """The classifier of these captions as an extractor of this name, which reads pictures at their own size."""
    half = (0.5, 0.5, 0.5)  # pictures in [-1, 1] as they are
    return Extractor(
        name, network, size=None, least_size=2 ** len(network.hidden_sizes), mean=half, std=half, class_names=captions
    )


register_extractor(PREFIX, build_own_classifier)
