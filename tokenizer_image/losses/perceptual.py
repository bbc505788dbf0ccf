"""Distance of two pictures as a classifier sees them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from tokenizer_image.losses.extractors import Extractor, Features


class PerceptualTerms(NamedTuple):
    """Scalars in float32: the distance of feature maps, and that of logits."""

    features: torch.Tensor
    logits: torch.Tensor


class PerceptualLoss(nn.Module):
    """Distance of features at several depths, and of the logits behind them.

    features: the mean over depths of mean_hw sum_c w_c (a_c - b_c)^2, where a and b are features of unit length at each
    position, w the extractor's channel weights (all 1 where it has none); LPIPS without learned weights (Zhang et al.
    2018), which sums over depths.

    logits: mean (a - b)^2 of the classifier's outputs (Weber et al. 2024, MaskBit).

    Args:
        extractor: frozen.
        logits_weight: of the logits' term, at least 0, beside the features' weight 1.
        size: pixels that the shorter side of smaller pictures is enlarged to: a classifier sees little in pictures
            much smaller than those it learned from. So many of a batch are read, its first ones, that these have no
            more pixels than the batch itself. None: all are read as they are.
    """

    def __init__(self, extractor: Extractor, logits_weight: float = 0.0, size: int | None = None) -> None:
        super().__init__()
        self.extractor, self.logits_weight, self.size = extractor, logits_weight, size

    def forward(self, pixel_values: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """Two (B, C, H, W) about [-1, 1] to a scalar in float32."""
        with torch.no_grad():
            wanted = self.extractor(self._enlarged(pixel_values))
        terms = self.terms(wanted, self.extractor(self._enlarged(reconstruction)))
        return terms.features + self.logits_weight * terms.logits

    def _enlarged(self, pictures: torch.Tensor) -> torch.Tensor:
        """The first pictures of (B, C, H, W) at the size that they are read at."""
        sides = pictures.shape[2:]
        if self.size is None or min(sides) >= self.size:
            return pictures
        scale = self.size / min(sides)
        count = max(1, int(len(pictures) / scale**2))
        height, width = (round(side * scale) for side in sides)
        return F.interpolate(pictures[:count].float(), (height, width), mode="bicubic")

    def terms(self, wanted: Features, found: Features) -> PerceptualTerms:
        """Both distances of two pictures' features, not weighted."""
        distances = [place.mean() for place in _distance_maps(self.extractor, wanted, found)]
        logits = F.mse_loss(found.logits.float(), wanted.logits.float())
        return PerceptualTerms(torch.stack(distances).mean(), logits)


def picture_distances(extractor: Extractor, pixel_values: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """How far apart a network sees the pictures of each pair: two (B, C, H, W) in [-1, 1] -> (B,) float32.

    The sum over depths of mean_hw sum_c w_c (a_c - b_c)^2 (Zhang et al. 2018, equation 1): with the extractor "lpips"
    it is LPIPS (VGG16, version 0.1), where pictures are not so small that the extractor enlarges them.
    """
    wanted, found = extractor(pixel_values), extractor(reconstruction)
    return torch.stack([place.mean(dim=(1, 2)) for place in _distance_maps(extractor, wanted, found)]).sum(dim=0)


def _distance_maps(extractor: Extractor, wanted: Features, found: Features) -> list[torch.Tensor]:
    """(B, h, w) of each depth: sum_c w_c (a_c - b_c)^2 at each position."""
    weights = extractor.channel_weights or [None] * len(wanted.maps)
    maps = []
    for one, other, weight in zip(wanted.maps, found.maps, weights, strict=True):
        squared = (unit_length(one) - unit_length(other)).square()
        maps.append((squared if weight is None else squared * weight).sum(dim=1))
    return maps


def unit_length(features: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) with length 1 over the channels of each position, in float32; zeros stay zeros."""
    return F.normalize(features.float(), dim=1, eps=1e-6)
