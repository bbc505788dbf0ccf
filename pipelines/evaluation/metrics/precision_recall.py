"""Improved precision and recall of drawn pictures (Kynkäänniemi et al. 2019), over the features of any extractor."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipelines.evaluation.metrics.intervals import shares
from pipelines.evaluation.metrics.neighbours import balls_around, nearest_neighbours

NEIGHBOURS = 3  # of the paper


def precision_and_recall(real: Tensor, drawn: Tensor, k: int = NEIGHBOURS) -> dict[str, Any]:
    """How much of what is drawn looks real, and how much of what is real could be drawn.

    A set's manifold is the union of balls around its features, each as wide as the distance to the k-th nearest
    neighbour in the same set. Precision is the share of drawn features inside of the real manifold, recall the share of
    real features inside of the drawn one (equations 1 and 2). Both depend on the extractor, and on the number of
    pictures: only sets of equal sizes can be compared.

    Args:
        real, drawn: features (n, D) and (m, D).

    Returns:
        `precision`, `recall` in [0, 1], `neighbours` k, and `interval`: 95% Wilson intervals, the manifolds given.

    Raises:
        ValueError: a set of k pictures or fewer.
    """
    _check_counts(real, drawn, k)
    precise = balls_around(drawn, real, nearest_neighbours(real, real, k, skip_same=True).distances[:, -1]) > 0
    recalled = balls_around(real, drawn, nearest_neighbours(drawn, drawn, k, skip_same=True).distances[:, -1]) > 0
    precision = shares({"precision": int(precise.sum())}, len(drawn))
    recall = shares({"recall": int(recalled.sum())}, len(real))
    interval = precision.pop("interval") | recall.pop("interval")
    return {**precision, **recall, "neighbours": k, "interval": interval}


def _check_counts(real: Tensor, drawn: Tensor, k: int) -> None:
    if min(len(real), len(drawn)) <= k:
        raise ValueError(
            f"precision and recall by {k} neighbours need at least {k + 1} pictures in each set, got {len(real)} real "
            f"and {len(drawn)} drawn: raise --max_examples or --drawn_per_caption"
        )
