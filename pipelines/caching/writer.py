"""The writer of token caches: encodes each picture of a data set once, in shards that processes share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lm.data.shards import Shard, damage
from lm.data.token_cache import MANIFEST, Document, TokenCache, code_dtype, write_manifest, write_shard
from lm.files import published
from pipelines.caching.encoder import check_sizes, encode_pictures
from pipelines.caching.rows import CacheRow, CacheRows, count_rows
from tokenizer_image.fingerprint import accepts_fingerprint
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.pictures.dataset import PictureSource
from tokenizer_image.pictures.documents import DocumentPictures
from tokenizer_image.pictures.loading import DecodedPictures, PictureDataset, SelectedPictures

PARTIAL = "building.json"  # whose shards these are, until the manifest says so
SHARD_ROWS = 8192


class TokenCacheWriter:
    """Writes a token cache; any number of processes may share the work, each writing whole shards of its own.

    A shard is a run of the data set's rows, less those with pictures that cannot be read, so that no process needs to
    know what another one found. Whatever was whole when a build was interrupted is used again; a shard that two
    processes write is written twice, and whole all the time.

    Args:
        folder: where the cache goes.
        tokenizer: the image tokenizer, in eval mode.
        source: captions, or documents.
        decoded: the source's pictures; None: `read` gives those of some shards.
        settings: the options that chose them, by name, kept in the manifest for `check_settings`.
        sizes: (height, width) that pictures are encoded at (default: the tokenizer's square).

    Raises:
        ValueError: the folder holds a cache (or the beginning of one) of another tokenizer or data set.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: ImageTokenizer,
        source: PictureDataset,
        decoded: DecodedPictures | None = None,
        settings: dict[str, Any] | None = None,
        sizes: Sequence[tuple[int, int]] = (),
        shard_rows: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.tokenizer = tokenizer
        self.source = source
        self.settings = settings or {}
        self.sizes = check_sizes(tokenizer, sizes)
        self.shard_rows, total = shard_rows or SHARD_ROWS, count_rows(source)
        self.shards: list[dict[str, Any]] = [
            {"name": f"shard-{index:05d}", "rows": min(self.shard_rows, total - start)}
            for index, start in enumerate(range(0, total, self.shard_rows))
        ]
        self.identity: dict[str, Any] = {
            "image_tokenizer_fingerprint": tokenizer.fingerprint,
            "source": {"name": source.name, "fingerprint": source.fingerprint, "rows": total},
            "image_sizes": [list(size) for size in self.sizes],
            "shard_rows": self.shard_rows,
        }
        self._decoded = decoded
        self._rows = CacheRows(source, decoded) if decoded is not None or not len(source) else None
        self._known: dict[int, np.ndarray] = {}  # codes of pictures that documents of a shard share

    @property
    def finished(self) -> bool:
        """Whether the whole cache is there already.

        Raises:
            ValueError: it is, but of another tokenizer or data set.
        """
        for name in (PARTIAL, MANIFEST):
            found = self._read(name)
            if found is not None:
                self._check_identity(found)
        return (self.folder / MANIFEST).is_file()

    def _read(self, name: str) -> dict[str, Any] | None:
        """PARTIAL or MANIFEST, None if it is not there (any more: another writer may be at work)."""
        try:
            return json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return None

    def _check_identity(self, found: dict[str, Any]) -> None:
        kinds = {
            "image_tokenizer_fingerprint": "another image tokenizer", "source": "another data set",
            "image_sizes": "other --image_sizes", "shard_rows": "another --shard_rows, or version of tessera",
        }  # fmt: skip
        for key, what in kinds.items():
            if key == "image_tokenizer_fingerprint" and accepts_fingerprint(self.tokenizer, found.get(key, "")):
                continue
            if found.get(key) != self.identity[key]:
                raise ValueError(
                    f"the token cache {self.folder} belongs to {what} ({found.get(key)}, not "
                    f"{self.identity[key]}): give another --token_cache folder, or delete this one to build it again"
                )

    def prepare(self) -> None:
        """Say what is being built here, before any process writes a shard."""
        with published(self.folder / PARTIAL) as aside:
            aside.write_text(json.dumps(self.identity) + "\n")

    def missing(self, process_index: int = 0, num_processes: int = 1) -> list[int]:
        """Numbers of this process's shards that are not there, or not whole."""
        told = (self._read(MANIFEST) or {"shards": []})["shards"]
        rows = {shard["name"]: shard["rows"] for shard in told}
        names = [shard["name"] for shard in self.shards]
        numbers = range(len(names))[process_index::num_processes]
        return [number for number in numbers if damage(self.folder / names[number], rows.get(names[number]))]

    def part(self, shards: Sequence[int]) -> tuple[PictureDataset, np.ndarray]:
        """The rows of some shards as a data set, and their numbers in the whole one."""
        bounds = [(shard * self.shard_rows, self.shards[shard]["rows"]) for shard in shards]
        numbers = np.concatenate([np.arange(first, first + rows) for first, rows in bounds])
        if len(numbers) == count_rows(self.source):
            return self.source, numbers
        if isinstance(self.source, DocumentPictures):
            return self.source.part(numbers), numbers
        return SelectedPictures(self.source, numbers), numbers

    def read(self, part: PictureDataset, decoded: DecodedPictures | None, numbers: np.ndarray) -> None:
        """Take the pictures of a `part`, for `write`."""
        self._decoded, self._rows = decoded, CacheRows(part, decoded, numbers)

    def write(
        self,
        *,
        process_index: int = 0,
        num_processes: int = 1,
        batch_size: int = 256,
        device: str | torch.device = "cpu",
    ) -> None:
        """Encode this process's shards, with a progress bar."""
        missing = self.missing(process_index, num_processes)
        total = sum(self.shards[number]["rows"] for number in missing)
        with tqdm(total=total, desc="encoding pictures", unit="row", disable=process_index > 0 or not total) as bar:
            for number in missing:
                self._known.clear()
                start, rows = number * self.shard_rows, self.shards[number]["rows"]
                documents: list[Document] = []
                for first in range(start, start + rows, batch_size):
                    last = min(first + batch_size, start + rows)
                    documents += self._encode(first, last, device)
                    bar.update(last - first)
                write_shard(self.folder / self.shards[number]["name"], documents, code_dtype(self.tokenizer.num_codes))

    def _encode(self, first: int, last: int, device: str | torch.device) -> list[Document]:
        """Rows `first` .. `last` - 1 of the data set, less those that are left out."""
        if self._rows is None:
            raise ValueError("TokenCacheWriter has no pictures: give `decoded`, or call `read`")
        rows = [row for row in (self._rows[number] for number in range(first, last)) if row is not None]
        new = list(dict.fromkeys(p for row in rows for p in row.positions if p not in self._known))
        if not isinstance(self.source, DocumentPictures):
            self._known.clear()
        if new and self._decoded is not None:
            decoded, positions = self._decoded, np.asarray(new, np.int64)
            codes = encode_pictures(
                self.tokenizer, decoded.which[positions], lambda places: decoded.batch(positions[places]),
                self.sizes, device,
            )  # fmt: skip
            dtype = code_dtype(self.tokenizer.num_codes)
            self._known.update((position, row.astype(dtype)) for position, row in zip(new, codes, strict=True))
        return [self._document(row) for row in rows]

    def _document(self, row: CacheRow) -> Document:
        codes = [self._known[position] for position in row.positions]
        sizes = [self.sizes[self._decoded.which[position]] for position in row.positions] if self._decoded else []
        row_codes = codes[0] if len(codes) == 1 else np.concatenate([np.zeros(0, np.uint8), *codes])
        return Document(row_codes, sizes, row.texts, row.order)

    def finish(self) -> TokenCache:
        """Write the manifest, once every process has written its shards. Whoever comes last does it."""
        missing = [self.shards[number]["name"] for number in self.missing()]
        if missing:
            raise ValueError(
                f"token cache {self.folder}: shards {', '.join(missing)} are missing; run the command again"
            )
        shards = [Shard(self.folder / shard["name"]).entry() for shard in self.shards]
        rows = sum(shard["rows"] for shard in shards)
        if rows == 0:
            raise ValueError(f"token cache {self.folder}: no row of {self.source.name} has pictures that can be read")
        write_manifest(
            self.folder,
            {
                **self.identity,
                "settings": self.settings,
                "num_codes": self.tokenizer.num_codes,
                "data": self.source.summary.to_dict() if isinstance(self.source, PictureSource) else None,
                "rows_left_out": count_rows(self.source) - rows,
                "shards": shards,
            },
        )
        (self.folder / PARTIAL).unlink(missing_ok=True)
        return TokenCache(self.folder)
