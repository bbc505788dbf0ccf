"""Picture files in a folder, with captions in metadata files, in sidecar files or in the names of folders."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from tokenizer_image.pictures.columns import Columns
from tokenizer_image.pictures.dataset import PictureSource
from tokenizer_image.pictures.fingerprints import digest, file_identity, hash64
from tokenizer_image.pictures.folder_files import FolderFiles, real_path_inside
from tokenizer_image.pictures.metadata import METADATA_FILES, classes, read_metadata
from tokenizer_image.pictures.picture_files import is_picture, open_picture, why_not_read
from tokenizer_image.pictures.reading_notes import COMPRESSED_ENDINGS, ReadingNotes, counted, ending, shown
from tokenizer_image.pictures.sidecars import SIDECAR_ENDINGS, find_sidecars, sidecar_captions
from tokenizer_image.pictures.splits import SplitFiles, split_by_folder, split_word, warn_of_unused_split
from tokenizer_image.pictures.text_intake import name_to_caption

REPEATS_AND_NAME = re.compile(r"\d+_.+")  # "10_dog": ten repeats a picture, as some trainers name folders
PLAIN_FOLDERS = ("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "data", "dataset", "files",
                 "jpg", "jpeg", "png", "raw")  # fmt: skip


@dataclass
class FolderCaptions:
    """Where the captions of the pictures of one split come from; each list has an entry for each picture.

    texts: captions in metadata files, and `origins`, the names of those files; None without such files.
    sidecars: paths of caption files relative to the root, None where a picture has none; [] without any.
    labels, label_names: classes. names_are_captions: a picture without other captions has the name of its class.
    folder_caption: the folder's name, if all pictures are in one folder: the caption of pictures without another.
    """

    texts: list[list[str]] | None = None
    origins: list[str] = field(default_factory=list)
    sidecars: list[str | None] = field(default_factory=list)
    labels: list[int] | None = None
    label_names: list[str] | None = None
    names_are_captions: bool = False
    folder_caption: str | None = None


class FolderPictures(PictureSource):
    """Picture files below `root`: `files` are their paths relative to it, which are also their keys."""

    def __init__(
        self, root: Path, files: list[str], *, name: str, captions: FolderCaptions, notes: ReadingNotes
    ) -> None:
        super().__init__(name, notes)
        self.root, self.files, self._captions = root, files, captions
        self.label_names = captions.label_names
        folder = os.fspath(root)  # joined as text: a data set may have millions of files
        changing = [(file, *file_identity(f"{folder}/{file}")) for file in files]
        sidecars = captions.sidecars
        changing += [
            (file, *(file_identity(f"{folder}/{sidecar}") if sidecar else (-1, -1)))
            for file, sidecar in zip(files, sidecars, strict=False)
        ]
        parts: list[object] = [changing, captions.texts, bool(sidecars), captions.labels, captions.label_names]
        unusual = [
            s for file, s in zip(files, sidecars, strict=False) if s and s != f"{posixpath.splitext(file)[0]}.txt"
        ]
        if unusual or (captions.names_are_captions and (sidecars or captions.texts)) or captions.folder_caption:
            parts.append((unusual, captions.names_are_captions, captions.folder_caption))
        self.fingerprint = digest("folder", *parts)

    def __len__(self) -> int:
        return len(self.files)

    def key(self, row: int) -> str:
        return self.files[row]

    def image(self, row: int) -> Image.Image:
        return open_picture(real_path_inside(self.root, self.files[row]))

    def picture_key(self, row: int) -> int:
        return hash64(self.files[row], *file_identity(self.root / self.files[row]))

    def read_captions(self, row: int, notes: ReadingNotes) -> list[str]:
        captions = self._captions
        texts: list[str] = []
        if captions.texts is not None:
            texts, origin = list(captions.texts[row]), captions.origins[row]
        if not texts and captions.sidecars and captions.sidecars[row] is not None:
            texts = sidecar_captions(self.root, str(captions.sidecars[row]), notes)
            origin = "caption files"
        if not texts and captions.names_are_captions:
            label = self.label(row)
            name = self.label_names[label] if self.label_names and label >= 0 else captions.folder_caption
            texts, origin = [*filter(None, [name_to_caption(name or "")])], "names of classes"
        if texts:
            notes.captions_from(origin)
        return texts

    def label(self, row: int) -> int:
        return self._captions.labels[row] if self._captions.labels is not None else -1


# ---- which captions belong to which picture


def picture_splits(files: FolderFiles, name: str, pictures: list[str], notes: ReadingNotes) -> dict[str, SplitFiles]:
    """Pictures beside caption files, or in one folder per class; split by folders named train, test, ..."""
    depth, splits = split_by_folder(pictures)
    warn_of_unused_split(pictures, depth, notes)
    sidecars = _sidecars(files, pictures, notes)
    note_left_out(files, {*pictures, *sidecars.values()}, notes)
    names = _class_names(pictures, depth, bool(sidecars), notes)
    folder_caption = None if names or sidecars else _only_folder(pictures, depth, notes)
    number = {label: index for index, label in enumerate(names or [])}
    named = names is not None and not (sidecars and all(map(REPEATS_AND_NAME.fullmatch, names)))
    if named and 0 < len(sidecars) < len(pictures):
        notes.warn(
            f"{len(sidecars):,} of {len(pictures):,} pictures have a caption file; the others have their folder's name"
        )
    elif named and names is not None and not sidecars:
        _tell_names(names, notes)

    def open_split(part: list[str]) -> FolderPictures:
        captions = FolderCaptions(
            sidecars=[sidecars.get(file) for file in part] if sidecars else [],
            labels=[number.get(_class_of(file, depth), -1) for file in part] if names else None,
            label_names=names,
            names_are_captions=named or folder_caption is not None,
            folder_caption=folder_caption,
        )
        return FolderPictures(files.root, part, name=name, captions=captions, notes=notes)

    return {split: SplitFiles(partial(open_split, part), len(part)) for split, part in splits.items()}


def _sidecars(files: FolderFiles, pictures: Sequence[str], notes: ReadingNotes) -> dict[str, str]:
    """{picture: caption file}; further caption files are counted as left out."""
    found = find_sidecars(files, pictures)
    for file, reason in found.unused.items():
        notes.leave_out(file, reason)
    return found.chosen


def has_class_folders(pictures: Sequence[str]) -> bool:
    """Whether the folders of the pictures are classes."""
    return _class_names(pictures, split_by_folder(pictures)[0], False, ReadingNotes()) is not None


def note_left_out(
    files: FolderFiles,
    used: set[str],
    notes: ReadingNotes,
    *,
    pictures: str = "",
    texts: str = "",
) -> None:
    """Count the files that are not `used` and not counted yet, with the reason: for pictures, and for caption files."""
    stems = {posixpath.splitext(file)[0] for file in used if is_picture(file)}
    for file in files.files:
        if file in used or file in notes.counted:
            continue
        beside = posixpath.splitext(file)[0] in stems
        if is_picture(file):
            notes.leave_out(file, pictures)
        elif posixpath.basename(file).lower() in METADATA_FILES and texts:
            notes.leave_out(file, texts)
        elif ending(file) in SIDECAR_ENDINGS and (beside or ending(file) != ".json"):
            notes.leave_out(file, texts or "no example has this name")
        else:
            notes.leave_out(file, why_not_read(file) or _why_not_metadata(file))


def _why_not_metadata(file: str) -> str:
    """Why a file that is neither a picture nor a caption file is left out."""
    if ending(file) in (".csv", ".tsv", ".json", ".jsonl"):
        return "captions in one file are read from metadata.csv, .tsv, .jsonl or .parquet"
    if ending(file) in COMPRESSED_ENDINGS:
        return "a compressed archive; unpack it to use what it holds"
    return "not a kind of file that is read here"


def _class_of(file: str, depth: int) -> str:
    """The folder just below the split, "" for a picture outside of any."""
    return file.split("/")[depth] if file.count("/") > depth else ""


def _class_names(pictures: Sequence[str], depth: int, sidecars: bool, notes: ReadingNotes) -> list[str] | None:
    """The folders that are classes: those just below the split, if there are several.

    Pictures outside of any have no class; beside caption files they mean that the folders are no classes.
    """
    folders = {_class_of(file, depth) for file in pictures}
    names = sorted(folders - {""})
    if len(names) < 2 or ("" in folders and sidecars):
        return None
    if "" in folders:
        strays = [file for file in pictures if _class_of(file, depth) == ""]
        if len(strays) * 2 > len(pictures):
            return None
        notes.warn(
            f"{counted(len(strays), 'picture')} outside of the classes' folders without a class: {shown(strays[0])}"
        )
    return names


def _only_folder(pictures: Sequence[str], depth: int, notes: ReadingNotes) -> str | None:
    """The name of the folder that holds all pictures, if there is only one and its name can describe them."""
    for level in (depth, depth - 1):
        folders = {_class_of(file, level) if level >= 0 else "" for file in pictures}
        name = folders.pop() if len(folders) == 1 else ""
        if name and not split_word(name):
            break
    if not re.search(r"[^\W\d_]", name) or name.lower() in PLAIN_FOLDERS or split_word(name):
        return None
    notes.warn(f"all pictures are in one folder, whose name is their caption: {name_to_caption(name)!r}")
    return name


def _tell_names(names: Sequence[str], notes: ReadingNotes) -> None:
    changed = [(name, name_to_caption(name)) for name in names if name_to_caption(name) != name]
    if any(REPEATS_AND_NAME.fullmatch(name) for name in names):
        pairs = ", ".join(f"{name} -> {caption!r}" for name, caption in changed[:3])
        notes.warn(
            f"the names of the folders are the captions: {pairs}; rename folders whose numbers should not be there"
        )


def metadata_splits(
    files: FolderFiles, name: str, metadata: list[str], columns: Columns, notes: ReadingNotes
) -> dict[str, SplitFiles]:
    """Pictures that metadata files name; these lie in the folder itself or in those of its splits."""
    read = read_metadata(files, metadata, name, columns, notes)
    pictures = list(read.pictures)
    numbers, label_names = classes(read.pictures)
    sidecars = _sidecars(files, [file for file, picture in read.pictures.items() if not picture.captions], notes)
    missing = [file for file in pictures if files.find(file) is None and not os.path.isfile(files.root / file)]
    if missing and len(missing) == len(pictures):
        raise ValueError(
            f"{name}: none of the {len(pictures):,} pictures that {', '.join(metadata[:3])} names is there, such as "
            f"{shown(missing[0])}; paths are relative to that file"
        )
    if missing:
        notes.warn(
            f"{len(missing):,} of {len(pictures):,} pictures that metadata names are not there: {shown(missing[0])}"
        )

    note_left_out(
        files, {*metadata, *pictures, *sidecars.values()}, notes,
        pictures=f"{posixpath.basename(metadata[0])} does not name it",
        texts=f"{posixpath.basename(metadata[0])} has the captions",
    )  # fmt: skip

    def open_split(part: list[str]) -> FolderPictures:
        captions = FolderCaptions(
            texts=[read.pictures[file].captions for file in part] if read.has_captions else None,
            origins=[read.pictures[file].origin for file in part],
            sidecars=[sidecars.get(file) for file in part] if sidecars else [],
            labels=[numbers[file] for file in part] if numbers else None,
            label_names=label_names,
            names_are_captions=label_names is not None and not read.has_captions,
        )
        return FolderPictures(files.root, part, name=name, captions=captions, notes=notes)

    depth, splits = split_by_folder(pictures)
    warn_of_unused_split(pictures, depth, notes)
    return {split: SplitFiles(partial(open_split, part), len(part)) for split, part in splits.items()}
