"""Captions cut to the room that a language model has for them."""

from __future__ import annotations

from typing import Any

from lm.generation.images import longest_prompt
from lm.sequences import image_prompt
from lm.vocabulary import MultimodalVocabulary, Size

RANKING_TOKENS = 3  # read beside picture and caption: bos, begin of image, end of image


def caption_room(model: Any, vocabulary: MultimodalVocabulary, size: Size | None = None) -> int | None:
    """Most tokens of a caption from which the model can draw a picture of this size (default: the default one); None
    where the model states no limit."""
    limit = longest_prompt(model, vocabulary, size)
    return None if limit is None else max(0, limit - len(image_prompt(vocabulary, None, size)))


def ranking_room(model: Any, vocabulary: MultimodalVocabulary) -> int | None:
    """Most tokens of a caption by which the model can rank pictures (`pipelines.drawing.best_of.caption_scores`); None
    where the model states no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return None if positions is None else max(0, positions - vocabulary.longest_picture - RANKING_TOKENS)


def cut_caption(vocabulary: MultimodalVocabulary, caption: str, room: int | None) -> str:
    """The caption, or any text, without the last words that make it longer than `room` tokens; None is no limit."""
    if room is None or len(vocabulary.encode_text(caption)) <= room:
        return caption
    words = caption.split()
    while words and len(vocabulary.encode_text(" ".join(words))) > room:
        words.pop()
    return " ".join(words)
