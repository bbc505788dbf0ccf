"""What can be asked of the engine: draw, complete, vary, describe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """Settings of every request for pictures, as in `TextToImagePipeline.__call__`.

    Attributes:
        prompt: None draws without one.
        count: how many pictures.
        seed: of the first picture; those after it have the seeds that follow, so that each can be had alone: with its
            seed it is the picture that the pipeline's call draws. None chooses one at random.
    """

    prompt: str | None = None
    count: int = 1
    seed: int | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call."""
        names = ("negative_prompt", "guidance_scale", "temperature", "top_k", "top_p", "min_p")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class DrawRequest(PictureRequest):
    """Draw pictures of a size, (height, width); default: the model's first."""

    height: int | None = None
    width: int | None = None


@dataclass(frozen=True, kw_only=True)
class CompleteRequest(PictureRequest):
    """Keep a part of a picture and draw the rest.

    Attributes:
        image: of any size; it is brought to that of the model's sizes whose shape is nearest.
        mask: of the picture's size, drawn again where it is white and kept where it is black.
    """

    image: Image.Image
    mask: Image.Image


@dataclass(frozen=True, kw_only=True)
class VaryRequest(PictureRequest):
    """Draw variations of a picture: `redraw` is the share of its places that is drawn again, or the `keep_levels`
    coarsest levels of its codes stay."""

    image: Image.Image
    redraw: float = 0.5
    keep_levels: int | None = None


@dataclass(frozen=True, kw_only=True)
class DescribeRequest:
    """Describe a picture of any size; settings as in `ImageToTextPipeline.__call__`.

    Attributes:
        max_new_tokens: most tokens of the text (default: the engine's limit, or what the model has positions for).
        best_of: write so many and give the one after which the model finds the picture likeliest.
    """

    image: Image.Image
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    best_of: int | None = None
