"""Pictures that are drawn to be measured: a set for every distinct caption, kept for later evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.drawing.captions import caption_room, cut_caption
from pipelines.evaluation.metrics.result_cache import ResultCache
from pipelines.multimodal import MultimodalPipeline
from pipelines.text_to_image import TextToImagePipeline
from tokenizer_image.fingerprint import weights_hash

BATCH = 50  # pictures that are drawn at once, about


@dataclass
class DrawnPictures:
    """Pictures that a model has drawn.

    Attributes:
        pictures: uint8 (n, C, H, W).
        captions: of each, None for one that was drawn without.
    """

    pictures: Tensor
    captions: list[str | None]

    def __len__(self) -> int:
        return len(self.captions)


def model_key(pipeline: MultimodalPipeline) -> dict[str, str]:
    """What decides which pictures a model draws: hashes of its weights, its number format and its vocabulary."""
    return {
        "image_tokenizer": weights_hash(pipeline.image_tokenizer),
        "language_model": weights_hash(pipeline.model),
        "dtype": str(pipeline.dtype),
        "device": pipeline.device.type,
        "guidance": str(pipeline.vocabulary.default_guidance),
        "temperature": str(pipeline.vocabulary.default_temperature),
    }


def draw_set(
    pipeline: TextToImagePipeline,
    captions: Sequence[str | None],
    each: int,
    *,
    seed: int,
    sampling: Mapping[str, Any],
    cache: ResultCache | None = None,
) -> DrawnPictures:
    """`each` pictures for every distinct caption; without any caption, so many that no caption leads.

    A caption that leaves no room for the picture loses its last words when it is drawn.

    Args:
        captions: None for pictures without; repeated ones count once.
        sampling: settings of the pipeline's call.
        cache: where the pictures are kept under the weights' hashes, the captions, the settings and the seed.
    """
    asked: list[str | None] = [*dict.fromkeys(text for text in captions if text)] or [None]
    room = caption_room(pipeline.model, pipeline.vocabulary)
    prompts = [None if text is None else cut_caption(pipeline.vocabulary, text, room) for text in asked]

    def draw() -> dict[str, Tensor]:
        parts, together = [], max(1, BATCH // each)
        for start in tqdm(range(0, len(prompts), together), desc="drawing", unit=" batches", leave=False):
            texts = [str(text) for text in prompts[start : start + together]]
            prompt = None if prompts[0] is None else texts
            images = pipeline(prompt, num_images_per_prompt=each, seed=seed, output_type="pt", **sampling).images
            assert isinstance(images, Tensor)
            parts.append((images * 255).round().to(torch.uint8).cpu())
        return {"pictures": torch.cat(parts).contiguous()}  # as a file gives it: layouts round differently

    key = {"kind": "drawn", **model_key(pipeline), "prompts": prompts, "each": each, "seed": seed, **sampling}
    found = draw() if cache is None else cache.tensors(key, draw)
    return DrawnPictures(found["pictures"], [text for text in asked for _ in range(each)])
