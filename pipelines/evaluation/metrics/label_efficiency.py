"""How much of the classes lies in latents and codes: a linear probe and nearest neighbours, by labels a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.evaluation.metrics.intervals import shares
from pipelines.evaluation.metrics.linear_classifiers import softmax_regression
from pipelines.evaluation.metrics.neighbours import nearest_neighbours
from pipelines.evaluation.metrics.reconstruction import device_of
from pipelines.machine.batches import index_batches
from tokenizer_image.autoencoder import Autoencoder
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.preprocessing import to_pixel_values

MOST_FEATURES = 2048  # of a picture: larger maps are averaged to fewer places, histograms keep the most frequent codes
PENALTY = 1e-2  # of the probe's squared weights, over two
NEIGHBOURS = 5


@dataclass
class LabelledFeatures:
    """Features of pictures of known classes.

    Attributes:
        features: (n, D) float32.
        labels: int64 (n,).
    """

    features: Tensor
    labels: np.ndarray


@torch.inference_mode()
def latents_of(image_model: ImageTokenizer | Autoencoder, pictures: Tensor, batch_size: int = 100) -> Tensor | None:
    """Latents of all levels in front of quantization, a row each: (n, D) float32; None where there is no such thing.

    Where a level has more than its share of `MOST_FEATURES` values, its map is averaged to fewer places.

    Args:
        pictures: uint8 (n, C, H, W).
    """
    latents = getattr(image_model, "latents", None)
    if latents is None:
        return None
    rows = []
    for indices in index_batches(len(pictures), batch_size):
        pixels = to_pixel_values(pictures[indices.start : indices.stop]).to(device_of(image_model))
        levels = [level.permute(0, 3, 1, 2) for level in latents(pixels)]
        rows.append(torch.cat([_pooled(level, MOST_FEATURES // len(levels)) for level in levels], dim=1).float().cpu())
    return torch.cat(rows)


def pixels_of(pictures: Tensor) -> Tensor:
    """uint8 (n, C, H, W) -> (n, D) float32 in [0, 1], averaged to fewer places as latents are: what probes of latents
    are compared with."""
    return torch.cat([_pooled(part.float() / 255, MOST_FEATURES) for part in pictures.split(512)])


def _pooled(maps: Tensor, most: int) -> Tensor:
    """(B, C, h, w) -> (B, at most `most`), fewer places where there are too many; at least one place."""
    height, width = maps.shape[2:]
    scale = min(1.0, (most / maps[0].numel()) ** 0.5)
    size = (max(1, int(height * scale)), max(1, int(width * scale)))
    return (maps if size == (height, width) else F.adaptive_avg_pool2d(maps, size)).flatten(1)


def code_histograms(codes: Tensor, training_codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Shares of each code among a picture's, of the codes that training pictures have most often: (n, D), (m, D).

    Args:
        codes, training_codes: (n, T) and (m, T) int64.
    """
    counts = torch.bincount(training_codes.reshape(-1), minlength=num_codes)
    kept = counts.argsort(descending=True, stable=True)[:MOST_FEATURES]
    place = torch.full((num_codes,), len(kept), dtype=torch.int64)
    place[kept] = torch.arange(len(kept))

    def histogram(rows: Tensor) -> Tensor:
        found = torch.zeros(len(rows), len(kept) + 1)
        found.scatter_add_(1, place[rows], torch.ones(rows.shape))
        return found[:, : len(kept)] / rows.shape[1]

    return histogram(codes), histogram(training_codes)


def label_efficiency(
    test: Mapping[str, LabelledFeatures],
    training: Mapping[str, LabelledFeatures],
    num_classes: int,
    labels_per_class: Sequence[int],
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Accuracies of probes that learn from a few labels of each class.

    Args:
        test, training: by the features' name, of the same pictures each.
        labels_per_class: counts, each at most the pictures of the rarest class.
        seed: chooses which pictures have labels; a larger count adds to those of a smaller one.

    Returns:
        a row for each kind of features and count: `features`, `labels_per_class`, `dimensions`, `n` (tested), `linear`
        and `knn` in [0, 1] with 95% Wilson intervals under `interval`.
    """
    rows = []
    all_labels = next(iter(training.values())).labels
    for count in sorted(set(labels_per_class)):
        chosen = torch.from_numpy(rows_of_each_class(all_labels, num_classes, count, seed))
        for name, known in training.items():
            learned, labels = known.features[chosen], torch.from_numpy(known.labels)[chosen]
            asked, right = test[name].features, torch.from_numpy(test[name].labels)
            mean, spread = learned.mean(dim=0), learned.std(dim=0).clamp(min=1e-6)
            learned, asked = (learned - mean) / spread, (asked - mean) / spread
            found = {
                "linear": fit_linear_probe(learned, labels, num_classes).classes_of(asked),
                "knn": knn_classes(asked, learned, labels, num_classes),
            }
            counts = {probe: int((classes == right).sum()) for probe, classes in found.items()}
            about = {"features": name, "labels_per_class": count, "dimensions": learned.shape[1], "n": len(right)}
            rows.append({**about, **shares(counts, len(right))})
    return rows


def rows_of_each_class(labels: np.ndarray, num_classes: int, count: int, seed: int) -> np.ndarray:
    """Increasing rows int64 of `count` pictures of each class: those of a smaller count are among those of a larger.

    Raises:
        ValueError: a class has fewer.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = [order[labels[order] == number][:count] for number in range(num_classes)]
    if (least := min(len(rows) for rows in by_class)) < count:
        raise ValueError(f"{count} labels of each class: a class has {least} pictures only")
    return np.sort(np.concatenate(by_class))


@dataclass
class LinearProbe:
    """Multinomial logistic regression.

    Attributes:
        weight: (classes, D) float64.
        bias: (classes,) float64.
    """

    weight: Tensor
    bias: Tensor

    def classes_of(self, features: Tensor) -> Tensor:
        """The likeliest class of each row (n, D): int64 (n,)."""
        return (features.double() @ self.weight.T + self.bias).argmax(dim=1)


def fit_linear_probe(features: Tensor, labels: Tensor, num_classes: int, penalty: float = PENALTY) -> LinearProbe:
    """The `softmax_regression` of the classes.

    Args:
        features: (n, D), standardised.
        labels: int64 (n,).
        penalty: of the squared weights, over two.
    """
    weights, bias = softmax_regression(features.double().numpy(), labels.numpy(), num_classes, penalty)
    return LinearProbe(torch.from_numpy(weights.T), torch.from_numpy(bias))


def knn_classes(features: Tensor, known: Tensor, labels: Tensor, num_classes: int, k: int = NEIGHBOURS) -> Tensor:
    """The class that most of the k nearest rows have, the first class of several: int64 (n,) (scikit-learn's
    `KNeighborsClassifier`).

    Args:
        features, known: (n, D) and (m, D).
        labels: int64 (m,), of `known`; fewer than k rows all vote.
    """
    near = nearest_neighbours(features, known, min(k, len(known))).indices
    return F.one_hot(labels[near], num_classes).sum(dim=1).argmax(dim=1)
