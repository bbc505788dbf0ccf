"""Figures that need classes: classifiers of the data set's captions, as extractors and for the accuracy score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.evaluation.metrics.classification_accuracy import (
    REAL,
    LabelledPictures,
    classification_accuracy,
    labelled,
    learned_classifier,
)
from pipelines.evaluation.metrics.reconstruction import device_of, reconstruct
from pipelines.evaluation.metrics.result_cache import ResultCache
from pipelines.evaluation.samples import DrawnPictures
from pipelines.evaluation.subject import Split
from pipelines.machine.batches import index_batches
from pipelines.options.evaluation import EvaluationOptions
from pipelines.options.image_tokenizer_losses import CAPTIONS
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.losses.classifier_training import LEAST_CLASSES, frequent_captions
from tokenizer_image.losses.extractors import Extractor
from tokenizer_image.losses.own_classifier import classifier_extractor


def data_classes(split: Split, training: Split | str) -> list[str]:
    """The captions that are classes of the training pictures and occur in the split, the most frequent first.

    Raises:
        ValueError: there are no training pictures, or their captions are no classes.
    """
    if isinstance(training, str):
        raise ValueError(f"needs training pictures with captions that are classes: {training}")
    captions, present = frequent_captions(training.captions), set(split.captions)
    shared = [caption for caption in captions if caption in present]
    if len(shared) < LEAST_CLASSES:
        raise ValueError(
            f"needs at least {LEAST_CLASSES} classes that both splits have; {training.name} has {len(captions)}, of "
            f"which {split.name} has {len(shared)}: name other splits by --split and --train_split"
        )
    return shared


def required_classes(options: EvaluationOptions, split: Split, training: Split | str) -> list[str]:
    """`data_classes`, [] where there are none and no option asks for them.

    Raises:
        ValueError: an option needs classes and there are none; it names the option.
    """
    asking = [
        name
        for name, asks in (
            ("--classification_accuracy", options.classification_accuracy),
            (f"--extractor {CAPTIONS}", options.extractor == CAPTIONS),
            (f"--classifier {CAPTIONS}", options.classifier == CAPTIONS),
            ("--labels_per_class", any(options.labels_per_class or ())),
        )
        if asks
    ]
    try:
        return data_classes(split, training)
    except ValueError as error:
        if not asking:
            return []
        raise ValueError(
            f"{asking[0]} {error}. Leave the option out, or name a column of classes by --caption_column"
        ) from error


def data_labels(split: Split, captions: list[str]) -> LabelledPictures:
    """The pictures of a split whose caption is one of these classes."""
    return labelled(split.tensor(), split.captions, captions)


def own_extractor(options: EvaluationOptions, training: Split, captions: list[str], device: torch.device) -> Extractor:
    """A classifier that has learned the real training pictures of these captions."""
    network = learned_classifier(
        data_labels(training, captions), len(captions), steps=options.classifier_steps,
        seed=options.seed, device=device, cache=ResultCache(),
    )  # fmt: skip
    return classifier_extractor(CAPTIONS, network, captions)


def accuracy_score(
    options: EvaluationOptions,
    image_tokenizer: ImageTokenizer,
    split: Split,
    training: Split,
    captions: list[str],
    drawn: DrawnPictures | None,
) -> dict[str, Any]:
    """`classification_accuracy` on the split, of classifiers that learn real training pictures, their reconstructions
    and, where there are any, drawn pictures."""
    real = data_labels(training, captions)
    sets = {
        REAL: real,
        "reconstructed": LabelledPictures(
            reconstruct_all(image_tokenizer, real.pictures, options.batch_size), real.labels
        ),
    }
    if drawn is not None:
        sets["drawn"] = labelled(drawn.pictures, drawn.captions, captions)
    figures = classification_accuracy(
        data_labels(split, captions), sets, len(captions), steps=options.classifier_steps,
        seed=options.seed, device=device_of(image_tokenizer), cache=ResultCache(),
    )  # fmt: skip
    return {"split": split.name, "train_split": training.name, **figures}


def reconstruct_all(image_tokenizer: ImageTokenizer, pictures: Tensor, batch_size: int) -> Tensor:
    """Reconstructions of pictures uint8 (n, C, H, W), of the same shape."""
    parts = [
        reconstruct(image_tokenizer, pictures[rows.start : rows.stop])[0]
        for rows in index_batches(len(pictures), batch_size)
    ]
    return torch.cat(parts).contiguous()  # as a file gives it: layouts round differently
