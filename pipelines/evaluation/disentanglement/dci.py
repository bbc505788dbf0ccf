"""Disentanglement, completeness and informativeness, DCI (Eastwood and Williams 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.disentanglement.factors import checked, split_rows, standardised
from pipelines.evaluation.metrics.linear_classifiers import sparse_softmax_regression

PENALTY = 0.01
TEST_SHARE = 0.25


@dataclass(frozen=True)
class DCI:
    """Attributes:
    disentanglement: how far each latent matters for one factor alone, 0 to 1.
    completeness: how far one latent alone matters for each factor, 0 to 1.
    informativeness: share of the test pictures' factors that are read right.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def dci(latents: np.ndarray, factors: np.ndarray, seed: int = 0, penalty: float = PENALTY) -> DCI:
    """DCI by classifiers that are linear and sparse, as the paper's lasso.

    How much a latent matters for a factor is the sum of its absolute weights in the classifier of that factor.

    Args:
        latents: (N, D) float.
        factors: (N, K) integers.
        seed: of which pictures are for the test, a quarter.
        penalty: of the sum of absolute weights, beside the mean cross-entropy over standardised latents.

    Raises:
        ValueError: as `factors.checked`.
    """
    latents, factors = checked(latents, factors)
    inputs = standardised(latents)
    train, test = split_rows(len(inputs), TEST_SHARE, seed)
    importance, right = np.empty((inputs.shape[1], factors.shape[1])), []
    for number, classes in enumerate(factors.T):
        count = int(classes.max()) + 1
        weights, bias = sparse_softmax_regression(inputs[train], classes[train], count, penalty)
        importance[:, number] = np.abs(weights).sum(axis=1)
        right.append(((inputs[test] @ weights + bias).argmax(axis=1) == classes[test]).mean())
    return DCI(disentanglement(importance), completeness(importance), float(np.mean(right)))


def disentanglement(importance: np.ndarray) -> float:
    """sum over latents i of rho_i (1 - H(P_i)), from importance R (D, K): P_ik = R_ik / sum over k of R_ik, entropy to
    the base K, and rho_i latent i's share of all importance. 0 where nothing matters."""
    return _concentration(importance)


def completeness(importance: np.ndarray) -> float:
    """The mean over factors k of 1 - H(Q_k), from importance R (D, K): Q_ik = R_ik / sum over i of R_ik, entropy to the
    base D; weighted, as disentanglement is, by each factor's share of all importance."""
    return _concentration(importance.T)


def _concentration(importance: np.ndarray) -> float:
    """How far each row is on one column, rows weighted by their sums: 0 (evenly spread) to 1."""
    total, columns = importance.sum(), importance.shape[1]
    if total <= 0:
        return 0.0
    sums = importance.sum(axis=1, keepdims=True)
    shares = importance / np.where(sums > 0, sums, 1.0)
    logs = np.log(np.where(shares > 0, shares, 1.0)) / (np.log(columns) if columns > 1 else 1.0)
    return float(((1 + (shares * logs).sum(axis=1)) * sums[:, 0]).sum() / total)
