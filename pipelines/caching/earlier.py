"""Codes that token caches already hold, found by the keys of their pictures, so that no picture is encoded twice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lm.data.shards import Shard
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.pictures.dataset import PictureSource
from tokenizer_image.pictures.loading import PictureDataset


def picture_keys(source: PictureDataset) -> np.ndarray | None:
    """(n,) uint64, a key of each picture of a source; None for sprites and other sources that are not files."""
    if not isinstance(source, PictureSource):
        return None
    try:
        return np.asarray([source.picture_key(row) for row in range(len(source))], np.uint64)
    except NotImplementedError:
        return None


class EarlierCodes:
    """The codes of every picture in some shards that keep keys of their pictures.

    Args:
        folders: of shards whose codes belong to `tokenizer`; damaged ones and those without keys are passed over.
    """

    def __init__(self, folders: Iterable[Path], tokenizer: ImageTokenizer) -> None:
        self._shards: list[tuple[Shard, np.ndarray]] = []  # with where the codes of each picture start and end
        self._places: dict[int, tuple[int, int]] = {}  # key -> (shard, picture)
        tokens: dict[tuple[int, int], int] = {}
        for folder in folders:
            try:
                shard = Shard(folder)
            except ValueError:
                continue
            keys = shard.picture_keys()
            if keys is None:
                continue
            sizes = [(height, width) for height, width in shard.all_image_sizes().tolist()]
            tokens |= {size: len(tokenizer.layout(size).level) for size in set(sizes) - set(tokens)}
            ends = np.cumsum([0, *(tokens[size] for size in sizes)])
            if ends[-1] != len(shard.codes):
                continue
            self._places |= {key: (len(self._shards), picture) for picture, key in enumerate(keys.tolist())}
            self._shards.append((shard, ends))

    def __contains__(self, key: int) -> bool:
        return key in self._places

    def __getitem__(self, key: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Codes (T,) of a picture, and its (height, width)."""
        number, picture = self._places[key]
        shard, ends = self._shards[number]
        height, width = shard.all_image_sizes()[picture].tolist()
        return np.array(shard.codes[ends[picture] : ends[picture + 1]]), (height, width)
