"""The class of each picture, which a conditional bottleneck is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.caching.sources import class_numbers, first_captions, load_source
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.training.own_classifier import classes_of_captions


@dataclass(frozen=True)
class PictureClasses:
    """Classes by name, and where the pictures of both splits are among them.

    Attributes:
        names: of the classes.
        training, validation: int64 (n,), of each decoded picture; -1 where the class is not known.
    """

    names: list[str]
    training: np.ndarray
    validation: np.ndarray


def picture_classes(
    options: ImageTokenizerOptions,
    pictures: DecodedPictures,
    validation_pictures: DecodedPictures,
    image_size: int,
    condition: str,
    known: Sequence[str] = (),
) -> PictureClasses:
    """The classes that --condition names.

    Args:
        condition: "label" or "caption".
        known: the names of an earlier model, which stay as they are.

    Raises:
        ValueError: the data set has no labels, no captions that are classes, or none of the `known` ones.
    """
    if condition == "label":
        names, training = _labels(options, pictures, "train", image_size)
        if known:
            training = _renumbered(names, training, known)
            names = list(known)
        own, validation = _labels(options, validation_pictures, "validation", image_size)
        validation = _renumbered(own, validation, names)
    else:
        if known:
            names = list(known)
            training = _captions(options, pictures, "train", image_size, names)
        else:
            remedy = "Give a --dataset whose captions repeat, or one with labels and --condition label"
            names, training = classes_of_captions(options, pictures, image_size, "--condition caption", remedy)
        validation = _captions(options, validation_pictures, "validation", image_size, names)
    if not (training >= 0).any():
        raise ValueError(
            f"--dataset {options.dataset}: no training picture has one of the classes of --init_from, "
            f"{', '.join(names[:5])}"
        )
    return PictureClasses(names, training, validation)


def _labels(
    options: ImageTokenizerOptions, pictures: DecodedPictures, split: str, image_size: int
) -> tuple[list[str], np.ndarray]:
    """Names of the labels of a split, and each decoded picture's."""
    source = load_source(options, split, image_size=image_size)
    if not source.label_names:
        raise ValueError(
            f"--condition label: the pictures of --dataset {options.dataset} have no labels; where their captions are "
            "classes give --condition caption"
        )
    return list(source.label_names), np.asarray([source.label(row) for row in pictures.rows.tolist()], np.int64)


def _captions(
    options: ImageTokenizerOptions, pictures: DecodedPictures, split: str, image_size: int, names: Sequence[str]
) -> np.ndarray:
    """Each decoded picture's class by its first caption."""
    source = load_source(options, split, image_size=image_size)
    return class_numbers(first_captions(source, pictures.rows), names)


def _renumbered(own: Sequence[str], labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Numbers of labels in `own` as numbers in `names`; -1 where there is none of that name."""
    return class_numbers([*own, None], names)[labels]
