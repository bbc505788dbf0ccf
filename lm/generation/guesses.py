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
        sources: (B, T) codes of the pictures that edits start from. A code is guessed to be the source's where all its
            neighbours are.
    """

    def __init__(
        self,
        layout: Mapping[str, Sequence[int]],
        table: GuessTable | None = None,
        sources: np.ndarray | None = None,
    ) -> None:
        self._low, self._high = layout["low"], layout["high"]
        self._neighbours = neighbours(layout)  # (T, contexts)
        self._table = table
        self._sources = sources

    def guess(self, codes: np.ndarray, position: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Codes (b,) at a position, after those of earlier positions in codes (b, T), of some rows (b,) of the
        batch, or of all."""
        found = self._by_neighbours(codes, position)
        if self._sources is None:
            return found
        source, near = self._sources if rows is None else self._sources[rows], self._neighbours[position]
        near = near[near >= 0]
        return np.where((codes[:, near] == source[:, near]).all(1), source[:, position], found)

    def _by_neighbours(self, codes: np.ndarray, position: int) -> np.ndarray:
        around = self._neighbours[position]
        low, high = self._low[position], self._high[position]
        if self._table is not None:
            return self._table.likeliest(codes[:, around], around >= 0, low, high)
        for neighbour in around[:2]:  # left, above: of the same level and depth
            if neighbour >= 0:
                return codes[:, neighbour]
        return np.full(len(codes), low)
