"""An image tokenizer of Tessera for transformers' Auto classes and for diffusers: copied to the Hub beside its weights.

    from transformers import AutoImageProcessor, AutoModel

    tokenizer = AutoModel.from_pretrained("owner/name", subfolder="image_tokenizer", trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained("owner/name", subfolder="image_tokenizer", trust_remote_code=True)
    codes = tokenizer.encode(processor(image)["pixel_values"])

It needs `tessera` to be installed. The classes are subclasses because transformers marks those that it finds by a
folder's `auto_map`, and writes the code of marked ones beside their weights.
"""

from __future__ import annotations

from typing import Any

import torch

from tokenizer_image.auto_classes import PictureProcessor
from tokenizer_image.configuration import VQVAEConfig
from tokenizer_image.vqvae import VQVAE


class TesseraTokenizerConfig(VQVAEConfig):
    """Settings of the image tokenizer."""


class TesseraTokenizer(VQVAE):
    """The image tokenizer, in evaluation mode and always in float32: other weights would give pictures other codes."""

    config_class = TesseraTokenizerConfig

    @classmethod
    def from_pretrained(cls, *args: Any, dtype: torch.dtype | str | None = None, **settings: Any) -> Any:
        return super().from_pretrained(*args, dtype=torch.float32, **settings).eval()


class TesseraProcessor(PictureProcessor):
    """Pictures to what the image tokenizer takes."""
