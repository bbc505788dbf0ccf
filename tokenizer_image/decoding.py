"""Decoding in parallel: worker processes read pictures of a source and write them into one file."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tokenizer_image.preprocessing import Preprocessing, preprocess

if TYPE_CHECKING:
    from tokenizer_image.data import PictureDataset

SHARD, SHARD_BYTES = 256, 2**24  # most pictures, and about the most bytes, per task of a worker
MIN_PER_WORKER = 256  # starting a process takes about as long as decoding this many small pictures
Unreadable = list[tuple[int, str]]  # (row, reason)


def decode_all(
    source: PictureDataset, settings: Preprocessing, target: Path | None, num_workers: int, progress: bool
) -> Unreadable:
    """Decode every row, into `target` if given; the rows that could not be read, in order."""
    from tqdm import tqdm

    picture_bytes = settings.num_channels * settings.image_size**2
    step = min(SHARD, max(1, SHARD_BYTES // picture_bytes))
    shards = [(start, min(start + step, len(source))) for start in range(0, len(source), step)]
    workers = min(num_workers, len(source) // MIN_PER_WORKER)
    unreadable: Unreadable = []
    label = f"reading {source.name}"
    with tqdm(total=len(source), desc=label, unit=" pictures", disable=not progress, mininterval=0.5) as bar:
        for (start, stop), failed in _finished_shards(shards, source, settings, target, workers):
            unreadable += failed
            bar.update(stop - start)
    return sorted(unreadable)


def _finished_shards(
    shards: list[tuple[int, int]],
    source: PictureDataset,
    settings: Preprocessing,
    target: Path | None,
    workers: int,
) -> Iterator[tuple[tuple[int, int], Unreadable]]:
    """Each shard's bounds and unreadable rows, as they get done."""
    if workers < 1:
        for shard in shards:
            yield shard, _decode_shard(source, settings, target, *shard)
        return
    # Spawned, not forked: the caller may hold threads, CUDA or open files that do not survive a fork.
    work = (source, settings, target)
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, work) as pool:
        futures = {pool.submit(_worker_shard, *shard): shard for shard in shards}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process that decodes pictures died: out of memory, or started from a script without "
                '`if __name__ == "__main__":`. num_workers=0 decodes in this process'
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_worker: tuple[Any, Preprocessing, Path | None] | None = None  # what a worker process was started for


def _start_worker(source: PictureDataset, settings: Preprocessing, target: Path | None) -> None:
    global _worker
    _worker = (source, settings, target)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, once
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no orphan behind a parent that was killed: its queue would never report an end."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _worker_shard(start: int, stop: int) -> Unreadable:
    if _worker is None:
        raise RuntimeError("decoding worker was not started by decode_pictures")
    return _decode_shard(*_worker, start, stop)


def _decode_shard(
    source: PictureDataset, settings: Preprocessing, target: Path | None, start: int, stop: int
) -> Unreadable:
    """Decode rows start..stop-1 and write them at their place in `target`.

    Written, not mapped: pages of a map would count as this process's memory.
    """
    shape = (settings.num_channels, settings.image_size, settings.image_size)
    block = np.zeros((stop - start, *shape), dtype=np.uint8)
    failed: Unreadable = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged metadata of single files: nobody can act on these
        for row in range(start, stop):
            try:
                block[row - start] = decode_one(source, row, settings)
            except Exception as error:  # decoders of damaged files raise nearly anything
                failed.append((row, " ".join(f"{type(error).__name__}: {error}".split())))
    if target is not None:
        with open(target, "r+b") as file:
            from_end = (start - len(source)) * block[0].nbytes  # the pixels are the end of the file
            file.seek(from_end, os.SEEK_END)
            file.write(block.data)
    return failed


def decode_one(source: PictureDataset, row: int, settings: Preprocessing) -> np.ndarray:
    """One picture -> uint8 (C, H, W). Raises whatever the reader raises."""
    image = source.image(row)
    _skip_detail(image, 4 * settings.image_size)
    return preprocess(image, settings)


def _skip_detail(image: Image.Image, least: int) -> None:
    """Let the JPEG reader leave out detail that is thrown away anyway: several times faster for photographs.

    At least four times the size asked for remains, so that the antialiased resize still decides, and the sides
    must divide, so that nothing is moved: on average a value differs by one step of 255 or less.
    """
    width, height = image.size
    for scale in (8, 4, 2):
        if min(width, height) >= least * scale and width % scale == height % scale == 0:
            if image.format == "JPEG":
                image.draft(None, (width // scale, height // scale))
            return
