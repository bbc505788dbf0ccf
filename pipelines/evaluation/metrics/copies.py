"""Each drawn picture beside the nearest training picture, and the share of drawn pictures that are copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.evaluation.metrics.intervals import shares
from pipelines.evaluation.metrics.neighbours import nearest_neighbours

COPY_RATIO = 1 / 3
COMPARED_SIDE = 32  # pixels of the longer side that larger pictures are averaged down to


@dataclass
class NearestTraining:
    """The nearest training picture of n pictures.

    Attributes:
        indices: (n,) int64, of the training pictures.
        distances: (n,) float64, root of the mean squared difference on [0, 1].
        ratios: (n,) float64, that distance over the distance to the second nearest, another picture, in [0, 1].
    """

    indices: Tensor
    distances: Tensor
    ratios: Tensor

    @property
    def copies(self) -> Tensor:
        """(n,) bool, whether a picture is a copy: less than `COPY_RATIO` as far from the nearest as from the second."""
        return self.ratios < COPY_RATIO


def nearest_training(pictures: Tensor, training: Tensor) -> NearestTraining:
    """The nearest training picture of each picture, by squared error of pixels.

    A picture counts as a copy where it is less than a third as far from its nearest training picture as from the second
    nearest (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize"; Gu et al. 2023).
    A ratio needs no threshold in pixels, which would be another one for each data set; and for a new picture in many
    dimensions both distances are about equal, so that few of them meet it by chance. Equal training pictures count as
    one, since otherwise the second nearest of a copy were a copy, too. `copies_report` shows the criterion's own errors
    beside the share.

    Args:
        pictures, training: uint8 (n, C, H, W) and (m, C, H, W) of one shape, at least two different training pictures.

    Raises:
        ValueError: pictures of other shapes, or fewer than two different training pictures.
    """
    if pictures.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"pictures of {tuple(pictures.shape[1:])} and training pictures of {tuple(training.shape[1:])} cannot be "
            "compared: they need one shape"
        )
    kept = _different(training)
    if len(kept) < 2:
        raise ValueError("copies are told by the second nearest training picture: give at least two different ones")
    rows, references = _rows(pictures), _rows(training[kept])
    near = nearest_neighbours(rows, references, 2)
    first, second = near.distances.unbind(dim=1)
    ratios = torch.where(second > 0, first / second.clamp(min=1e-300), 1.0)
    return NearestTraining(kept[near.indices[:, 0]], first / rows.shape[1] ** 0.5 / 255, ratios)


def copies_report(sets: Mapping[str, NearestTraining], num_training: int) -> dict[str, Any]:
    """Share of copies among each set of pictures, with 95% Wilson intervals.

    Args:
        sets: beside `drawn`, `held_out` are real pictures that no model was trained on, of which a good criterion calls
            none a copy; `reconstructed` are reconstructions of training pictures, of which it should call all.
        num_training: training pictures that were searched.
    """
    report: dict[str, Any] = {"num_training": num_training, "copy_ratio": COPY_RATIO}
    for name, nearest in sets.items():
        report[name] = {
            **shares({"copies": int(nearest.copies.sum())}, len(nearest.ratios)),
            "median_distance": float(nearest.distances.median()),
            "n": len(nearest.ratios),
        }
    return report


def _different(training: Tensor) -> Tensor:
    """Indices int64 of the first of each group of equal pictures."""
    first: dict[bytes, int] = {}
    for index, picture in enumerate(training.numpy()):
        first.setdefault(picture.tobytes(), index)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def _rows(pictures: Tensor) -> Tensor:
    """uint8 (n, C, H, W) -> (n, D): the pixels, averaged down to `COMPARED_SIDE` where there are more."""
    height, width = pictures.shape[-2:]
    if max(height, width) <= COMPARED_SIDE:
        return pictures.flatten(1)
    scale = COMPARED_SIDE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return torch.cat([F.adaptive_avg_pool2d(part.float(), size).flatten(1) for part in pictures.split(512)])
