"""A folder or file on this machine -> its splits. What lies there decides which kind of source it is."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizer_image.pictures.archives import TarPictures
from tokenizer_image.pictures.columns import Columns
from tokenizer_image.pictures.documents import DOCUMENTS_FILE, DocumentFile
from tokenizer_image.pictures.folder_files import FolderFiles, files_below
from tokenizer_image.pictures.folder_pictures import (
    has_class_folders,
    metadata_splits,
    note_left_out,
    picture_splits,
)
from tokenizer_image.pictures.metadata import METADATA_FILES
from tokenizer_image.pictures.picture_files import is_picture, why_not_read
from tokenizer_image.pictures.reading_notes import COMPRESSED_ENDINGS, ReadingNotes, ending, shown
from tokenizer_image.pictures.sidecars import find_sidecars
from tokenizer_image.pictures.splits import SplitFiles, split_by_name, split_word
from tokenizer_image.pictures.tables import TableFile, count_rows, inspect_table, open_parquet, saved_to_disk
from tokenizer_image.pictures.tar_members import count_pictures_of_tars, count_tar_pictures

ACCEPTED = "pictures (.jpg, .png, .webp, ...), documents.jsonl, Parquet files or WebDataset .tar archives"


@dataclass
class FolderContents:
    """The files of a data set's folder, by what they can be."""

    files: FolderFiles
    documents: list[str]
    metadata: list[str]
    tables: list[str]
    tars: list[str]
    pictures: list[str]


def open_path(path: Path, name: str, columns: Columns, notes: ReadingNotes) -> dict[str, SplitFiles]:
    """The splits of an existing folder or file. ValueError if it holds no pictures in a known form."""
    if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        return saved_to_disk(path, name, columns, notes)
    contents = _look_into(path, notes)
    files = contents.files
    documents = _without_strays(contents.documents, contents, notes)
    if documents:
        _no_columns(name, columns, DOCUMENTS_FILE)
        note_left_out(files, {*documents, *contents.pictures}, notes, texts=f"{DOCUMENTS_FILE} has the texts")
        return {
            split: SplitFiles(partial(DocumentFile, files, part, name=name, notes=notes))
            for split, part in split_by_name(documents).items()
        }
    metadata = _without_strays(contents.metadata, contents, notes)
    if metadata:
        return metadata_splits(files, name, metadata, columns, notes)
    kind = _choose_kind(contents, columns, notes)
    if kind == "tables":
        note_left_out(files, {*contents.tables, *contents.pictures}, notes, texts="Parquet files have the captions")
        return {
            split: SplitFiles(partial(open_parquet, files, part, name, columns, notes), count_rows(files.root, part))
            for split, part in split_by_name(contents.tables).items()
        }
    if kind == "tars":
        reason = "the archives are the data set"
        note_left_out(files, set(contents.tars), notes, pictures=reason, texts=reason)
        return {
            split: SplitFiles(
                partial(TarPictures, paths, name=name, columns=columns, notes=notes),
                count_rows=partial(count_pictures_of_tars, paths),
            )
            for split, part in split_by_name(contents.tars).items()
            for paths in [[files.root / file for file in part]]
        }
    if kind == "pictures":
        _no_columns(name, columns, "a folder of pictures without metadata.jsonl")
        return picture_splits(files, name, contents.pictures, notes)
    raise ValueError(f"{name} holds no pictures: {_what_lies_there(files.files, path, notes)}")


def _look_into(path: Path, notes: ReadingNotes) -> FolderContents:
    if path.is_dir():
        files = FolderFiles(path, files_below(path, notes))
    elif path.is_file():
        files = FolderFiles(path.parent, [path.name])
    else:
        raise ValueError(f"{path} is neither a folder nor a file")
    by_ending: dict[str, list[str]] = {}
    for file in files.files:
        by_ending.setdefault(ending(file), []).append(file)
    texts = sorted(file for suffix in (".jsonl", ".csv", ".tsv", ".parquet") for file in by_ending.get(suffix, []))
    metadata = [file for file in texts if posixpath.basename(file).lower() in METADATA_FILES and path.is_dir()]
    pictures = [file for suffix, names in by_ending.items() if is_picture(f"x{suffix}") for file in names]
    return FolderContents(
        files,
        documents=[file for file in texts if posixpath.basename(file).lower() == DOCUMENTS_FILE],
        metadata=metadata,
        tables=[file for file in by_ending.get(".parquet", []) if file not in metadata],
        tars=by_ending.get(".tar", []),
        pictures=sorted(pictures) if path.is_dir() else [],
    )


def _no_columns(name: str, columns: Columns, what: str) -> None:
    for option, column in (("image_column", columns.image), ("caption_column", columns.caption)):
        if column is not None:
            raise ValueError(
                f"{name} has no column {column!r} (--{option}): {what} has no columns. Leave --{option} out"
            )


# ---- what the data set is, where there is more than one candidate


def _without_strays(candidates: list[str], contents: FolderContents, notes: ReadingNotes) -> list[str]:
    """metadata.jsonl or documents.jsonl files, unless they lie in a sub-folder beside more pictures with captions of
    their own."""
    folders = [posixpath.dirname(file) for file in candidates]
    if not candidates or "" in folders or any(split_word(posixpath.basename(folder)) for folder in folders):
        return candidates
    apart = [file for file in contents.pictures if not any(file.startswith(f"{folder}/") for folder in folders)]
    if (
        2 * len(apart) < len(contents.pictures)
        or 2 * len(find_sidecars(contents.files, apart).chosen) < len(apart)
        or not apart
    ):
        return candidates
    for file, folder in zip(candidates, folders, strict=True):
        notes.leave_out(
            file, f"most pictures lie outside of its folder; --dataset {contents.files.root / folder} reads it"
        )
    return []


def _choose_kind(contents: FolderContents, columns: Columns, notes: ReadingNotes) -> str | None:
    """ "tables", "tars" or "pictures", None for nothing. The files of the others are counted as left out."""
    if len(contents.tables) > 1 or (contents.tables and (contents.pictures or contents.tars)):
        tables = {file: inspect_table(contents.files.root, file, columns) for file in contents.tables}
    else:
        tables = {file: TableFile() for file in contents.tables}
    usable = [file for file, table in tables.items() if table.problem is None]
    if usable or contents.pictures or contents.tars:  # else opening the tables says what is wrong
        for file in set(contents.tables) - set(usable):
            notes.leave_out(file, f"no pictures in it: {tables[file].problem}")
        contents.tables = usable
    kinds = {
        kind: files
        for kind, files in (("pictures", contents.pictures), ("tables", contents.tables), ("tars", contents.tars))
        if files
    }
    if len(kinds) < 2:
        return next(iter(kinds), None)
    captioned = contents.pictures and (
        2 * len(find_sidecars(contents.files, contents.pictures).chosen) >= len(contents.pictures)
        or has_class_folders(contents.pictures)
    )
    names_pictures = [table for table in tables.values() if table.by_path and (table.has_captions or not captioned)]
    if names_pictures and contents.pictures:
        kind = "tables"
    elif captioned:
        kind = "pictures"
    else:
        counts = {
            "pictures": len(contents.pictures),
            "tables": sum(tables[file].rows for file in contents.tables),
            "tars": sum(count_tar_pictures(contents.files.root / file) for file in contents.tars),
        }
        kind = max(kinds, key=lambda kind: counts[kind])
    for file in [file for other, files in kinds.items() if other not in (kind, "pictures") for file in files]:
        notes.leave_out(file, f"the {kind} beside it are the data set; --dataset {contents.files.root / file} reads it")
    return kind


def _what_lies_there(files: Sequence[str], path: Path, notes: ReadingNotes) -> str:
    if not files:
        skipped = ", ".join(notes.left_out_reasons())
        return f"{skipped or 'the folder is empty'}. It should hold {ACCEPTED}"
    endings = sorted({posixpath.splitext(file)[1] or posixpath.basename(file) for file in files})
    unpack = ". Unpack the archives first" if set(COMPRESSED_ENDINGS) & set(map(ending, files)) else ""
    hints = dict.fromkeys(f". {ending(file)} {why_not_read(file)}" for file in files if why_not_read(file))
    hints |= dict.fromkeys(
        ". Sounds are read with --signal audio" for file in files if ending(file) in (".wav", ".flac", ".ogg", ".mp3")
    )
    hints |= dict.fromkeys(
        ". Series are read with --signal series" for file in files if ending(file) in (".csv", ".tsv")
    )
    whole = f". Name its folder, {path.parent}" if path.is_file() else ""
    kinds = ", ".join(map(shown, endings[:8]))
    return f"it has files of the kinds {kinds}, and should have {ACCEPTED}{unpack}{''.join(hints)}{whole}"
