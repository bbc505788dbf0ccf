"""Pictures as points of a plane, by their latents: do those of one class lie together?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.evaluation.report.plots import figure_image

POINTS = 2000  # pictures on a map, at most
LABELS = 20  # that have a colour of their own, at most
LEAST_COVERED = 0.5  # share of the pictures that these labels must have
COMPONENTS = 50  # of PCA, that t-SNE starts from


@dataclass(frozen=True)
class LatentMap:
    """A map of n pictures.

    Attributes:
        title: the method, and what its axes hold.
        points: (n, 2) float64.
    """

    title: str
    points: np.ndarray


def principal_components(latents: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The projections of latents (n, D) to their `count` directions of most variance, as many as there are: (n, k)
    float64; and the share of the variance that each has, (k,). A direction's largest entry is positive."""
    centred = latents.double() - latents.double().mean(dim=0)
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    signs = right.gather(1, right.abs().argmax(dim=1, keepdim=True)).sign().flatten()
    variances = values.square()
    shares = variances / variances.sum().clamp(min=1e-300)
    return (left * values * signs)[:, :count], shares[:count]


def pca_map(latents: Tensor, seed: int) -> LatentMap:
    """The two directions of most variance; exact, so that the seed changes nothing."""
    points, shares = principal_components(latents, 2)
    flat = np.pad(points.numpy(), ((0, 0), (0, 2 - points.shape[1])))
    return LatentMap(f"PCA: {' and '.join(f'{share:.0%}' for share in shares.tolist())} of the variance", flat)


def tsne_map(latents: Tensor, seed: int) -> LatentMap:
    """t-SNE (van der Maaten and Hinton 2008) by scikit-learn, of the first principal components, started from PCA."""
    from sklearn.manifold import TSNE

    inputs = principal_components(latents, COMPONENTS)[0].numpy()
    perplexity = min(30.0, (len(inputs) - 1) / 3)
    points = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(inputs)
    return LatentMap(f"t-SNE, perplexity {perplexity:.0f}: distances between groups mean little", points)


MAPS: dict[str, Callable[[Tensor, int], LatentMap]] = {"pca": pca_map, "tsne": tsne_map}


def shown_labels(captions: Sequence[str | None]) -> list[str]:
    """The captions that are labels of a map, in alphabetical order: the most frequent ones, where they are those of
    most pictures; else [], since captions that differ in each picture sort nothing."""
    counts = Counter(text for text in captions if text).most_common(LABELS)
    if sum(count for _, count in counts) < LEAST_COVERED * len(captions):
        return []
    return sorted(text for text, _ in counts)


def latent_map_figure(maps: Sequence[LatentMap], captions: Sequence[str | None]) -> Image.Image:
    """The maps beside each other, pictures coloured by caption.

    Args:
        captions: of each picture, None without.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib
    from matplotlib.figure import Figure

    labels = shown_labels(captions)
    colours = matplotlib.colormaps["tab20" if len(labels) > 10 else "tab10"]
    places = {label: [row for row, text in enumerate(captions) if text == label] for label in labels}
    others = [row for row, text in enumerate(captions) if text not in places]
    figure = Figure(figsize=(5.2 * len(maps) + 2, 5), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
        if others:
            axes.scatter(
                *one.points[others].T, s=6, color="lightgray", linewidths=0, label="others" if labels else None
            )
        for number, (label, rows) in enumerate(places.items()):
            axes.scatter(*one.points[rows].T, s=8, alpha=0.7, color=colours(number), linewidths=0, label=label)
        axes.set(title=one.title, xticks=[], yticks=[])
        axes.title.set_fontsize(10)
    if labels:
        handles, texts = axes.get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside right center", markerscale=2.5, fontsize=9)
    return figure_image(figure)
