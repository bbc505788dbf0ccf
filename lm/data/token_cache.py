"""The token cache: codes and texts of a data set, encoded once, opened by memory map.

One row is one document. A folder holds a manifest and shards; a shard holds flat arrays and where each row ends:

    manifest.json                 format_version, fingerprint of the image tokenizer, shards and their rows, dtype
    shard-00000/codes.npy         codes of all pictures of all rows, smallest unsigned integer that fits
    shard-00000/code_ends.npy     (rows,) uint32, uint64 where that is too small
    shard-00000/texts.bin         UTF-8, each text of a row ended by a zero byte
    shard-00000/text_ends.npy     (rows,) uint32 or uint64, in bytes
    shard-00000/image_sizes.npy   (pictures, 2) uint16 height and width
    shard-00000/picture_keys.npy  (pictures,) uint64, a hash of each picture (its file's path, size and time, or its
                                  bytes); optional: by it codes are used again when the data set changes
    shard-00000/orders.bin        order of parts, a string of "t" and "i" a row separated by a zero byte; only where
                                  a row has one (a captioned picture has none)

Token ids of the language model are never stored: captions are drawn, dropped and tokenized afresh each epoch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.remote import RemoteFolder, is_remote
from lm.data.shards import Document, Shard, code_dtype, damage, kind_name, write_shard
from lm.files import published

__all__ = ["FORMAT_VERSION", "MANIFEST", "Document", "TokenCache", "code_dtype", "write_manifest", "write_shard"]

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
FILES_OPEN = 5  # of a shard
REMEDY = (
    "run the command that wrote it (train_lm.py or cache_tokens.py) again with the same options: it writes the shards "
    "that are not whole, and no others, or build it again"
)


def write_manifest(folder: Path, values: dict[str, Any]) -> None:
    """Write manifest.json last: a folder with a manifest is a whole cache."""
    with published(folder / MANIFEST) as aside:
        aside.write_text(json.dumps({"format_version": FORMAT_VERSION, **values}, indent=1) + "\n")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a whole token cache, here or on a remote file system.

    Raises:
        ValueError: there is none, or one of another format.
    """
    remote = RemoteFolder(str(folder)) if is_remote(folder) else None
    file = f"{folder}/{MANIFEST}"
    text = remote.read_text(MANIFEST) if remote else _read_text(Path(folder) / MANIFEST)
    if text is None:
        what = f"{folder} is not a (whole) token cache: it has no {MANIFEST}"
        remedy = "; nothing is written to remote addresses: write it here with scripts/cache_tokens.py, then upload it"
        raise ValueError(what + remedy if remote else what)
    manifest = json.loads(text)
    if manifest["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{file} has format_version {manifest['format_version']}, this version reads up to "
            f"{FORMAT_VERSION}: upgrade tessera, or build the cache again"
        )
    if manifest["format_version"] < FORMAT_VERSION:
        raise ValueError(
            f"{file} has format_version {manifest['format_version']}, this version reads {FORMAT_VERSION}: "
            f"delete {folder} to build it again"
        )
    return manifest


def _read_text(file: Path) -> str | None:
    return file.read_text() if file.is_file() else None


def damaged_shards(folder: Path) -> dict[str, str]:
    """{name: why it cannot be read} of the shards of a local cache that are not whole."""
    shards = read_manifest(folder)["shards"]
    problems = {shard["name"]: damage(folder / shard["name"], shard["rows"]) for shard in shards}
    return {name: problem for name, problem in problems.items() if problem}


def check_fingerprint(manifest: dict[str, Any], folder: str | Path, fingerprint: str) -> None:
    """Raise ValueError unless a cache's codes belong to the image tokenizer with this fingerprint."""
    built = manifest["image_tokenizer_fingerprint"]
    if built != fingerprint:
        raise ValueError(
            f"the token cache {folder} belongs to another image tokenizer (fingerprint {built}, not {fingerprint}): "
            "give another --token_cache folder, or delete this one to build it again"
        )


class TokenCache:
    """A token cache folder, read by memory map: opening it costs nothing, a row costs its bytes.

    `folder` may be an fsspec address (s3://, gs://, hf://, ...): each shard is then copied to this machine when it is
    first used (`lm.data.remote`).

    Raises:
        ValueError: not a token cache, another format, a missing or truncated shard (named).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder: str | Path = str(folder) if is_remote(folder) else Path(folder)
        self.manifest = read_manifest(folder)
        self._entries: list[dict[str, Any]] = self.manifest["shards"]
        self._starts = np.concatenate([[0], np.cumsum([entry["rows"] for entry in self._entries], dtype=np.int64)])
        self._opened: list[Shard | None] = [None] * len(self._entries)
        self._remote = RemoteFolder(str(folder), json.dumps(self.manifest)) if is_remote(folder) else None
        _allow_files(FILES_OPEN * len(self._entries))
        if self._remote is None:
            for index in range(len(self._entries)):
                self._shard(index)

    def _shard(self, index: int) -> Shard:
        """Shard number `index`, opened (and fetched) once."""
        shard = self._opened[index]
        if shard is None:
            entry = self._entries[index]
            folder = self._remote.fetch(entry["name"]) if self._remote else Path(self.folder) / entry["name"]
            try:
                shard = self._opened[index] = Shard(folder, entry["rows"])
            except ValueError as error:
                remedy = f"delete {folder}, so that it is fetched again" if self._remote else REMEDY
                raise ValueError(f"token cache: {error}; {remedy}") from error
        return shard

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the image tokenizer that the codes belong to."""
        return self.manifest["image_tokenizer_fingerprint"]

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raise ValueError unless the codes belong to the image tokenizer with this fingerprint."""
        check_fingerprint(self.manifest, self.folder, fingerprint)

    def _place(self, row: int) -> tuple[Shard, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a token cache of {len(self)} rows")
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._shard(index), row - int(self._starts[index])

    def codes(self, row: int) -> np.ndarray:
        """Codes of a row's pictures, one after the other."""
        shard, local = self._place(row)
        return shard.row_codes(local)

    def texts(self, row: int) -> list[str]:
        """Texts of a row; [] if it has none."""
        shard, local = self._place(row)
        return shard.row_texts(local)

    def count(self, has_text: bool, has_codes: bool, interleaved: bool = False) -> int:
        """How many rows, interleaved or not, have (or have no) text and (or no) picture. Reads the manifest, or where
        rows end."""
        kind = kind_name(has_text, has_codes, interleaved)
        return sum(
            (entry["kinds"] if "kinds" in entry else self._shard(index).kinds()).get(kind, 0)
            for index, entry in enumerate(self._entries)
        )

    def image_sizes(self, row: int) -> list[tuple[int, int]]:
        """(height, width) of each of a row's pictures, in pixels."""
        shard, local = self._place(row)
        return shard.image_sizes(local)

    def order(self, row: int) -> str:
        """Parts of an interleaved document, "t" or "i" each; "" for a captioned picture."""
        shard, local = self._place(row)
        return shard.order(local)

    @property
    def has_texts(self) -> bool:
        """Whether any row has a text."""
        return any(self.count(True, codes, order) for codes in (False, True) for order in (False, True))

    @property
    def interleaved(self) -> bool:
        """Whether some rows have several parts in an order of their own."""
        return any(self.count(text, codes, True) for text in (False, True) for codes in (False, True))

    @cached_property
    def _edits(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for index, entry in enumerate(self._entries if self.interleaved else []):
            found.update(entry["edits"] if "edits" in entry else self._shard(index).count_edits())
        return found

    @property
    def num_edits(self) -> int:
        """How many rows may be edits: a source picture, an instruction, the result (`lm.data.shards.EDIT_ORDERS`)."""
        return self._edits.total()

    @property
    def is_of_edits(self) -> bool:
        """Whether every row is a picture, a text and a picture, which is taken for an edit where nothing else is
        said."""
        return 0 < self._edits["iti"] == len(self)

    def document(self, row: int) -> Document:
        """Everything about a row."""
        shard, local = self._place(row)
        return Document(shard.row_codes(local), shard.image_sizes(local), shard.row_texts(local), shard.order(local))

    def all_texts(self) -> Iterator[str]:
        """Every text of every row, in order."""
        for index in range(len(self._entries)):
            yield from self._shard(index).all_texts()

    def some_texts(self, rows: int) -> Iterator[str]:
        """Every text of `rows` rows at even distances (of all, where there are fewer), in order."""
        if rows >= len(self):
            yield from self.all_texts()
            return
        chosen = np.linspace(0, len(self) - 1, rows).astype(np.int64)
        bounds = np.searchsorted(chosen, self._starts)
        for index, (first, last) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            if last > first:
                yield from self._shard(index).all_texts(chosen[first:last] - self._starts[index])


def _allow_files(count: int) -> None:
    """Let this process hold `count` more files open, where that is allowed: a memory map keeps its file open."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
