"""The writer of token caches: encodes each picture of a data set once, in shards that processes share."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm.auto import tqdm

from lm.data.shards import KEYS, Shard, damage
from lm.data.token_cache import MANIFEST, Document, TokenCache, code_dtype, write_manifest, write_shard
from lm.files import published
from pipelines.caching.earlier import EarlierCodes, picture_keys
from pipelines.caching.encoder import check_sizes, encode_pictures
from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.caching.rows import CacheRow, CacheRows, count_rows, documents_of
from pipelines.caching.views import View, has_direction
from tokenizer_image.fingerprint import accepts_fingerprint
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.pictures.dataset import PictureSource
from tokenizer_image.pictures.loading import PictureDataset, SelectedPictures

PARTIAL = "building.json"  # identity of the shards until there is a manifest
SHARD_ROWS = 8192
BATCH_ROWS = 256  # encoded at once


class ReadPictures(Protocol):
    """The pictures of a data set's rows that can be read, as uint8, by position (`DecodedPictures`)."""

    rows: np.ndarray  # int64, the row of each, increasing
    which: np.ndarray  # uint8, the size of each, by its number

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """Pictures of one size -> uint8 (b, C, H, W)."""
        ...


class TokenCacheWriter:
    """Writes a token cache; any number of processes may share the work, each writing whole shards of its own.

    A shard is a run of the data set's rows, less those with pictures that cannot be read, so that processes need not
    know of each other's pictures. An interrupted build keeps its whole shards. A shard that two processes write is
    written twice, and whole all the time.

    Where the folder holds a whole cache of the same data set with other pictures or texts (`updates`), the shards get
    names of their own and take the place of the earlier ones with the manifest. Pictures whose keys are in earlier
    shards, of this split or of the others, keep their codes.

    Args:
        folder: where the cache goes.
        tokenizer: the image tokenizer, in eval mode.
        source: pictures with captions, or documents.
        decoded: the source's pictures; None: `read` decodes those of some rows.
        settings: the options that chose them, by name, kept in the manifest.
        sizes: (height, width) that pictures are encoded at (default: the tokenizer's square).
        shard_rows: rows of a shard (default: those of the cache in the folder, else `SHARD_ROWS`).
        view: which view of the pictures is encoded (default: the plain pictures).

    Raises:
        ValueError: a view of interleaved documents.
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
        view: View | None = None,
    ) -> None:
        if view is not None and documents_of(source) is not None:
            raise ValueError(
                f"{source.name}: --crops and --random_flip are for captioned pictures, not for interleaved documents: "
                "leave them out"
            )
        self.folder = Path(folder)
        self.view = view
        self.tokenizer = tokenizer
        self.source = source
        self.settings = settings or {}
        self.sizes = check_sizes(tokenizer, sizes)
        manifest = self._read(MANIFEST)
        total = count_rows(source)
        self.shard_rows: int = shard_rows or (manifest or {}).get("shard_rows") or SHARD_ROWS
        self.identity: dict[str, Any] = {
            "image_tokenizer_fingerprint": tokenizer.fingerprint,
            "source": {"name": source.name, "fingerprint": source.fingerprint, "rows": total},
            "image_sizes": [list(size) for size in self.sizes],
            "shard_rows": self.shard_rows,
            **({"view": view.name} if view else {}),
        }
        self.updates = manifest is not None and self._can_update(manifest)
        names = self._shard_names(manifest, range(0, total, self.shard_rows))
        self.shards: list[dict[str, Any]] = [
            {"name": name, "rows": min(self.shard_rows, total - index * self.shard_rows)}
            for index, name in enumerate(names)
        ]
        self.reused = self.num_new = 0  # pictures whose codes are in earlier shards, and others
        self._earlier = EarlierCodes(self._earlier_shards(), tokenizer) if self.updates else None
        self._rows: CacheRows | None = None
        self._known: dict[int, tuple[np.ndarray, tuple[int, int]]] = {}  # codes and sizes of pictures of a shard
        if decoded is not None or not len(source):
            self.read(source, np.arange(total), lambda pictures: decoded)

    def _can_update(self, manifest: dict[str, Any]) -> bool:
        """Whether a whole cache is of the same data set in another state, and keeps keys of its pictures."""
        before, now = manifest.get("source", {}), self.identity["source"]
        return (
            before != now
            and (before.get("name") == now["name"] or same_path(before.get("name", ""), now["name"]))
            and any((self.folder / shard["name"] / KEYS).is_file() for shard in manifest["shards"])
        )

    def _shard_names(self, manifest: dict[str, Any] | None, starts: Sequence[int]) -> list[str]:
        """Those of the manifest, where it is of the same pictures and texts."""
        if manifest is not None and manifest.get("source") == self.identity["source"]:
            names = [shard["name"] for shard in manifest["shards"]]
            if len(names) == len(starts):
                return names
        suffix = f"-{hashlib.blake2b(self.source.fingerprint.encode(), digest_size=4).hexdigest()}"
        return [f"shard-{index:05d}{suffix if self.updates else ''}" for index in range(len(starts))]

    def _earlier_shards(self) -> Iterator[Path]:
        """Shards of this split and of the others beside it, if their codes belong to the same tokenizer and sizes."""
        for folder in sorted(self.folder.parent.iterdir()):
            manifest = _read_json(folder / MANIFEST)
            if (
                manifest is not None
                and accepts_fingerprint(self.tokenizer, manifest.get("image_tokenizer_fingerprint", ""))
                and manifest.get("image_sizes") == self.identity["image_sizes"]
                and manifest.get("view") == self.identity.get("view")
            ):
                yield from sorted(folder.glob("shard-*"))

    @property
    def decoded_sizes(self) -> list[tuple[int, int]]:
        """(height, width) that pictures are decoded at, for `read`."""
        return list(self.sizes) if self.view is None else self.view.decoded_sizes(self.sizes)

    @property
    def finished(self) -> bool:
        """Whether the whole cache of these pictures and texts is there already.

        Raises:
            ValueError: the folder holds a cache, or the beginning of one, of another tokenizer or data set.
        """
        manifest, partial = self._read(MANIFEST), self._read(PARTIAL)
        if manifest is not None:
            self._check_identity(manifest, may_update=self.updates)
        if partial is not None:
            self._check_identity(partial, may_update=manifest is not None)
        return manifest is not None and manifest.get("source") == self.identity["source"]

    def _read(self, name: str) -> dict[str, Any] | None:
        """PARTIAL or MANIFEST, None if it is not there (any more: another writer may be at work)."""
        return _read_json(self.folder / name)

    def _check_identity(self, built: dict[str, Any], may_update: bool) -> None:
        kinds = {
            "image_tokenizer_fingerprint": "another image tokenizer", "source": "another data set",
            "image_sizes": "other --image_sizes", "shard_rows": "another --shard_rows, or version of tessera",
            "view": "another view of the pictures",
        }  # fmt: skip
        for key, what in kinds.items():
            if key == "image_tokenizer_fingerprint" and accepts_fingerprint(self.tokenizer, built.get(key, "")):
                continue
            if key == "source" and may_update:
                continue
            if built.get(key) != self.identity.get(key):
                raise ValueError(
                    f"the token cache {self.folder} belongs to {what} ({built.get(key)}, not "
                    f"{self.identity.get(key)}): give another --token_cache folder, or delete this one to build it "
                    "again"
                )

    def prepare(self) -> None:
        """Write down what is being built here, before any process writes a shard."""
        with published(self.folder / PARTIAL) as aside:
            aside.write_text(json.dumps(self.identity) + "\n")

    def missing(self, process_index: int = 0, num_processes: int = 1) -> list[int]:
        """Numbers of this process's shards that are not there, or not whole."""
        entries = (self._read(MANIFEST) or {"shards": []})["shards"]
        rows = {shard["name"]: shard["rows"] for shard in entries}
        names = [shard["name"] for shard in self.shards]
        numbers = range(len(names))[process_index::num_processes]
        return [number for number in numbers if damage(self.folder / names[number], rows.get(names[number]))]

    def rows_of(self, shard: int) -> tuple[int, int]:
        """Numbers of a shard's first row in the data set, and of the one behind its last."""
        first = shard * self.shard_rows
        return first, first + self.shards[shard]["rows"]

    def row_batches(self, shard: int, batch_size: int = BATCH_ROWS) -> list[tuple[int, int]]:
        """The rows of a shard that are encoded at once, as `rows_of`."""
        first, end = self.rows_of(shard)
        return [(start, min(start + batch_size, end)) for start in range(first, end, batch_size)]

    def part(self, bounds: Sequence[tuple[int, int]]) -> tuple[PictureDataset, np.ndarray]:
        """Some rows (`rows_of`) as a data set, and their numbers in the whole one."""
        numbers = np.concatenate([np.arange(first, end) for first, end in bounds])
        if len(numbers) == count_rows(self.source):
            return self.source, numbers
        if documents_of(self.source) is not None:
            return self.source.part(numbers), numbers  # type: ignore[attr-defined]
        return SelectedPictures(self.source, numbers), numbers

    def read(
        self, part: PictureDataset, numbers: np.ndarray, decode: Callable[[PictureDataset], ReadPictures | None]
    ) -> None:
        """Decode the pictures of a `part`, for `write`: those that have no codes yet."""
        self._numbers = numbers
        self._keys = picture_keys(part)
        self._coded = np.full(len(part), -1, np.int64)  # number of each picture among the earlier ones
        if self._earlier is not None and self._keys is not None:
            self._coded = self._earlier.find(self._keys)
        is_coded = self._coded >= 0
        self.reused, self.num_new = int(is_coded.sum()), int((~is_coded).sum())
        wanted = np.flatnonzero(~is_coded)
        if self.reused and len(
            wanted
        ):  # with one that can be read: `decode_pictures` refuses pictures of which none can
            wanted = np.union1d(wanted, np.flatnonzero(is_coded)[:1])
        pictures = part
        if len(wanted) < len(part):
            pictures = SelectedPictures(part, wanted)
            pictures.data_set_size = getattr(part, "data_set_size", None)
        self._decoded = decode(pictures) if len(wanted) else None
        self._positions = np.full(len(part), -1, np.int64)  # of each picture, among the decoded ones
        if self._decoded is not None:
            self._positions[wanted[self._decoded.rows]] = np.arange(len(self._decoded))
        self._rows = CacheRows(part, is_coded | (self._positions >= 0), numbers)

    def write(
        self,
        *,
        process_index: int = 0,
        num_processes: int = 1,
        batch_size: int = BATCH_ROWS,
        device: str | torch.device = "cpu",
    ) -> None:
        """Encode this process's shards, with a progress bar."""
        missing = self.missing(process_index, num_processes)
        total = sum(self.shards[number]["rows"] for number in missing)
        with tqdm(total=total, desc="encoding pictures", unit="row", disable=process_index > 0 or not total) as bar:
            for number in missing:
                batches = self.row_batches(number, batch_size)
                documents: list[Document] = []
                for (first, end), part in zip(batches, self.encoded(batches, device), strict=True):
                    documents += part
                    bar.update(end - first)
                self.write_documents(number, documents)

    def encoded(
        self, batches: Sequence[tuple[int, int]], device: str | torch.device = "cpu"
    ) -> Iterator[list[Document]]:
        """Each batch's rows, less those that are left out. A picture that several documents of these batches name is
        encoded once."""
        self._known.clear()
        for first, end in batches:
            yield self._encode(first, end, device)

    def write_documents(self, shard: int, documents: Sequence[Document]) -> None:
        """Write a shard: the rows that `encoded` gives for all of its batches."""
        write_shard(self.folder / self.shards[shard]["name"], documents, code_dtype(self.tokenizer.num_codes))

    def _encode(self, first: int, last: int, device: str | torch.device) -> list[Document]:
        """Rows `first` .. `last` - 1 of the data set, less those that are left out."""
        if self._rows is None:
            raise ValueError("TokenCacheWriter has no pictures: give `decoded`, or call `read`")
        rows = [row for row in (self._rows[number] for number in range(first, last)) if row is not None]
        if documents_of(self.source) is None:
            self._known.clear()
        new = []
        for picture in dict.fromkeys(p for row in rows for p in row.pictures if p not in self._known):
            if self._earlier is not None and self._coded[picture] >= 0:
                self._known[picture] = self._earlier[int(self._coded[picture])]
            else:
                new.append(picture)
        if new and self._decoded is not None:
            decoded, positions = self._decoded, self._positions[new]
            which, dtype = decoded.which[positions], code_dtype(self.tokenizer.num_codes)
            fixed = {row.pictures[0] for row in rows if has_direction(row.texts)} if self.view else set()

            def read(places: np.ndarray) -> np.ndarray:
                pictures = decoded.batch(positions[places])
                if self.view is None:
                    return pictures
                some, size = [new[place] for place in places], self.sizes[int(which[places[0]])]
                return self.view.applied(pictures, self._numbers[some], size, [one in fixed for one in some])

            codes = encode_pictures(self.tokenizer, which, read, self.sizes, device)
            for picture, number, picture_codes in zip(new, which.tolist(), codes, strict=True):
                self._known[picture] = picture_codes.astype(dtype), self.sizes[number]
        return [self._document(row) for row in rows]

    def _document(self, row: CacheRow) -> Document:
        codes = [self._known[picture][0] for picture in row.pictures]
        sizes = [self._known[picture][1] for picture in row.pictures]
        keys = [] if self._keys is None else self._keys[row.pictures].tolist()
        row_codes = codes[0] if len(codes) == 1 else np.concatenate([np.zeros(0, np.uint8), *codes])
        return Document(row_codes, sizes, row.texts, row.order, keys)

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


def remove_replaced(root: Path) -> None:
    """Delete the shards in the caches below `root` that updates have replaced, unless one of them is still being built:
    another process may then read these shards."""
    folders = [folder for folder in root.iterdir() if (folder / MANIFEST).is_file()]
    if any((folder / PARTIAL).exists() for folder in root.iterdir()):
        return
    for folder in folders:
        listed = {shard["name"] for shard in (_read_json(folder / MANIFEST) or {"shards": []})["shards"]}
        for shard in folder.glob("shard-*"):
            if shard.name not in listed and ".part" not in shard.name:
                shutil.rmtree(shard, ignore_errors=True)


def same_path(first: str, second: str) -> bool:
    """Whether two names are the same folder or file on this machine."""
    return Path(first).exists() and Path(second).exists() and Path(first).samefile(second)


def _read_json(file: Path) -> dict[str, Any] | None:
    """The content of a file, None if it is not there."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
