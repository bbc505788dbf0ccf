"""All six metrics of a model, and how far they agree over several models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipelines.evaluation.disentanglement.beta_vae import beta_vae_score
from pipelines.evaluation.disentanglement.dci import dci
from pipelines.evaluation.disentanglement.factor_vae import factor_vae_score
from pipelines.evaluation.disentanglement.modularity import modularity_score
from pipelines.evaluation.disentanglement.mutual_information_gap import mutual_information_gap
from pipelines.evaluation.disentanglement.sap import sap_score
from pipelines.evaluation.report.plots import figure_image

# The six that are compared; of DCI, disentanglement.
METRICS = ("beta_vae", "factor_vae", "mig", "dci", "sap", "modularity")
LEAST_MODELS = 3  # that a rank correlation is of


def disentanglement_scores(latents: np.ndarray, factors: np.ndarray, seed: int = 0) -> dict[str, float]:
    """`METRICS`, then `dci_completeness` and `dci_informativeness`, each larger for more disentangled latents.

    Args:
        latents: (N, D) float.
        factors: (N, K) integers, K of at least 2.
        seed: of what the metrics draw.

    Raises:
        ValueError: as the metrics.
    """
    parts = dci(latents, factors, seed)
    return {
        "beta_vae": beta_vae_score(latents, factors, seed),
        "factor_vae": factor_vae_score(latents, factors, seed),
        "mig": mutual_information_gap(latents, factors),
        "dci": parts.disentanglement,
        "sap": sap_score(latents, factors, seed),
        "modularity": modularity_score(latents, factors),
        "dci_completeness": parts.completeness,
        "dci_informativeness": parts.informativeness,
    }


def rank_correlation(scores: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each two columns: the correlation of ranks, equal scores having their mean rank.

    Args:
        scores: (models, M).

    Returns:
        (M, M) float64 in [-1, 1]; NaN where a column has one value for all models.

    Raises:
        ValueError: fewer than `LEAST_MODELS` models.
    """
    if len(scores) < LEAST_MODELS:
        raise ValueError(f"{len(scores)} models: a rank correlation needs at least {LEAST_MODELS}")
    ranks = np.stack([_mean_ranks(column) for column in np.asarray(scores, np.float64).T])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    scale = np.outer(norms, norms)
    return np.divide(centred @ centred.T, scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1, 2, ... of values (n,), equal ones with the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def correlation_plot(correlation: np.ndarray, names: Sequence[str]) -> Image.Image:
    """A heat map of rank correlations (M, M), with their numbers.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5.2), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(correlation, vmin=-1, vmax=1, cmap="RdBu_r")
    places = range(len(names))
    axes.set_xticks(places, names, rotation=40, ha="right")
    axes.set_yticks(places, names)
    for line in places:
        for column in places:
            value = correlation[line, column]
            words = "-" if np.isnan(value) else f"{value:.2f}"
            axes.text(column, line, words, ha="center", va="center", color="white" if abs(value) > 0.6 else "black")
    figure.colorbar(shown, label="Spearman's rank correlation")
    return figure_image(figure)
