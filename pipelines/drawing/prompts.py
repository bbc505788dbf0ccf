"""Prompts of pictures: as token ids, and whether the model can draw from them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from lm.sequences import DRAWING_ALONE, DRAWING_CAPTIONS, image_prompt
from lm.vocabulary import MultimodalVocabulary, Size
from pipelines.drawing.arguments import list_of_texts, shown
from pipelines.drawing.captions import caption_room

Prompt = str | list[str] | None


def check_trained(vocabulary: MultimodalVocabulary, prompt: Prompt) -> None:
    """Raise ValueError unless the model has learned to draw with, or without, a prompt."""
    if prompt is None:
        vocabulary.check_trained("drawing without a prompt", *DRAWING_ALONE, remedy="give a prompt")
        return
    remedy = "give None (generate.py: --unconditional)" if set(DRAWING_ALONE) & set(vocabulary.formats) else ""
    vocabulary.check_trained(f"prompt {shown(prompt)}", *DRAWING_CAPTIONS, remedy=remedy)


def negative_texts(negative_prompt: Prompt, count: int, guidance_scale: float) -> list[str | None]:
    """One negative prompt for each of `count` prompts; `guidance_scale` is the largest along a picture."""
    if negative_prompt is None:
        return [None] * count
    if guidance_scale <= 1:
        raise ValueError(
            f"negative_prompt={negative_prompt!r} has an effect only with a guidance_scale above 1, "
            f"got {guidance_scale}"
        )
    negatives = list_of_texts(negative_prompt, "negative_prompt")
    if isinstance(negative_prompt, str):
        return negatives * count
    if len(negatives) != count:
        raise ValueError(f"{len(negatives)} negative prompts for {count} prompts: give one, or one for each")
    return negatives


def prompt_rows(
    model: PreTrainedModel,
    vocabulary: MultimodalVocabulary,
    texts: Sequence[str | None],
    name: str,
    count: int,
    size: Size | None = None,
) -> list[list[int]]:
    """Token ids of the prompt of each text, `count` times in a row, for pictures of a size.

    Raises:
        ValueError: a text that leaves no room for the picture; the message calls it `name`.
    """
    rows: list[list[int]] = []
    frame = len(image_prompt(vocabulary, None, size))
    for text in texts:
        ids = image_prompt(vocabulary, text, size)
        if text is not None and len(ids) - frame > (room := caption_room(model, vocabulary, size)):
            raise ValueError(
                f"{name} {shown(text)} has {len(ids) - frame} tokens, but this model takes at most {room} beside the "
                "picture: shorten it"
            )
        rows += [ids] * count
    return rows
