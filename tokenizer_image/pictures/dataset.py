"""What every source of pictures offers, and a choice of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from PIL import Image

from tokenizer_image.pictures.fingerprints import digest, hash_keys
from tokenizer_image.pictures.reading_notes import ReadingNotes
from tokenizer_image.pictures.summary import DataSummary, summarise


class PictureDataset(Protocol):
    """One split of a source of pictures. Small to pickle: worker processes get a copy."""

    @property
    def name(self) -> str:
        """What the source is called in messages."""

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the files, the columns and the split."""

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes, None without classes."""

    def __len__(self) -> int: ...

    def image(self, row: int) -> Image.Image:
        """The picture, of any size and mode. Raises (anything) where it cannot be read."""

    def texts(self, row: int) -> list[str]:
        """Its captions, [] without. Reads no picture."""

    def label(self, row: int) -> int:
        """Its class, -1 without."""

    def attributes(self, row: int) -> dict[str, str] | None:
        """What is known about the scene (sprites), else None."""


class PictureSource:
    """Base of the sources in files: a `PictureDataset` whose rows have names, and a summary.

    Subclasses give `__len__`, `key`, `image` and `read_captions`.
    notes: repairs, files left out and warnings from opening the data set.
    split_sizes: pictures (or documents) of each split of the data set, as far as they are known.
    data_set_size: pictures of the splits whose sizes are known; None: those of this source.
    count_rest: counts the pictures of the other splits.
    """

    row_name = "picture"
    label_names: list[str] | None = None
    name: str
    fingerprint: str

    def __init__(self, name: str, notes: ReadingNotes) -> None:
        self.name, self.notes = name, notes
        self.split = "train"
        self.split_sizes: dict[str, int] = {}
        self.data_set_size: int | None = None
        self.count_rest: Callable[[], int] | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def key(self, row: int) -> str:
        """The row's unique name in its source, such as its path. Messages use it, too."""
        raise NotImplementedError

    def image(self, row: int) -> Image.Image:
        """The picture, of any size and mode. Raises (anything) where it cannot be read."""
        raise NotImplementedError

    def picture_key(self, row: int) -> int:
        """A 64-bit hash that is another one where the row's picture is: of a file's path, size and time of last change,
        or of the picture's bytes in a table or an archive. Captions and other rows do not matter."""
        raise NotImplementedError

    def read_captions(self, row: int, notes: ReadingNotes) -> list[str]:
        """The row's captions, [] without; repairs and origins are counted in `notes`."""
        raise NotImplementedError

    def count_rows(self) -> int:
        """Pictures; or documents, where these are the rows of the data set."""
        return len(self)

    def captioned_rows(self, notes: ReadingNotes) -> Iterator[tuple[str, Sequence[str]]]:
        """(key, captions) of each row; repairs and origins are counted in `notes`."""
        return ((self.key(row), self.read_captions(row, notes)) for row in range(len(self)))

    def texts(self, row: int) -> list[str]:
        """The row's captions, [] without."""
        return self.read_captions(row, ReadingNotes())

    def label(self, row: int) -> int:
        """The row's class, -1 without."""
        return -1

    def attributes(self, row: int) -> dict[str, str] | None:
        """Nothing is known about the scene."""
        return None

    def values(self, column: str) -> list[Any]:
        """What a column holds, one value a row; "label" is the class in any source with classes.

        Raises:
            ValueError: the source has no such column, or no columns at all.
        """
        labels = [self.label(row) for row in range(len(self))] if column == "label" else []
        if max(labels, default=-1) < 0:
            raise ValueError(
                f"{self.name} has no column {column!r} of values: tables have columns (Parquet, or what `datasets` "
                "saved), and data sets with classes have 'label'"
            )
        return labels

    def row_hashes(self, salt: str) -> np.ndarray:
        """uint64 (n,): a hash of (salt, key) for each row."""
        return hash_keys((self.key(row) for row in range(len(self))), salt)

    def select(self, rows: np.ndarray) -> PictureSource:
        """Some of the rows, int64, increasing."""
        return self if len(rows) == len(self) else SelectedPictures(self, rows)

    @cached_property
    def summary(self) -> DataSummary:
        """What the split holds. Reads every caption once, and no picture."""
        return summarise(self)


def print_summary(source: PictureDataset) -> dict[str, Any] | None:
    """Print what a data set in files holds, and return it as JSON values; None for sprites."""
    from tqdm import tqdm

    if not isinstance(source, PictureSource):
        return None
    tqdm.write("\n".join(source.summary.lines()))
    return source.summary.to_dict()


class SelectedPictures(PictureSource):
    """Some rows of another source, in the given order."""

    def __init__(self, source: PictureDataset, rows: np.ndarray) -> None:
        super().__init__(source.name, getattr(source, "notes", ReadingNotes()))
        self.source, self.rows = source, rows
        self.label_names = source.label_names
        self.fingerprint = digest("selected", source.fingerprint, rows.tobytes())

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, row: int) -> str:
        key = getattr(self.source, "key", None)
        return key(int(self.rows[row])) if key is not None else f"row {self.rows[row]}"

    def image(self, row: int) -> Image.Image:
        return self.source.image(int(self.rows[row]))

    def picture_key(self, row: int) -> int:
        if not isinstance(self.source, PictureSource):
            raise NotImplementedError
        return self.source.picture_key(int(self.rows[row]))

    def read_captions(self, row: int, notes: ReadingNotes) -> list[str]:
        number = int(self.rows[row])
        return (
            self.source.read_captions(number, notes)
            if isinstance(self.source, PictureSource)
            else self.source.texts(number)
        )

    def label(self, row: int) -> int:
        return self.source.label(int(self.rows[row]))

    def attributes(self, row: int) -> dict[str, str] | None:
        return self.source.attributes(int(self.rows[row]))

    def values(self, column: str) -> list[Any]:
        if not isinstance(self.source, PictureSource):
            return super().values(column)
        whole = self.source.values(column)
        return [whole[row] for row in self.rows.tolist()]


def data_set_size(source: PictureDataset) -> int:
    """Pictures of all splits of the data set, as far as the source knows. Counts those in archives of other splits."""
    count_rest = getattr(source, "count_rest", None)
    rest = count_rest() if count_rest is not None else 0
    return max((getattr(source, "data_set_size", None) or 0) + rest, len(source))


def picture_name(source: PictureDataset, row: int) -> str:
    """The row's file, if the source knows it, else its number."""
    key = getattr(source, "key", None)
    return str(key(row)) if callable(key) else f"row {row}"


def too_many_unreadable(unreadable: int, total: int, max_share: float) -> bool:
    """Whether more pictures than the allowed share cannot be read. One is allowed in any data set, unless the share is
    0: of fewer than 100 pictures, one is more than 1%."""
    return unreadable > total * max_share and not (unreadable == 1 and max_share > 0)
