"""What a call of the pipeline asks for: checked, and in the sampler's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lm.generation.images import longest_prompt
from lm.generation.sampling import ByLevel, Guidance, settings_by_position
from lm.sequences import DRAWING_ALONE, DRAWING_CAPTIONS, image_prompt
from lm.vocabulary import MultimodalVocabulary, Size
from pipelines.multimodal import random_stream, shown, whole_number

Prompt = str | list[str] | None


def drawing_request(
    model: Any,
    vocabulary: MultimodalVocabulary,
    prompt: Prompt,
    *,
    negative_prompt: Prompt = None,
    num_images_per_prompt: int = 1,
    guidance_scale: Guidance | None = None,
    temperature: ByLevel = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: ByLevel = 1.0,
    min_p: ByLevel = 0.0,
    height: int | None = None,
    width: int | None = None,
    seed: int | Sequence[int] | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> dict[str, Any]:
    """Arguments of `lm.generation.images.draw` for a call of `TextToImagePipeline`, which says what they mean.

    Raises:
        TypeError, ValueError: an argument that means nothing, named with its value.
    """
    size = picture_size(vocabulary, height, width)
    prompts = texts_of(prompt, "prompt")
    check_trained(vocabulary, prompt)
    if guidance_scale not in (None, 1) and negative_prompt is None and prompt is not None:
        vocabulary.check_trained(
            f"guidance_scale={shown(guidance_scale)}", *DRAWING_ALONE,
            remedy="give guidance_scale=1, or a negative_prompt",
        )  # fmt: skip
    if guidance_scale is None:
        guidance_scale = vocabulary.default_guidance
    settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    positions = settings_by_position(vocabulary.picture(size).layout, guidance_scale=guidance_scale, **settings)
    scales = [one.guidance_scale for one in positions]
    negatives = _negative_prompts(negative_prompt, len(prompts), max(scales))
    count = whole_number(num_images_per_prompt, "num_images_per_prompt", 1)
    generators = streams_of(len(prompts), count, seed, generator)
    # Without a prompt there is nothing to guide to: the two rows of a picture would be the same.
    unguided = prompts == [None] and negative_prompt is None
    return {
        "prompts": prompt_rows(model, vocabulary, prompts, "prompt", count, size),
        "negative_prompts": prompt_rows(model, vocabulary, negatives, "negative_prompt", count, size),
        "size": size,
        "guidance_scale": 1.0 if unguided else scales,
        "generators": generators,
        **settings,
    }


def check_trained(vocabulary: MultimodalVocabulary, prompt: Prompt) -> None:
    """Raise ValueError unless the model has learned to draw with, or without, a prompt."""
    if prompt is None:
        vocabulary.check_trained("drawing without a prompt", *DRAWING_ALONE, remedy="give a prompt")
        return
    remedy = "give None (generate.py: --unconditional)" if set(DRAWING_ALONE) & set(vocabulary.formats) else ""
    vocabulary.check_trained(f"prompt {shown(prompt)}", *DRAWING_CAPTIONS, remedy=remedy)


def picture_size(vocabulary: MultimodalVocabulary, height: int | None, width: int | None) -> Size:
    """(height, width) of the first of the model's sizes, its default first, that has what is given.

    Raises:
        ValueError: there is none.
    """
    for size in vocabulary.layouts:
        if height in (None, size[0]) and width in (None, size[1]):
            return size
    given = ", ".join(
        f"{name}={value!r}" for name, value in (("height", height), ("width", width)) if value is not None
    )
    known = ", ".join(f"{size[0]}x{size[1]}" for size in vocabulary.layouts)
    raise ValueError(
        f"{given}: this model draws {known} pictures (height x width); give one of these, or leave height and width "
        "out and resize the picture"
    )


def _negative_prompts(negative_prompt: Prompt, count: int, guidance_scale: float) -> list[str | None]:
    if negative_prompt is None:
        return [None] * count
    if guidance_scale <= 1:
        raise ValueError(
            f"negative_prompt={negative_prompt!r} has an effect only with a guidance_scale above 1, "
            f"got {guidance_scale}"
        )
    negatives = texts_of(negative_prompt, "negative_prompt")
    if isinstance(negative_prompt, str):
        return negatives * count
    if len(negatives) != count:
        raise ValueError(f"{len(negatives)} negative prompts for {count} prompts: give one, or one for each")
    return negatives


def prompt_rows(
    model: Any,
    vocabulary: MultimodalVocabulary,
    texts: list[str | None],
    name: str,
    count: int,
    size: Size | None = None,
) -> list[list[int]]:
    """Token ids of the prompt of each text, `count` times in a row, for pictures of a size."""
    rows: list[list[int]] = []
    limit = longest_prompt(model, vocabulary, size)
    for text in texts:
        ids = image_prompt(vocabulary, text, size)
        if text is not None and limit is not None and len(ids) > limit:
            frame = len(image_prompt(vocabulary, None, size))
            raise ValueError(
                f"{name} {shown(text)} has {len(ids) - frame} tokens, but this model takes at most "
                f"{max(0, limit - frame)} beside the picture: shorten it"
            )
        rows += [ids] * count
    return rows


def streams_of(
    num_prompts: int,
    count: int,
    seed: int | Sequence[int] | None,
    generator: torch.Generator | list[torch.Generator] | None,
) -> list[torch.Generator]:
    """One generator a picture, `count` pictures a prompt."""
    total = num_prompts * count
    if seed is not None and generator is not None:
        raise ValueError(f"seed={seed!r} and generator together: give one of them")
    if isinstance(seed, (list, tuple)):
        if len(seed) != total:
            raise ValueError(f"{len(seed)} seeds for {total} pictures: give one, or one for each picture")
        return [random_stream(whole_number(one, "seed", 0), 0) for one in seed]
    if seed is not None:
        one = whole_number(seed, "seed", 0)
        return [random_stream(one, picture) for _ in range(num_prompts) for picture in range(count)]
    if isinstance(generator, Sequence):
        if len(generator) != total:
            raise ValueError(f"{len(generator)} generators for {total} pictures: give one, or one for each picture")
        if not all(isinstance(one, torch.Generator) for one in generator):
            raise TypeError(f"generator must hold torch.Generator objects, got {generator!r}")
        return list(generator)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
    device = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**62, (total,), generator=generator, device=device)
    return [torch.Generator().manual_seed(int(one)) for one in seeds]


def texts_of(prompt: Any, name: str) -> list[str | None]:
    """A prompt argument as a list. None stays None: no prompt."""
    if prompt is None:
        return [None]
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(f"{name} must be a text, a list of texts or None, got {shown(prompt)}")
    if not prompts:
        raise ValueError(f"{name} is an empty list: give at least one text")
    for index, text in enumerate(prompts):
        if not isinstance(text, str):
            raise TypeError(f"{name} {index} must be a text, got {shown(text)}")
    return [text.strip() for text in prompts]
