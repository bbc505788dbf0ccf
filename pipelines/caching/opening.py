"""The token cache of a split for training: opened where it is whole, built or repaired where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from lm.data.remote import is_remote, joined
from lm.data.token_cache import MANIFEST, TokenCache, check_fingerprint, damaged_shards, read_manifest
from pipelines.caching.encoder import check_sizes
from pipelines.caching.rows import count_rows
from pipelines.caching.sources import load_source, read_pictures
from pipelines.caching.writer import TokenCacheWriter, remove_replaced, same_path
from pipelines.machine.printing import say
from pipelines.options.data import CacheOptions
from tokenizer_image.fingerprint import accepts_fingerprint
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.pictures.dataset import print_summary
from tokenizer_image.pictures.loading import DecodedPictures, PictureDataset
from tokenizer_image.preprocessing import preprocessing_of


def open_caches(
    options: CacheOptions,
    tokenizer: ImageTokenizer,
    accelerator: Accelerator,
    *,
    root: str | Path,
    need_captions: bool = False,
) -> tuple[TokenCache, TokenCache]:
    """The token caches of training and validation (`open_cache`)."""
    train = open_cache(options, tokenizer, "train", accelerator, root=root, need_captions=need_captions)
    validation = open_cache(options, tokenizer, "validation", accelerator, root=root)
    if not is_remote(root) and accelerator.is_main_process:
        remove_replaced(Path(root))  # not before: a picture may have moved to the other split
    return train, validation


def open_cache(
    options: CacheOptions,
    tokenizer: ImageTokenizer,
    split: str,
    accelerator: Accelerator,
    *,
    root: str | Path,
    need_captions: bool = False,
) -> TokenCache:
    """The token cache of one split, `root`/`split`: built if there is none, repaired if it is damaged, and updated if
    the data set is a folder here that has changed. A whole cache is used without its data set.

    Args:
        root: a folder, or an fsspec address of a whole cache.
        need_captions: refuse a data set without captions.

    Raises:
        ValueError: the cache belongs to another image tokenizer, other data options or other sizes, has no captions
            where they are needed, or cannot be built.
    """
    folder = joined(root, split)
    if not is_remote(folder):
        _build(options, tokenizer, split, accelerator, Path(folder), need_captions)
    cache = TokenCache(folder)
    _check_manifest(cache.manifest, folder, options, tokenizer, split)
    if need_captions and not cache.has_texts:
        raise ValueError(f"the token cache {folder} has no captions: train without by --unconditional")
    return cache


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


def _build(
    options: CacheOptions,
    tokenizer: ImageTokenizer,
    split: str,
    accelerator: Accelerator,
    folder: Path,
    need_captions: bool,
) -> None:
    """Write the shards that a token cache lacks, each process its share."""
    whole = (folder / MANIFEST).is_file()
    damaged = damaged_shards(folder) if whole else {}
    if whole:
        _check_manifest(read_manifest(folder), folder, options, tokenizer, split)
    changed = whole and _has_changed(options, tokenizer, split, accelerator, folder)
    accelerator.wait_for_everyone()  # every process has read the folder before any changes it
    if whole and not damaged and not changed:
        return
    for problem in damaged.values():
        say(accelerator, f"token cache: {problem}; writing it again")
    try:
        writer = _build_writer(options, tokenizer, split, accelerator, folder, need_captions)
        _ = writer.finished  # raises where the folder holds another cache
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
        report_left_out(writer.finish())
    accelerator.wait_for_everyone()


def _has_changed(
    options: CacheOptions, tokenizer: ImageTokenizer, split: str, accelerator: Accelerator, folder: Path
) -> bool:
    """Whether the data set of a whole cache is a folder here with other pictures or texts than the cache has, and the
    cache can be updated; where it cannot, that is printed. The same in all processes."""
    changed = False
    if accelerator.is_main_process and Path(options.dataset).expanduser().exists() and options.dataset != "sprites":
        before = read_manifest(folder).get("source")
        try:
            source = load_source(options, split, image_size=preprocessing_of(tokenizer).image_size)
        except ValueError as error:
            say(accelerator, f"token cache {folder}: used as it is, since its data set cannot be read ({error})")
        else:
            changed = before is not None and before["fingerprint"] != source.fingerprint
            if changed and not TokenCacheWriter(folder, tokenizer, source, sizes=options.picture_sizes()).updates:
                say(
                    accelerator,
                    f"WARNING: {source.name} has changed since the token cache {folder} was built, which is used as it "
                    "is, since it does not keep which pictures its codes belong to: delete it to build it again",
                )
                changed = False
    return bool(broadcast_object_list([changed])[0])


def _build_writer(
    options: CacheOptions,
    tokenizer: ImageTokenizer,
    split: str,
    accelerator: Accelerator,
    folder: Path,
    need_captions: bool,
) -> TokenCacheWriter:
    """The writer of one split, with the pictures that it encodes. Decoded pictures lie on each machine's own disk, so
    that a machine's first process decodes them."""
    settings = preprocessing_of(tokenizer)
    source = load_source(options, split, image_size=settings.image_size, need_captions=need_captions)
    if accelerator.is_main_process:
        print_summary(source)
    writer = TokenCacheWriter(
        folder, tokenizer, source, settings=source_settings(options, split), sizes=options.picture_sizes()
    )

    def decode(pictures: PictureDataset) -> DecodedPictures:
        with accelerator.local_main_process_first():
            return read_pictures(options, pictures, settings, writer.sizes, progress=accelerator.is_main_process)

    writer.read(source, np.arange(count_rows(source)), decode)
    if writer.updates and accelerator.is_main_process:
        report_update(writer)
    return writer


def report_update(writer: TokenCacheWriter) -> None:
    """Print how a cache is brought to the state of its data set."""
    tqdm.write(
        f"{writer.source.name} has changed since the token cache {writer.folder} was built: {writer.reused:,} pictures "
        f"keep their codes, {writer.num_new:,} are encoded; all texts are read again"
    )


def _check_manifest(
    manifest: dict[str, Any], folder: str | Path, options: CacheOptions, tokenizer: ImageTokenizer, split: str
) -> None:
    """Raise ValueError unless a whole cache belongs to the tokenizer, the data options and the sizes."""
    if not accepts_fingerprint(tokenizer, manifest["image_tokenizer_fingerprint"]):
        check_fingerprint(manifest, folder, tokenizer.fingerprint)
    _check_settings(manifest, folder, source_settings(options, split))
    _check_image_sizes(manifest, folder, check_sizes(tokenizer, options.picture_sizes()))


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
