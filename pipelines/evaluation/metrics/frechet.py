"""Frechet distance between two sets of pictures, over the features of any extractor."""

from __future__ import annotations

import torch
from torch import Tensor


class FeatureStatistics:
    """Mean and covariance of features (n, D), gathered batch by batch in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._products = torch.zeros(())

    def update(self, features: Tensor) -> None:
        """Add features (b, D)."""
        features = features.detach().double().cpu()
        self.count += len(features)
        self._sum = self._sum + features.sum(dim=0)
        self._products = self._products + features.T @ features

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        return self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64, with n - 1 in the denominator.

        Raises:
            ValueError: there are fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"{self.count} pictures have no covariance: a Frechet distance needs at least two")
        mean = self.mean
        return (self._products - self.count * torch.outer(mean, mean)) / (self.count - 1)

    @property
    def size(self) -> int:
        """D."""
        return int(self._sum.shape[0])


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """|m - n|^2 + tr(A + B - 2 (A B)^(1/2)) of two Gaussians with means m, n and covariances A, B (Frechet 1957; as a
    distance between sets of pictures: Heusel et al. 2017).

    It depends on the extractor, on the size that pictures are resized to, and on their number: sets of fewer pictures
    than features are further apart than they should be. Only distances with all of these equal can be compared.

    Raises:
        ValueError: a set of fewer than two pictures.
    """
    covariances = one.covariance, other.covariance
    # tr((A B)^(1/2)) is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    values, vectors = torch.linalg.eigh(covariances[0])
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    means = (one.mean - other.mean).square().sum()
    return float(means + covariances[0].trace() + covariances[1].trace() - 2 * overlap)


def too_few_pictures(count: int, size: int, options: str = "--max_examples, --drawn_per_caption") -> str | None:
    """What to say of a Frechet distance over `size` features of `count` pictures, where these are too few; `options`
    give more of them.

    The covariance of n pictures has rank n - 1 at most: with fewer than D + 1 pictures it is singular, the distance of
    two equal distributions is far from 0, and it falls as pictures are added.
    """
    if count > size:
        return None
    return (
        f"the Frechet distance is over {size:,} features, but a set has {count:,} pictures: it is too large, and falls "
        f"with their number; at least {size + 1:,} are needed in each set ({options})"
    )
