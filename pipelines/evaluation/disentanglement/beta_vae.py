"""The metric of beta-VAE (Higgins et al. 2017, section 3)."""

from __future__ import annotations

import numpy as np

from pipelines.evaluation.disentanglement.factors import FactorSampler, checked
from pipelines.evaluation.metrics.linear_classifiers import softmax_regression


def beta_vae_score(
    latents: np.ndarray,
    factors: np.ndarray,
    seed: int = 0,
    pairs: int = 64,
    training: int = 5000,
    test: int = 2500,
) -> float:
    """How often a linear classifier tells which factor the pictures of all pairs agree in: 1 / K to 1.

    It reads z = mean over pairs of |latents of one - latents of the other|, where a latent that stands for the shared
    factor alone is near zero. Inputs are standardised, so that no latent counts more for its scale.

    Args:
        latents: (N, D) float.
        factors: (N, K) integers.
        seed: of what is drawn.
        pairs: L, behind each z.
        training, test: how many z the classifier is fitted to, and judged by.

    Raises:
        ValueError: as `factors.checked`.
    """
    latents, factors = checked(latents, factors)
    sampler = FactorSampler(factors, np.random.default_rng(seed))
    answers = np.array([sampler.factor() for _ in range(training + test)], np.int64)
    differences = np.empty((len(answers), latents.shape[1]))
    for row, factor in enumerate(answers):
        first, second = sampler.pairs(int(factor), pairs)
        differences[row] = np.abs(latents[first] - latents[second]).mean(axis=0)
    mean, scale = differences[:training].mean(axis=0), differences[:training].std(axis=0)
    inputs = (differences - mean) / np.where(scale > 0, scale, 1.0)
    weights, bias = softmax_regression(inputs[:training], answers[:training], sampler.num_factors)
    named = (inputs[training:] @ weights + bias).argmax(axis=1)
    return float((named == answers[training:]).mean())
