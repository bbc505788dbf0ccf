"""metadata.jsonl, .csv, .tsv and .parquet: lines that name pictures, with captions and classes."""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizer_image.pictures.columns import (
    FILE_NAMES,
    LABEL_NAMES,
    Columns,
    caption_columns,
    check_column,
    usual_column,
)
from tokenizer_image.pictures.folder_files import FolderFiles
from tokenizer_image.pictures.json_lines import json_lines, parse_json, read_text_file
from tokenizer_image.pictures.picture_files import is_picture
from tokenizer_image.pictures.reading_notes import ReadingNotes, ending
from tokenizer_image.pictures.text_intake import arrow_value, captions_in, clean_text

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
FORM = 'A line is one object, such as {"file_name": "a.jpg", "text": "a dog"}'
REMEDY = 'close each quote, and write a quote inside of quotes as ""'
DELIMITERS = ",;\t|"
Line = tuple[str, dict[str, Any]]  # (place, {column: value})


@dataclass
class MetadataPicture:
    """The lines of metadata files about one picture; several lines are several captions.

    label: (file and line, value) in a column of classes, None if there is none.
    """

    origin: str
    captions: list[str] = field(default_factory=list)
    label: tuple[str, Any] | None = None


@dataclass
class Metadata:
    """All metadata files of a data set, by picture, in the order of their lines.

    has_captions: whether any of them has a column of captions.
    """

    pictures: dict[str, MetadataPicture] = field(default_factory=dict)
    has_captions: bool = False


def read_metadata(
    files: FolderFiles, metadata: list[str], name: str, columns: Columns, notes: ReadingNotes
) -> Metadata:
    """Read the files `metadata`, each with the columns that it has.

    Raises:
        ValueError: names file and line of what is wrong.
    """
    pictures: dict[str, MetadataPicture] = {}
    has_captions = False
    present: list[str] = []
    for file in metadata:
        lines = list(_lines(files, file, columns, notes))
        if not lines:
            continue
        present = list(dict.fromkeys(column for _, line in lines for column in line))
        file_column = _file_column(file, present, name, columns)
        others = [column for column in present if column != file_column]
        named = [columns.caption] if columns.caption in present else []
        texts_in = [column for column in others if column.lower() not in LABEL_NAMES]
        captions = [str(column) for column in named] if columns.caption else caption_columns(texts_in, file, notes)
        has_captions = has_captions or bool(captions)
        labels = usual_column([column for column in others if column not in captions], LABEL_NAMES)
        for place, line in lines:
            path = _picture_path(files, file, line.get(file_column), place)
            picture = pictures.setdefault(path, MetadataPicture(posixpath.basename(file)))
            texts = [text for column in captions for text in captions_in(line.get(column), place, notes)]
            picture.captions = list(dict.fromkeys([*picture.captions, *texts]))
            if labels is not None and picture.label is None:
                picture.label = place, line.get(labels)
    if not pictures:
        raise ValueError(f"{name} holds no pictures: {', '.join(metadata)} has no lines")
    if columns.caption is not None and not has_captions:
        check_column(present, columns.caption, "caption_column", name)
    return Metadata(pictures, has_captions)


def classes(pictures: dict[str, MetadataPicture]) -> tuple[dict[str, int], list[str] | None]:
    """({picture: class}, names of the classes). Numbers stay, without names; names are numbered in order.

    Raises:
        ValueError: some classes are numbers and others names, or a class is neither.
    """
    labels = {path: picture.label for path, picture in pictures.items() if picture.label is not None}
    values = {path: (place, _class_name(value, place)) for path, (place, value) in labels.items()}
    names = sorted({value for _, value in values.values()} - {""})
    numeric = [name for name in names if re.fullmatch(r"-?\d+", name)]
    if not names:
        return {}, None
    if numeric and len(numeric) < len(names):
        place, value = next((place, value) for place, value in values.values() if value and value not in numeric)
        raise ValueError(
            f"{place}: the class is {value!r}, but others are numbers ({numeric[0]}); give numbers or names for all"
        )
    if numeric:
        known = {path: int(value) if value else -1 for path, (_, value) in values.items()}
        return {path: max(-1, known.get(path, -1)) for path in pictures}, None
    number = {name: index for index, name in enumerate(names)}
    return {path: number.get(values[path][1], -1) if path in values else -1 for path in pictures}, names


def _class_name(value: Any, place: str) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (str, int)):
        raise ValueError(f"{place}: the class is {value!r:.60}; give a number or a name")
    return clean_text(str(value)).strip()


def _file_column(file: str, present: list[str], name: str, columns: Columns) -> str:
    """The column with the pictures' paths."""
    if columns.image is not None:
        return check_column(present, columns.image, "image_column", name)
    usual = usual_column(present, FILE_NAMES)
    if usual is None:
        no_header = ending(file) in (".csv", ".tsv") and any(is_picture(column.strip()) for column in present)
        hint = ". Its first line should name the columns" if no_header else ""
        raise ValueError(
            f"{name}: {file} needs a column file_name with the paths of the pictures (or name it by "
            f"--image_column); it has: {', '.join(present)}{hint}"
        )
    return usual


def _picture_path(files: FolderFiles, metadata: str, value: Any, place: str) -> str:
    """The picture that a line names, relative to the data set's folder."""
    if isinstance(value, dict):  # as `datasets.Image` has it
        value = value.get("path")
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"{place}: the line names no picture file (got {value!r:.60})")
    return files.resolve(posixpath.dirname(metadata), value.strip(), place)


# ---- lines of each kind of file


def _lines(files: FolderFiles, file: str, columns: Columns, notes: ReadingNotes) -> Iterator[Line]:
    """(place, {column: value}) of each line."""
    path, suffix = files.root / file, ending(file)
    if suffix == ".parquet":
        yield from _parquet_lines(path, notes)
    elif suffix == ".jsonl":
        yield from _json_objects(path, notes)
    else:
        yield from _csv_lines(files, file, columns, notes)


def _parquet_lines(path: Path, notes: ReadingNotes) -> Iterator[Line]:
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except Exception as error:  # Arrow raises many kinds for damaged files
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
    names = _names(table.column_names, str(path))
    for number, cells in enumerate(zip(*table.columns, strict=True)):
        place = f"{path}, row {number}"
        yield place, {name: arrow_value(cell, place, notes) for name, cell in zip(names, cells, strict=True)}


def _names(columns: Iterable[str], place: str) -> list[str]:
    """The names of columns without blanks around them. Raises ValueError that names `place` where two are equal."""
    names = [column.strip() for column in columns]
    if len(set(names)) < len(names):
        twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
        if twice is not None:  # several columns without a name are none
            raise ValueError(f"{place}: two columns are called {twice!r}; rename one of them")
    return names


def _json_objects(path: Path, notes: ReadingNotes) -> Iterator[Line]:
    text = read_text_file(path, notes)
    if text.lstrip().startswith("["):  # a file that is one JSON array
        try:
            values = parse_json(text, str(path))
        except json.JSONDecodeError:
            values = None
        if isinstance(values, list) and values and all(isinstance(value, dict) for value in values):
            notes.repair("one JSON array instead of a line for each picture", str(path))
            for number, value in enumerate(values, start=1):
                place = f"{path}, item {number}"
                yield place, dict(zip(_names(value, place), value.values(), strict=True))
            return
    for place, value in json_lines(text, path, FORM, notes):
        if not isinstance(value, dict):
            raise ValueError(f"{place}: {json.dumps(value):.60} is no object. {FORM}")
        yield place, dict(zip(_names(value, place), value.values(), strict=True))


def _csv_lines(files: FolderFiles, file: str, columns: Columns, notes: ReadingNotes) -> Iterator[Line]:
    """Lines of a file with a header, whose delimiter is that of the header.

    Cells beyond the last column belong to it if it is a column of captions: its commas are not quoted.
    """
    path = files.root / file
    text = clean_text(read_text_file(path, notes), str(path), notes)
    first, _, rest = text.partition("\n")
    offset = 0
    if re.fullmatch(r"sep=.\r?", first):  # Excel says its delimiter so
        delimiter, text, offset = first[4], rest, 1
    else:
        delimiter = max("\t,;|" if ending(path.name) == ".tsv" else DELIMITERS, key=first.count)
    records = _csv_records(path, text, delimiter, offset)
    header_place, header, _ = next(records, ("", [], ""))
    header = _names(header, header_place)
    picture_column = columns.image or usual_column(header, FILE_NAMES)
    names_at = header.index(picture_column) if picture_column in header else 0
    for place, cells, raw in records:
        for column, cell in enumerate(cells):
            if "\n" in cell and _holds_lines(cell, column, names_at, delimiter, files, posixpath.dirname(file)):
                raise ValueError(f"{place}: a quoted text holds what looks like the next lines of the file; {REMEDY}")
        if len(cells) > len(header):
            if not caption_columns(header[-1:], "", ReadingNotes()) or len(header) < 2:
                raise ValueError(
                    f"{place}: {len(cells)} cells for {len(header)} columns; put texts with {delimiter!r} into quotes"
                )
            notes.repair(f"{delimiter!r} in a caption without quotes", place)
            exact = next(csv.reader([raw], delimiter=delimiter))  # with the blanks behind delimiters
            cells = exact if len(exact) == len(cells) else cells
            cells = [*cells[: len(header) - 1], delimiter.join(cells[len(header) - 1 :])]
        yield place, dict(zip(header, cells, strict=False))


def _holds_lines(cell: str, column: int, names_at: int, delimiter: str, files: FolderFiles, folder: str) -> bool:
    """Whether a cell of several lines, in `column`, names pictures where lines of the file do (in column `names_at`):
    its quote was closed too late."""
    for number, line in enumerate(cell.splitlines()):
        parts = line.split(delimiter)
        if number > 0 and any(is_picture(part.strip()) for part in parts):
            return True
        at = names_at if number > 0 else names_at - column
        if 0 <= at < len(parts) and len(parts) > 1 and files.has(folder, parts[at].strip()):
            return True
    return False


def _csv_records(path: Path, text: str, delimiter: str, offset: int) -> Iterator[tuple[str, list[str], str]]:
    """(place, cells, text) of each record that is not blank. ValueError for quotes that do not fit."""
    # Line ends in quoted cells stay; a lone "\r" outside ends a line.
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    start = 1 + offset
    while True:
        place = f"{path}, line {start}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{place}: {error}; {REMEDY}") from error
        raw = "".join(lines[start - offset - 1 : reader.line_num])
        start = reader.line_num + 1 + offset
        if any(cell.strip() for cell in cells):
            yield place, cells, raw
