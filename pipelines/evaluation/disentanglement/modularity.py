"""Modularity (Ridgeway and Mozer 2018, section 3)."""

from __future__ import annotations

import numpy as np

from pipelines.evaluation.disentanglement.factors import checked
from pipelines.evaluation.disentanglement.mutual_information import BINS, binned, mutual_information


def modularity_score(latents: np.ndarray, factors: np.ndarray, bins: int = BINS) -> float:
    """How far each latent has mutual information with a single factor: 0 to 1.

    The mean over latents i of 1 - sum over all factors but the best of m_if^2 / (m_i^2 (K - 1)), where m_if is the
    mutual information of latent and factor, and m_i that with the best. A latent that knows nothing counts as 0
    (Locatello et al. 2019).

    Args:
        latents: (N, D) float, counted in bins of equal width.
        factors: (N, K) integers, K of at least 2.

    Raises:
        ValueError: as `factors.checked`; or a single factor.
    """
    latents, factors = checked(latents, factors)
    if factors.shape[1] < 2:
        raise ValueError("modularity needs at least two factors, but there is one")
    squared = mutual_information(binned(latents, bins), factors) ** 2
    best = squared.max(axis=1)
    known = best > 0
    deviation = (squared.sum(axis=1) - best)[known] / (best[known] * (factors.shape[1] - 1))
    return float((1 - deviation).sum() / len(squared))
