"""The token cache of a split for training: opened where it is whole, built or repaired where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from tqdm.auto import tqdm

from lm.data.remote import is_remote, joined
from lm.data.token_cache import MANIFEST, TokenCache, check_fingerprint, damaged_shards, read_manifest
from pipelines.caching.encoder import check_sizes
from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.caching.rows import count_rows
from pipelines.caching.sources import input_settings_of, open_source, read_pictures
from pipelines.caching.views import View, directions_warning, views_of
from pipelines.caching.writer import TokenCacheWriter, remove_replaced, same_path
from pipelines.machine.printing import say
from pipelines.machine.processes import all_see, from_all, from_main
from pipelines.model_folder import model_origin
from pipelines.options.data import CacheOptions
from pipelines.options.option import given_options
from tokenizer_image.fingerprint import accepts_fingerprint
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.pictures.dataset import PictureSource, print_summary
from tokenizer_image.pictures.loading import BUILT_IN, PictureDataset, check_captions
from tokenizer_image.signals.settings import signal_settings_of


def open_caches(
    options: CacheOptions,
    tokenizer: ImageTokenizer,
    accelerator: Accelerator,
    *,
    root: str | Path,
    need_captions: bool = False,
) -> tuple[TokenCache, TokenCache, list[TokenCache]]:
    """The token caches of training and validation, `root`/train and `root`/validation, and those of further views of
    the training pictures: built if there is none, repaired if it is damaged, and updated if the data set is a folder
    here that has changed. A whole cache is used without its data set.

    Args:
        root: a folder, or an fsspec address of whole caches.
        need_captions: refuse training pictures without captions.

    Raises:
        ValueError: a cache belongs to another image tokenizer, other data options or other sizes, has no captions where
            they are needed, or cannot be built; options of pictures with a tokenizer of signals.
    """
    check_picture_options(options, tokenizer)
    say(accelerator, f"image tokenizer: {model_origin(options.image_tokenizer)}")
    plain = CacheOfSplit(options, tokenizer, accelerator, "train", str(root), need_captions)
    train = plain.open()
    validation = CacheOfSplit(options, tokenizer, accelerator, "validation", str(root)).open()
    views = [
        CacheOfSplit(options, tokenizer, accelerator, "train", str(root), view=view, plain=plain).open()
        for view in views_of(options.crops, options.random_flip)
    ]
    if not is_remote(root) and accelerator.is_main_process:
        remove_replaced(Path(root))  # not before: a picture may have moved to the other split
    return train, validation, views


def check_picture_options(options: CacheOptions, tokenizer: ImageTokenizer) -> None:
    """Raise ValueError for options of pictures with a tokenizer of signals."""
    given = given_options(options, ("image_sizes", "crops", "random_flip", "image_column", "max_image_pixels"))
    if given and signal_settings_of(tokenizer):
        raise ValueError(f"{', '.join(given)} concern pictures, and {options.image_tokenizer} has codes of signals")


@dataclass(frozen=True)
class CacheOfSplit:
    """The token cache of one split, and what it is made of. Every process opens it with the same values.

    Attributes:
        view: None for the plain pictures.
        plain: of a view, the cache of the plain pictures, whose source is read once for all.
    """

    options: CacheOptions
    tokenizer: ImageTokenizer
    accelerator: Accelerator
    split: str
    root: str
    need_captions: bool = False
    view: View | None = None
    plain: CacheOfSplit | None = None

    @property
    def folder(self) -> str | Path:
        """The cache's folder, or its address."""
        return joined(self.root, cache_name(self.split, self.view))

    @cached_property
    def source(self) -> PictureDataset:
        """The split's pictures and captions. Raises ValueError where they cannot be read."""
        if self.plain is not None:
            return self.plain.source
        return open_source(self.options, self.split, input_settings_of(self.tokenizer))

    def open(self) -> TokenCache:
        """The whole cache (`open_caches`)."""
        if not is_remote(self.folder):
            self._make_whole()
        cache = TokenCache(self.folder)
        self._check(cache.manifest)
        if self.need_captions and not cache.has_texts:
            raise ValueError(f"the token cache {self.folder} has no captions: train without by --unconditional")
        return cache

    def _check(self, manifest: dict[str, Any]) -> None:
        """Raise ValueError unless a whole cache belongs to the tokenizer, the data options and the sizes."""
        if not accepts_fingerprint(self.tokenizer, manifest["image_tokenizer_fingerprint"]):
            check_fingerprint(manifest, self.folder, self.tokenizer.fingerprint)
        _check_settings(manifest, self.folder, source_settings(self.options, self.split))
        _check_image_sizes(manifest, self.folder, check_sizes(self.tokenizer, self.options.picture_sizes()))

    def _make_whole(self) -> None:
        """Write the shards that the cache lacks, each process its share."""
        whole = (Path(self.folder) / MANIFEST).is_file()
        damaged = damaged_shards(Path(self.folder)) if whole else {}
        if whole:
            self._check(read_manifest(Path(self.folder)))
        changed = from_main(whole and self.accelerator.is_main_process and self._has_changed())
        is_ready = from_all(self.accelerator, whole and not damaged and not changed)
        if all(is_ready):  # every process has read the folder before any changes it
            self._check_copies()
            return
        self._check_shared(is_ready)
        for problem in damaged.values():
            say(self.accelerator, f"token cache: {problem}; writing it again")
        try:
            writer = self._writer()
            _ = writer.finished  # raises where the folder holds another cache
        except ValueError as error:
            if damaged:
                problems = "; ".join(damaged.values())
                raise ValueError(f"token cache: {problems}; and cannot be repaired: {error}") from error
            raise
        self._write(writer)

    def _check_copies(self) -> None:
        """Raise ValueError, in all processes, unless whole caches on several nodes have the same rows."""
        manifest = read_manifest(Path(self.folder))
        found = from_all(self.accelerator, [manifest["image_tokenizer_fingerprint"], manifest["shards"]])
        if any(other != found[0] for other in found):
            raise ValueError(
                f"the token cache {self.folder} has other rows on one node than on another: copy that of one node to "
                "all, or give one --token_cache that they share"
            )

    def _check_shared(self, is_ready: Sequence[bool]) -> None:
        """Raise ValueError, in all processes, where a cache is to be written into a folder that not all of them see."""
        if not all_see(Path(self.folder), self.accelerator):
            where = "is whole on some nodes alone" if any(is_ready) else "is to be built"
            raise ValueError(
                f"the token cache {self.folder} {where}, and the nodes do not share this folder: give a --token_cache "
                "that they share, or encode first by scripts/cache_tokens.py and copy the whole cache to each node"
            )

    def _write(self, writer: TokenCacheWriter) -> None:
        process = self.accelerator
        if process.is_main_process:
            writer.prepare()
        process.wait_for_everyone()
        writer.write(process_index=process.process_index, num_processes=process.num_processes, device=process.device)
        process.wait_for_everyone()
        if process.is_main_process:
            report_left_out(writer.finish())
        process.wait_for_everyone()

    def _has_changed(self) -> bool:
        """Whether the data set of a whole cache is a folder here with other pictures or texts than the cache has, and
        the cache can be updated; where it cannot, that is printed."""
        here = self.options.dataset not in BUILT_IN and Path(self.options.dataset).expanduser().exists()
        return here and self._differs()

    def _differs(self) -> bool:
        before = read_manifest(Path(self.folder)).get("source")
        try:
            fingerprint, name = self.source.fingerprint, self.source.name
        except ValueError as error:
            say(self.accelerator, f"token cache {self.folder}: used as it is: its data set cannot be read ({error})")
            return False
        if before is None or before["fingerprint"] == fingerprint:
            return False
        writer = TokenCacheWriter(
            self.folder, self.tokenizer, self.source, sizes=self.options.picture_sizes(), view=self.view
        )
        if not writer.updates:
            say(
                self.accelerator,
                f"WARNING: {name} has changed since the token cache {self.folder} was built, which is used as it is, "
                "since it does not keep which pictures its codes belong to: delete it to build it again",
            )
        return writer.updates

    def _writer(self) -> TokenCacheWriter:
        """The writer of the cache, with the pictures that it encodes. Decoded pictures lie on each machine's own disk,
        so that a machine's first process decodes them."""
        is_main = self.accelerator.is_main_process
        if self.need_captions and isinstance(self.source, PictureSource):  # sprites have captions
            check_captions(self.source, self.options.caption_column)
        if is_main and self.view is None:
            print_summary(self.source)
        if is_main and self.view is not None and (warning := directions_warning(self.source, self.view)):
            tqdm.write(warning)
        writer = TokenCacheWriter(
            self.folder, self.tokenizer, self.source, settings=source_settings(self.options, self.split),
            sizes=self.options.picture_sizes(), view=self.view,
        )  # fmt: skip

        def decode(pictures: PictureDataset) -> DecodedPictures:
            settings = input_settings_of(self.tokenizer)
            with self.accelerator.local_main_process_first():
                return read_pictures(self.options, pictures, settings, writer.decoded_sizes, progress=is_main)

        writer.read(self.source, np.arange(count_rows(self.source)), decode)
        if writer.updates and is_main:
            report_update(writer)
        return writer


def cache_name(split: str, view: View | None) -> str:
    """Name of a token cache's folder."""
    return split if view is None else f"{split}-{view.name}"


def source_settings(options: CacheOptions, split: str) -> dict[str, Any]:
    """The options, by name, that decide which pictures the cache of a split holds."""
    names = ["dataset", "image_column", "caption_column"]
    if split == "train":
        names += ["max_examples"] if options.max_examples is None else ["max_examples", "seed"]
    return {name: getattr(options, name) for name in names}


def report_left_out(cache: TokenCache) -> None:
    """Print how many rows of the data set a new cache leaves out."""
    left_out, name = cache.manifest["rows_left_out"], cache.manifest["source"]["name"]
    if left_out:
        total = f"{left_out + len(cache):,} rows"
        print(f"{name}: {left_out:,} of {total} have a picture that cannot be read and are left out", flush=True)


def report_update(writer: TokenCacheWriter) -> None:
    """Print how a cache is brought to the state of its data set."""
    tqdm.write(
        f"{writer.source.name} has changed since the token cache {writer.folder} was built: {writer.reused:,} pictures "
        f"keep their codes, {writer.num_new:,} are encoded; all texts are read again"
    )


def _check_settings(manifest: dict[str, Any], folder: str | Path, settings: dict[str, Any]) -> None:
    """Raise ValueError unless a whole cache was built with these options.

    Reads the manifest alone, so that a cache can be used where its data set is absent. A cache whose manifest has no
    settings is accepted.
    """
    built = manifest.get("settings", {})
    for name, value in settings.items():
        if name in built and built[name] != value and not (name == "dataset" and same_path(built[name], value)):
            raise ValueError(
                f"the token cache {folder} was built from --{name} {built[name]}, not {value}: give the same, "
                "another --token_cache folder, or delete this one to build it again"
            )


def _check_image_sizes(manifest: dict[str, Any], folder: str | Path, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise ValueError unless a cache's pictures were encoded at these sizes."""
    built = [tuple(size) for size in manifest.get("image_sizes", sizes)]
    if built != list(sizes):
        words = [" ".join(f"{height}x{width}" for height, width in each) for each in (built, sizes)]
        raise ValueError(
            f"the token cache {folder} was built with --image_sizes {words[0]}, not {words[1]}: give the same, "
            "another --token_cache folder, or delete this one to build it again"
        )
