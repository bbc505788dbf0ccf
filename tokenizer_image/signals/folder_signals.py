"""A folder of sounds, series or videos, with captions as of pictures, as examples of one length."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenizer_image.pictures.columns import Columns
from tokenizer_image.pictures.dataset import PictureSource, SelectedPictures
from tokenizer_image.pictures.fingerprints import digest, file_identity, hash64
from tokenizer_image.pictures.folder_files import FolderFiles, files_below, real_path_inside
from tokenizer_image.pictures.folder_pictures import metadata_splits, picture_splits
from tokenizer_image.pictures.metadata import METADATA_FILES
from tokenizer_image.pictures.picture_files import is_picture
from tokenizer_image.pictures.reading_notes import ReadingNotes
from tokenizer_image.pictures.splits import SplitFiles
from tokenizer_image.preprocessing import Preprocessing, preprocess
from tokenizer_image.signals.examples import SignalExample
from tokenizer_image.signals.series_files import is_series, read_series
from tokenizer_image.signals.settings import WORDS, SignalSettings
from tokenizer_image.signals.sound_files import SoundInfo, is_sound, read_sound, sound_info
from tokenizer_image.signals.video_files import frames_in, is_film, is_frame, is_video, read_video

LEAST_PART = 0.5  # of an example: a shorter rest at the end of a recording is left out
KINDS: dict[str, Callable[[str], bool]] = {
    "sounds": is_sound, "pictures": is_picture, "series": is_series, "videos": is_film,
}  # fmt: skip


def signal_splits(path: Path, name: str, signal: str, columns: Columns, notes: ReadingNotes) -> dict[str, SplitFiles]:
    """The splits of a folder of signals; captions come from metadata files, files beside the signals or class folders,
    as of pictures.

    Raises:
        ValueError: no folder, none of the kind, or files of another kind beside them.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is a file: give the folder that holds the {WORDS[signal]}")
    listed_files = list(files_below(path, notes))
    kinds = KINDS
    if signal == "video":  # where a folder of frames stands for its files
        folders = {file.rpartition("/")[0] for file in listed_files if is_frame(file)}
        listed_files = [*(file for file in listed_files if not is_frame(file)), *folders]
        kinds = KINDS | {
            "pictures": lambda file: is_picture(file) and not is_video(file),
            "videos": lambda file: is_video(file) or file in folders,
        }
    files = FolderFiles(path, listed_files)
    metadata = [file for file in files.files if file.rsplit("/", 1)[-1].lower() in METADATA_FILES]
    others = [file for file in files.files if file not in metadata]
    found = {kind: [file for file in others if belongs(file)] for kind, belongs in kinds.items()}
    signals = found.pop(WORDS[signal])
    beside = {kind: names for kind, names in found.items() if names}
    listed = " and ".join(f"{len(names):,} {kind}, such as {names[0]}" for kind, names in beside.items())
    if not signals:
        raise ValueError(f"{name} holds no {WORDS[signal]}: it has {listed or 'no file of a kind that is read'}")
    if beside:
        raise ValueError(
            f"{name} mixes {len(signals):,} {WORDS[signal]}, such as {signals[0]}, and {listed}: give a folder that "
            "holds one kind"
        )
    if metadata:
        return metadata_splits(files, name, metadata, columns, notes)
    return picture_splits(files, name, signals, notes)


class SignalFiles(SelectedPictures):
    """Signals in files as examples of one length, several in a row of a long one.

    `cut` and `filled` count the files of which a rest is left out, and those that do not fill their examples.

    Args:
        source: the signals, as files below a folder.
        root: that folder.
        settings: kind, length and what else is fixed.

    Raises:
        ValueError: none of the files can be read.
    """

    row_name = "example"
    step_name = "sample"
    filling: str  # what is done about files that are too short

    def __init__(self, source: PictureSource, root: Path, settings: SignalSettings) -> None:
        self.root, self.settings, self.word = root, settings, WORDS[settings.signal]
        self.cut = self.filled = 0
        found: list[tuple[int, int]] = []
        problems: list[str] = []
        for row in range(len(source)):
            file = source.key(row)
            try:
                starts = self._starts(real_path_inside(root, file))
            except ValueError as error:
                source.notes.leave_out(file, str(error))
                problems.append(f"{file}: {error}")
                continue
            found += [(row, start) for start in starts]
        if not found:
            raise ValueError(f"{source.name}: none of its {len(source):,} {self.word} can be read: {problems[0]}")
        super().__init__(source, np.asarray([row for row, _ in found], np.int64))
        self.starts = np.asarray([start for _, start in found], np.int64)
        self.split, self.split_sizes = source.split, {source.split: len(found)}
        sizes = (settings.length, settings.rate, settings.horizon)
        parts = [source.fingerprint, sizes, self.rows.tobytes(), self.starts.tobytes(), *self._identity()]
        self.fingerprint = digest("signals", *parts)
        self._last: tuple[str, np.ndarray] = ("", np.zeros(0, np.float32))
        self._tell_changes(len(source) - len(problems), source.notes)

    def _starts(self, file: Path) -> Iterable[int]:
        """The first samples of a file's examples. ValueError for one that cannot be read."""
        raise NotImplementedError

    def _identity(self) -> tuple[object, ...]:
        """What else the examples depend on."""
        return ()

    def _read(self, file: Path) -> np.ndarray:
        """A whole file, (channels, time), of videos (channels, time, height, width)."""
        raise NotImplementedError

    def _example(self, part: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """At most `length` samples (channels, time, ...) as values of an example, and which of them are known."""
        raise NotImplementedError

    def _tell_changes(self, files: int, notes: ReadingNotes) -> None:
        """Note once what is done to signals of another form."""
        if len(self) != files:
            steps = f"{self.settings.length:,} {self.step_name}s"
            notes.warn(f"{files:,} {self.word} become {len(self):,} examples of {steps}")
        if self.cut:
            notes.warn(f"{self.cut:,} of {files:,} {self.word} have a rest that makes no example and is left out")
        if self.filled:
            notes.warn(f"{self.filled:,} of {files:,} {self.word} {self.filling}")

    def key(self, row: int) -> str:
        start = int(self.starts[row])
        return super().key(row) + (f" from {self.step_name} {start:,}" if start else "")

    def picture_key(self, row: int) -> int:
        return hash64(self.source.picture_key(int(self.rows[row])), int(self.starts[row]))  # type: ignore[attr-defined]

    def __getitem__(self, row: int) -> SignalExample:
        file, start = super().key(row), int(self.starts[row])
        if self._last[0] != file:  # parts of a recording follow each other
            self._last = (file, self._read(real_path_inside(self.root, file)))
        values, known = self._example(self._last[1][:, start : start + self.settings.length])
        rate = self.settings.rate or None
        kind: Any = self.settings.signal
        return SignalExample(kind, values, known, rate, tuple(self.texts(row)), self.key(row))


class SoundFiles(SignalFiles):
    """Sounds: a rest of less than half an example is left out, and a short sound is followed by silence."""

    filling = "end within an example, which silence completes"

    def __init__(self, source: PictureSource, root: Path, settings: SignalSettings) -> None:
        self.infos: list[SoundInfo] = []
        super().__init__(source, root, settings)

    def _starts(self, file: Path) -> Iterable[int]:
        info, length = sound_info(file), self.settings.length
        self.infos.append(info)
        whole, rest = divmod(round(info.frames * self.settings.rate / info.rate), length)
        is_kept = not whole or rest >= LEAST_PART * length
        self.cut += rest > 0 and not is_kept
        self.filled += rest > 0 and is_kept
        return range(0, (whole + is_kept) * length, length)

    def _read(self, file: Path) -> np.ndarray:
        return read_sound(file, self.settings.rate)[None]

    def _example(self, part: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return np.pad(part, ((0, 0), (0, self.settings.length - part.shape[1]))), None

    def _tell_changes(self, files: int, notes: ReadingNotes) -> None:
        super()._tell_changes(files, notes)
        several = sum(info.channels > 1 for info in self.infos)
        if several:
            notes.warn(f"{several:,} of {files:,} sounds have several channels, which are mixed down to one")
        rates = Counter(info.rate for info in self.infos if info.rate != self.settings.rate)
        if rates:
            listed = ", ".join(f"{count:,} of {rate:,} Hz" for rate, count in rates.most_common(4))
            notes.warn(f"sounds of another rate are resampled to {self.settings.rate:,} Hz: {listed}")


class VideoFiles(SignalFiles):
    """Videos: a rest of less than half an example is left out, and a short video is followed by its last frame. Frames
    are cropped to their middle square and resized."""

    step_name = "frame"
    filling = "end within an example, which their last frame completes"

    def __init__(self, source: PictureSource, root: Path, settings: SignalSettings) -> None:
        self._frames: list[tuple[object, ...]] = []
        self._sizes: Counter[tuple[int, int]] = Counter()
        super().__init__(source, root, settings)

    def _identity(self) -> tuple[object, ...]:
        return self.settings.frame_size, self._frames

    def _starts(self, file: Path) -> Iterable[int]:
        if file.is_dir():  # whose own time of change does not tell that of its frames
            self._frames += [(one.name, *file_identity(one)) for one in frames_in(file)]
        frames = self._frames_of(file)
        self._sizes[frames.shape[1:3]] += 1
        whole, rest = divmod(len(frames), length := self.settings.length)
        is_kept = not whole or rest >= LEAST_PART * length
        self.cut += rest > 0 and not is_kept
        self.filled += rest > 0 and is_kept
        return range(0, (whole + is_kept) * length, length)

    def _read(self, file: Path) -> np.ndarray:
        side = self.settings.frame_size
        settings = Preprocessing(side)
        frames = [preprocess(Image.fromarray(frame), settings, ((side, side),)) for frame in self._frames_of(file)]
        return np.stack(frames, axis=1)

    def _frames_of(self, file: Path) -> np.ndarray:
        for frame in frames_in(file) if file.is_dir() else ():
            real_path_inside(self.root, str(frame.relative_to(self.root)))  # no link out of the folder
        return read_video(file).frames

    def _example(self, part: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        missing = self.settings.length - part.shape[1]
        return np.moveaxis(np.pad(part, ((0, 0), (0, missing), (0, 0), (0, 0)), mode="edge"), 0, -1), None

    def _tell_changes(self, files: int, notes: ReadingNotes) -> None:
        super()._tell_changes(files, notes)
        side = self.settings.frame_size
        if others := {size: count for size, count in self._sizes.items() if size != (side, side)}:
            listed = ", ".join(f"{count:,} of {width}x{height}" for (height, width), count in list(others.items())[:4])
            notes.warn(f"videos of another size are cropped to squares and resized to {side}x{side}: {listed}")


class SeriesFiles(SignalFiles):
    """Series: examples follow each other by the horizon; a short one has a gap before its first step.

    Settings without a number of channels get that of the first file; a file of another number is left out.
    """

    step_name = "step"
    filling = "are shorter than an example, which a gap before them completes"

    def _starts(self, file: Path) -> Iterable[int]:
        series, settings = read_series(file), self.settings
        if settings.num_channels == 0:
            self.settings = settings = dataclasses.replace(settings, num_channels=len(series))
        if len(series) != settings.num_channels:
            raise ValueError(f"it has {len(series)} columns of values, and others have {settings.num_channels}")
        steps = series.shape[1]
        if steps <= settings.horizon:
            raise ValueError(f"it has {steps} steps: an example needs more than the horizon, {settings.horizon}")
        if not np.isfinite(series).all(axis=0).any():
            raise ValueError("none of its steps has all its values")
        last = max(0, steps - settings.length)
        first = last % max(1, settings.horizon)
        self.cut += first > 0
        self.filled += steps < settings.length
        return range(first, last + 1, max(1, settings.horizon))

    def _read(self, file: Path) -> np.ndarray:
        return read_series(file)

    def _example(self, part: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        missing = self.settings.length - part.shape[1]
        values = np.pad(part, ((0, 0), (missing, 0)), constant_values=np.nan)
        known = np.isfinite(values).all(axis=0)
        return np.where(known, values, 0).astype(np.float32), known
