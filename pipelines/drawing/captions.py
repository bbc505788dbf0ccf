"""Captions cut to the room that a language model has for them."""

from __future__ import annotations

from typing import Any

from lm.generation.images import longest_prompt
from lm.sequences import image_prompt
from lm.vocabulary import MultimodalVocabulary, Size


def caption_room(model: Any, vocabulary: MultimodalVocabulary, size: Size | None = None) -> int | None:
    """Most tokens of a caption from which the model can draw a picture of this size (default: the default one); None
    where the model states no limit."""
    limit = longest_prompt(model, vocabulary, size)
    return None if limit is None else max(0, limit - len(image_prompt(vocabulary, None, size)))


def cut_caption(vocabulary: MultimodalVocabulary, caption: str, room: int | None) -> str:
    """The caption without the last words that make it longer than `room` tokens; None is no limit."""
    if room is None or len(vocabulary.encode_text(caption)) <= room:
        return caption
    words = caption.split()
    while words and len(vocabulary.encode_text(" ".join(words))) > room:
        words.pop()
    return " ".join(words)
