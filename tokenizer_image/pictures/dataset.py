"""What every source of pictures offers, and a choice of its rows."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from PIL import Image

from tokenizer_image.pictures.table_columns import digest


class PictureDataset(Protocol):
    """One split of a source of pictures. Small to pickle: worker processes get a copy."""

    @property
    def name(self) -> str:
        """What the source is called in messages."""

    @property
    def fingerprint(self) -> str:
        """Identity of the pictures and texts: another one where files, columns or split differ."""

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


class SelectedPictures:
    """Some rows of another source, in the given order."""

    def __init__(self, source: Any, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows
        self.name: str = source.name
        self.label_names: list[str] | None = source.label_names
        self.fingerprint = digest("selected", source.fingerprint, rows.tobytes())

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, row: int) -> str:
        return self.source.key(int(self.rows[row]))

    def image(self, row: int) -> Image.Image:
        return self.source.image(int(self.rows[row]))

    def texts(self, row: int) -> list[str]:
        return self.source.texts(int(self.rows[row]))

    def label(self, row: int) -> int:
        return self.source.label(int(self.rows[row]))

    def attributes(self, row: int) -> dict[str, str] | None:
        return self.source.attributes(int(self.rows[row]))
