"""Encode a data set's pictures into a token cache, and nothing else: by one process, or by a job array.

    python scripts/cache_tokens.py --dataset photos --image_tokenizer runs/tokenizer --token_cache runs/token_cache
    python scripts/cache_tokens.py ... --shard_index 3 --num_shards 16      # job 3 of 16, on any machine

`train_lm.py --token_cache runs/token_cache` with the same data options then trains without the data set. Each job
reads and encodes a share of the shards; the last to end writes the manifest. A job that was killed, or whose shards
were damaged, is run again and writes what is not whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.machine.processors import usable_cores
from pipelines.options.data import CacheOptions
from pipelines.options.option import option

if TYPE_CHECKING:
    import torch

    from pipelines.caching.views import View
    from pipelines.caching.writer import TokenCacheWriter
    from tokenizer_image.layout import ImageTokenizer
    from tokenizer_image.pictures.loading import PictureDataset


@dataclass
class Options(CacheOptions):
    """Encode pictures."""

    token_cache: str | None = option("runs/token_cache", "folder of the token cache, on a disk that all jobs share")
    splits: list[str] = option(["train", "validation"], "splits of the data set, each a sub-folder of --token_cache")
    shard_index: int = option(0, "number of this job, from 0", not_negative=True)
    num_shards: int = option(1, "number of jobs that share the work", above_zero=True)
    shard_rows: int = option(
        8192, "rows of a shard, the least that a job writes; the same in all jobs", above_zero=True
    )
    device: str | None = option(None, "where pictures are encoded, e.g. cuda:1 (default: a GPU if there is one)")
    cpu_threads: int | None = option(None, "PyTorch's threads (default: all cores)", above_zero=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard_index >= self.num_shards:
            raise ValueError(
                f"--shard_index {self.shard_index} is out of range: with --num_shards {self.num_shards} give 0 to "
                f"{self.num_shards - 1}"
            )
        if not self.token_cache or "://" in self.token_cache:
            raise ValueError(
                f"--token_cache {self.token_cache}: nothing is written to remote addresses; give a folder here, and "
                "upload it when it is whole"
            )


def main(options: Options) -> None:
    """Write this job's shards of each split, and the manifest of those that are then whole."""
    import torch
    import transformers

    from pipelines.caching.opening import check_picture_options
    from pipelines.caching.sources import input_settings_of, open_source
    from pipelines.caching.views import views_of
    from pipelines.caching.writer import remove_replaced
    from pipelines.machine.devices import choose_device
    from tokenizer_image.pictures.dataset import print_summary
    from tokenizer_image.registry import load_tokenizer

    transformers.logging.disable_progress_bar()
    torch.set_num_threads(options.cpu_threads or usable_cores())
    device = choose_device(options.device)
    tokenizer = load_tokenizer(options.image_tokenizer).to(device)
    check_picture_options(options, tokenizer)
    for split in options.splits:
        source = open_source(options, split, input_settings_of(tokenizer))
        print_summary(source)
        views = views_of(options.crops, options.random_flip) if split == "train" else []
        for view in (None, *views):
            write_split(options, tokenizer, source, split, device, view)
    remove_replaced(Path(str(options.token_cache)))


def write_split(
    options: Options,
    tokenizer: ImageTokenizer,
    source: PictureDataset,
    split: str,
    device: torch.device,
    view: View | None,
) -> None:
    """Write this job's shards of one split, of the plain pictures or of a view of them."""
    from lm.data.token_cache import TokenCache, damaged_shards
    from pipelines.caching.opening import cache_name, report_left_out, source_settings
    from pipelines.caching.views import directions_warning
    from pipelines.caching.writer import TokenCacheWriter

    folder = Path(str(options.token_cache)) / cache_name(split, view)
    if view is not None and (warning := directions_warning(source, view)):
        print(warning, flush=True)
    writer = TokenCacheWriter(
        folder, tokenizer, source, settings=source_settings(options, split), sizes=options.picture_sizes(),
        shard_rows=options.shard_rows, view=view,
    )  # fmt: skip
    for problem in damaged_shards(folder).values() if writer.finished else ():
        print(f"{problem}; writing it again", flush=True)
    own_shards = writer.missing(options.shard_index, options.num_shards)
    if own_shards:
        writer.prepare()
        read_shards(options, writer, tokenizer)
        writer.write(process_index=options.shard_index, num_processes=options.num_shards, device=device)
    left = writer.missing()
    if left:
        print(
            f"{folder}: {len(writer.shards) - len(left)} of {len(writer.shards)} shards are there; whichever job ends "
            "last writes the manifest",
            flush=True,
        )
        return
    if own_shards or not writer.finished:
        report_left_out(writer.finish())
    print(f"{folder} is whole: {len(TokenCache(folder)):,} rows", flush=True)


def read_shards(options: Options, writer: TokenCacheWriter, tokenizer: ImageTokenizer) -> None:
    """Decode the pictures of this job's shards: all of them, so that a job that is run again finds them decoded."""
    import numpy as np

    from pipelines.caching.opening import report_update
    from pipelines.caching.sources import input_settings_of, read_pictures

    whole = writer.finished  # then only what is to be repaired
    shards = range(len(writer.shards))[options.shard_index :: options.num_shards]
    part, numbers = writer.part(writer.missing(options.shard_index, options.num_shards) if whole else list(shards))
    settings = input_settings_of(tokenizer)
    sizes = writer.decoded_sizes
    writer.read(part, np.asarray(numbers), lambda pictures: read_pictures(options, pictures, settings, sizes))
    if writer.updates:
        report_update(writer)


if __name__ == "__main__":
    from pipelines.options.parser import run_command

    run_command(main, Options, "Encode a data set's pictures into a token cache.")
