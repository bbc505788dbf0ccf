"""The signal cache: every example of a source, read once and kept as float16 in one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from lm.files import cache_root, published
from tokenizer_image.pictures.dataset import too_many_unreadable
from tokenizer_image.pictures.reading_notes import shown
from tokenizer_image.signals.examples import SignalSource
from tokenizer_image.signals.loading import example_of
from tokenizer_image.signals.settings import SignalSettings

FORMAT_VERSION = 1


class DecodedSignals:
    """n readable examples as float16 (C, T), by position: what training and token caches ask of `DecodedPictures`.

    float16 keeps 11 bits of each value, an error of -66 dB.

    Attributes:
        sizes: the one size, (1, T). which: int64 (n,), zeros, each example's place in `sizes`.
        rows: int64 (n,), the row of the source that each came from, increasing.
        unreadable: [(row, reason), ...].
    """

    def __init__(self, folder: Path, settings: SignalSettings) -> None:
        self.folder, self.settings = folder, settings
        self.sizes = ((1, settings.length),)
        self.rows: np.ndarray = np.load(folder / "rows.npy")
        self.which = np.zeros(len(self.rows), np.int64)
        self.unreadable = [(int(row), str(why)) for row, why in json.loads((folder / "unreadable.json").read_text())]
        self._values: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Examples at `indices` -> float16 (b, C, T), a copy."""
        if self._values is None:
            self._values = np.load(self.folder / "values.npy", mmap_mode="r")
        rows = self.rows[np.asarray(indices, np.int64)]  # the file has room for those that cannot be read, too
        return np.array(self._values[rows])

    def __getstate__(self) -> dict[str, object]:
        # A pickled memory map would carry every value along: the other process opens the file itself.
        return {**self.__dict__, "_values": None}


def decode_signals(
    source: SignalSource, settings: SignalSettings, *, max_unreadable_share: float = 0.01, progress: bool = True
) -> DecodedSignals:
    """Read every example of `source` once; the file lies in `signals/` of the cache folder that pixels have, too.

    Raises:
        ValueError: more than `max_unreadable_share` of the examples cannot be read, or none can.
    """
    parts = [FORMAT_VERSION, source.fingerprint, settings.to_dict()]
    key = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()
    folder = cache_root(None) / "signals" / key
    if not (folder / "rows.npy").is_file():
        _fill(folder, source, settings, progress)
    decoded = DecodedSignals(folder, settings)
    count = len(decoded.unreadable)
    if count:
        first = "\n".join(f"  {shown(why)}" for _, why in decoded.unreadable[:3])
        summary = f"{shown(source.name)}: {count:,} of {len(source):,} examples cannot be read"
        if too_many_unreadable(count, len(source), max_unreadable_share) or not len(decoded):
            raise ValueError(f"{summary}:\n{first}\nRepair or remove them, or raise --max_unreadable_share.")
        if progress:
            print(f"{summary} and are left out:\n{first}", flush=True)
    return decoded


def _fill(folder: Path, source: SignalSource, settings: SignalSettings, progress: bool) -> None:
    unreadable: list[tuple[int, str]] = []
    silent = 0
    shape = (len(source), settings.num_channels, settings.length)
    with published(folder) as work:
        work.mkdir()
        values = np.lib.format.open_memmap(work / "values.npy", mode="w+", dtype=np.float16, shape=shape)
        for row in tqdm(range(len(source)), desc="reading signals", disable=not progress):
            try:
                example = example_of(source, row)
            except (ValueError, OSError) as error:
                unreadable.append((row, str(error)))
                continue
            silent += not example.values.any()
            values[row] = example.values
        values.flush()
        kept = np.setdiff1d(np.arange(len(source), dtype=np.int64), [row for row, _ in unreadable])
        np.save(work / "rows.npy", kept)
        (work / "unreadable.json").write_text(json.dumps(unreadable))
    if silent and progress:
        print(f"WARNING: {shown(source.name)}: {silent:,} of {len(source):,} examples are silent", flush=True)
