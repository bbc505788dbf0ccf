"""Density and coverage of drawn pictures (Naeem et al. 2020), over the features of any extractor."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipelines.evaluation.metrics.intervals import mean_interval, shares
from pipelines.evaluation.metrics.neighbours import balls_around, nearest_neighbours

NEIGHBOURS = 5  # of the paper


def density_and_coverage(real: Tensor, drawn: Tensor, k: int = NEIGHBOURS) -> dict[str, Any]:
    """How densely drawn pictures lie among real ones, and how many real pictures have a drawn one near them.

    Around each real feature is a ball as wide as the distance to its k-th nearest real neighbour. Density is the mean
    number of balls that a drawn feature lies in, over k (equation 4): about 1 for real pictures, and above 1 where
    drawn ones crowd in dense places. Coverage is the share of balls with a drawn feature inside (equation 5): for real
    pictures and large equal sets, 1 - 2^-k. An outlier among the drawn ones changes neither much, unlike recall.

    Args:
        real, drawn: features (n, D) and (m, D).

    Returns:
        `density` >= 0, `coverage` in [0, 1], `neighbours` k, and `interval`: 95%, normal for the mean and Wilson for
        the share, the balls given.

    Raises:
        ValueError: k real pictures or fewer, or no drawn one.
    """
    if len(real) <= k or len(drawn) < 1:
        raise ValueError(
            f"density and coverage by {k} neighbours need at least {k + 1} real pictures and a drawn one, got "
            f"{len(real)} and {len(drawn)}: raise --max_examples or --drawn_per_caption"
        )
    radii = nearest_neighbours(real, real, k, skip_same=True).distances[:, -1]
    densities = balls_around(drawn, real, radii).double() / k
    covered = nearest_neighbours(real, drawn, 1).distances[:, 0] <= radii
    coverage = shares({"coverage": int(covered.sum())}, len(real))
    interval = {"density": mean_interval(densities), **coverage.pop("interval")}
    return {"density": float(densities.mean()), **coverage, "neighbours": k, "interval": interval}
