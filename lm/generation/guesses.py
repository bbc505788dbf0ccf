"""First guesses of a picture's codes, for drawing several a call: what follows which, learned or by proximity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lm.generation.guess_table import GuessTable, neighbours


class Guesser:
    """Guesses codes of pictures of one layout.

    Args:
        layout: of the pictures (level, depth, row, column, low, high).
        table: learned from pictures; without one, a code is guessed to be the one to the left, or above.
    """

    def __init__(self, layout: Mapping[str, Sequence[int]], table: GuessTable | None = None) -> None:
        self._low, self._high = layout["low"], layout["high"]
        self._neighbours = neighbours(layout)  # (T, contexts)
        self._table = table

    def guess(self, codes: np.ndarray, position: int) -> np.ndarray:
        """Codes (b,) at a position, after those of earlier positions in codes (b, T)."""
        around = self._neighbours[position]
        low, high = self._low[position], self._high[position]
        if self._table is not None:
            return self._table.likeliest(codes[:, around], around >= 0, low, high)
        for neighbour in around[:2]:  # left, above: of the same level and depth
            if neighbour >= 0:
                return codes[:, neighbour]
        return np.full(len(codes), low)
