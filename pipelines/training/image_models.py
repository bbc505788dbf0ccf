"""Which image model stage 1 trains, by --bottleneck: everything that its one loop has to know of it."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator

from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.training.autoencoders import ContinuousModel, load_earlier_autoencoder
from pipelines.training.image_tokenizer import QuantizedModel, load_earlier
from pipelines.training.picture_classes import picture_classes
from tokenizer_image import VQVAE, Autoencoder

TrainedModel = QuantizedModel | ContinuousModel


def load_init_from(options: ImageTokenizerOptions) -> VQVAE | Autoencoder | None:
    """The model in --init_from, None without that option.

    Raises:
        ValueError: options that its weights do not fit, or a model of another kind of bottleneck.
    """
    if not options.init_from:
        return None
    return load_earlier(options) if options.is_quantized else load_earlier_autoencoder(options)


def build_model(
    options: ImageTokenizerOptions,
    earlier: VQVAE | Autoencoder | None,
    pictures: DecodedPictures,
    validation_pictures: DecodedPictures,
    accelerator: Accelerator,
    *,
    photographs: bool,
) -> TrainedModel:
    """The model to train: `earlier`, or a new one as the options say.

    Raises:
        ValueError: a conditional bottleneck whose pictures have no classes.
    """
    if options.is_quantized:
        signals: Any = pictures.settings if options.signal else None
        model = VQVAE(options.configuration(photographs, signals)) if earlier is None else earlier
        assert isinstance(model, VQVAE)
        return QuantizedModel(options, model, pictures, validation_pictures, accelerator)
    classes, names = None, []
    if options.bottleneck == "conditional":
        condition = options.wanted_condition if earlier is None else earlier.config.condition
        known = [] if earlier is None else earlier.config.class_names
        size = pictures.settings.image_size
        classes = picture_classes(options, pictures, validation_pictures, size, condition, known)
        names = classes.names
    new = Autoencoder(options.autoencoder_configuration(photographs, names)) if earlier is None else earlier
    assert isinstance(new, Autoencoder)
    return ContinuousModel(options, new, pictures, validation_pictures, accelerator, classes)
