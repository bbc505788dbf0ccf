"""Rows of a data set as they go into a token cache: which of its pictures each has, and what is said about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tokenizer_image.pictures.documents import DocumentPictures
from tokenizer_image.pictures.loading import DecodedPictures, PictureDataset


class CacheRow(NamedTuple):
    """positions: of its pictures, among the decoded ones; the rest as in `lm.data.shards.Document`."""

    positions: list[int]
    texts: list[str]
    order: str


def count_rows(source: PictureDataset) -> int:
    """Captioned pictures, or documents, of a source."""
    return len(source.documents) if isinstance(source, DocumentPictures) else len(source)


class CacheRows:
    """Rows by their number in the whole data set.

    Args:
        source: of the data set, the rows `numbers` alone.
        decoded: its pictures; None where no document has one.
        numbers: increasing (default: all).
    """

    def __init__(
        self, source: PictureDataset, decoded: DecodedPictures | None, numbers: np.ndarray | None = None
    ) -> None:
        self._source = source
        self._documents = source.documents if isinstance(source, DocumentPictures) else None
        self._numbers = np.arange(count_rows(source)) if numbers is None else numbers
        self._readable = np.zeros(0, np.int64) if decoded is None else decoded.rows

    def __getitem__(self, number: int) -> CacheRow | None:
        """One row; None: it is left out, since a picture of it cannot be read."""
        place = int(np.searchsorted(self._numbers, number))
        if self._documents is None:
            positions = self._positions([place])
            if positions is None:
                return None
            return CacheRow(positions, self._source.texts(place), "")
        document = self._documents[place]
        found = self._positions(document.pictures)
        return None if found is None else CacheRow(found, list(document.texts), document.order)

    def _positions(self, pictures: Sequence[int]) -> list[int] | None:
        """Where pictures are among the readable ones; None if one is not."""
        if not len(pictures):
            return []
        places = np.searchsorted(self._readable, pictures)
        if (places >= len(self._readable)).any():
            return None
        return places.tolist() if (self._readable[places] == pictures).all() else None
