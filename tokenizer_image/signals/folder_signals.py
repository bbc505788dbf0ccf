"""A folder of sounds, with captions as of pictures, as examples of one length: `SignalFiles`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from tokenizer_image.pictures.columns import Columns
from tokenizer_image.pictures.dataset import PictureSource, SelectedPictures
from tokenizer_image.pictures.fingerprints import digest, hash64
from tokenizer_image.pictures.folder_files import FolderFiles, files_below, real_path_inside
from tokenizer_image.pictures.folder_pictures import metadata_splits, picture_splits
from tokenizer_image.pictures.metadata import METADATA_FILES
from tokenizer_image.pictures.picture_files import is_picture
from tokenizer_image.pictures.reading_notes import ReadingNotes
from tokenizer_image.pictures.splits import SplitFiles
from tokenizer_image.signals.examples import SignalExample
from tokenizer_image.signals.settings import SignalSettings
from tokenizer_image.signals.sound_files import SOUND_SUFFIXES, SoundInfo, is_sound, read_sound, sound_info

LEAST_PART = 0.5  # of an example: a shorter rest at the end of a recording is left out


def sound_splits(path: Path, name: str, columns: Columns, notes: ReadingNotes) -> dict[str, SplitFiles]:
    """The splits of a folder of sounds; captions come from metadata files, files beside the sounds or class folders, as
    of pictures.

    Raises:
        ValueError: no folder, no sounds, or pictures beside them.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is a file: give the folder that holds the sounds")
    files = FolderFiles(path, files_below(path, notes))
    sounds = [file for file in files.files if is_sound(file)]
    pictures = [file for file in files.files if is_picture(file)]
    if not sounds:
        found = f"it has {len(pictures):,} pictures" if pictures else "none of its files is one"
        raise ValueError(f"{name} holds no sounds ({' '.join(SOUND_SUFFIXES)}): {found}")
    if pictures:
        raise ValueError(
            f"{name} mixes {len(sounds):,} sounds, such as {sounds[0]}, and {len(pictures):,} pictures, such as "
            f"{pictures[0]}: give a folder that holds one kind"
        )
    metadata = [file for file in files.files if file.rsplit("/", 1)[-1].lower() in METADATA_FILES]
    if metadata:
        return metadata_splits(files, name, metadata, columns, notes)
    return picture_splits(files, name, sounds, notes)


class SignalFiles(SelectedPictures):
    """Sounds in files as examples of one length: a longer one becomes several in a row, and a shorter one is followed
    by silence.

    Args:
        source: the sounds, as files below a folder.
        root: that folder.
        settings: length and rate.

    Raises:
        ValueError: none of the files can be read.
    """

    row_name = "sound"

    def __init__(self, source: PictureSource, root: Path, settings: SignalSettings) -> None:
        notes = source.notes
        found: list[tuple[int, int]] = []
        infos: list[SoundInfo] = []
        problems: list[str] = []
        for row in range(len(source)):
            file = source.key(row)
            try:
                infos.append(info := sound_info(real_path_inside(root, file)))
            except ValueError as error:
                notes.leave_out(file, str(error))
                problems.append(f"{file}: {error}")
                continue
            found += [(row, start) for start in _starts(info, settings)]
        if not found:
            raise ValueError(f"{source.name}: none of its {len(source):,} sounds can be read: {problems[0]}")
        super().__init__(source, np.asarray([row for row, _ in found], np.int64))
        self.root, self.settings = root, settings
        self.starts = np.asarray([start for _, start in found], np.int64)
        self.split, self.split_sizes = source.split, {source.split: len(found)}
        self.fingerprint = digest("signals", source.fingerprint, settings.to_dict(), self.rows.tobytes())
        self._last: tuple[str, np.ndarray] = ("", np.zeros(0, np.float32))
        _tell_changes(infos, len(found), settings, notes)

    def key(self, row: int) -> str:
        start = int(self.starts[row])
        return self._file(row) + (f" from sample {start:,}" if start else "")

    def picture_key(self, row: int) -> int:
        return hash64(self.source.picture_key(int(self.rows[row])), int(self.starts[row]))  # type: ignore[attr-defined]

    def _file(self, row: int) -> str:
        return super().key(row)

    def __getitem__(self, row: int) -> SignalExample:
        file, rate = self._file(row), self.settings.rate
        if self._last[0] != file:  # parts of a recording follow each other
            self._last = (file, read_sound(real_path_inside(self.root, file), rate))
        start = int(self.starts[row])
        part = self._last[1][start : start + self.settings.length]
        values = np.pad(part, (0, self.settings.length - len(part)))[None]
        return SignalExample("audio", values, None, rate, tuple(self.texts(row)), self.key(row))


def _starts(info: SoundInfo, settings: SignalSettings) -> range:
    """The first samples of a recording's examples, at the settings' rate."""
    length = settings.length
    frames = round(info.frames * settings.rate / info.rate)
    whole, rest = divmod(frames, length)
    return range(0, max(1, whole + (rest >= LEAST_PART * length)) * length, length)


def _tell_changes(infos: list[SoundInfo], examples: int, settings: SignalSettings, notes: ReadingNotes) -> None:
    """Note once what is done to sounds of another form."""
    several = sum(info.channels > 1 for info in infos)
    if several:
        notes.warn(f"{several:,} of {len(infos):,} sounds have several channels, which are mixed down to one")
    rates = Counter(info.rate for info in infos if info.rate != settings.rate)
    if rates:
        listed = ", ".join(f"{count:,} of {rate:,} Hz" for rate, count in rates.most_common(4))
        notes.warn(f"sounds of another rate are resampled to {settings.rate:,} Hz: {listed}")
    if examples != len(infos):
        seconds = settings.length / settings.rate
        notes.warn(f"{len(infos):,} sounds become {examples:,} examples of {seconds:g} s")
