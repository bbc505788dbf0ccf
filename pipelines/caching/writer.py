"""Picture data set to token cache: every picture is encoded once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from lm.data.remote import is_remote, joined
from lm.data.shards import Shard, aside_of, damage, remove_abandoned
from lm.data.token_cache import MANIFEST, Document, TokenCache, code_dtype, damaged_shards, write_manifest, write_shard
from pipelines.caching.encoder import check_sizes, encode_pictures
from pipelines.caching.rows import CacheRow, CacheRows, count_rows
from pipelines.training import start as training
from tokenizer_image.fingerprint import accepts_fingerprint
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.pictures.dataset import PictureSource, print_summary
from tokenizer_image.pictures.documents import DocumentPictures
from tokenizer_image.pictures.loading import DecodedPictures, PictureDataset, SelectedPictures
from tokenizer_image.preprocessing import preprocessing_of

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
        source: captions and labels, or documents.
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
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.folder)
        aside = aside_of(self.folder / PARTIAL)
        aside.write_text(json.dumps(self.identity) + "\n")
        os.replace(aside, self.folder / PARTIAL)

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
        return Document(row_codes, sizes, row.texts, row.order, row.label)

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


def open_cache(options: Any, tokenizer: Any, split: str, accelerator: Accelerator) -> TokenCache:
    """The token cache of one split, built or repaired if it is not whole. A whole cache needs no data set."""
    root = options.token_cache or Path(options.output_dir) / "token_cache"
    folder = joined(root, split)
    if not is_remote(folder):
        _build(options, tokenizer, split, Path(folder), accelerator)
    cache = TokenCache(folder)
    if not accepts_fingerprint(tokenizer, cache.fingerprint):
        cache.check_fingerprint(tokenizer.fingerprint)
    check_settings(cache, source_settings(options, split))
    check_image_sizes(cache, check_sizes(tokenizer, options.picture_sizes()))
    if split == "train" and options.needs_captions and not cache.has_texts:
        raise ValueError(f"the token cache {folder} has no captions: train without by --unconditional")
    return cache


def _build(options: Any, tokenizer: Any, split: str, folder: Path, accelerator: Accelerator) -> None:
    """Write what is missing of a token cache, by all processes of this launch."""
    whole = (folder / MANIFEST).is_file()
    damaged = damaged_shards(folder) if whole else {}
    accelerator.wait_for_everyone()  # all have looked before anything changes
    if whole and not damaged:
        return
    for problem in damaged.values():
        training.say(accelerator, f"token cache: {problem}; writing it again")
    try:
        writer = build_writer(options, tokenizer, split, folder, accelerator)
        _ = writer.finished  # raises where the folder is another's
    except ValueError as error:
        if damaged:
            raise ValueError(f"token cache: {'; '.join(damaged.values())}; and cannot be repaired: {error}") from error
        raise
    if accelerator.is_main_process:
        writer.prepare()
    accelerator.wait_for_everyone()
    writer.write(
        process_index=accelerator.process_index, num_processes=accelerator.num_processes, device=accelerator.device
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        tell_left_out(writer.finish())
    accelerator.wait_for_everyone()


def tell_left_out(cache: TokenCache) -> None:
    """Say how many rows a new cache does without."""
    left_out, name = cache.manifest["rows_left_out"], cache.manifest["source"]["name"]
    if left_out:
        total = f"{left_out + len(cache):,} rows"
        print(f"{name}: {left_out:,} of {total} have a picture that cannot be read and are left out", flush=True)


def source_settings(options: Any, split: str) -> dict[str, Any]:
    """Which pictures a split's cache holds, by option."""
    names = ("dataset", "image_column", "caption_column", *(["max_examples"] if split == "train" else []))
    return {name: getattr(options, name) for name in names}


def build_writer(options: Any, tokenizer: Any, split: str, folder: Path, accelerator: Accelerator) -> TokenCacheWriter:
    """What encodes one split of the data set, whose pictures the main process reads first."""
    captions = split == "train" and options.needs_captions
    settings = preprocessing_of(tokenizer)
    source = training.load_source(options, split, image_size=settings.image_size, need_captions=captions)
    if accelerator.is_main_process:
        print_summary(source)
    sizes = check_sizes(tokenizer, options.picture_sizes())
    decoded = None
    if len(source):
        with accelerator.main_process_first():
            decoded = training.read_pictures(options, source, settings, sizes, progress=accelerator.is_main_process)
    return TokenCacheWriter(folder, tokenizer, source, decoded, source_settings(options, split), sizes)


def check_settings(cache: TokenCache, settings: dict[str, Any]) -> None:
    """Raise ValueError unless a whole cache was built with these options. Needs no data set, so that a cache can be
    used where its data set is not; a cache that does not say how it was built is taken as it is."""
    built = cache.manifest.get("settings", {})
    for name, value in settings.items():
        if name in built and built[name] != value and not (name == "dataset" and _same_place(built[name], value)):
            raise ValueError(
                f"the token cache {cache.folder} was built from --{name} {built[name]}, not {value}: give the same, "
                "another --token_cache folder, or delete this one to build it again"
            )


def check_image_sizes(cache: TokenCache, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise ValueError unless a cache's pictures were encoded at these sizes."""
    built = [tuple(size) for size in cache.manifest.get("image_sizes", sizes)]
    if built != list(sizes):
        words = [" ".join(f"{height}x{width}" for height, width in each) for each in (built, sizes)]
        raise ValueError(
            f"the token cache {cache.folder} was built with --image_sizes {words[0]}, not {words[1]}: give the same, "
            "another --token_cache folder, or delete this one to build it again"
        )


def _same_place(first: str, second: str) -> bool:
    return Path(first).exists() and Path(second).exists() and Path(first).samefile(second)
