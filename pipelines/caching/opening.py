"""The token cache of a split for training: opened where it is whole, built or repaired where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from lm.data.remote import is_remote, joined
from lm.data.token_cache import MANIFEST, TokenCache, damaged_shards
from pipelines.caching.encoder import check_sizes
from pipelines.caching.sources import load_source, read_pictures
from pipelines.caching.writer import TokenCacheWriter
from pipelines.machine.printing import say
from pipelines.options.data import CacheOptions
from tokenizer_image.fingerprint import accepts_fingerprint
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.pictures.dataset import print_summary
from tokenizer_image.preprocessing import preprocessing_of


def open_cache(
    options: CacheOptions,
    tokenizer: ImageTokenizer,
    split: str,
    accelerator: Accelerator,
    *,
    root: str | Path,
    need_captions: bool = False,
) -> TokenCache:
    """The token cache of one split, `root`/`split`, built or repaired if it is not whole. A whole cache needs no data
    set.

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
    if not accepts_fingerprint(tokenizer, cache.fingerprint):
        cache.check_fingerprint(tokenizer.fingerprint)
    _check_settings(cache, source_settings(options, split))
    _check_image_sizes(cache, check_sizes(tokenizer, options.picture_sizes()))
    if need_captions and not cache.has_texts:
        raise ValueError(f"the token cache {folder} has no captions: train without by --unconditional")
    return cache


def source_settings(options: CacheOptions, split: str) -> dict[str, Any]:
    """The options, by name, that decide which pictures the cache of a split holds."""
    names = ("dataset", "image_column", "caption_column", *(["max_examples"] if split == "train" else []))
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
    accelerator.wait_for_everyone()  # every process has read the folder before any changes it
    if whole and not damaged:
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


def _build_writer(
    options: CacheOptions,
    tokenizer: ImageTokenizer,
    split: str,
    accelerator: Accelerator,
    folder: Path,
    need_captions: bool,
) -> TokenCacheWriter:
    """The writer of one split, with its pictures, which the main process decodes first."""
    settings = preprocessing_of(tokenizer)
    source = load_source(options, split, image_size=settings.image_size, need_captions=need_captions)
    if accelerator.is_main_process:
        print_summary(source)
    sizes = check_sizes(tokenizer, options.picture_sizes())
    decoded = None
    if len(source):
        with accelerator.main_process_first():
            decoded = read_pictures(options, source, settings, sizes, progress=accelerator.is_main_process)
    return TokenCacheWriter(folder, tokenizer, source, decoded, source_settings(options, split), sizes)


def _check_settings(cache: TokenCache, settings: dict[str, Any]) -> None:
    """Raise ValueError unless a whole cache was built with these options.

    Reads the manifest alone, so that a cache can be used where its data set is absent. A cache whose manifest has no
    settings is accepted.
    """
    built = cache.manifest.get("settings", {})
    for name, value in settings.items():
        if name in built and built[name] != value and not (name == "dataset" and _same_path(built[name], value)):
            raise ValueError(
                f"the token cache {cache.folder} was built from --{name} {built[name]}, not {value}: give the same, "
                "another --token_cache folder, or delete this one to build it again"
            )


def _check_image_sizes(cache: TokenCache, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise ValueError unless a cache's pictures were encoded at these sizes."""
    built = [tuple(size) for size in cache.manifest.get("image_sizes", sizes)]
    if built != list(sizes):
        words = [" ".join(f"{height}x{width}" for height, width in each) for each in (built, sizes)]
        raise ValueError(
            f"the token cache {cache.folder} was built with --image_sizes {words[0]}, not {words[1]}: give the same, "
            "another --token_cache folder, or delete this one to build it again"
        )


def _same_path(first: str, second: str) -> bool:
    return Path(first).exists() and Path(second).exists() and Path(first).samefile(second)
