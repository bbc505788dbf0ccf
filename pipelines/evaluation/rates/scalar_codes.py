"""Scalar quantizers of columns of numbers, and the bits that their codes, or a tokenizer's, take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PRIOR_COUNT = 0.5  # of each code, beside its count (Krichevsky and Trofimov 1981): no code is infinitely long


@dataclass(frozen=True)
class ScalarQuantizers:
    """One quantizer for each of K columns; each column's codes have a range of their own, as codebooks have.

    Attributes:
        values: of each column, what its codes decode to, (levels,) float64, increasing.
        thresholds: of each column, (levels - 1,) float64, increasing: code j is of numbers from threshold j - 1 up to,
            but without, threshold j.
    """

    values: Sequence[np.ndarray]
    thresholds: Sequence[np.ndarray]

    @property
    def levels(self) -> np.ndarray:
        """(K,) int64: how many codes each column has."""
        return np.array([len(one) for one in self.values], np.int64)

    @property
    def high(self) -> np.ndarray:
        """(K,) int64, the ends of the columns' ranges: low <= code < high."""
        return np.cumsum(self.levels)

    @property
    def low(self) -> np.ndarray:
        """(K,) int64, the first code of each column."""
        return self.high - self.levels

    @property
    def fixed_bits(self) -> float:
        """Bits of one row of codes at a fixed rate: the sum of log2(levels)."""
        return float(np.log2(self.levels).sum())

    def encode(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers (n, K) to codes (n, K) int64."""
        codes = np.empty(numbers.shape, np.int64)
        for column, (low, thresholds) in enumerate(zip(self.low, self.thresholds, strict=True)):
            codes[:, column] = low + np.searchsorted(thresholds, numbers[:, column], side="right")
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (n, K) to numbers (n, K) float64."""
        return np.concatenate([np.asarray(one, np.float64) for one in self.values])[codes]


def uniform_quantizers(numbers: np.ndarray, levels: int, clipped_share: float = 0.001) -> ScalarQuantizers:
    """Quantizers of equal steps over the range of each column; a code decodes to the middle of its step.

    Args:
        numbers: (n, K), which the ranges are taken from.
        levels: codes of each column.
        clipped_share: share of the numbers at each end that lie outside of the range, and are clipped to it.

    Raises:
        ValueError: fewer than two levels.
    """
    if levels < 2:
        raise ValueError(f"levels={levels}: a quantizer needs at least 2")
    ends = np.quantile(numbers, [clipped_share, 1 - clipped_share], axis=0)
    steps = (ends[1] - ends[0]) / levels
    middles = ends[0][:, None] + steps[:, None] * (np.arange(levels) + 0.5)
    edges = ends[0][:, None] + steps[:, None] * np.arange(1, levels)
    return ScalarQuantizers(list(middles), list(edges))


class CodeHistogram:
    """How often each code occurs, and how long rows of codes are when each code takes -log2 of its probability.

    Places whose codes have the same range share a histogram.

    Args:
        codes: (n, T) int64, which the histogram is counted over. It is sent along with no picture, so that pictures
            other than these give the honest length.
        low, high: (T,) int64, the range of each place's codes.
    """

    def __init__(self, codes: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        counts = np.bincount(codes.reshape(-1), minlength=int(high.max())) + PRIOR_COUNT
        self._lengths = np.zeros(len(counts))
        for start, end in {(int(start), int(end)) for start, end in zip(low, high, strict=True)}:
            part = counts[start:end]
            self._lengths[start:end] = np.log2(part.sum()) - np.log2(part)

    def bits(self, codes: np.ndarray) -> np.ndarray:
        """The length of each row of codes (n, T) in bits: (n,) float64."""
        return self._lengths[codes].sum(axis=1)
