"""How far a network sees reconstructions from their pictures: LPIPS, and the same distance of other extractors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipelines.evaluation.metrics.intervals import mean_with_interval
from tokenizer_image.fingerprint import weights_hash
from tokenizer_image.losses.extractors import Extractor, load_extractor
from tokenizer_image.losses.perceptual import picture_distances
from tokenizer_image.preprocessing import to_pixel_values

BATCH = 20  # pairs of pictures that are compared at once: VGG16's maps are large


@dataclass
class PerceptualReader:
    """Gathers the distances of pairs of pictures that come batch by batch."""

    extractor: Extractor
    _distances: list[Tensor] = field(default_factory=list)

    @classmethod
    def load(cls, name: str | None, device: torch.device) -> PerceptualReader | None:
        """The reader by the extractor of this name; None without a name.

        Raises:
            ValueError: the extractor is not here.
        """
        return None if name is None else cls(load_extractor(name).to(device))

    @torch.inference_mode()
    def update(self, originals: Tensor, reconstructions: Tensor) -> None:
        """Add pairs of pictures, uint8 (B, C, H, W) each."""
        device = self.extractor.mean.device
        for one, other in zip(originals.split(BATCH), reconstructions.split(BATCH), strict=True):
            pixels = [to_pixel_values(pictures).to(device) for pictures in (one, other)]
            self._distances.append(picture_distances(self.extractor, *pixels).cpu())

    def figures(self) -> dict[str, Any]:
        """`distance`, the mean over all pairs so far, with `n` and `interval`; `extractor`, and its weights' hash."""
        return {
            "extractor": self.extractor.name,
            "extractor_hash": weights_hash(self.extractor),
            **mean_with_interval("distance", torch.cat(self._distances)),
        }
