"""The mutual information gap, MIG (Chen et al. 2018, section 4)."""

from __future__ import annotations

import numpy as np

from pipelines.evaluation.disentanglement.factors import checked
from pipelines.evaluation.disentanglement.mutual_information import BINS, binned, entropies, mutual_information


def mutual_information_gap(latents: np.ndarray, factors: np.ndarray, bins: int = BINS) -> float:
    """By how much the latent that knows most of a factor knows more of it than the next one: 0 to 1.

    The mean over factors v of (I(first; v) - I(second; v)) / H(v). With a single latent the second knows nothing.

    Args:
        latents: (N, D) float, counted in bins of equal width.
        factors: (N, K) integers.

    Raises:
        ValueError: as `factors.checked`.
    """
    latents, factors = checked(latents, factors)
    shared = np.sort(mutual_information(binned(latents, bins), factors), axis=0)
    second = shared[-2] if len(shared) > 1 else np.zeros(shared.shape[1])
    return float(((shared[-1] - second) / entropies(factors)).mean())
