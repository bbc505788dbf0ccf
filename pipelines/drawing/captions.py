"""Captions cut to the room that a language model has for them."""

from __future__ import annotations

from transformers import PreTrainedModel

from lm.generation.task import longest_prompt
from lm.pretrained import max_positions
from lm.sequences import image_prompt
from lm.vocabulary import MultimodalVocabulary, Size

RANKING_TOKENS = 3  # read beside picture and caption: bos, begin of image, end of image


def caption_room(model: PreTrainedModel, vocabulary: MultimodalVocabulary, size: Size | None = None) -> int:
    """Most tokens of a caption from which the model can draw a picture of this size (default: the default one)."""
    return max(0, longest_prompt(model, vocabulary, size) - len(image_prompt(vocabulary, None, size)))


def ranking_room(model: PreTrainedModel, vocabulary: MultimodalVocabulary) -> int:
    """Most tokens of a caption by which the model can rank pictures (`pipelines.drawing.best_of.caption_scores`)."""
    return max(0, max_positions(model.config) - vocabulary.longest_picture - RANKING_TOKENS)


def cut_caption(vocabulary: MultimodalVocabulary, caption: str, room: int) -> str:
    """The caption, or any text, without the last words that make it longer than `room` tokens."""
    if len(vocabulary.encode_text(caption)) <= room:
        return caption
    words = caption.split()
    while words and len(vocabulary.encode_text(" ".join(words))) > room:
        words.pop()
    return " ".join(words)
