"""Caption and codes to what the language model reads. Every sequence format is here.

| format             | sequence                                           | learned                        |
|--------------------|----------------------------------------------------|--------------------------------|
| `caption_to_image` | bos caption begin_image codes end_image eos        | codes; caption by text weight  |
| `image`            | bos begin_image codes end_image eos                | codes                          |

`image` is what caption dropout makes of a captioned picture; its prompt is the unconditional one of classifier-free
guidance (Ho and Salimans 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lm.vocabulary import MultimodalVocabulary

IGNORED = -100


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


def image_sequence(
    vocabulary: MultimodalVocabulary,
    caption_ids: Sequence[int] | None,
    codes: np.ndarray,
    *,
    text_loss_weight: float = 0.0,
) -> TokenSequence:
    """A captioned picture (`caption_to_image`), or a picture alone (`image`, with `caption_ids` None).

    Where nothing after the last code is learned (`text_loss_weight` 0), the sequence ends with it: end_image and eos
    would only cost time.

    Args:
        caption_ids: text token ids.
        codes: (T,) integers.
        text_loss_weight: weight of the loss of caption, begin_image, end_image and eos.
    """
    head = [vocabulary.bos_id, *(caption_ids or ()), vocabulary.boi_id]
    tail = [vocabulary.eoi_id, vocabulary.eos_id] if text_loss_weight > 0 else []
    image_ids = vocabulary.codes_to_ids(codes.astype(np.int64))
    input_ids = np.concatenate([np.asarray(head, np.int64), image_ids, np.asarray(tail, np.int64)])
    weights = np.full(len(input_ids), text_loss_weight, np.float32)
    weights[0] = 0.0  # bos is given
    if caption_ids is None:
        weights[1] = 0.0  # so is the wish for a picture
    weights[len(head) : len(head) + len(image_ids)] = 1.0
    labels = np.where(weights > 0, input_ids, IGNORED)
    return TokenSequence(input_ids, labels, weights)


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
