"""Text and codes to what the language model reads. Every sequence format is here.

| format              | sequence                                      | learned                                   |
|---------------------|-----------------------------------------------|-------------------------------------------|
| `caption_to_image`  | bos text begin_image codes                    | codes                                     |
| `caption_and_image` | bos text begin_image codes end_image eos      | all but bos, as in DALL-E (Ramesh 2021)   |
| `image`             | bos begin_image codes                         | codes                                     |
| `image_to_caption`  | bos begin_image codes end_image text eos      | text eos                                  |
| `text`              | bos text eos                                  | text eos                                  |

`image` is also what caption dropout makes of the first two; its prompt is the unconditional one of classifier-free
guidance (Ho and Salimans 2022). Where nothing after the last code is learned, the sequence ends with it: end_image and
eos would only cost time. What is learned has weight 1; how much all text counts beside all codes is said where their
losses are put together (`lm.losses.balance`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm.vocabulary import MultimodalVocabulary

IGNORED = -100


@dataclass(frozen=True)
class SequenceFormat:
    """What a sequence is made of.

    Attributes:
        parts: in order, "text", "codes", or a special token: "bos", "eos", "boi", "eoi" (begin and end of image).
        learned: for each part, whether it carries loss.
    """

    parts: tuple[str, ...]
    learned: tuple[bool, ...]

    def fits(self, has_text: bool, has_codes: bool) -> bool:
        """Whether a row with or without a text and a picture can take it."""
        return has_text >= self.has_text and has_codes >= self.has_codes

    @property
    def has_text(self) -> bool:
        """Whether it takes a text."""
        return "text" in self.parts

    @property
    def has_codes(self) -> bool:
        """Whether it takes a picture."""
        return "codes" in self.parts

    @property
    def draws(self) -> bool:
        """Whether codes are learned."""
        return any(part == "codes" and learned for part, learned in zip(self.parts, self.learned, strict=True))

    @property
    def writes(self) -> bool:
        """Whether text is learned."""
        return any(part != "codes" and learned for part, learned in zip(self.parts, self.learned, strict=True))

    @property
    def drops_captions(self) -> bool:
        """Whether caption dropout makes an `image` of it: codes are learned after a text."""
        return self.draws and self.has_text

    @property
    def frame(self) -> int:
        """How many special tokens it has."""
        return sum(part not in ("text", "codes") for part in self.parts)


def _format(parts: str) -> SequenceFormat:
    """Parts in order; a star marks what is learned."""
    words = parts.split()
    return SequenceFormat(tuple(word.rstrip("*") for word in words), tuple(word.endswith("*") for word in words))


FORMATS: dict[str, SequenceFormat] = {
    "caption_to_image": _format("bos text boi codes*"),
    "caption_and_image": _format("bos text* boi* codes* eoi* eos*"),
    "image": _format("bos boi codes*"),
    "image_to_caption": _format("bos boi codes eoi text* eos*"),
    "text": _format("bos text* eos*"),
}


def check_mixture(weights: Mapping[str, float]) -> None:
    """Raise ValueError unless these are weights of known formats that sum to something."""
    for name, weight in weights.items():
        if name not in FORMATS:
            raise ValueError(f"unknown sequence format {name!r}: choose among {', '.join(FORMATS)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"sequence format {name} has weight {weight}: give a number that is at least zero")
    if not sum(weights.values()) > 0:
        given = " ".join(f"{name}={weight:g}" for name, weight in weights.items()) or "none"
        raise ValueError(f"the weights of the sequence formats sum to nothing ({given}): give one a weight above zero")


def parse_mixture(words: Sequence[str]) -> dict[str, float]:
    """["caption_to_image=3", "image_to_caption"] to the weight of each format that has one above zero; alone, a name
    has weight 1.

    Raises:
        ValueError: an unknown format, one that is named twice, or weights that `check_mixture` refuses.
    """
    weights: dict[str, float] = {}
    for word in words:
        name, equals, number = word.partition("=")
        if name in weights:
            raise ValueError(f"sequence format {name} is named twice: give it one weight")
        try:
            weights[name] = float(number) if equals else 1.0
        except ValueError:
            raise ValueError(f"sequence format {word!r}: write {name}=NUMBER, for example {name}=1") from None
    check_mixture(weights)
    return {name: weight for name, weight in weights.items() if weight > 0}


@dataclass
class TokenSequence:
    """One sequence, all of shape (L,).

    Attributes:
        input_ids: int64 token ids.
        labels: int64, equal to `input_ids` where the token is learned and -100 elsewhere.
        loss_weights: float32, weight of each label's loss, 0 where nothing is learned.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    loss_weights: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


def image_prompt(vocabulary: MultimodalVocabulary, caption: str | None) -> list[int]:
    """Token ids up to and including begin_image; None is the unconditional prompt."""
    caption_ids = [] if caption is None else vocabulary.encode_text(caption)
    return [vocabulary.bos_id, *caption_ids, vocabulary.boi_id]


def description_prompt(vocabulary: MultimodalVocabulary, codes: np.ndarray) -> list[int]:
    """Token ids of a picture, up to and including end_image: what a caption follows. `codes`: (T,) integers."""
    image_ids = vocabulary.codes_to_ids(codes.astype(np.int64)).tolist()
    return [vocabulary.bos_id, vocabulary.boi_id, *image_ids, vocabulary.eoi_id]


def token_sequence(
    vocabulary: MultimodalVocabulary,
    name: str,
    text_ids: Sequence[int] | None = None,
    codes: np.ndarray | None = None,
) -> TokenSequence:
    """A text, a picture, or both, in the format `name`.

    Args:
        text_ids: text token ids; not looked at where the format has no text.
        codes: (T,) integers; not looked at where the format has no picture.
    """
    parts: dict[str, np.ndarray] = {
        part: np.asarray([getattr(vocabulary, f"{part}_id")], np.int64) for part in ("bos", "eos", "boi", "eoi")
    }
    if text_ids is not None:
        parts["text"] = np.asarray(text_ids, np.int64)
    if codes is not None:
        parts["codes"] = vocabulary.codes_to_ids(codes.astype(np.int64))
    layout = FORMATS[name]
    input_ids = np.concatenate([parts[part] for part in layout.parts])
    learned = np.concatenate(
        [np.full(len(parts[part]), learned) for part, learned in zip(layout.parts, layout.learned, strict=True)]
    )
    return TokenSequence(input_ids, np.where(learned, input_ids, IGNORED), learned.astype(np.float32))


def collate(sequences: Sequence[TokenSequence], pad_id: int, multiple_of: int = 1) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest: (B, L) input_ids, labels, position_ids (int64) and loss_weights (float32).

    No attention mask: with causal attention, what is on the right of a token cannot reach it.
    """
    length = -(-max(map(len, sequences)) // multiple_of) * multiple_of
    shape = (len(sequences), length)
    input_ids, labels = np.full(shape, pad_id, np.int64), np.full(shape, IGNORED, np.int64)
    loss_weights = np.zeros(shape, np.float32)
    for row, sequence in enumerate(sequences):
        size = len(sequence)
        input_ids[row, :size] = sequence.input_ids
        labels[row, :size] = sequence.labels
        loss_weights[row, :size] = sequence.loss_weights
    return {
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.arange(length).repeat(len(sequences), 1),
        "loss_weights": torch.from_numpy(loss_weights),
    }
