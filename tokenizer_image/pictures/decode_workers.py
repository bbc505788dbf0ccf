"""Decoding in parallel: worker processes read pictures of a source and write them into one file."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenizer_image.pictures.dataset import PictureDataset
from tokenizer_image.pictures.picture_files import allow_pixels
from tokenizer_image.pictures.reading_notes import shown
from tokenizer_image.preprocessing import Preprocessing, is_dark_16_bit, preprocess

SHARD, SHARD_BYTES = 256, 2**24  # most pictures, and about the most bytes, per task of a worker
MIN_PER_WORKER = 256  # starting a process takes about as long as decoding this many small pictures
Unreadable = list[tuple[int, str]]  # (row, reason)


@dataclass(frozen=True)
class Reading:
    """How pictures are decoded: to uint8 (C, H, W), where (H, W) is one of `sizes`."""

    settings: Preprocessing
    sizes: tuple[tuple[int, int], ...]
    max_image_pixels: int | None = None  # of the files; None: Pillow's limit

    @property
    def picture_bytes(self) -> int:
        """Bytes of the largest, which is what every picture gets in a file."""
        return self.settings.num_channels * max(height * width for height, width in self.sizes)

    def file_shape(self, count: int) -> tuple[int, ...]:
        """Shape of a file of pictures: (n, C, H, W), or (n, bytes) where there are several sizes."""
        if len(self.sizes) > 1:
            return count, self.picture_bytes
        return count, self.settings.num_channels, *self.sizes[0]

    def picture_shape(self, which: int) -> tuple[int, int, int]:
        """(C, H, W) of a picture of size number `which`."""
        return self.settings.num_channels, *self.sizes[which]


@dataclass
class DecodeResult:
    """What decoding some rows gave.

    size_numbers: uint8 (n,), the size of each row, by its number in `Reading.sizes`. unreadable: in order.
    dark: how many pictures of 16 bits use the lowest of these alone, though their files do not say so.
    """

    size_numbers: np.ndarray
    unreadable: Unreadable = field(default_factory=list)
    dark: int = 0


def decode_all(
    source: PictureDataset, reading: Reading, target: Path | None, num_workers: int, progress: bool
) -> DecodeResult:
    """Decode every row, into `target` if given."""
    from tqdm import tqdm

    step = min(SHARD, max(1, SHARD_BYTES // reading.picture_bytes))
    shards = [(start, min(start + step, len(source))) for start in range(0, len(source), step)]
    workers = min(num_workers, len(source) // MIN_PER_WORKER)
    result = DecodeResult(np.zeros(len(source), np.uint8))
    label = f"reading {shown(source.name)}"
    with tqdm(total=len(source), desc=label, unit=" pictures", disable=not progress, mininterval=0.5) as bar:
        for (start, stop), part in _finished_shards(shards, source, reading, target, workers):
            result.unreadable += part.unreadable
            result.size_numbers[start:stop] = part.size_numbers
            result.dark += part.dark
            bar.update(stop - start)
    result.unreadable.sort()
    return result


def _finished_shards(
    shards: list[tuple[int, int]],
    source: PictureDataset,
    reading: Reading,
    target: Path | None,
    workers: int,
) -> Iterator[tuple[tuple[int, int], DecodeResult]]:
    """Each shard's bounds and result, in the order in which they are done."""
    if workers < 1:
        for shard in shards:
            yield shard, _decode_shard(source, reading, target, *shard)
        return
    # Spawned, not forked: the caller may hold threads, CUDA or open files that do not survive a fork.
    work = (source, reading, target)
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


_worker: tuple[Any, Reading, Path | None] | None = None  # what a worker process was started for


def _start_worker(source: PictureDataset, reading: Reading, target: Path | None) -> None:
    global _worker
    _worker = (source, reading, target)
    allow_pixels(reading.max_image_pixels)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, once
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no orphan behind a parent that was killed: its queue would never report an end."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _worker_shard(start: int, stop: int) -> DecodeResult:
    if _worker is None:
        raise RuntimeError("decoding worker was not started by decode_pictures")
    return _decode_shard(*_worker, start, stop)


def _decode_shard(source: PictureDataset, reading: Reading, target: Path | None, start: int, stop: int) -> DecodeResult:
    """Decode rows start..stop-1 and write them at their place in `target`.

    Written, not mapped: pages of a map would count as this process's memory.
    """
    block, result = decode_rows(source, reading, start, stop)
    if target is not None:
        with open(target, "r+b") as file:
            from_end = (start - len(source)) * reading.picture_bytes  # the pixels are the end of the file
            file.seek(from_end, os.SEEK_END)
            file.write(block.data)
    return result


def decode_rows(source: PictureDataset, reading: Reading, start: int, stop: int) -> tuple[np.ndarray, DecodeResult]:
    """Decode rows start..stop-1 -> uint8 (stop - start, bytes of the largest), each picture's values at the start of
    its line, and what this gave."""
    block = np.zeros((stop - start, reading.picture_bytes), dtype=np.uint8)
    result = DecodeResult(np.zeros(stop - start, np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged metadata of single files
        for row in range(start, stop):
            try:
                image = source.image(row)
                picture = decode_image(image, reading)
            except Exception as error:  # decoders of damaged files raise nearly anything
                result.unreadable.append((row, " ".join(f"{type(error).__name__}: {error}".split())))
                continue
            result.dark += is_dark_16_bit(image)
            result.size_numbers[row - start] = reading.sizes.index((picture.shape[1], picture.shape[2]))
            block[row - start, : picture.size] = picture.reshape(-1)
    return block, result


def decode_one(source: PictureDataset, row: int, reading: Reading) -> np.ndarray:
    """One picture -> uint8 (C, H, W). Raises any error of the reader."""
    return decode_image(source.image(row), reading)


def decode_image(image: Image.Image, reading: Reading) -> np.ndarray:
    """A picture as `source.image` opens it -> uint8 (C, H, W). Raises any error of the decoder."""
    _skip_detail(image, 4 * max(side for size in reading.sizes for side in size))
    return preprocess(image, reading.settings, reading.sizes)


def _skip_detail(image: Image.Image, least: int) -> None:
    """Let the JPEG reader decode at a reduced scale, which is several times faster for photographs.

    At least four times the target size remains, so that the antialiased resize determines the result. The scale must
    divide both sides, so that pixels do not shift. On average a value differs by at most 1 of 255.
    """
    width, height = image.size
    for scale in (8, 4, 2):
        if min(width, height) >= least * scale and width % scale == height % scale == 0:
            if image.format == "JPEG":
                image.draft(None, (width // scale, height // scale))
            return
