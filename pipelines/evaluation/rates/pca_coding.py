"""Pictures as quantized principal components: the linear code that an image tokenizer is compared with.

The components are those of the training pictures. At a fixed rate each coefficient has a whole number of bits, given
out by water-filling, and the best scalar quantizer of so many levels (Max 1960, Lloyd 1982). Under the code histogram
all coefficients are quantized by one step, which is the best a scalar code can do at a high rate (Gish and Pierce
1968), and each takes as many bits as its value is surprising.
"""

from __future__ import annotations

import heapq

import numpy as np

from pipelines.evaluation.rates.scalar_codes import CodeHistogram, ScalarQuantizers
from tokenizer_image.principal_components import water_filling

MOST_BITS = 12  # of a coefficient
LLOYD_STEPS = 60
BISECTIONS = 30


class LloydQuantizers:
    """The scalar quantizers of 1, 2, 4, ... levels with the least squared error on given numbers, made when asked for.

    One of b bits starts from that of b - 1 bits with each cell split at its mean, then follows Lloyd (1982).

    Args:
        numbers: (n, K).
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self._sorted = np.sort(np.asarray(numbers, np.float64).T, axis=1)  # (K, n)
        self._sums = np.pad(np.cumsum(self._sorted, axis=1), ((0, 0), (1, 0)))
        self._squares = (self._sorted**2).sum(axis=1)
        self._found: dict[tuple[int, int], np.ndarray] = {}

    def values(self, column: int, bits: int) -> np.ndarray:
        """What the codes of a column decode to: (at most 2**bits,) float64, increasing; fewer where the numbers are
        fewer."""
        if (column, bits) not in self._found:
            mean = self._sums[column, -1] / self._sorted.shape[1]
            self._found[column, bits] = np.array([mean]) if bits == 0 else self._split(column, bits)
        return self._found[column, bits]

    def error(self, column: int, bits: int) -> float:
        """Mean squared error of the numbers."""
        means, counts = self._cells(column, middles(self.values(column, bits)))
        values = self.values(column, bits)
        total = self._squares[column] + (counts * (values**2 - 2 * values * means)).sum()
        return max(0.0, float(total) / self._sorted.shape[1])

    def _cells(self, column: int, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (0 where empty) and count of the numbers in each cell."""
        ends = np.searchsorted(self._sorted[column], thresholds, side="left")
        ends = np.concatenate([[0], ends, [self._sorted.shape[1]]])
        counts = np.diff(ends)
        return np.diff(self._sums[column, ends]) / np.maximum(counts, 1), counts

    def _split(self, column: int, bits: int) -> np.ndarray:
        before = self.values(column, bits - 1)
        values, counts = self._cells(column, np.sort(np.concatenate([before, middles(before)])))
        values = values[counts > 0]
        for _ in range(LLOYD_STEPS):
            means, counts = self._cells(column, middles(values))
            means = means[counts > 0]
            if len(means) == len(values) and np.allclose(means, values, rtol=0, atol=1e-6 * (np.ptp(means) or 1)):
                return means
            values = means
        return values


def middles(values: np.ndarray) -> np.ndarray:
    """The thresholds that have each number decoded to the nearest of increasing values."""
    return (values[1:] + values[:-1]) / 2


def allocate_bits(quantizers: LloydQuantizers, variances: np.ndarray, bits: int) -> np.ndarray:
    """Whole bits for each coefficient, (K,) int64, together at most `bits`.

    Water-filling, rounded down; each bit that is left then goes where it removes the most error of the training
    coefficients.

    Raises:
        ValueError: as `water_filling`.
    """
    given = np.minimum(np.floor(water_filling(variances, bits)[0]), MOST_BITS).astype(np.int64)

    def gain(column: int) -> float:
        return quantizers.error(column, int(given[column])) - quantizers.error(column, int(given[column]) + 1)

    left = bits - int(given.sum())
    queue = [(-gain(column), column) for column in range(len(variances)) if given[column] < MOST_BITS]
    heapq.heapify(queue)
    while left > 0 and queue:
        least, column = heapq.heappop(queue)
        if least >= 0:
            break
        given[column] += 1
        left -= 1
        if given[column] < MOST_BITS:
            heapq.heappush(queue, (-gain(column), column))
    return given


def fixed_rate_code(quantizers: LloydQuantizers, variances: np.ndarray, bits: int) -> ScalarQuantizers:
    """Quantizers of the K coefficients whose codes take at most `bits` bits a picture; some have a single code.

    Raises:
        ValueError: as `water_filling`.
    """
    given = allocate_bits(quantizers, variances, bits)
    values = [quantizers.values(column, int(one)) for column, one in enumerate(given)]
    return ScalarQuantizers(values, [middles(one) for one in values])


def histogram_code(coefficients: np.ndarray, bits: float) -> tuple[ScalarQuantizers, CodeHistogram]:
    """Quantizers of one step for all coefficients, so fine that the training pictures' codes take `bits` bits a picture
    on average under their histograms, or a little fewer.

    A code decodes to the mean of the training coefficients in its cell.

    Args:
        coefficients: (n, K), of training pictures.

    Raises:
        ValueError: `bits` is not above zero.
    """
    if bits <= 0:
        raise ValueError(f"bits={bits} must be above zero")
    largest = float(np.abs(coefficients).max()) or 1.0
    low, high = np.log2(largest) - 16, np.log2(largest) + 1  # at the upper end everything is zero
    best = _of_step(coefficients, 2.0**high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        code = _of_step(coefficients, 2.0**middle)
        if code[2] <= bits:
            high, best = middle, code
        else:
            low = middle
        if high - low < 1e-3:
            break
    return best[0], best[1]


def _of_step(coefficients: np.ndarray, step: float) -> tuple[ScalarQuantizers, CodeHistogram, float]:
    """Quantizers of a step, the histogram of their codes, and the mean bits of a training picture."""
    cells = np.rint(coefficients / step).astype(np.int64)
    first, last = cells.min(axis=0), cells.max(axis=0)
    ends = np.cumsum(last - first + 1)
    codes = cells - first + (ends - (last - first + 1))
    counts = np.bincount(codes.reshape(-1), minlength=int(ends[-1]))
    sums = np.bincount(codes.reshape(-1), weights=coefficients.reshape(-1), minlength=int(ends[-1]))
    centres = np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]) * step
    means = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
    values = np.split(means, ends[:-1])
    thresholds = [(np.arange(a, b) + 0.5) * step for a, b in zip(first, last, strict=True)]
    quantizers = ScalarQuantizers(values, thresholds)
    histogram = CodeHistogram(codes, quantizers.low, quantizers.high)
    return quantizers, histogram, float(histogram.bits(codes).mean())
