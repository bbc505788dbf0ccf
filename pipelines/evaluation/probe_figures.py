"""Probes of latents, code histograms and pixels: what `label_efficiency` needs of two splits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.evaluation.class_figures import data_labels
from pipelines.evaluation.metrics.classification_accuracy import LabelledPictures
from pipelines.evaluation.metrics.label_efficiency import (
    LabelledFeatures,
    code_histograms,
    label_efficiency,
    latents_of,
    pixels_of,
    rows_of_each_class,
)
from pipelines.evaluation.metrics.reconstruction import encode
from pipelines.evaluation.subject import Split
from pipelines.options.evaluation import EvaluationOptions
from tokenizer_image.autoencoder import Autoencoder
from tokenizer_image.layout import ImageTokenizer

LABELS_PER_CLASS = (10, 100, 1000)  # by default
Features = dict[str, dict[str, Tensor]]  # "training", "test" -> kind of features -> (n, D)


@dataclass
class ProbeFigures:
    """Rows of `label_efficiency`, and what was left out, and why."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def probe_figures(
    options: EvaluationOptions,
    image_model: ImageTokenizer | Autoencoder,
    split: Split,
    training: Split,
    captions: list[str],
) -> ProbeFigures:
    """`label_efficiency` of the latents, the code histograms and the pixels, tested on the split.

    Counts of labels that the rarest class of the training pictures does not have are left out.
    """
    known, asked = data_labels(training, captions), data_labels(split, captions)
    rarest = int(np.bincount(known.labels, minlength=len(captions)).min())
    wanted = [count for count in options.labels_per_class or LABELS_PER_CLASS if count > 0]
    counts = [count for count in wanted if count <= rarest]
    found = ProbeFigures()
    if left_out := sorted(set(wanted) - set(counts)):
        found.notes.append(
            f"no probes of {', '.join(map(str, left_out))} labels a class: the rarest class has {rarest} of the "
            f"{len(training)} training pictures (--train_examples)"
        )
    if counts:
        rows = rows_of_each_class(known.labels, len(captions), max(counts), options.seed)
        learned = LabelledPictures(known.pictures[torch.from_numpy(rows)], known.labels[rows])
        found.rows = _rows(options, image_model, asked, learned, len(captions), counts)
    return found


def _rows(
    options: EvaluationOptions,
    image_model: ImageTokenizer | Autoencoder,
    test: LabelledPictures,
    training: LabelledPictures,
    num_classes: int,
    counts: list[int],
) -> list[dict[str, Any]]:
    sets = {"test": test, "training": training}
    features = _features(image_model, {name: one.pictures for name, one in sets.items()}, options.batch_size)
    labelled = {
        name: {kind: LabelledFeatures(values, one.labels) for kind, values in features[name].items()}
        for name, one in sets.items()
    }
    return label_efficiency(labelled["test"], labelled["training"], num_classes, counts, seed=options.seed)


def _features(image_model: ImageTokenizer | Autoencoder, pictures: dict[str, Tensor], batch_size: int) -> Features:
    """Pixels and, of models that have some, code histograms and latents of pictures uint8 (n, C, H, W)."""
    features: Features = {name: {"pixels": pixels_of(one)} for name, one in pictures.items()}
    if not isinstance(image_model, Autoencoder):
        codes = {
            name: torch.cat([encode(image_model, part) for part in one.split(batch_size)])
            for name, one in pictures.items()
        }
        histograms = code_histograms(codes["test"], codes["training"], image_model.num_codes)
        features["test"]["code histograms"], features["training"]["code histograms"] = histograms
    for name, one in pictures.items():
        latents = latents_of(image_model, one, batch_size)
        if latents is not None:
            features[name]["latents"] = latents
    return features
