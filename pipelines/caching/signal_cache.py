"""The signal cache: every example of a source, read once and kept in one file, as float16, of videos as uint8."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from lm.files import cache_root, published
from tokenizer_image.pictures.dataset import picture_name, too_many_unreadable
from tokenizer_image.pictures.reading_notes import shown
from tokenizer_image.signals.examples import SignalSource
from tokenizer_image.signals.loading import example_of
from tokenizer_image.signals.series_files import normalised
from tokenizer_image.signals.settings import SignalSettings

FORMAT_VERSION = 2
UNCHANGING = {"audio": "silent", "series": "constant", "video": "black"}  # what an example without any change is called
LARGEST = 100.0  # deviations from the mean: what is further off is cut, so that float16 holds it


class DecodedSignals:
    """n readable examples, by position: what training and token caches ask of `DecodedPictures`.

    Sounds and series are float16 (C, T), which keeps 11 bits of each value, an error of -66 dB; videos uint8 (3, T *
    side, side), their frames below each other.

    Attributes:
        sizes: the one size, (1, T), of videos (T * side, side). which: int64 (n,), zeros, each example's place in
            `sizes`.
        rows: int64 (n,), the row of the source that each came from, increasing.
        unreadable: [(row, reason), ...]. unchanging: how many examples are silent, or constant.
        settings: with the number of channels and, of series, the medians of what they are normalised by.
        location, scale: of series, float64 (n, C) each, what undoes the normalisation of each example; else None.
    """

    def __init__(self, folder: Path, settings: SignalSettings) -> None:
        self.folder = folder
        self.location = self.scale = self._known = None
        self.settings = dataclasses.replace(settings, num_channels=np.load(folder / "values.npy", "r").shape[1])
        self.sizes = (settings.example_shape,)
        self.rows: np.ndarray = np.load(folder / "rows.npy")
        self.which = np.zeros(len(self.rows), np.int64)
        notes = json.loads((folder / "notes.json").read_text())
        self.unreadable = [(int(row), str(why)) for row, why in notes["unreadable"]]
        self.unchanging: int = notes["unchanging"]
        self._values: np.ndarray | None = None
        if settings.signal == "series":
            self.location, self.scale = (np.load(folder / f"{name}.npy")[self.rows] for name in ("location", "scale"))
            self._known = np.load(folder / "known.npy")
            if not settings.location and len(self.rows):
                medians = [np.median(one, axis=0).tolist() for one in (self.location, self.scale)]
                self.settings = dataclasses.replace(self.settings, location=medians[0], scale=medians[1])

    def known(self, indices: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """bool (b, 1, T): which steps of examples are no gaps; None where there are never any."""
        return None if self._known is None else self._known[self.rows[np.asarray(indices, np.int64)]][:, None]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Examples at `indices` -> (b, *the shape of one), a copy."""
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
    fixed = settings.to_dict() | {"location": [], "scale": [], "num_channels": 1}
    parts = [FORMAT_VERSION, source.fingerprint, fixed]
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
    if decoded.unchanging and progress:
        told = f"{decoded.unchanging:,} of {len(source):,} examples are {UNCHANGING[settings.signal]}"
        print(f"WARNING: {shown(source.name)}: {told}", flush=True)
    return decoded


def _fill(folder: Path, source: SignalSource, settings: SignalSettings, progress: bool) -> None:
    unreadable: list[tuple[int, str]] = []
    unchanging, is_series = 0, settings.signal == "series"
    channels = getattr(source, "settings", settings).num_channels or 1  # drawn series have one
    size = settings.example_shape if settings.signal == "video" else (settings.length,)
    shape = (len(source), channels, *size)
    location, scale = np.zeros(shape[:2]), np.ones(shape[:2])
    known = np.ones((len(source), settings.length), bool)
    with published(folder) as work:
        work.mkdir()
        values = np.lib.format.open_memmap(
            work / "values.npy", mode="w+", shape=shape,
            dtype=np.uint8 if settings.signal == "video" else np.float16,
        )  # fmt: skip
        for row in tqdm(range(len(source)), desc="reading signals", disable=not progress):
            try:
                example = example_of(source, row)
            except (ValueError, OSError) as error:
                unreadable.append((row, f"{picture_name(source, row)}: {error}"))  # type: ignore[arg-type]
                continue
            if is_series:
                known[row] = True if example.mask is None else example.mask
                found = normalised(example.values, known[row], settings.context)
                values[row], location[row], scale[row] = np.clip(found[0], -LARGEST, LARGEST), *found[1:]
                continue
            values[row] = example.input_values
            unchanging += not values[row].any()
        values.flush()
        kept = np.setdiff1d(np.arange(len(source), dtype=np.int64), [row for row, _ in unreadable])
        if is_series:
            for name, array in (("location", location), ("scale", scale), ("known", known)):
                np.save(work / f"{name}.npy", array)
        np.save(work / "rows.npy", kept)
        (work / "notes.json").write_text(json.dumps({"unreadable": unreadable, "unchanging": unchanging}))
