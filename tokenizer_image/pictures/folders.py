"""A folder or file on this machine -> its splits. What lies there decides which kind of source it is."""

from __future__ import annotations

import csv
import glob
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tokenizer_image.pictures.documents import DOCUMENTS_FILE, DocumentFile
from tokenizer_image.pictures.sources import PICTURE_SUFFIXES, FolderPictures, TablePictures, TarPictures
from tokenizer_image.pictures.table_columns import (
    CAPTION_NAMES,
    FILE_NAMES,
    LABEL_NAMES,
    Columns,
    check_column,
    digest,
    file_identity,
    texts_in,
    usual_column,
)

Opener = Callable[[], Any]  # -> the source of one split
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


def split_word(name: str) -> str | None:
    """The split that a folder or split name means ("val" -> "validation"), None if it means none."""
    return SPLIT_WORDS.get(name.lower())


def open_path(path: Path, name: str, columns: Columns) -> dict[str, Opener]:
    """{split: opener} of an existing folder or file. ValueError if it holds no pictures in a known form."""
    if path.is_file():
        root, files = path.parent, [path.name]
    elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _saved_to_disk(path, name, columns)
    else:
        root, files = path, sorted(_files_below(path))
    documents = [file for file in files if posixpath.basename(file) == DOCUMENTS_FILE]
    metadata = [file for file in files if posixpath.basename(file) in METADATA_FILES]
    tables = [file for file in files if file.endswith(".parquet") and file not in metadata]
    tars = [file for file in files if file.endswith(".tar")]
    pictures = [file for file in files if posixpath.splitext(file)[1].lower() in PICTURE_SUFFIXES]
    if documents:
        _no_columns(name, columns, DOCUMENTS_FILE)
        splits = _by_split(documents)
        return {split: partial(DocumentFile, root, part, name=name) for split, part in splits.items()}
    if metadata and path.is_dir():
        return _metadata_splits(root, name, metadata, columns)
    if tables:
        return {split: partial(_open_parquet, root, part, name, columns) for split, part in _by_split(tables).items()}
    if tars:
        return {
            split: partial(TarPictures, [root / file for file in part], name=name, columns=columns)
            for split, part in _by_split(tars).items()
        }
    if pictures and path.is_dir():
        return _picture_splits(root, name, pictures, set(files), columns)
    raise ValueError(f"{name} holds no pictures: {_what_lies_there(files)}")


def _files_below(root: Path) -> Iterator[str]:
    """Paths below `root`, relative, with "/"; links to folders are followed once, hidden names left out."""
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith((".", "__MACOSX"))]
        relative = Path(folder).relative_to(root).as_posix()
        yield from (posixpath.normpath(f"{relative}/{name}") for name in names if not name.startswith("."))


def _what_lies_there(files: list[str]) -> str:
    accepted = "pictures (.jpg, .png, .webp, ...), documents.jsonl, Parquet files or WebDataset .tar archives"
    if not files:
        return f"the folder is empty. It should hold {accepted}"
    endings = sorted({posixpath.splitext(file)[1] or posixpath.basename(file) for file in files})
    unpack = ". Unpack the archives first" if {".zip", ".gz", ".tgz", ".zst"} & set(endings) else ""
    return f"it has files of the kinds {', '.join(endings[:8])}, and should have {accepted}{unpack}"


# ---- tables and archives


def _by_split(files: list[str]) -> dict[str, list[str]]:
    """Parquet files or tars by the split that a folder or the file is named after; "train" where none is."""
    splits: dict[str, list[str]] = {}
    for file in files:
        *folders, base = file.lower().split("/")
        words = [SPLIT_WORDS[folder] for folder in folders if folder in SPLIT_WORDS]
        words += [SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", base) if word in SPLIT_WORDS]
        splits.setdefault(words[0] if words else "train", []).append(file)
    return splits


def _open_parquet(root: Path, files: list[str], name: str, columns: Columns) -> TablePictures:
    """Parquet files as one table: converted once to Arrow in the cache of `datasets`, then memory-mapped."""
    from datasets import load_dataset

    paths = [root / file for file in files]
    patterns = [glob.escape(str(path.absolute())) for path in paths]
    try:
        table = load_dataset("parquet", data_files={"train": patterns}, split="train")
    except Exception as error:  # whatever Arrow and datasets make of a damaged file or unlike columns
        reason = error.__cause__ or error
        raise ValueError(f"{name}: {', '.join(files[:3])} cannot be read as Parquet: {reason}") from error
    identity = digest([(file, *file_identity(path)) for file, path in zip(files, paths, strict=True)])
    return TablePictures(table, name=name, identity=identity, columns=columns, root=root)


def _saved_to_disk(path: Path, name: str, columns: Columns) -> dict[str, Opener]:
    """What `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    from datasets import Dataset, load_from_disk

    loaded = load_from_disk(str(path))
    return table_splits({"train": loaded} if isinstance(loaded, Dataset) else loaded, name, columns)


def table_splits(tables: Mapping[str, Any], name: str, columns: Columns) -> dict[str, Opener]:
    """{split: opener} of `datasets.Dataset` objects; one that is alone under an unknown name is "train"."""
    alone = len(tables) == 1
    return {
        split_word(split) or ("train" if alone else split): partial(
            TablePictures, table, name=name, identity=table._fingerprint, columns=columns
        )
        for split, table in tables.items()
    }


# ---- folders of picture files


def _picture_splits(root: Path, name: str, pictures: list[str], files: set[str], columns: Columns) -> dict[str, Opener]:
    """Pictures beside .txt captions, or in one folder per class; split by folders named train, test, ..."""
    _no_columns(name, columns, "a folder of pictures without metadata.jsonl")
    depth, splits = _split_pictures(pictures)
    sidecars = any(posixpath.splitext(file)[0] + ".txt" in files for file in pictures)
    # The folder just below the split is the class, if every picture is in one and there are several.
    folders = {file.split("/")[depth] if file.count("/") > depth else "" for file in pictures}
    label_names = sorted(folders) if "" not in folders and len(folders) > 1 else None
    number = {label: index for index, label in enumerate(label_names or [])}

    def open_split(files: list[str]) -> FolderPictures:
        return FolderPictures(
            root,
            files,
            name=name,
            sidecars=sidecars,
            labels=[number[file.split("/")[depth]] for file in files] if label_names else None,
            label_names=label_names,
        )

    return {split: partial(open_split, part) for split, part in splits.items()}


def _no_columns(name: str, columns: Columns, what: str) -> None:
    for option, column in (("image_column", columns.image), ("caption_column", columns.caption)):
        if column is not None:
            raise ValueError(
                f"{name} has no column {column!r} (--{option}): {what} has no columns. Leave --{option} out"
            )


def _split_pictures(pictures: list[str]) -> tuple[int, dict[str, list[str]]]:
    """(number of folders above what matters, {split: pictures}).

    Folders are splits only if all of them on their level have a split's name, so that a class "train" beside
    "boat" stays a class. A level with a single folder ("images/...") is passed over.
    """
    depth = 0
    while all(file.count("/") > depth for file in pictures):
        folders = {file.split("/")[depth] for file in pictures}
        if all(split_word(folder) for folder in folders):
            splits: dict[str, list[str]] = {}
            for file in pictures:
                splits.setdefault(SPLIT_WORDS[file.split("/")[depth].lower()], []).append(file)
            return depth + 1, splits
        if len(folders) > 1:
            break
        depth += 1
    return depth, {"train": pictures}


def _metadata_splits(root: Path, name: str, metadata: list[str], columns: Columns) -> dict[str, Opener]:
    """Pictures that metadata files name; these lie in the folder itself or in those of its splits."""
    lines = [
        (posixpath.dirname(file), line) for file in metadata for line in _metadata_lines(root / file)
    ]  # (folder of the metadata file, {column: value})
    if not lines:
        raise ValueError(f"{name} holds no pictures: {', '.join(metadata)} has no lines")
    present = list(dict.fromkeys(column for _, line in lines for column in line))
    files = usual_column(present, FILE_NAMES)
    if columns.image is not None:
        files = check_column(present, columns.image, "image_column", name)
    elif files is None:
        raise ValueError(
            f"{name}: {metadata[0]} needs a column file_name with the paths of the pictures (or name it by "
            f"--image_column); it has: {', '.join(present)}"
        )
    others = [column for column in present if column != files]
    captions = usual_column(others, CAPTION_NAMES)
    if columns.caption is not None:
        captions = check_column(present, columns.caption, "caption_column", name)

    by_picture: dict[str, list[dict[str, Any]]] = {}  # several lines of one picture are several captions
    for folder, line in lines:
        by_picture.setdefault(_inside(folder, line.get(files), name), []).append(line)
    classes, label_names = _classes(by_picture, usual_column(others, LABEL_NAMES))

    def texts_of(picture: str) -> list[str]:
        return texts_in([line.get(captions or "") for line in by_picture[picture]])

    def open_split(pictures: list[str]) -> FolderPictures:
        return FolderPictures(
            root,
            pictures,
            name=name,
            texts=[texts_of(picture) for picture in pictures] if captions else None,
            labels=[classes[picture] for picture in pictures] if classes else None,
            label_names=label_names,
        )

    splits = _split_pictures(list(by_picture))[1]
    return {split: partial(open_split, part) for split, part in splits.items()}


def _classes(
    by_picture: dict[str, list[dict[str, Any]]], column: str | None
) -> tuple[dict[str, int], list[str] | None]:
    """({picture: class}, names of the classes). Numbers stay, without names; names are numbered in order."""
    if column is None:
        return {}, None
    values = {picture: str(lines[0].get(column, "")) for picture, lines in by_picture.items()}
    names = sorted(set(values.values()) - {"", "None"})
    if all(name.isdigit() for name in names):
        return {picture: int(value) if value.isdigit() else -1 for picture, value in values.items()}, None
    number = {name: index for index, name in enumerate(names)}
    return {picture: number.get(value, -1) for picture, value in values.items()}, names


def _inside(folder: str, file: Any, name: str) -> str:
    """Path relative to the data set's folder of a picture that a metadata file there names."""
    if not isinstance(file, str) or not file:
        raise ValueError(f"{name}: a line of its metadata names no picture file (got {file!r})")
    path = posixpath.normpath(posixpath.join(folder, file.replace("\\", "/")))
    if posixpath.isabs(path) or path.startswith("../"):
        raise ValueError(f"{name}: its metadata names {file!r}, which is outside of the folder")
    return path


def _metadata_lines(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        return parquet.read_table(path).to_pylist()
    with open(path, encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        lines = []
        for number, line in enumerate(file, start=1):
            try:
                lines += [json.loads(line)] if line.strip() else []
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error
    return lines
