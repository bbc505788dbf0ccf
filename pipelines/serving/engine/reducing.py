"""Pictures of requests, brought to the model's size as they arrive: what waits is small, however large uploads are."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
from PIL import Image

from lm.vocabulary import Size
from pipelines.multimodal import MultimodalPipeline
from pipelines.serving.engine.requests import CompleteRequest, DescribeRequest, PictureRequest, VaryRequest
from tokenizer_image.preprocessing import nearest_size, preprocess, preprocessing_of

Request = TypeVar("Request", bound=PictureRequest | DescribeRequest)


def reduced(pipe: MultimodalPipeline, request: Request) -> Request:
    """The request with its picture, and its mask, of the size that the model reads them at; itself without a picture.

    Raises:
        ValueError: a mask of another size than its picture's, a picture that cannot be read.
    """
    if not isinstance(request, CompleteRequest | VaryRequest | DescribeRequest):
        return request
    if isinstance(request, CompleteRequest) and request.mask.size != request.image.size:
        width, height = request.image.size
        raise ValueError(
            f"the mask is {request.mask.size[0]}x{request.mask.size[1]} (width x height) and the picture "
            f"{width}x{height}: give a mask of the picture's size"
        )
    size = nearest_size(*request.image.size, list(pipe.vocabulary.layouts))
    image = _picture(pipe.prepare_images(request.image, [size])[0])
    if isinstance(request, CompleteRequest):
        return replace(request, image=image, mask=_mask(pipe, request.mask, size))
    return replace(request, image=image)


def _mask(pipe: MultimodalPipeline, mask: Image.Image, size: Size) -> Image.Image:
    """The mask resized and cropped as its picture is, "L"."""
    settings = replace(preprocessing_of(pipe.image_tokenizer), num_channels=1)
    return _picture(preprocess(mask.convert("L"), settings, [size]))


def _picture(pixels: np.ndarray) -> Image.Image:
    """From uint8 (C, H, W)."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
