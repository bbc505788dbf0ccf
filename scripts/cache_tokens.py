"""Encode a data set's pictures into a token cache, and nothing else: by one process, a job array, or a Ray cluster.

    python scripts/cache_tokens.py --dataset photos --image_tokenizer runs/tokenizer --token_cache runs/token_cache
    python scripts/cache_tokens.py ... --shard_index 3 --num_shards 16      # job 3 of 16, on any machine
    python scripts/cache_tokens.py ... --engine ray --ray_address 10.0.0.1:6379      # on the cluster that runs there

`train_lm.py --token_cache runs/token_cache` with the same data options then trains without the data set. Each job
reads and encodes a share of the shards; the last to end writes the manifest. A job that was killed, or whose shards
were damaged, is run again and writes what is not whole. With `--engine ray` the workers of the cluster read and encode,
and this process writes; the cache is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.machine.processors import usable_cores
from pipelines.machine.ray_cluster import check_ray
from pipelines.model_folder import model_origin
from pipelines.options.data import CacheOptions
from pipelines.options.option import option

if TYPE_CHECKING:
    from pipelines.caching.ray_engine import CacheToWrite
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
    cpu_threads: int | None = option(
        None, "PyTorch's threads (default: all cores; of a worker of Ray, its --ray_cores)", above_zero=True
    )
    engine: str = option("process", "who encodes: 'process' (this one), or the workers of a 'ray' cluster",
                         choices=("process", "ray"))  # fmt: skip
    ray_address: str | None = option(
        None, "--engine ray: a cluster that runs, e.g. 10.0.0.1:6379 or auto (default: one of this machine's cores)"
    )
    ray_workers: int | None = option(
        None, "--engine ray: number of workers (default: as many as there is room for)", above_zero=True
    )
    ray_cores: int = option(1, "--engine ray: cores of a worker", above_zero=True)
    ray_gpus: float = option(0.0, "--engine ray: GPUs of a worker, e.g. 0.5 (0: it encodes on the CPU)",
                             not_negative=True)  # fmt: skip

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
        if self.engine == "ray":
            self._check_ray()
            return
        for name in ("ray_address", "ray_workers"):
            if getattr(self, name) is not None:
                raise ValueError(f"--{name} {getattr(self, name)} is for --engine ray")

    def _check_ray(self) -> None:
        check_ray()
        if self.num_shards > 1:
            raise ValueError(
                f"--num_shards {self.num_shards} is for job arrays: --engine ray shares the work by itself"
            )
        if self.device is not None and self.device != "cpu" and not self.ray_gpus:
            raise ValueError(
                f"--device {self.device} with --engine ray: say how much of a GPU a worker gets, --ray_gpus 1"
            )


def main(options: Options) -> None:
    """Write this job's shards of each split, and the manifest of those that are then whole."""
    import torch
    import transformers

    from pipelines.caching.opening import check_picture_options
    from pipelines.caching.ray_engine import CacheToWrite
    from pipelines.caching.sources import input_settings_of, open_source
    from pipelines.caching.views import views_of
    from pipelines.caching.writer import remove_replaced
    from pipelines.machine.devices import choose_device
    from tokenizer_image.pictures.dataset import print_summary
    from tokenizer_image.registry import load_tokenizer
    from tokenizer_image.signals.settings import signal_settings_of

    transformers.logging.disable_progress_bar()
    torch.set_num_threads(options.cpu_threads or usable_cores())
    device = choose_device(options.device)
    tokenizer = load_tokenizer(options.tokenizer_folder).to(device)
    check_picture_options(options, tokenizer)
    print(f"image tokenizer: {model_origin(options.image_tokenizer)}")
    if options.engine == "ray" and signal_settings_of(tokenizer):
        raise ValueError(f"--engine ray encodes pictures, and {options.image_tokenizer} signals: leave --engine out")
    on_ray: list[CacheToWrite] = []
    for split in options.splits:
        source = open_source(options, split, input_settings_of(tokenizer))
        print_summary(source)
        views = views_of(options.crops, options.random_flip) if split == "train" else []
        for number, view in enumerate((None, *views)):
            writer = writer_of(options, tokenizer, source, split, view)
            shards = writer.missing(options.shard_index, options.num_shards)
            if options.engine == "ray":
                on_ray.append(CacheToWrite(split, number, writer, shards))
                continue
            if shards:
                writer.prepare()
                read_shards(options, writer, tokenizer)
                writer.write(process_index=options.shard_index, num_processes=options.num_shards, device=device)
            finish(writer, has_written=bool(shards))
    if on_ray:
        write_on_ray(options, on_ray)
    remove_replaced(Path(str(options.token_cache)))


def writer_of(
    options: Options, tokenizer: ImageTokenizer, source: PictureDataset, split: str, view: View | None
) -> TokenCacheWriter:
    """The writer of one split's cache, of the plain pictures or of a view of them."""
    from lm.data.token_cache import damaged_shards
    from pipelines.caching.opening import cache_name, source_settings
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
    return writer


def write_on_ray(options: Options, caches: list[CacheToWrite]) -> None:
    """Write what is missing of the caches of all splits and views, over one cluster."""
    from pipelines.caching.opening import report_update
    from pipelines.caching.ray_engine import RayWorkers, encode_on_ray

    unfinished = [cache for cache in caches if cache.shards]
    for cache in unfinished:
        cache.writer.prepare()
    if unfinished:
        device = options.device or ("cuda" if options.ray_gpus else "cpu")
        threads = options.cpu_threads or options.ray_cores
        workers = RayWorkers(
            options.ray_address, options.ray_workers, options.ray_cores, options.ray_gpus, threads, device
        )
        encode_on_ray(options, unfinished, workers)
    for cache in caches:
        if cache.shards and cache.writer.updates:
            report_update(cache.writer)
        finish(cache.writer, has_written=bool(cache.shards))


def finish(writer: TokenCacheWriter, *, has_written: bool) -> None:
    """Write the manifest, if all shards are there, and print how far the cache is."""
    from lm.data.token_cache import TokenCache
    from pipelines.caching.opening import report_left_out

    left = writer.missing()
    if left:
        print(
            f"{writer.folder}: {len(writer.shards) - len(left)} of {len(writer.shards)} shards are there; whichever "
            "job ends last writes the manifest",
            flush=True,
        )
        return
    if has_written or not writer.finished:
        report_left_out(writer.finish())
    print(f"{writer.folder} is whole: {len(TokenCache(writer.folder)):,} rows", flush=True)


def read_shards(options: Options, writer: TokenCacheWriter, tokenizer: ImageTokenizer) -> None:
    """Decode the pictures of this job's shards: all of them, so that a job that is run again finds them decoded."""
    import numpy as np

    from pipelines.caching.opening import report_update
    from pipelines.caching.sources import input_settings_of, read_pictures

    whole = writer.finished  # then only what is to be repaired
    shards = range(len(writer.shards))[options.shard_index :: options.num_shards]
    asked = writer.missing(options.shard_index, options.num_shards) if whole else shards
    part, numbers = writer.part([writer.rows_of(shard) for shard in asked])
    settings = input_settings_of(tokenizer)
    sizes = writer.decoded_sizes
    writer.read(part, np.asarray(numbers), lambda pictures: read_pictures(options, pictures, settings, sizes))
    if writer.updates:
        report_update(writer)


if __name__ == "__main__":
    from pipelines.options.parser import run_command

    run_command(main, Options, "Encode a data set's pictures into a token cache.")
