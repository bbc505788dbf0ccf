"""The metric of FactorVAE (Kim and Mnih 2018, section 4)."""

from __future__ import annotations

import numpy as np

from pipelines.evaluation.disentanglement.factors import FactorSampler, checked, standardised


def factor_vae_score(
    latents: np.ndarray,
    factors: np.ndarray,
    seed: int = 0,
    group: int = 64,
    training: int = 5000,
    test: int = 2500,
) -> float:
    """How often a majority vote tells which factor a group of pictures agrees in: about 1 / K to 1.

    A vote is the latent that varies least in the group, against its variance over all pictures. A latent that never
    changes has no vote. Each latent stands for the factor that most of its votes were cast for.

    Args:
        latents: (N, D) float.
        factors: (N, K) integers.
        seed: of what is drawn.
        group: L, pictures with one value of a factor.
        training, test: how many votes the majorities are of, and are judged by.

    Raises:
        ValueError: as `factors.checked`; or all latents are constant.
    """
    latents, factors = checked(latents, factors)
    scaled = standardised(latents)
    scaled = scaled[:, scaled.any(axis=0)]
    if scaled.shape[1] == 0:
        raise ValueError("every latent is the same for all pictures: there is nothing to measure")
    sampler = FactorSampler(factors, np.random.default_rng(seed))
    votes = np.zeros((scaled.shape[1], sampler.num_factors), np.int64)
    right = 0
    for number in range(training + test):
        factor = sampler.factor()
        latent = int(scaled[sampler.equal(factor, group)].var(axis=0).argmin())
        if number < training:
            votes[latent, factor] += 1
        else:
            right += int(votes[latent].argmax()) == factor
    return right / test
