"""The separated attribute predictability score, SAP (Kumar, Sattigeri and Balakrishnan 2018, section 3)."""

from __future__ import annotations

import numpy as np

from pipelines.evaluation.disentanglement.factors import checked, split_rows, standardised
from pipelines.evaluation.metrics.linear_classifiers import single_input_regressions

TEST_SHARE = 0.5
LATENTS_AT_ONCE = 64


def sap_score(latents: np.ndarray, factors: np.ndarray, seed: int = 0) -> float:
    """By how much the latent that a factor is best read from is better than the next one: 0 to 1.

    The mean over factors of the difference of the two largest entries of its column in `attribute_predictability`. With
    a single latent the next one reads nothing, 0.

    Args:
        latents: (N, D) float.
        factors: (N, K) integers, taken as classes.
        seed: of which pictures are for the test, a half.

    Raises:
        ValueError: as `factors.checked`.
    """
    scores = np.sort(attribute_predictability(latents, factors, seed), axis=0)
    second = scores[-2] if len(scores) > 1 else np.zeros(scores.shape[1])
    return float((scores[-1] - second).mean())


def attribute_predictability(latents: np.ndarray, factors: np.ndarray, seed: int = 0) -> np.ndarray:
    """S (D, K): the balanced accuracy on test pictures of a linear classifier of factor k that reads latent i alone.

    Balanced: the mean over the factor's values of the share that is read right.

    Raises:
        ValueError: as `factors.checked`.
    """
    latents, factors = checked(latents, factors)
    inputs = standardised(latents)
    train, test = split_rows(len(inputs), TEST_SHARE, seed)
    scores = np.empty((inputs.shape[1], factors.shape[1]))
    for number, classes in enumerate(factors.T):
        count = int(classes.max()) + 1
        for start in range(0, inputs.shape[1], LATENTS_AT_ONCE):
            part = slice(start, start + LATENTS_AT_ONCE)
            weights, bias = single_input_regressions(inputs[train, part], classes[train], count)
            named = (inputs[test, part, None] * weights + bias).argmax(axis=-1)  # (n, latents)
            scores[part, number] = _balanced_accuracy(named, classes[test])
    return scores


def _balanced_accuracy(named: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Of each column of answers (n, D), over the classes that occur: (D,)."""
    right = named == classes[:, None]
    return np.stack([right[classes == one].mean(axis=0) for one in np.unique(classes)]).mean(axis=0)
