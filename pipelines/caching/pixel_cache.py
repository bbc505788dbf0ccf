"""The pixel cache: every picture of a source, decoded once and kept as uint8 in one file.

Worker processes open, decode and resize the pictures and write their shares of one .npy file. Later epochs and runs
read that file through a memory map. The folder gets its name when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lm.files import cache_root, published
from tokenizer_image.pictures.dataset import PictureDataset, data_set_size, picture_name, too_many_unreadable
from tokenizer_image.pictures.decode_workers import Reading, Unreadable, decode_all, decode_one
from tokenizer_image.pictures.picture_files import allow_pixels
from tokenizer_image.pictures.reading_notes import shown
from tokenizer_image.preprocessing import Preprocessing

FORMAT_VERSION = 2  # 1: pictures with large texts or of 12 bits were decoded differently
DEFAULT_MAX_BYTES = 8 * 2**30


def decode_pictures(
    source: PictureDataset,
    settings: Preprocessing,
    *,
    sizes: Sequence[tuple[int, int]] = (),
    cache_folder: str | os.PathLike[str] | None = None,
    num_workers: int = 0,
    max_unreadable_share: float = 0.01,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_image_pixels: int | None = None,
    progress: bool = True,
) -> DecodedPictures:
    """Read every picture of `source` once -> uint8 pictures (n, C, H, W) in a memory-mapped file.

    The file lives in `<cache_folder>/pictures/<hash of source.fingerprint and settings>` (default folder:
    $TESSERA_CACHE, else ~/.cache/tessera) and is used again as long as it is complete. If it would exceed
    `max_bytes` or the free disk space, pictures are only checked now, and decoded on each access.
    sizes: (height, width) of what pictures become, each the one whose shape is nearest (default: the square of
    `settings`). Of several, a picture has the room of the largest in the file.
    num_workers: worker processes (0: this process). They are spawned, so call this below
    `if __name__ == "__main__":` in a script of your own.

    max_image_pixels: raises the limit of pixels of a picture (Pillow's 178,956,970), for the whole process; a JPEG with
    more is read at an eighth of its size, other pictures count as unreadable.

    Pictures that cannot be read are skipped, counted, and listed with the reason in `unreadable.txt` there.
    Raises ValueError when their share of all pictures in the data set, with its other splits, exceeds
    `max_unreadable_share` (one unreadable picture is always allowed, unless that is 0), or when none can be read.
    """
    if not 0.0 <= max_unreadable_share <= 1.0:
        raise ValueError(f"--max_unreadable_share must be between 0 and 1, got {max_unreadable_share}")
    if len(source) == 0:
        raise ValueError(f"{source.name} holds no pictures")
    square = (settings.image_size, settings.image_size)
    reading = Reading(settings, tuple(sizes) or (square,), max_image_pixels)
    allow_pixels(max_image_pixels)
    folder = cache_root(cache_folder) / "pictures" / _key(source, reading)
    manifest = _read_manifest(folder, source, reading)
    if manifest is None or not _worth_reusing(manifest, source, folder, reading, max_bytes, max_unreadable_share):
        manifest = _fill(folder, source, reading, num_workers, max_bytes, progress)
    decoded = DecodedPictures(folder, reading, manifest, source, num_workers)
    check_unreadable(
        [(picture_name(source, row), reason) for row, reason in decoded.unreadable], len(decoded), source,
        max_unreadable_share, listing=decoded.folder / "unreadable.txt", progress=progress,
    )  # fmt: skip
    if progress:
        warn_of_dark(decoded.dark, settings, source)
    return decoded


class DecodedPictures:
    """n readable pictures as uint8 (C, H, W), by position. Made by `decode_pictures`.

    sizes: the (height, width) that there are. which: uint8 (n,), each picture's, by its number in `sizes`.

    rows: int64 (n,), the row of `source` that each came from, increasing. unreadable: [(row, reason), ...].
    dark: how many pictures of 16 bits use the lowest of these alone.
    stored: whether the pixels are in the file (then `pictures` is the memory map) or decoded on demand.
    """

    def __init__(
        self,
        folder: Path,
        reading: Reading,
        manifest: dict[str, Any],
        source: PictureDataset,
        num_threads: int = 0,
    ) -> None:
        self.folder = folder
        self.reading, self.settings, self.sizes = reading, reading.settings, reading.sizes
        self.stored: bool = manifest["stored"]
        self.rows: np.ndarray = np.load(folder / "rows.npy")
        square = len(self.sizes) == 1
        self.which: np.ndarray = np.zeros(len(self.rows), np.uint8) if square else np.load(folder / "which.npy")
        self.dark: int = manifest.get("dark", 0)
        self.unreadable: Unreadable = [(int(row), reason) for row, reason in manifest["unreadable"]]
        self._source = None if self.stored else source
        self._num_threads = num_threads
        self._pictures: np.ndarray | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def pictures(self) -> np.ndarray:
        """Memory map uint8 (n, C, H, W), read only; (n, bytes of the largest) where there are several sizes.

        ValueError if the pictures are decoded on demand.
        """
        if not self.stored:
            raise ValueError(
                "these pictures are too many for one file (max_bytes) and are decoded on demand: "
                "use [i] or batch(indices)"
            )
        if self._pictures is None:
            self._pictures = np.load(self.folder / "pictures.npy", mmap_mode="r")
        return self._pictures

    def __getitem__(self, index: int) -> np.ndarray:
        """Picture at `index` (0..n-1) -> uint8 (C, H, W), a copy."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        if self._source is None:
            shape = self.reading.picture_shape(int(self.which[index]))
            return np.array(self.pictures[index].reshape(-1)[: math.prod(shape)]).reshape(shape)
        return decode_one(self._source, int(self.rows[index]), self.reading)

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Pictures at `indices`, all of one size -> uint8 (b, C, H, W), a copy."""
        positions = np.asarray(indices, dtype=np.int64)
        which = np.unique(self.which[positions])
        if len(which) > 1:
            listed = ", ".join(f"{height}x{width}" for height, width in (self.sizes[i] for i in which))
            raise ValueError(f"a batch of pictures of several sizes ({listed}): ask for those of one size at a time")
        if self._source is None:
            shape = self.reading.picture_shape(int(which[0]) if len(which) else 0)
            rows = np.asarray(self.pictures[positions]).reshape(len(positions), -1)
            return rows[:, : math.prod(shape)].reshape(-1, *shape)
        if self._num_threads > 1 and len(positions) > 1:  # Pillow decodes outside the interpreter's lock
            self._pool = self._pool or ThreadPoolExecutor(self._num_threads)
            return np.stack(list(self._pool.map(self.__getitem__, positions.tolist())))
        return np.stack([self[position] for position in positions.tolist()])

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry every pixel along: the other process opens the file itself.
        return {**self.__dict__, "_pictures": None, "_pool": None}


# ---- the cache folder


def _key(source: PictureDataset, reading: Reading) -> str:
    parts = [FORMAT_VERSION, source.fingerprint, reading.settings.to_dict(), *_sizes_beyond_square(reading)]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()


def _sizes_beyond_square(reading: Reading) -> list[list[int]]:
    """The sizes, [] for the square of the settings alone."""
    side = reading.settings.image_size
    return [] if reading.sizes == ((side, side),) else [list(size) for size in reading.sizes]


def _read_manifest(folder: Path, source: PictureDataset, reading: Reading) -> dict[str, Any] | None:
    """The manifest of a complete folder of these pictures, else None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        same = (
            manifest["format_version"] == FORMAT_VERSION
            and manifest["fingerprint"] == source.fingerprint
            and manifest["preprocessing"] == reading.settings.to_dict()
            and manifest.get("sizes", []) == _sizes_beyond_square(reading)
            and manifest["num_rows"] == len(source)
        )
        sizes = {name: (folder / name).stat().st_size for name in manifest["bytes"]}
        return manifest if same and sizes == manifest["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _worth_reusing(
    manifest: dict[str, Any],
    source: PictureDataset,
    folder: Path,
    reading: Reading,
    max_bytes: int,
    max_share: float,
) -> bool:
    """False if decoding again may do better: too many pictures failed, or there is room for the pixels now."""
    size = manifest["num_rows"] * manifest["picture_bytes"]
    count = len(manifest["unreadable"])
    readable_enough = not count or not too_many_unreadable(count, data_set_size(source), max_share)
    limit_raised = (reading.max_image_pixels or 0) > (manifest.get("max_image_pixels") or 0)
    if limit_raised and any("--max_image_pixels" in reason for _, reason in manifest["unreadable"]):
        return False
    return readable_enough and (manifest["stored"] or not _fits(folder, size, max_bytes))


def _fits(folder: Path, size: int, max_bytes: int) -> bool:
    """Whether a file of `size` bytes is allowed and has room where `folder` is or will be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return size <= max_bytes and size < shutil.disk_usage(existing).free


def _fill(
    folder: Path,
    source: PictureDataset,
    reading: Reading,
    num_workers: int,
    max_bytes: int,
    progress: bool,
) -> dict[str, Any]:
    """Decode everything into a temporary folder, then give it its name. Returns the manifest."""
    picture_bytes = reading.picture_bytes
    stored = _fits(folder, len(source) * picture_bytes, max_bytes)
    if not stored and progress:
        print(
            f"{shown(source.name)}: {len(source):,} pictures need {len(source) * picture_bytes / 1e9:.1f} GB, more "
            "than max_bytes or the free disk space allows: checking them once, then decoding on the fly",
            flush=True,
        )
    with published(folder) as work:
        work.mkdir()
        target = work / "pictures.npy" if stored else None
        if target is not None:
            np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=reading.file_shape(len(source)))
        result = decode_all(source, reading, target, num_workers, progress)
        rows = np.setdiff1d(np.arange(len(source), dtype=np.int64), [row for row, _ in result.unreadable])
        if target is not None and result.unreadable:
            _keep_rows(target, rows)
        np.save(work / "rows.npy", rows)
        if len(reading.sizes) > 1:
            np.save(work / "which.npy", result.size_numbers[rows])
        _write_unreadable(work / "unreadable.txt", source, result.unreadable)
        manifest = {
            "format_version": FORMAT_VERSION,
            "source": source.name,
            "fingerprint": source.fingerprint,
            "preprocessing": reading.settings.to_dict(),
            "sizes": _sizes_beyond_square(reading),
            "num_rows": len(source),
            "picture_bytes": picture_bytes,
            "stored": stored,
            "max_image_pixels": reading.max_image_pixels,
            "unreadable": result.unreadable,
            "dark": result.dark,
            "bytes": {path.name: path.stat().st_size for path in sorted(work.iterdir())},
        }
        (work / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return json.loads(json.dumps(manifest))


def _keep_rows(path: Path, rows: np.ndarray) -> None:
    """Rewrite a (n, C, H, W) file without the rows that stayed empty, a block at a time."""
    full = np.load(path, mmap_mode="r")
    part = path.with_suffix(".part")
    kept = np.lib.format.open_memmap(part, mode="w+", dtype=full.dtype, shape=(len(rows), *full.shape[1:]))
    for start in range(0, len(rows), 4096):
        kept[start : start + 4096] = full[rows[start : start + 4096]]
    kept.flush()
    del full, kept
    os.replace(part, path)


def _write_unreadable(path: Path, source: PictureDataset, unreadable: Unreadable) -> None:
    lines = [f"{row}\t{picture_name(source, row)}\t{reason}\n" for row, reason in unreadable]
    path.write_text(shown("".join(lines)), encoding="utf-8")


def check_unreadable(
    unreadable: Sequence[tuple[str, str]],
    num_read: int,
    source: PictureDataset,
    max_share: float,
    *,
    listing: Path | None = None,
    progress: bool = True,
) -> None:
    """Print how many pictures were skipped; ValueError if they are too large a share of the data set.

    Args:
        unreadable: (name, reason) of each.
        num_read: how many could be read.
        listing: the file that lists them all.
    """
    count = len(unreadable)
    if count == 0:
        return
    total = data_set_size(source)
    summary = f"{shown(source.name)}: {count:,} of {total:,} pictures ({count / total:.1%}) cannot be read"
    if too_many_unreadable(count, total, max_share) or num_read == 0:
        examples = "\n".join(f"  {shown(name)}: {shown(why)}" for name, why in unreadable[:3])
        listed = f"All are listed in {listing}. " if listing else ""
        remedy = (
            f"Repair or remove them, or raise --max_unreadable_share (now {max_share:g}) to go on without."
            if num_read
            else "Nothing is left to train on: check the files and --image_column."
        )
        raise ValueError(f"{summary}:\n{examples}\n{listed}{remedy}")
    if progress:
        print(f"{summary} and are left out{f'; listed in {listing}' if listing else ''}", flush=True)


def warn_of_dark(dark: int, settings: Preprocessing, source: PictureDataset) -> None:
    """Print that so many 16-bit pictures are nearly black, if their files do not state how many bits they use."""
    if dark and settings.sixteen_bit == "full":
        print(
            f"WARNING: {shown(source.name)}: {dark:,} pictures of 16 bits use a sixteenth of that range "
            "at most and are nearly black; --sixteen_bit data stretches each by its own brightest pixel",
            flush=True,
        )
