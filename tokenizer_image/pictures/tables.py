"""Pictures in tables: Parquet files, data sets of the Hub, and what `datasets` saved to disk."""

from __future__ import annotations

import glob
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tokenizer_image.pictures.columns import IMAGE_NAMES, Columns, caption_columns, usual_column
from tokenizer_image.pictures.dataset import PictureSource
from tokenizer_image.pictures.fingerprints import digest, file_identity, hash64, hash_numbers, one_or_all
from tokenizer_image.pictures.folder_files import FolderFiles, outside, real_path_inside
from tokenizer_image.pictures.picture_files import open_picture
from tokenizer_image.pictures.reading_notes import ReadingNotes, shown
from tokenizer_image.pictures.splits import SplitFiles, split_word
from tokenizer_image.pictures.table_columns import (
    can_hold_pictures,
    find_caption_columns,
    find_image_column,
    find_label_column,
    is_class,
    is_list,
)
from tokenizer_image.pictures.text_intake import arrow_value, captions_in, name_to_caption

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


class TablePictures(PictureSource):
    """Rows of a `datasets.Dataset`, read from its memory-mapped Arrow files without the `datasets` library.

    A picture is a cell with encoded bytes, a path, both (as `datasets.Image` has it), or a list of these, of which the
    first is used. Paths are relative to `root`, or to the folder of the file that the row comes from.
    identity: fingerprint of the rows, independent of the chosen columns.
    folders: (number of the first row, folder relative to the root) of each file, increasing.
    files: the files below the root, where paths are looked up that differ in case or Unicode form.
    """

    def __init__(
        self,
        table: Dataset,
        *,
        name: str,
        identity: str,
        columns: Columns,
        notes: ReadingNotes,
        root: Path | None = None,
        folders: Sequence[tuple[int, str]] = (),
        files: FolderFiles | None = None,
    ) -> None:
        super().__init__(name, notes)
        if table._indices is not None:
            table = table.flatten_indices()
        self.root, self._folders = root, list(folders)
        self._image_column = find_image_column(table, columns.image, name)
        self._caption_columns = find_caption_columns(table, columns.caption, self._image_column, name, notes)
        self._label_column, self.label_names = find_label_column(table.features)
        classes = [column for column in self._caption_columns if is_class(table.features[column])]
        if classes:  # the names of its classes are the captions
            self._label_column, self._caption_columns = classes[0], []
            self.label_names = list(table.features[classes[0]].names)
        if is_list(table.data.schema.field(self._image_column).type):
            notes.warn(f"the column {self._image_column} holds lists of pictures: the first of each is used")
        self._column_names = list(table.column_names)
        self._files = [file["filename"] for file in table.cache_files]
        self._length = len(table)
        self._table = None if self._files else table.data.table
        self._columns: dict[str, pa.ChunkedArray] = {}
        self._renamed: dict[str, str] = {}  # paths in cells -> the files that they mean, where these differ
        behind = [(path, *self._identity(row, path, files)) for row, path in self._paths()]
        self.fingerprint = digest(
            "table", identity, self._image_column, one_or_all(self._caption_columns), self._label_column,
            *([digest(behind)] if behind else []),
        )  # fmt: skip

    def __len__(self) -> int:
        return self._length

    def key(self, row: int) -> str:
        return f"row {row}"

    def row_hashes(self, salt: str) -> np.ndarray:
        return hash_numbers(len(self), salt)  # rows have no names, only numbers

    def _cell(self, row: int) -> tuple[Any, Any]:
        """(bytes, path) of a row's picture; what there is of the two."""
        value = _first(arrow_value(self._column(self._image_column)[row], self.key(row), ReadingNotes()))
        return (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)

    def picture_key(self, row: int) -> int:
        content, path = self._cell(row)
        if isinstance(content, bytes):
            return hash64(content)
        return hash64(path, *(self._identity(row, path, None) if isinstance(path, str) else ()))

    def image(self, row: int) -> Image.Image:
        content, path = self._cell(row)
        if isinstance(content, bytes):
            return open_picture(content, path if isinstance(path, str) else "")
        if not isinstance(path, str):
            raise ValueError("no picture in this row")
        return open_picture(self._find(row, path))

    def _paths(self) -> Iterator[tuple[int, str]]:
        """(row, path) of the pictures that are files of their own."""
        import pyarrow as pa

        cells = self._column(self._image_column)
        if pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type) or self.root is None:
            return
        if pa.types.is_struct(cells.type):
            if cells.type.get_field_index("path") < 0:
                return
            if cells.type.get_field_index("bytes") >= 0 and _child(cells, "bytes").null_count == 0:
                return
        for row, cell in enumerate(cells):
            if not cell.is_valid:
                continue
            if pa.types.is_struct(cell.type) and "bytes" in cell and cell["bytes"].is_valid:
                continue
            value = _first(arrow_value(cell, self.key(row), ReadingNotes()))
            path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
            if isinstance(path, str) and "://" not in path:
                yield row, path

    def _identity(self, row: int, path: str, files: FolderFiles | None) -> tuple[int, int]:
        """Size and time of the file that a cell's path names, (-1, -1) if it cannot be read."""
        try:
            found = self._find(row, path)
            renamed = None if files is None or os.path.exists(found) else files.find(*self._candidates(row, path))
            if renamed is not None:
                self._renamed[path] = renamed
                found = self._find(row, path)
            return file_identity(found)
        except ValueError:
            return -1, -1

    def _find(self, row: int, path: str) -> Path:
        """The file that a cell's path names. Raises ValueError for one outside of the data set's folder."""
        if "://" in path:
            raise ValueError(f"a web address instead of a picture: {path}")
        if "\0" in path:
            raise ValueError(f"no such file: {path!r}")
        if self.root is None:  # a data set of the Hub: its files are in the cache
            return _in_hub_cache(path)
        inside = self._candidates(row, path)
        if not inside:
            raise ValueError(f"{shown(path)!r} is outside of the data set's folder, {self.root}")
        return real_path_inside(self.root, next((p for p in inside if os.path.exists(self.root / p)), inside[0]))

    def _candidates(self, row: int, path: str) -> list[str]:
        """Paths inside of the root that a cell's path may stand for, relative to the root."""
        path, root = self._renamed.get(path, path), os.path.abspath(self.root or ".")
        relative = os.path.relpath(path, root) if os.path.isabs(path) else os.path.normpath(path.replace("\\", "/"))
        folder = self._folders[bisect_right(self._folders, (row, "\U0010ffff")) - 1][1] if self._folders else ""
        beside = os.path.normpath(os.path.join(folder, relative))
        return [candidate for candidate in (relative, beside) if not outside(candidate)]

    def read_captions(self, row: int, notes: ReadingNotes) -> list[str]:
        if not self._caption_columns:
            label = self.label(row)
            known = self.label_names is not None and 0 <= label < len(self.label_names)
            texts = [*filter(None, [name_to_caption(self.label_names[label])])] if known and self.label_names else []
            origin = f"names of classes in the column {self._label_column}"
        else:
            texts = []
            for column in self._caption_columns:
                place = f"row {row}, {column}"
                texts += captions_in(arrow_value(self._column(column)[row], place, notes), place, notes)
            origin = f"the column {', '.join(self._caption_columns)}"
        if texts:
            notes.captions_from(origin)
        return list(dict.fromkeys(texts))

    def label(self, row: int) -> int:
        if self._label_column is None:
            return -1
        value = self._column(self._label_column)[row].as_py()
        return value if isinstance(value, int) and value >= 0 else -1

    def values(self, column: str) -> list[Any]:
        if column not in self._column_names:
            if column == "label" and self._label_column is not None:
                return super().values(column)
            raise ValueError(f"{self.name} has no column {column!r}; it has: {', '.join(self._column_names)}")
        return self._column(column).to_pylist()

    def _column(self, name: str) -> pa.ChunkedArray:
        """The files are mapped when a process first asks."""
        if name not in self._columns:
            if self._table is None:
                import pyarrow as pa

                parts = [pa.ipc.open_stream(pa.memory_map(file)).read_all() for file in self._files]
                self._table = pa.concat_tables(parts)
            self._columns[name] = self._table.column(name)
        return self._columns[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}, "_table": None if self._files else self._table}


def _first(value: Any) -> Any:
    """The first of a list of pictures, or the picture itself."""
    return next(iter(value), None) if isinstance(value, list) else value


def _child(cells: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    import pyarrow.compute as compute

    return compute.struct_field(cells, name)


def _in_hub_cache(path: str) -> Path:
    from datasets import config

    folders = [os.path.realpath(folder) for folder in (config.HF_CACHE_HOME, config.HF_DATASETS_CACHE)]
    real = os.path.realpath(path)
    if not os.path.isabs(path) or not any(real.startswith(folder + os.sep) for folder in folders):
        raise ValueError(f"{shown(path)!r} is a path on another machine")
    return Path(path)


# ---- the tables of a data set


@dataclass(frozen=True)
class TableFile:
    """What a Parquet file's footer says. by_path: its pictures are files beside it. problem: None, or why it holds no
    pictures."""

    rows: int = 0
    by_path: bool = False
    has_captions: bool = False
    problem: str | None = None


def inspect_table(root: Path, file: str, columns: Columns) -> TableFile:
    """Read a Parquet file's footer."""
    import pyarrow.parquet as parquet

    try:
        footer = parquet.ParquetFile(root / file)
        schema = footer.schema_arrow
    except Exception as error:  # Arrow raises many kinds for damaged files
        return TableFile(problem=f"it cannot be read as Parquet ({' '.join(str(error).split()):.80})")
    if footer.metadata.num_rows == 0:
        return TableFile(problem="it has no rows")
    marked = b'"_type": "Image"' in ((schema.metadata or {}).get(b"huggingface") or b"")
    column = columns.image or usual_column(schema.names, IMAGE_NAMES)
    kind = schema.field(column).type if column in schema.names else None
    if not marked and (kind is None or not can_hold_pictures(kind)):
        return TableFile(problem=f"it has no column of pictures, but {', '.join(schema.names)}")
    by_path = kind is not None and _names_files(kind, footer.metadata, str(column))
    has_captions = bool(caption_columns([name for name in schema.names if name != column], "", ReadingNotes()))
    return TableFile(footer.metadata.num_rows, by_path, has_captions)


def _names_files(kind: Any, metadata: Any, column: str) -> bool:
    """Whether the pictures of a column are files: paths, or Hugging Face's pairs of bytes and a path without bytes."""
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)
    names = [field.name for field in kind]
    if "path" not in names:
        return False
    has_no_bytes = "bytes" not in names or pa.types.is_null(kind.field("bytes").type)
    return has_no_bytes or _all_null(metadata, f"{column}.bytes")


def _all_null(metadata: Any, column: str) -> bool:
    """Whether a column of a Parquet file has no values, by the statistics in its footer."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    counts = [chunk.statistics for chunk in chunks if chunk.path_in_schema == column]
    return bool(counts) and all(one is not None and one.num_values == 0 for one in counts)


def count_rows(root: Path, tables: Sequence[str]) -> int | None:
    """Rows of Parquet files, by their footers; None if one cannot be read."""
    import pyarrow.parquet as parquet

    try:
        return sum(parquet.ParquetFile(root / table).metadata.num_rows for table in tables)
    except Exception:  # Arrow raises many kinds for damaged files; opening them says what is wrong
        return None


def open_parquet(
    files: FolderFiles, tables: Sequence[str], name: str, columns: Columns, notes: ReadingNotes
) -> TablePictures:
    """Parquet files as one table: converted once to Arrow in the cache of `datasets`, then memory-mapped."""
    import pyarrow.parquet as parquet
    from datasets import load_dataset

    paths = [files.root / file for file in tables]
    patterns = [glob.escape(str(path.absolute())) for path in paths]
    try:
        counts = [parquet.ParquetFile(path).metadata.num_rows for path in paths]
        if not sum(counts):
            raise ValueError("it has no rows")
        table = load_dataset("parquet", data_files={"train": patterns}, split="train")
    except Exception as error:  # Arrow and datasets raise many kinds for damaged files and for columns that differ
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{name}: {', '.join(tables[:3])} cannot be read as Parquet: {reason}") from error
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    folders = [(start, os.path.dirname(file)) for start, file in zip(starts, tables, strict=True)]
    identity = digest([(file, *file_identity(path)) for file, path in zip(tables, paths, strict=True)])
    return TablePictures(
        table, name=name, identity=identity, columns=columns, notes=notes, root=files.root, folders=folders, files=files
    )


def saved_to_disk(path: Path, name: str, columns: Columns, notes: ReadingNotes) -> dict[str, SplitFiles]:
    """What `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    from datasets import Dataset, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # Arrow and datasets raise many kinds for damaged files
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: {path} cannot be read as what datasets saved: {reason}") from error
    return table_splits({"train": loaded} if isinstance(loaded, Dataset) else loaded, name, columns, notes, root=path)


def table_splits(
    tables: Mapping[str, Dataset], name: str, columns: Columns, notes: ReadingNotes, root: Path | None = None
) -> dict[str, SplitFiles]:
    """The splits of `datasets.Dataset` objects; one that is alone under an unknown name is "train"."""
    alone = len(tables) == 1
    return {
        split_word(split) or ("train" if alone else split): SplitFiles(
            partial(
                TablePictures, table, name=name, identity=table._fingerprint, columns=columns, notes=notes, root=root
            ),
            len(table),
        )
        for split, table in tables.items()
    }
