"""Mutual information of latents and factors, by counting."""

from __future__ import annotations

import numpy as np

BINS = 20  # of a latent, as in Locatello et al. 2019


def binned(latents: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Latents (N, D) to bins of equal width over the range of each: int64 (N, D) in 0 .. bins - 1.

    The edges are `numpy.histogram`'s, so that latents on a grid, which meet them, are counted as by other code: one on
    an edge belongs to the bin above it, and the largest to the last bin.
    """
    columns = []
    for column in latents.T:
        low, high = column.min(), column.max()
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        columns.append(np.searchsorted(edges[1:-1], column, side="right"))
    return np.stack(columns, axis=1)


def entropies(classes: np.ndarray) -> np.ndarray:
    """The entropy of each column of integers (N, K) in nats: (K,) float64."""
    shares = [np.bincount(column) / len(column) for column in classes.T]
    return np.array([-(share[share > 0] * np.log(share[share > 0])).sum() for share in shares])


def mutual_information(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """I(column of one; column of the other) in nats, for integers (N, D) and (N, K): (D, K) float64."""
    single = entropies(first)[:, None] + entropies(second)
    result = np.empty_like(single)
    for column in range(second.shape[1]):
        joint = first * (int(second[:, column].max()) + 1) + second[:, column : column + 1]
        result[:, column] = single[:, column] - entropies(joint)
    return np.maximum(result, 0.0)
