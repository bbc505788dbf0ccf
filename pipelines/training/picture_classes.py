"""The class of each picture, which a conditional bottleneck is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.caching.sources import classes_of_rows, load_source
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.training.own_classifier import classes_of_captions
from tokenizer_image.pictures.loading import PictureDataset


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
    names = list(known) or _own_names(options, pictures, image_size, condition)
    training, validation = (
        classes_of_rows(_source(options, split, image_size, condition), part.rows.tolist(), condition, names)
        for split, part in (("train", pictures), ("validation", validation_pictures))
    )
    if not (training >= 0).any():
        raise ValueError(
            f"--dataset {options.dataset}: no training picture has one of the classes of --init_from, "
            f"{', '.join(names[:5])}"
        )
    return PictureClasses(names, training, validation)


def _own_names(options: ImageTokenizerOptions, pictures: DecodedPictures, image_size: int, condition: str) -> list[str]:
    """The classes of the data set."""
    if condition == "label":
        return list(_source(options, "train", image_size, condition).label_names or ())
    remedy = "Give a --dataset whose captions repeat, or one with labels and --condition label"
    return classes_of_captions(options, pictures, image_size, "--condition caption", remedy)[0]


def _source(options: ImageTokenizerOptions, split: str, image_size: int, condition: str) -> PictureDataset:
    """A split, which has labels where they are asked for."""
    source = load_source(options, split, image_size=image_size)
    if condition == "label" and not source.label_names:
        raise ValueError(
            f"--condition label: the pictures of --dataset {options.dataset} have no labels; where their captions are "
            "classes give --condition caption"
        )
    return source
