"""The pictures that a command's data options name: a data set's split, and its decoded pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.caching.pixel_cache import decode_pictures
from pipelines.caching.signal_cache import decode_signals
from pipelines.options.data import DataOptions
from tokenizer_image.pictures.loading import PictureDataset, load_pictures
from tokenizer_image.preprocessing import Preprocessing, preprocessing_of
from tokenizer_image.signals.examples import SignalSource
from tokenizer_image.signals.loading import load_signals
from tokenizer_image.signals.settings import BUILT_IN, SignalSettings, signal_settings_of

VALIDATION_PICTURES = 2000
InputSettings = Preprocessing | SignalSettings


def input_settings_of(image_tokenizer: Any) -> InputSettings:
    """What a tokenizer takes: pictures or signals."""
    return signal_settings_of(image_tokenizer) or preprocessing_of(image_tokenizer)


def open_source(options: DataOptions, split: str, settings: InputSettings) -> Any:
    """`load_source` of pictures or, as the settings say, of signals, for which the name of the built-in pictures stands
    for that of the built-in signals."""
    if not isinstance(settings, SignalSettings):
        return load_source(options, split, image_size=settings.image_size)
    most, seed = (options.max_examples, options.seed) if split == "train" else (None, 0)
    return open_signals(options, split, settings, most, seed)


def open_signals(
    options: DataOptions, split: str, settings: SignalSettings, max_examples: int | None, seed: int
) -> SignalSource:
    """At most `max_examples` signals of one split of the data set, chosen by `seed`. Errors are those of
    `load_signals`."""
    dataset = BUILT_IN[settings.signal] if options.dataset == DataOptions.dataset else options.dataset
    return load_signals(
        settings, dataset, split, caption_column=options.caption_column, max_examples=max_examples, seed=seed
    )


def load_source(options: DataOptions, split: str, *, image_size: int) -> PictureDataset:
    """One split of the data set for training: --max_examples of its training rows, at most `VALIDATION_PICTURES` of
    others.

    The seed chooses training rows alone: runs with different seeds are validated on the same pictures. Arguments and
    errors are those of `load_split`.
    """
    most, seed = (options.max_examples, options.seed) if split == "train" else (VALIDATION_PICTURES, 0)
    return load_split(options, split, most, seed, image_size=image_size)


def load_split(
    options: DataOptions,
    split: str,
    max_examples: int | None,
    seed: int,
    *,
    image_size: int,
) -> PictureDataset:
    """At most `max_examples` pictures of one split of the data set, chosen by `seed`.

    Args:
        image_size: side in pixels that sprites are drawn at.

    Raises:
        ValueError: as `load_pictures`.
    """
    kind = next((kind for kind, name in BUILT_IN.items() if name == options.dataset), None)
    if kind is not None and not Path(options.dataset).exists():
        raise ValueError(f"--dataset {options.dataset} has no pictures: give --signal {kind}, or a tokenizer of {kind}")
    return load_pictures(
        options.dataset,
        split,
        image_column=options.image_column,
        caption_column=options.caption_column,
        max_examples=max_examples,
        seed=seed,
        image_size=image_size,
    )


def read_pictures(
    options: DataOptions,
    source: PictureDataset,
    settings: InputSettings,
    sizes: Sequence[tuple[int, int]] = (),
    *,
    progress: bool = True,
) -> Any:
    """Every picture (or signal) of a source, decoded by --num_workers processes, with a progress bar if `progress`.

    Args:
        sizes: (height, width) that pictures are decoded at, each at the nearest in shape; default: the square of
            `settings`.

    Raises:
        ValueError: more than --max_unreadable_share of the pictures cannot be read.
    """
    if isinstance(settings, SignalSettings):
        share = options.max_unreadable_share
        signals: Any = source  # a `SignalSource`, where the settings are of signals
        return decode_signals(signals, settings, max_unreadable_share=share, progress=progress)
    return decode_pictures(
        source,
        settings,
        sizes=sizes,
        num_workers=options.workers(),
        max_unreadable_share=options.max_unreadable_share,
        max_image_pixels=options.max_image_pixels,
        progress=progress,
    )


def first_captions(source: PictureDataset, rows: Iterable[int]) -> list[str | None]:
    """The first caption of each of `rows`, None where there is none."""
    texts = [source.texts(int(row)) for row in rows]
    return [captions[0] if captions else None for captions in texts]


def class_numbers(texts: Iterable[str | None], names: Sequence[str]) -> np.ndarray:
    """Where each text is among the names of classes, int64; -1 where it is none of them."""
    numbers = {name: number for number, name in enumerate(names)}
    return np.asarray([-1 if text is None else numbers.get(text, -1) for text in texts], np.int64)


def classes_of_rows(
    source: PictureDataset, rows: Sequence[int], condition: str | None, names: Sequence[str]
) -> np.ndarray:
    """Where the class of each of `rows` is among the class names of a conditional model, int64; -1 where it is none.

    Args:
        condition: "caption": the first caption is the class; else it is the label.
    """
    if condition == "caption":
        return class_numbers(first_captions(source, rows), names)
    known = [*(source.label_names or []), None]
    return class_numbers([known[source.label(row)] for row in rows], names)
