"""Rows of a data set as they go into a token cache: their pictures and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tokenizer_image.pictures.loading import PictureDataset


class CacheRow(NamedTuple):
    """pictures: rows of the source, in order; texts and order as in `lm.data.shards.Document`."""

    pictures: list[int]
    texts: list[str]
    order: str


def count_rows(source: PictureDataset) -> int:
    """Captioned pictures, or documents, of a source."""
    documents = documents_of(source)
    return len(source) if documents is None else len(documents)


def documents_of(source: PictureDataset) -> Sequence[Any] | None:
    """The interleaved documents of a source (`order`, `texts` and `pictures` each), of files or of the built-in world;
    None where its rows are captioned pictures."""
    return getattr(source, "documents", None)


class CacheRows:
    """Rows by their number in the whole data set.

    Args:
        source: the rows `numbers` of the data set.
        available: bool, for each picture of `source`: whether it can be encoded.
        numbers: increasing (default: all).
    """

    def __init__(self, source: PictureDataset, available: np.ndarray, numbers: np.ndarray | None = None) -> None:
        self._source, self._available = source, available
        self._documents = documents_of(source)
        self._numbers = np.arange(count_rows(source)) if numbers is None else numbers

    def __getitem__(self, number: int) -> CacheRow | None:
        """One row; None for a row with a picture that cannot be encoded, which the cache leaves out."""
        place = int(np.searchsorted(self._numbers, number))
        pictures = [place] if self._documents is None else list(self._documents[place].pictures)
        if not self._available[pictures].all():
            return None
        if self._documents is None:
            return CacheRow(pictures, self._source.texts(place), "")
        document = self._documents[place]
        return CacheRow(pictures, list(document.texts), document.order)
