"""Noise on the codes that a model reads: some are replaced by others, while the labels stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lm.sequences import TokenSequence
from lm.vocabulary import MultimodalVocabulary

NEAREST = 8  # codes that a near one is drawn from
NEAR_SHARE = 0.5  # of the replacements; the others are any code of the range


@dataclass
class CodeNoise:
    """Replaces a share of the image codes among a sequence's inputs by others of the same range.

    What is drawn later follows codes that the model drew itself, some of which are wrong; and a model that has seen
    each picture many times would otherwise recognise it by its first codes, and no longer read the caption.

    Attributes:
        share: of the codes, in [0, 1).
        low, high: (num_codes,) the range of each code.
        near: (num_codes, k) codes of the same range whose vectors are nearest, or None for any of the range.
    """

    share: float
    image_offset: int
    low: np.ndarray
    high: np.ndarray
    near: np.ndarray | None = None

    @classmethod
    def build(cls, share: float, vocabulary: MultimodalVocabulary, vectors: np.ndarray | None) -> CodeNoise:
        """For the codes of a vocabulary. `vectors`: (num_codes, D), what each stands for, where that is known."""
        low, high = np.zeros((2, vocabulary.num_codes), np.int64)
        near = None if vectors is None else np.zeros((vocabulary.num_codes, NEAREST), np.int64)
        for first, last in vocabulary.id_ranges[1:]:
            first, last = first - vocabulary.image_offset, last - vocabulary.image_offset
            low[first:last], high[first:last] = first, last
            if near is not None and vectors is not None:
                near[first:last] = first + _nearest(vectors[first:last])
        return cls(share, vocabulary.image_offset, low, high, near)

    def applied(self, sequence: TokenSequence, rng: np.random.Generator) -> TokenSequence:
        """The sequence with noise among its inputs; `rng` is drawn from as often whatever becomes of it."""
        (places,) = np.nonzero(sequence.input_ids >= self.image_offset)
        chance, which = rng.random((2, len(places)))
        chosen = chance < self.share
        codes = sequence.input_ids[places[chosen]] - self.image_offset
        low, high = self.low[codes], self.high[codes]
        other = low + (which[chosen] * (high - low)).astype(np.int64)
        if self.near is not None:
            take_near = chance[chosen] < self.share * NEAR_SHARE
            nearest = self.near[codes, (which[chosen] * self.near.shape[1]).astype(np.int64)]
            other = np.where(take_near, nearest, other)
        input_ids = sequence.input_ids.copy()
        input_ids[places[chosen]] = other + self.image_offset
        return TokenSequence(input_ids, sequence.labels, sequence.loss_weights)


def _nearest(vectors: np.ndarray, block: int = 1024) -> np.ndarray:
    """(n, NEAREST) the other rows that are nearest to each of the (n, D) rows; fewer rows repeat."""
    count = min(NEAREST, len(vectors) - 1)
    squares = (vectors**2).sum(1)
    found = np.zeros((len(vectors), NEAREST), np.int64)
    for start in range(0, len(vectors), block):
        part = vectors[start : start + block]
        distances = squares - 2 * part @ vectors.T
        distances[np.arange(len(part)), np.arange(start, start + len(part))] = np.inf
        if count:
            order = np.argpartition(distances, count - 1, axis=1)[:, :count]
            found[start : start + block] = order[:, np.arange(NEAREST) % count]
    return found
