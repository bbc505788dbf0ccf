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
        all_keys, places = [np.zeros(0, np.uint64)], [np.zeros((0, 2), np.int64)]
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
            all_keys.append(np.array(keys))
            places.append(np.stack([np.full(len(keys), len(self._shards)), np.arange(len(keys))], axis=1))
            self._shards.append((shard, ends))
        self._keys, first = np.unique(np.concatenate(all_keys), return_index=True)
        self._places = np.concatenate(places)[first]  # (shard, picture) of each key

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(n,) int64, for each key (n,) uint64 the number of a picture that has it, -1 where none has."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        numbers = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[numbers] == keys, numbers, -1)

    def __getitem__(self, number: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Codes (T,) of a picture by its number, and its (height, width)."""
        shard_number, picture = self._places[number].tolist()
        shard, ends = self._shards[shard_number]
        height, width = shard.all_image_sizes()[picture].tolist()
        return np.array(shard.codes[ends[picture] : ends[picture + 1]]), (height, width)
