"""Image tokenizers as transformers' `AutoConfig`, `AutoModel` and `AutoImageProcessor` see them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from tokenizer_image.configuration import VQVAEConfig
from tokenizer_image.preprocessing import Preprocessing, preprocess, preprocessing_of, to_pixel_values
from tokenizer_image.vqvae import VQVAE

PROCESSOR_FILE = "preprocessor_config.json"


class PictureProcessor(BaseImageProcessor):
    """Prepares pictures as `tokenizer_image.preprocessing` does, under transformers' interface.

    Args:
        preprocessing: settings, as `Preprocessing.to_dict` gives them (default: its own).

    Raises:
        ValueError: a setting that there is not, or a value out of range.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, preprocessing: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.preprocessing = Preprocessing.from_dict(preprocessing or {}).to_dict()

    @classmethod
    def of(cls, tokenizer: VQVAE) -> PictureProcessor:
        """The processor of a tokenizer's pictures."""
        return cls(preprocessing_of(tokenizer).to_dict())

    def __call__(self, images: Image.Image | Iterable[Image.Image], **settings: Any) -> BatchFeature:
        return self.preprocess(images, **settings)

    def preprocess(
        self, images: Image.Image | Iterable[Image.Image], return_tensors: str = "pt", **_: Any
    ) -> BatchFeature:
        """PIL images of any size and mode to `pixel_values` (B, C, H, W) float32 in [-1, 1].

        Raises:
            TypeError: something that is no PIL image.
        """
        settings = Preprocessing.from_dict(self.preprocessing)
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        pixels = np.stack([preprocess(picture, settings) for picture in pictures])
        return BatchFeature({"pixel_values": to_pixel_values(pixels)}, tensor_type=return_tensors)


def register_auto_classes() -> None:
    """Let `AutoConfig`, `AutoModel` and `AutoImageProcessor` load tokenizer folders, without code from the folder.

    The last one needs the folder's preprocessor_config.json, which `push_to_hub` writes.
    """
    AutoConfig.register(VQVAEConfig.model_type, VQVAEConfig, exist_ok=True)
    AutoModel.register(VQVAEConfig, VQVAE, exist_ok=True)
    AutoImageProcessor.register(VQVAEConfig, image_processor_classes={"pil": PictureProcessor}, exist_ok=True)
