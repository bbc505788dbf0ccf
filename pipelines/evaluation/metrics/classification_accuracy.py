"""The classification accuracy score: what a classifier that has seen only drawn pictures knows of real ones.

Ravuri and Vinyals 2019, "Classification accuracy score for conditional generative models"; VQ-VAE-2 (Razavi et al.
2019), table 3. Unlike a Frechet distance it sees whether a model draws all of a class, and needs no pretrained network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.caching.sources import class_numbers
from pipelines.evaluation.metrics.classes import TOP
from pipelines.evaluation.metrics.intervals import paired_comparison, ratio_of_means, shares
from pipelines.evaluation.metrics.result_cache import ResultCache
from tokenizer_image.fingerprint import weights_hash
from tokenizer_image.losses.classifier_training import class_logits, fit_classifier, new_classifier
from tokenizer_image.losses.own_classifier import CaptionClassifier
from tokenizer_image.preprocessing import to_pixel_values

REAL = "real"


@dataclass
class LabelledPictures:
    """Pictures of known classes.

    Attributes:
        pictures: uint8 (n, C, H, W).
        labels: int64 (n,), the class of each.
    """

    pictures: Tensor
    labels: np.ndarray

    def pixels_of(self, rows: np.ndarray) -> Tensor:
        """(b, C, H, W) float32 in [-1, 1] of the pictures at `rows`."""
        return to_pixel_values(self.pictures[torch.from_numpy(rows)])

    @property
    def key(self) -> str:
        """A hash of the pictures and their classes."""
        digest = hashlib.sha256(f"{tuple(self.pictures.shape)}".encode())
        digest.update(self.pictures.contiguous().numpy().tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def labelled(pictures: Tensor, texts: Sequence[str | None], captions: Sequence[str]) -> LabelledPictures:
    """Those pictures uint8 (n, C, H, W) whose text is one of `captions`, which are the classes."""
    labels = class_numbers(texts, captions)
    rows = np.flatnonzero(labels >= 0)
    return LabelledPictures(pictures[torch.from_numpy(rows)].contiguous(), labels[rows])


def learned_classifier(
    training: LabelledPictures,
    num_classes: int,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    cache: ResultCache | None = None,
) -> CaptionClassifier:
    """A classifier that has learned these pictures for so many steps: the same weights for the same seed.

    Args:
        cache: where its weights are kept under the pictures, the steps and the seed.
    """
    network = new_classifier(num_classes, seed, device)

    def train() -> dict[str, Tensor]:
        rows, rng = np.arange(len(training.labels)), np.random.default_rng([seed, num_classes])
        fit_classifier(network, training.pixels_of, training.labels, rows, lambda step: step / steps, rng)
        return network.state_dict()

    key = {
        "kind": "classifier", "training": training.key, "classes": num_classes, "steps": steps, "seed": seed,
        "device": device.type, "threads": torch.get_num_threads(),
    }  # fmt: skip
    if cache is None:
        train()
    else:
        network.load_state_dict(cache.tensors(key, train))
    return network.eval()


def classification_accuracy(
    test: LabelledPictures,
    training: Mapping[str, LabelledPictures],
    num_classes: int,
    *,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    cache: ResultCache | None = None,
) -> dict[str, Any]:
    """Train the same classifier on each training set, and test all of them on the same real pictures.

    Args:
        test: real pictures that nothing was trained on.
        training: `real`, and what is compared with it: `reconstructed`, `drawn`.
        steps: of 64 pictures, for each classifier.

    Returns:
        `n` test pictures, `num_classes`, `steps`; for each training set `num_training`, `classifier_hash` (of its
        weights), `top_1` and `top_5` (among the
        first five, or all where there are fewer) with 95% Wilson intervals under `interval`; and for each but `real`
        `ratio`, its accuracies over those of `real`, with intervals by the paired bootstrap over test pictures.
    """
    report: dict[str, Any] = {"n": len(test.labels), "num_classes": num_classes, "steps": steps}
    verdicts: dict[str, dict[str, np.ndarray]] = {}
    for name, pictures in training.items():
        network = learned_classifier(
            pictures, num_classes, steps=steps, seed=seed, device=torch.device(device), cache=cache
        )
        logits = class_logits(network, test.pixels_of, np.arange(len(test.labels)))
        verdicts[name] = _verdicts(logits, test.labels)
        counts = {score: int(right.sum()) for score, right in verdicts[name].items()}
        report[name] = {
            **shares(counts, len(test.labels)),
            "num_training": len(pictures.labels),
            "classifier_hash": weights_hash(network),
        }
    for name in training:
        if name != REAL:
            report[name]["ratio"] = paired_comparison(ratio_of_means, verdicts[REAL], verdicts[name])
    return report


def _verdicts(logits: Tensor, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Whether each picture's class is the first, and among the first five: (n,) bool each."""
    named = logits.topk(min(TOP, logits.shape[1]), dim=1).indices.numpy() == labels[:, None]
    return {"top_1": named[:, 0], "top_5": named.any(axis=1)}
