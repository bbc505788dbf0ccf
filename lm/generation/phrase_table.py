"""A table of which token of a text follows which two, learned from sequences and kept beside the model.

It guesses tokens for `lm.generation.lookahead`; what is written does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

CODE, ANY = -1, -2  # in the place of a token: any code of a picture, any token at all
LEAST_COUNT, LEAST_SHARE, MOST_ENTRIES = 2, 0.3, 50_000


class PhraseTable:
    """What follows two tokens, or where these were never seen, what follows the last one.

    Args:
        entries: (N, 3) int32: two tokens (the first may be ANY, either may be CODE), and the one that follows.
            None or none of them: nothing is guessed.
        num_text_tokens: ids from this one on are codes.
    """

    def __init__(self, entries: np.ndarray | None = None, num_text_tokens: int = 0) -> None:
        self.entries = np.zeros((0, 3), np.int32) if entries is None else entries
        self._num_text_tokens = num_text_tokens
        self._following = {(before, last): token for before, last, token in self.entries.tolist()}

    @classmethod
    def learn(cls, sequences: Iterable[np.ndarray], num_text_tokens: int) -> PhraseTable:
        """Count what follows in token ids (L,) of each sequence; what follows in fewer than LEAST_SHARE of the cases is
        left out, since a wrong guess costs time."""
        found = [_triples(ids, num_text_tokens) for ids in sequences]
        triples = np.concatenate([np.zeros((0, 3), np.int64), *found])
        both = _likeliest(triples)
        triples[:, 0] = ANY
        entries = np.concatenate([_likeliest(triples), both])
        kept = entries[np.argsort(-entries[:, 3], kind="stable")[:MOST_ENTRIES], :3]
        return cls(kept.astype(np.int32), num_text_tokens)

    def guess(self, ids: Sequence[int], count: int) -> list[int]:
        """The tokens of text that are guessed to follow ids, at most `count` of them."""
        before, last = (self._class(token) for token in ([CODE, CODE, *ids])[-2:])
        found: list[int] = []
        while len(found) < count:
            token = self._following.get((before, last), self._following.get((ANY, last)))
            if token is None:
                break
            found.append(token)
            before, last = last, token
        return found

    def _class(self, token: int) -> int:
        return CODE if token >= self._num_text_tokens else token


def _triples(ids: np.ndarray, num_text_tokens: int) -> np.ndarray:
    """(n, 3) tokens that stand in a row, codes as CODE, where the last one is of text."""
    classes = np.where(ids >= num_text_tokens, CODE, ids).astype(np.int64)
    triples = np.stack([classes[:-2], classes[1:-1], classes[2:]], 1) if len(ids) > 2 else np.zeros((0, 3), np.int64)
    return triples[triples[:, 2] != CODE]


def _likeliest(triples: np.ndarray) -> np.ndarray:
    """(n, 4): of each first two tokens the likeliest third one, and how often it was seen, where that is enough."""
    if not len(triples):
        return np.zeros((0, 4), np.int64)
    distinct, counts = np.unique(triples, axis=0, return_counts=True)
    order = np.lexsort((distinct[:, 2], -counts, distinct[:, 1], distinct[:, 0]))
    distinct, counts = distinct[order], counts[order]
    is_first = np.r_[True, (distinct[1:, :2] != distinct[:-1, :2]).any(1)]
    totals = np.add.reduceat(counts, np.flatnonzero(is_first))
    best = counts[is_first]
    enough = (best >= LEAST_COUNT) & (best >= LEAST_SHARE * totals)
    return np.c_[distinct[is_first], best][enough]
