"""Shards of a token cache: rows written as flat arrays, and read by memory map.

`lm.data.token_cache` lists the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lm.files import published
from lm.surrogates import replace_surrogates

SEPARATOR = b"\0"
ARRAYS = ("codes", "code_ends", "text_ends", "image_sizes")
KEYS = "picture_keys.npy"
# Orders of documents that are edits: source, instruction, result; the source's caption, or the instruction, in front.
EDIT_ORDERS = ("iti", "titi", "tii")


@dataclass
class Document:
    """One row of a token cache.

    Attributes:
        codes: (sum of the pictures' codes,) unsigned integers.
        image_sizes: (height, width) of each picture, in pixels.
        texts: captions of the picture, or the text parts of an interleaved document.
        order: parts of an interleaved document in order, "t" or "i" each; "" for a captioned picture.
        picture_keys: for each picture, a 64-bit hash that changes with it; [] where none are kept.
    """

    codes: np.ndarray
    image_sizes: list[tuple[int, int]]
    texts: list[str] = field(default_factory=list)
    order: str = ""
    picture_keys: list[int] = field(default_factory=list)


def code_dtype(num_codes: int) -> np.dtype[Any]:
    """The smallest unsigned integer type that holds codes 0 .. num_codes - 1."""
    return np.min_scalar_type(num_codes - 1)


# ---- writing


def write_shard(folder: Path, documents: Sequence[Document], dtype: np.dtype[Any]) -> None:
    """Write a shard. A folder of that name is always whole, however many processes write it."""
    texts = [b"".join(map(_encoded, document.texts)) for document in documents]
    codes = [np.asarray(document.codes) for document in documents]
    arrays = {
        "codes": np.concatenate([np.zeros(0, dtype), *codes], dtype=dtype, casting="unsafe"),
        "code_ends": _ends([len(row) for row in codes]),
        "text_ends": _ends([len(text) for text in texts]),
        "image_sizes": np.asarray([size for d in documents for size in d.image_sizes], np.uint16).reshape(-1, 2),
    }
    keys = [key for document in documents for key in document.picture_keys]
    if keys and len(keys) == len(arrays["image_sizes"]):
        arrays["picture_keys"] = np.asarray(keys, np.uint64)
    with published(folder) as aside:
        aside.mkdir()
        for name, array in arrays.items():
            np.save(aside / f"{name}.npy", array)
        (aside / "texts.bin").write_bytes(b"".join(texts))
        if any(document.order for document in documents):
            (aside / "orders.bin").write_bytes(SEPARATOR.join(document.order.encode() for document in documents))


def _encoded(text: str) -> bytes:
    """A text as it is stored, which no zero byte and no lone surrogate in it can break."""
    return replace_surrogates(text).replace("\0", " ").encode() + SEPARATOR


def _ends(lengths: Sequence[int]) -> np.ndarray:
    """Where each row ends."""
    ends = np.cumsum(lengths, dtype=np.uint64)
    return ends.astype(np.uint32) if len(ends) == 0 or ends[-1] < 2**32 else ends


# ---- reading


class Shard:
    """One shard's arrays, memory-mapped.

    rows: how many it should have (default: as many as it has).

    Raises:
        ValueError: a file is missing, or shorter than it should be.
    """

    def __init__(self, folder: Path, rows: int | None = None) -> None:
        self.folder = folder
        try:
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
            texts = folder / "texts.bin"
            self.texts = np.memmap(texts, np.uint8, "r") if texts.stat().st_size else np.zeros(0, np.uint8)
        except (OSError, ValueError, EOFError) as error:  # NumPy's words for an empty file: EOFError
            raise ValueError(f"shard {folder} is missing or damaged ({error})") from error
        self.codes, self.code_ends, self.text_ends = arrays["codes"], arrays["code_ends"], arrays["text_ends"]
        self._image_sizes = arrays["image_sizes"]
        self.rows = len(self.code_ends) if rows is None else rows
        orders = folder / "orders.bin"
        # None: every row is one captioned picture.
        self._orders = orders.read_bytes() if orders.is_file() else None
        if not self._whole():
            raise ValueError(f"shard {folder} is truncated ({self.rows} rows expected)")

    def _whole(self) -> bool:
        rows = len(self.code_ends) == len(self.text_ends) == self.rows
        if self._orders is not None:
            rows = rows and len(self._order_ends) == self.rows
        pictures = self.rows if self._orders is None else int(self._picture_ends[-1])
        whole = rows and len(self._image_sizes) == pictures
        if whole and self.rows:
            whole = self.code_ends[-1] == len(self.codes) and self.text_ends[-1] == len(self.texts)
        return bool(whole)

    @cached_property
    def _order_ends(self) -> np.ndarray:
        """Where each row's order ends in `_orders`, int64."""
        raw = np.frombuffer(self._orders or b"", np.uint8)
        return np.append(np.flatnonzero(raw == 0), len(raw))

    @cached_property
    def _picture_ends(self) -> np.ndarray:
        """Where each row's pictures end, int64; a row without an order has one picture."""
        raw = np.frombuffer(self._orders or b"", np.uint8)
        pictures = np.append(np.cumsum(raw == ord("i")), 0)[self._order_ends - 1]  # up to each row's end; -1: 0
        starts = np.append(0, self._order_ends[:-1] + 1)
        return pictures + np.cumsum(starts == self._order_ends)

    @property
    def num_pictures(self) -> int:
        """Pictures of all rows."""
        return len(self._image_sizes)

    def picture_keys(self) -> np.ndarray | None:
        """(pictures,) uint64, the keys of the pictures of all rows; None where they are not kept."""
        try:
            keys = np.load(self.folder / KEYS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return keys if len(keys) == self.num_pictures else None

    def all_image_sizes(self) -> np.ndarray:
        """(pictures, 2) uint16, height and width of the pictures of all rows."""
        return self._image_sizes

    def row_codes(self, row: int) -> np.ndarray:
        """Codes of a row's pictures, one after the other."""
        return self.codes[_start(self.code_ends, row) : self.code_ends[row]]

    def row_texts(self, row: int) -> list[str]:
        """Texts of a row."""
        raw = self.texts[_start(self.text_ends, row) : self.text_ends[row]].tobytes()
        return [text.decode() for text in raw.split(SEPARATOR)[:-1]]

    def all_texts(self, rows: np.ndarray | None = None) -> Iterator[str]:
        """Every text of these rows (default: of all), in order."""
        if rows is None:
            yield from (text.decode() for text in self.texts.tobytes().split(SEPARATOR)[:-1])
            return
        raw, ends = self.texts.tobytes(), np.append(0, self.text_ends).astype(np.int64)
        for first, last in zip(ends[rows].tolist(), ends[rows + 1].tolist(), strict=True):
            yield from (text.decode() for text in raw[first:last].split(SEPARATOR)[:-1])

    def order(self, row: int) -> str:
        """Parts of an interleaved document; "" for a captioned picture."""
        if self._orders is None:
            return ""
        first = int(self._order_ends[row - 1]) + 1 if row else 0
        return self._orders[first : int(self._order_ends[row])].decode()

    def image_sizes(self, row: int) -> list[tuple[int, int]]:
        """(height, width) of each of a row's pictures."""
        first, last = row, row + 1
        if self._orders is not None:
            first, last = _start(self._picture_ends, row), int(self._picture_ends[row])
        return [(height, width) for height, width in self._image_sizes[first:last].tolist()]

    def kinds(self) -> dict[str, int]:
        """How many rows there are of each kind (`kind_name`)."""
        texts = np.diff(self.text_ends, prepend=self.text_ends.dtype.type(0)) > 0
        codes = np.diff(self.code_ends, prepend=self.code_ends.dtype.type(0)) > 0
        interleaved = np.zeros(self.rows, bool)
        if self._orders is not None:
            interleaved = np.diff(self._order_ends, prepend=-1) > 2  # a separator and more than one part
        counts = {}
        for has in product((False, True), repeat=3):
            rows = (texts == has[0]) & (codes == has[1]) & (interleaved == has[2])
            if rows.any():
                counts[kind_name(*has)] = int(rows.sum())
        return counts

    def count_edits(self) -> dict[str, int]:
        """How many rows there are of each of `EDIT_ORDERS`."""
        orders = Counter((self._orders or b"").split(SEPARATOR))
        return {order: orders[order.encode()] for order in EDIT_ORDERS}

    def entry(self) -> dict[str, Any]:
        """Its entry in the manifest."""
        entry = {"name": self.folder.name, "rows": self.rows, "kinds": self.kinds()}
        return entry if self._orders is None else {**entry, "edits": self.count_edits()}


def kind_name(has_text: bool, has_codes: bool, interleaved: bool) -> str:
    """Name of what a row has: "text codes", "text codes interleaved", "" for one that has nothing."""
    words = ("text" if has_text else "", "codes" if has_codes else "", "interleaved" if interleaved else "")
    return " ".join(word for word in words if word)


def damage(folder: Path, rows: int | None = None) -> str | None:
    """Why a shard cannot be read, None for a whole one."""
    try:
        Shard(folder, rows)
    except ValueError as error:
        return str(error)
    return None


def _start(ends: np.ndarray, row: int) -> int:
    return int(ends[row - 1]) if row else 0
