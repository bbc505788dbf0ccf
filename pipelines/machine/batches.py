"""How many pictures are worked on at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

PIXELS_AT_ONCE = 512 * 32**2


def pictures_at_once(height: int, width: int) -> int:
    """Pictures of this size, in pixels, to encode together: 512 of 32x32, fewer of larger ones, so that the memory
    they take stays the same; at least 1."""
    return max(1, PIXELS_AT_ONCE // (height * width))


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of the indices 0 .. count - 1, evenly spaced over all of them: int64, in order."""
    return np.linspace(0, count - 1, min(most, count)).astype(np.int64)


def index_batches(count: int, size: int) -> Iterator[range]:
    """Indices 0 .. count - 1 in order, `size` at a time; the last batch may be smaller.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
