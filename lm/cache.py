"""The token cache: codes and texts of a data set, encoded once, opened by memory map.

One row is one document. A folder holds a manifest and shards; a shard holds flat arrays and where each row ends:

    manifest.json                 format_version, fingerprint of the image tokenizer, shards and their rows, dtype
    shard-00000/codes.npy         codes of all pictures of all rows, smallest unsigned integer that fits
    shard-00000/code_ends.npy     (rows,) uint32, uint64 where that is too small
    shard-00000/texts.bin         UTF-8, each text of a row ended by a zero byte
    shard-00000/text_ends.npy     (rows,) uint32 or uint64, in bytes
    shard-00000/labels.npy        (rows,) int32, -1 if none
    shard-00000/image_sizes.npy   (pictures, 2) uint16 height and width
    shard-00000/orders.bin        order of parts, a string of "t" and "i" a row separated by a zero byte; only where
                                  a row has one (a captioned picture has none)

Token ids of the language model are never stored: captions are drawn, dropped and tokenized afresh each epoch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
SEPARATOR = b"\0"


@dataclass
class Document:
    """One row of a token cache.

    Attributes:
        codes: (sum of the pictures' codes,) unsigned integers.
        image_sizes: (height, width) of each picture, in pixels.
        texts: captions of the picture, or the text parts of an interleaved document.
        order: parts of an interleaved document in order, "t" or "i" each; "" for a captioned picture.
        label: class label, -1 if none.
    """

    codes: np.ndarray
    image_sizes: list[tuple[int, int]]
    texts: list[str] = field(default_factory=list)
    order: str = ""
    label: int = -1


def code_dtype(num_codes: int) -> np.dtype[Any]:
    """The smallest unsigned integer type that holds codes 0 .. num_codes - 1."""
    return np.min_scalar_type(num_codes - 1)


def write_shard(folder: Path, documents: Sequence[Document], dtype: np.dtype[Any]) -> None:
    """Write a shard aside and rename it: a folder of that name is always whole."""
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    texts = [b"".join(text.replace("\0", " ").encode() + SEPARATOR for text in d.texts) for d in documents]
    codes = [np.asarray(document.codes) for document in documents]
    arrays = {
        "codes": np.concatenate(codes).astype(dtype),
        "code_ends": _ends([len(row) for row in codes]),
        "text_ends": _ends([len(text) for text in texts]),
        "labels": np.asarray([document.label for document in documents], np.int32),
        "image_sizes": np.asarray([size for d in documents for size in d.image_sizes], np.uint16).reshape(-1, 2),
    }
    for name, array in arrays.items():
        np.save(aside / f"{name}.npy", array)
    (aside / "texts.bin").write_bytes(b"".join(texts))
    if any(document.order for document in documents):
        (aside / "orders.bin").write_bytes(SEPARATOR.join(document.order.encode() for document in documents))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


def _ends(lengths: Sequence[int]) -> np.ndarray:
    """Where each row ends."""
    ends = np.cumsum(lengths, dtype=np.uint64)
    return ends.astype(np.uint32) if len(ends) == 0 or ends[-1] < 2**32 else ends


def write_manifest(folder: Path, values: dict[str, Any]) -> None:
    """Write manifest.json last: its presence says that the cache is whole."""
    aside = folder / (MANIFEST + ".part")
    aside.write_text(json.dumps({"format_version": FORMAT_VERSION, **values}, indent=1) + "\n")
    os.replace(aside, folder / MANIFEST)


class _Shard:
    """One shard's arrays, memory-mapped."""

    def __init__(self, folder: Path, rows: int) -> None:
        try:
            names = ("codes", "code_ends", "text_ends", "labels", "image_sizes")
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
            texts = folder / "texts.bin"
            self.texts = np.memmap(texts, np.uint8, "r") if texts.stat().st_size else np.zeros(0, np.uint8)
        except (OSError, ValueError, EOFError) as error:  # NumPy's words for an empty file: EOFError
            raise ValueError(f"token cache: shard {folder} is missing or damaged ({error}); build it again") from error
        self.codes, self.code_ends, self.text_ends = arrays["codes"], arrays["code_ends"], arrays["text_ends"]
        self.labels, self.image_sizes = arrays["labels"], arrays["image_sizes"]
        orders = folder / "orders.bin"
        self.orders = orders.read_bytes().decode().split("\0") if orders.is_file() else None
        self.interleaved = np.asarray([len(order) > 1 for order in self.orders or ()] or [False])
        # Where each row's pictures end; without orders every row is one captioned picture.
        self.picture_ends, pictures = None, rows
        if self.orders is not None:
            self.picture_ends = np.cumsum([order.count("i") if order else 1 for order in self.orders], dtype=np.int64)
            pictures = int(self.picture_ends[-1])
        whole = len(self.labels) == len(self.code_ends) == len(self.text_ends) == rows
        whole = whole and len(self.image_sizes) == pictures and (self.orders is None or len(self.orders) == rows)
        if whole and rows:
            whole = self.code_ends[-1] == len(self.codes) and self.text_ends[-1] == len(self.texts)
        if not whole:
            raise ValueError(f"token cache: shard {folder} is truncated ({rows} rows expected); build it again")


class TokenCache:
    """A token cache folder, read by memory map: opening it costs nothing, a row costs its bytes.

    Raises:
        ValueError: not a token cache, a newer format, a missing or truncated shard (named).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        file = self.folder / MANIFEST
        if not file.is_file():
            raise ValueError(f"{self.folder} is not a (whole) token cache: it has no {MANIFEST}")
        self.manifest: dict[str, Any] = json.loads(file.read_text())
        if self.manifest["format_version"] > FORMAT_VERSION:
            raise ValueError(
                f"{file} has format_version {self.manifest['format_version']}, this version reads up to "
                f"{FORMAT_VERSION}: upgrade tessera, or build the cache again"
            )
        if self.manifest["format_version"] < FORMAT_VERSION:
            raise ValueError(
                f"{file} has format_version {self.manifest['format_version']}, this version reads {FORMAT_VERSION}: "
                f"delete {self.folder} to build it again"
            )
        rows = [shard["rows"] for shard in self.manifest["shards"]]
        self._shards = [_Shard(self.folder / shard["name"], shard["rows"]) for shard in self.manifest["shards"]]
        self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the image tokenizer that the codes belong to."""
        return self.manifest["image_tokenizer_fingerprint"]

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raise ValueError unless the codes belong to the image tokenizer with this fingerprint."""
        if self.fingerprint != fingerprint:
            raise ValueError(
                f"the token cache {self.folder} belongs to another image tokenizer (fingerprint {self.fingerprint}, "
                f"not {fingerprint}): give another --token_cache folder, or delete this one to build it again"
            )

    def _place(self, row: int) -> tuple[_Shard, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a token cache of {len(self)} rows")
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._shards[index], row - int(self._starts[index])

    def codes(self, row: int) -> np.ndarray:
        """Codes of a row's pictures, one after the other."""
        shard, local = self._place(row)
        return shard.codes[_start(shard.code_ends, local) : shard.code_ends[local]]

    def texts(self, row: int) -> list[str]:
        """Texts of a row; [] if it has none."""
        shard, local = self._place(row)
        raw = shard.texts[_start(shard.text_ends, local) : shard.text_ends[local]].tobytes()
        return [text.decode() for text in raw.split(SEPARATOR)[:-1]]

    def count(self, has_text: bool, has_codes: bool, interleaved: bool = False) -> int:
        """How many rows, interleaved or not, have (or have no) text and (or no) picture. Reads where rows end, and
        nothing else."""
        total = 0
        for shard in self._shards:
            texts = np.diff(shard.text_ends, prepend=shard.text_ends.dtype.type(0)) > 0
            codes = np.diff(shard.code_ends, prepend=shard.code_ends.dtype.type(0)) > 0
            total += int(((texts == has_text) & (codes == has_codes) & (shard.interleaved == interleaved)).sum())
        return total

    def image_sizes(self, row: int) -> list[tuple[int, int]]:
        """(height, width) of each of a row's pictures, in pixels."""
        shard, local = self._place(row)
        first, last = local, local + 1
        if shard.picture_ends is not None:
            first, last = _start(shard.picture_ends, local), int(shard.picture_ends[local])
        return [(height, width) for height, width in shard.image_sizes[first:last].tolist()]

    def order(self, row: int) -> str:
        """Parts of an interleaved document, "t" or "i" each; "" for a captioned picture."""
        shard, local = self._place(row)
        return shard.orders[local] if shard.orders else ""

    @property
    def interleaved(self) -> bool:
        """Whether some rows have several parts in an order of their own."""
        return any(bool(shard.interleaved.any()) for shard in self._shards)

    def document(self, row: int) -> Document:
        """Everything about a row."""
        shard, local = self._place(row)
        sizes, texts = self.image_sizes(row), self.texts(row)
        return Document(self.codes(row), sizes, texts, self.order(row), int(shard.labels[local]))

    def all_texts(self) -> Iterable[str]:
        """Every text of every row, in order."""
        for row in range(len(self)):
            yield from self.texts(row)


def _start(ends: np.ndarray, row: int) -> int:
    return int(ends[row - 1]) if row else 0
