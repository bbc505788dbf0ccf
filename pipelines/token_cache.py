"""Picture data set to token cache: every picture is encoded once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from lm.cache import MANIFEST, Document, TokenCache, code_dtype, write_manifest, write_shard
from pipelines.run import write_text
from pipelines.training import load_split
from tokenizer_image.data import DecodedPictures, PictureDataset
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.preprocessing import Preprocessing, to_pixel_values

PARTIAL = "building.json"  # whose shards these are, until the manifest says so
SHARD_ROWS = 8192


class TokenCacheWriter:
    """Writes a token cache; any number of processes may share the work, each writing whole shards of its own.

    Whatever was whole when a build was interrupted is used again.

    Args:
        folder: where the cache goes.
        tokenizer: the image tokenizer, in eval mode.
        source: captions and labels.
        decoded: the source's pictures.
        settings: the options that chose them, by name, kept in the manifest for `check_settings`.

    Raises:
        ValueError: the folder holds a cache (or the beginning of one) of another tokenizer or data set.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: ImageTokenizer,
        source: PictureDataset,
        decoded: DecodedPictures,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.tokenizer = tokenizer
        self.source = source
        self.decoded = decoded
        self.settings = settings or {}
        self.shards: list[dict[str, Any]] = [
            {"name": f"shard-{index:05d}", "rows": min(SHARD_ROWS, len(decoded) - start)}
            for index, start in enumerate(range(0, len(decoded), SHARD_ROWS))
        ]
        self.identity: dict[str, Any] = {
            "image_tokenizer_fingerprint": tokenizer.fingerprint,
            "source": {"name": source.name, "fingerprint": source.fingerprint, "rows": len(decoded)},
        }

    @property
    def finished(self) -> bool:
        """Whether the whole cache is there already.

        Raises:
            ValueError: it is, but of another tokenizer or data set.
        """
        for name in (MANIFEST, PARTIAL):
            file = self.folder / name
            if file.is_file():
                self._check_identity(json.loads(file.read_text()))
        return (self.folder / MANIFEST).is_file()

    def _check_identity(self, found: dict[str, Any]) -> None:
        for key, what in (("image_tokenizer_fingerprint", "image tokenizer"), ("source", "data set")):
            if found.get(key) != self.identity[key]:
                raise ValueError(
                    f"the token cache {self.folder} belongs to another {what} ({found.get(key)}, not "
                    f"{self.identity[key]}): give another --token_cache folder, or delete this one to build it again"
                )

    def prepare(self) -> None:
        """Say what is being built here, before any process writes a shard. For the main process alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / PARTIAL, json.dumps(self.identity) + "\n")

    def write(
        self,
        *,
        process_index: int = 0,
        num_processes: int = 1,
        batch_size: int = 256,
        device: str | torch.device = "cpu",
    ) -> None:
        """Encode this process's shards, with a progress bar."""
        mine = list(enumerate(self.shards))[process_index::num_processes]
        missing = [(index, shard) for index, shard in mine if not (self.folder / shard["name"]).is_dir()]
        total = sum(shard["rows"] for _, shard in missing)
        with tqdm(total=total, desc="encoding pictures", unit="image", disable=process_index > 0 or not total) as bar:
            for index, shard in missing:
                start = index * SHARD_ROWS
                documents: list[Document] = []
                for first in range(start, start + shard["rows"], batch_size):
                    last = min(first + batch_size, start + shard["rows"])
                    documents += self._encode(first, last, device)
                    bar.update(last - first)
                write_shard(self.folder / shard["name"], documents, code_dtype(self.tokenizer.num_codes))

    @torch.inference_mode()
    def _encode(self, first: int, last: int, device: str | torch.device) -> list[Document]:
        pixel_values = to_pixel_values(self.decoded.batch(range(first, last))).to(device)
        codes = self.tokenizer.encode(pixel_values).cpu().numpy()
        size = (int(pixel_values.shape[2]), int(pixel_values.shape[3]))
        rows = [int(row) for row in self.decoded.rows[first:last]]
        return [
            Document(codes[i], [size], self.source.texts(row), label=self.source.label(row))
            for i, row in enumerate(rows)
        ]

    def finish(self) -> TokenCache:
        """Write the manifest, once every process has written its shards. For the main process alone."""
        missing = [shard["name"] for shard in self.shards if not (self.folder / shard["name"]).is_dir()]
        if missing:
            raise ValueError(
                f"token cache {self.folder}: shards {', '.join(missing)} are missing; run the command again"
            )
        write_manifest(
            self.folder,
            {
                **self.identity,
                "settings": self.settings,
                "num_codes": self.tokenizer.num_codes,
                "shards": self.shards,
            },
        )
        (self.folder / PARTIAL).unlink(missing_ok=True)
        return TokenCache(self.folder)


def open_cache(options: Any, tokenizer: Any, split: str, accelerator: Accelerator) -> TokenCache:
    """The token cache of one split, built if it is not there yet. A whole cache needs no data set."""
    folder = Path(options.token_cache or Path(options.output_dir) / "token_cache") / split
    if not (folder / MANIFEST).is_file():
        writer = build_writer(options, tokenizer, split, folder, accelerator)
        if not writer.finished:
            if accelerator.is_main_process:
                writer.prepare()
            accelerator.wait_for_everyone()
            writer.write(
                process_index=accelerator.process_index, num_processes=accelerator.num_processes,
                device=accelerator.device,
            )  # fmt: skip
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                writer.finish()
            accelerator.wait_for_everyone()
    cache = TokenCache(folder)
    cache.check_fingerprint(tokenizer.fingerprint)
    check_settings(cache, source_settings(options, split))
    if split == "train" and options.needs_captions and next(iter(cache.all_texts()), None) is None:
        raise ValueError(f"the token cache {folder} has no captions: train without by --unconditional")
    return cache


def source_settings(options: Any, split: str) -> dict[str, Any]:
    """Which pictures a split's cache holds, by option."""
    names = ("dataset", "image_column", "caption_column", *(["max_examples"] if split == "train" else []))
    return {name: getattr(options, name) for name in names}


def build_writer(options: Any, tokenizer: Any, split: str, folder: Path, accelerator: Accelerator) -> Any:
    """What encodes one split of the data set."""
    settings = Preprocessing.from_dict(tokenizer.config.preprocessing)
    captions = split == "train" and options.needs_captions
    source, decoded = load_split(options, settings, split, accelerator, need_captions=captions)
    return TokenCacheWriter(folder, tokenizer, source, decoded, source_settings(options, split))


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


def _same_place(first: str, second: str) -> bool:
    return Path(first).exists() and Path(second).exists() and Path(first).samefile(second)
