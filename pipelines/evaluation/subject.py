"""What an evaluation measures, and on which pictures: the model and the splits that the options name."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm.sequences import DESCRIBING, DRAWING_ALONE, DRAWING_CAPTIONS, EDITING, FORMATS
from lm.vocabulary import Size
from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.caching.sources import first_captions, load_split, read_pictures
from pipelines.drawing.best_of import check_can_rank, check_can_rank_texts
from pipelines.machine.devices import choose_device
from pipelines.machine.provenance import commit, versions
from pipelines.model_folder import named_folder
from pipelines.options.evaluation import EvaluationOptions
from pipelines.text_to_image import TextToImagePipeline
from pipelines.text_to_signal import drawing_class
from tokenizer_image.fingerprint import weights_hash
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.pictures.dataset import PictureDataset, print_summary
from tokenizer_image.preprocessing import preprocessing_of
from tokenizer_image.registry import is_autoencoder, load_tokenizer

FORMAT_VERSION = 1  # of a report
TRAINING_PICTURES = 10_000  # by default


@dataclass(frozen=True)
class EvaluatedModel:
    """What is measured.

    Attributes:
        pipeline: None where an image tokenizer is measured alone.
    """

    image_tokenizer: ImageTokenizer
    pipeline: TextToImagePipeline | None = None

    @property
    def formats(self) -> set[str]:
        """The sequence formats that the language model was trained on."""
        return set() if self.pipeline is None else set(self.pipeline.vocabulary.formats)

    @property
    def drawing(self) -> TextToImagePipeline | None:
        """The pipeline if its model has learned to draw, with or without captions."""
        return self.pipeline if self.formats & {*DRAWING_ALONE, *DRAWING_CAPTIONS} else None

    @property
    def drawing_from_captions(self) -> TextToImagePipeline | None:
        """The pipeline if its model has learned to draw what a caption says."""
        return self.pipeline if self.formats & set(DRAWING_CAPTIONS) else None

    @property
    def describing(self) -> TextToImagePipeline | None:
        """The pipeline if its model has learned to describe pictures."""
        return self.pipeline if self.formats & set(DESCRIBING) else None

    @property
    def editing(self) -> TextToImagePipeline | None:
        """The pipeline if its model has learned to change a picture by an instruction."""
        return self.pipeline if self.formats & set(EDITING) else None

    def captions_for_drawing(self, captions: Sequence[str | None]) -> list[str | None]:
        """The captions that pictures are drawn from: none where the model has learned to draw without."""
        return [None] * len(captions) if self.drawing_from_captions is None else list(captions)

    @property
    def picture_size(self) -> Size:
        """(height, width) of the pictures to measure: the default of a model of several sizes."""
        if self.pipeline is None:
            return (self.image_tokenizer.config.image_size,) * 2
        height, width = self.pipeline.vocabulary.image_size
        return height, width


def check_has_codes(options: EvaluationOptions) -> None:
    """Raise ValueError where --image_tokenizer names an autoencoder without codes, or no folder."""
    if options.image_tokenizer is not None and is_autoencoder(options.image_tokenizer):
        raise ValueError(
            f"--image_tokenizer {options.image_tokenizer} is an autoencoder without codes: measure it by --autoencoder "
            f"{options.image_tokenizer}"
        )


def load_model(options: EvaluationOptions) -> EvaluatedModel:
    """The model, of pictures or of signals, or the tokenizer alone, that the options name.

    Raises:
        ValueError: there is none.
    """
    if options.image_tokenizer is not None:
        return EvaluatedModel(load_tokenizer(named_folder(options.image_tokenizer)).to(choose_device(options.device)))
    pipeline: Any = options.load(drawing_class(options.chosen_model))
    pipeline.set_progress_bar_config(disable=True)
    return EvaluatedModel(pipeline.image_tokenizer, pipeline)


def check_can(options: EvaluationOptions, model: EvaluatedModel) -> None:
    """Raise ValueError unless a model of pictures has learned what the options ask for."""
    pipeline = model.pipeline
    if pipeline is None:
        return
    if options.best_of > 1:
        check_can_rank(pipeline, [""])
    if (options.describe_best_of or 1) > 1:
        check_can_rank_texts(pipeline)
    if options.image_guidance_scale is not None:
        use = f"--image_guidance_scale {options.image_guidance_scale:g} is for edits"
        pipeline.vocabulary.check_trained(use, *EDITING, remedy="leave it out, or measure a model that has")
    if options.dataset == "sprites" and model.formats and not any(FORMATS[name].has_text for name in model.formats):
        raise ValueError(
            f"--model {options.chosen_model} has learned no captions, and the figures of sprites are about captions: "
            f"measure its tokenizer alone with --image_tokenizer {options.chosen_model}/image_tokenizer, or give "
            "another --dataset"
        )


@dataclass
class Split:
    """Pictures of one split of the data set, as the image tokenizer takes them.

    Attributes:
        name: of the split.
        captions: the first of each picture, None for a picture without.
    """

    name: str
    source: PictureDataset
    pictures: DecodedPictures
    captions: list[str | None]

    def __len__(self) -> int:
        return len(self.pictures)

    def tensor(self) -> Tensor:
        """All pictures, uint8 (n, C, H, W)."""
        return torch.from_numpy(self.pictures.batch(np.arange(len(self))))


def load_data(options: EvaluationOptions, image_model: Any, size: Size | None = None) -> Split:
    """The split that is measured, as an image tokenizer or an autoencoder takes it.

    Args:
        size: (height, width) of the pictures (default: the square that the model was trained on).
    """
    return _load(options, image_model, options.split, options.max_examples, size)


def load_training(options: EvaluationOptions, image_model: Any, size: Size | None = None) -> Split | str:
    """The training pictures that figures are compared with, or why there are none.

    Args:
        size: as of `load_data`.

    Raises:
        ValueError: the data set lacks the split that --train_split names.
    """
    name = options.train_split or "train"
    if name == options.split:
        return f"the measured split is that of the training pictures, {name!r}"
    try:
        return _load(options, image_model, name, options.train_examples or TRAINING_PICTURES, size)
    except ValueError as error:
        if options.train_split is not None:
            raise
        return f"no training pictures ({error}); name their split by --train_split"


def _load(
    options: EvaluationOptions, image_model: Any, name: str, max_examples: int | None, size: Size | None
) -> Split:
    side = image_model.config.image_size
    source = load_split(options, name, max_examples, options.seed, image_size=side)
    print_summary(source)
    sizes = [] if size in (None, (side, side)) else [size]
    pictures = read_pictures(options, source, preprocessing_of(image_model), sizes)
    return Split(name, source, pictures, first_captions(source, pictures.rows))


def provenance(options: EvaluationOptions, image_model: Any, source: Any) -> dict[str, Any]:
    """What was measured, on which pictures or signals, by which code; `notes` say what was not, and why."""
    alone = {"image_tokenizer": options.image_tokenizer, "autoencoder": options.autoencoder}
    named = {name: folder for name, folder in alone.items() if folder is not None}
    fingerprint = getattr(image_model, "fingerprint", None) or weights_hash(image_model)
    return {
        "format_version": FORMAT_VERSION,
        **(named or {"model": options.chosen_model}),
        f"{'autoencoder' if options.autoencoder else 'image_tokenizer'}_fingerprint": fingerprint,
        "dataset": options.dataset,
        "split": options.split,
        "dataset_fingerprint": source.fingerprint,
        "seed": options.seed,
        "settings": asdict(options),
        "command": shlex.join(sys.argv),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "commit": commit(),
        "notes": [],
    }
