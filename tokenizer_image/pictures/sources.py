"""Pictures and captions where they lie: in a folder of files, in tar archives, in tables (Parquet, Hub).

Each class holds one split and offers the members of `tokenizer_image.pictures.loading.PictureDataset`, and `key(row)`,
the row's name in its source. They hold paths and small lists, never open files, so that they travel to worker
processes; texts are read without touching a picture.
"""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenizer_image.pictures.table_columns import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    LABEL_NAMES,
    Columns,
    check_column,
    digest,
    file_identity,
    label_to_text,
    texts_in,
    usual_column,
)

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif",
)  # fmt: skip


class FolderPictures:
    """Picture files below `root`: `files` are their paths relative to it, which are also their keys.

    texts: captions of each row, from a metadata file. Without: where `sidecars` is set those in the file of
    the same path that ends in .txt (one caption per line), else the class's name.
    """

    def __init__(
        self,
        root: Path,
        files: list[str],
        *,
        name: str,
        texts: list[list[str]] | None = None,
        sidecars: bool = False,
        labels: list[int] | None = None,
        label_names: list[str] | None = None,
    ) -> None:
        self.root, self.files, self.name = root, files, name
        self._texts, self._sidecars = texts, sidecars
        self._labels, self.label_names = labels, label_names
        changing = [(file, *file_identity(root / file)) for file in files]
        if sidecars:
            changing += [(file, *file_identity(self._sidecar(file))) for file in files]
        self.fingerprint = digest("folder", changing, texts, sidecars, labels, label_names)

    def __len__(self) -> int:
        return len(self.files)

    def key(self, row: int) -> str:
        return self.files[row]

    def image(self, row: int) -> Image.Image:
        return Image.open(self.root / self.files[row])

    def texts(self, row: int) -> list[str]:
        if self._texts is not None:
            return list(self._texts[row])
        if self._sidecars:
            try:
                lines = self._sidecar(self.files[row]).read_text(encoding="utf-8-sig", errors="replace")
            except FileNotFoundError:
                return []
            return texts_in(lines.splitlines())
        return _label_texts(self.label_names, self.label(row))

    def label(self, row: int) -> int:
        return self._labels[row] if self._labels is not None else -1

    def attributes(self, row: int) -> dict[str, str] | None:
        return None

    def _sidecar(self, file: str) -> Path:
        return (self.root / file).with_suffix(".txt")


class TarPictures:
    """WebDataset tars: files that share the name up to its first dot are one example.

    The headers are read once; pictures and texts are then read straight from their place in the archive.
    Captions come from the `.txt` member (one per line) or a key of the `.json` member, the label from `.cls`.
    """

    label_names: list[str] | None = None

    def __init__(self, paths: list[Path], *, name: str, columns: Columns) -> None:
        self.paths, self.name = paths, name
        examples = [
            (number, key, members) for number, path in enumerate(paths) for key, members in _tar_examples(path).items()
        ]
        fields = sorted({field for _, _, members in examples for field in members})
        pictures = [field for field in fields if f".{field.rsplit('.', 1)[-1]}" in PICTURE_SUFFIXES]
        pictures.sort(key=lambda field: (field not in IMAGE_NAMES, field.count("."), field))
        if columns.image is not None:
            pictures = [check_column(fields, columns.image, "image_column", name)]
        self._rows = [
            (number, key, members[field], members)
            for number, key, members in examples
            for field in [next((field for field in pictures if field in members), None)]
            if field is not None
        ]
        if not self._rows:
            found = ", ".join(fields) or "nothing"
            raise ValueError(f"{name} holds no pictures: its .tar archives hold {found}, not .jpg, .png, ...")
        self._caption_field, self._caption_key = self._find_captions(fields, columns.caption)
        files = [(path.name, *file_identity(path)) for path in paths]
        self.fingerprint = digest("tar", files, pictures, self._caption_field, self._caption_key)

    def _find_captions(self, fields: list[str], wanted: str | None) -> tuple[str | None, str | None]:
        """(member that holds the captions, key inside it), each None where there is none."""
        if wanted in fields:
            return wanted, None
        plain = usual_column([field for field in fields if field != "json"], CAPTION_NAMES)
        if wanted is None and plain is not None:
            return plain, None
        keys: dict[str, None] = {}
        if "json" in fields:
            for row in range(min(len(self._rows), 64)):
                keys.update(dict.fromkeys(self._json(row)))
        if wanted is not None:
            return "json", check_column([*fields, *keys], wanted, "caption_column", self.name)
        key = usual_column(list(keys), CAPTION_NAMES)
        return ("json", key) if key else (None, None)

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, row: int) -> str:
        number, key, _, _ = self._rows[row]
        return f"{self.paths[number].name}/{key}"

    def image(self, row: int) -> Image.Image:
        number, _, place, _ = self._rows[row]
        return Image.open(io.BytesIO(self._read(number, place)))

    def texts(self, row: int) -> list[str]:
        if self._caption_key is not None:
            return texts_in(self._json(row).get(self._caption_key))
        content = self._member(row, self._caption_field)
        return texts_in(content.decode("utf-8-sig", errors="replace").splitlines())

    def label(self, row: int) -> int:
        content = self._member(row, "cls").strip()
        return int(content) if content.isdigit() else -1

    def attributes(self, row: int) -> dict[str, str] | None:
        return None

    def _json(self, row: int) -> dict[str, Any]:
        try:
            content = json.loads(self._member(row, "json") or b"{}")
        except ValueError as error:
            raise ValueError(f"{self.name}: {self.key(row)}.json is not JSON: {error}") from error
        return content if isinstance(content, dict) else {}

    def _member(self, row: int, field: str | None) -> bytes:
        """Content of one member of the row's example, empty if it has none."""
        number, _, _, members = self._rows[row]
        return self._read(number, members[field]) if field in members else b""

    def _read(self, number: int, place: tuple[int, int]) -> bytes:
        with open(self.paths[number], "rb") as file:
            file.seek(place[0])
            return file.read(place[1])


def _tar_examples(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """{key: {field: (offset, size)}} of a tar archive. Key: name up to its first dot; field: what follows."""
    examples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, base = posixpath.split(member.name)
                stem, _, field = base.partition(".")
                if member.isfile() and stem and field:
                    place = (member.offset_data, member.size)
                    examples.setdefault(f"{folder}/{stem}".lstrip("/"), {})[field.lower()] = place
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no tar archive ({error}); unpack a compressed one first") from error
    return examples


class TablePictures:
    """Rows of a `datasets.Dataset`, read from its memory-mapped Arrow files without the `datasets` library.

    A picture is a cell with encoded bytes, a path (relative to `root`), or both, as `datasets.Image` has it.
    identity: fingerprint of the rows, whatever the columns.
    """

    def __init__(self, table: Any, *, name: str, identity: str, columns: Columns, root: Path | None = None) -> None:
        if table._indices is not None:
            table = table.flatten_indices()
        self.name, self.root = name, root
        self._image_column = _image_column(table, columns.image, name)
        self._caption_column = _caption_column(table, columns.caption, self._image_column, name)
        self._label_column, self.label_names = _label_column(table)
        if _is_class(table.features.get(self._caption_column)):  # the names of its classes are the captions
            self._label_column, self._caption_column = self._caption_column, None
            self.label_names = list(table.features[self._label_column].names)
        self._files = [file["filename"] for file in table.cache_files]
        self._length = len(table)
        self._table = None if self._files else table.data.table
        self._columns: dict[str, Any] = {}
        self.fingerprint = digest("table", identity, self._image_column, self._caption_column, self._label_column)

    def __len__(self) -> int:
        return self._length

    def key(self, row: int) -> str:
        return f"row {row}"

    def image(self, row: int) -> Image.Image:
        value = self._column(self._image_column)[row].as_py()
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
        if isinstance(content, bytes):
            return Image.open(io.BytesIO(content))
        if not isinstance(path, str):
            raise ValueError("no picture in this row")
        if "://" in path:
            raise ValueError(f"a web address instead of a picture: {path}")
        return Image.open(self.root / path if self.root else path)

    def texts(self, row: int) -> list[str]:
        if self._caption_column is None:
            return _label_texts(self.label_names, self.label(row))
        return texts_in(self._column(self._caption_column)[row].as_py())

    def label(self, row: int) -> int:
        if self._label_column is None:
            return -1
        value = self._column(self._label_column)[row].as_py()
        return value if isinstance(value, int) and value >= 0 else -1

    def attributes(self, row: int) -> dict[str, str] | None:
        return None

    def _column(self, name: str) -> Any:
        """A pyarrow ChunkedArray; the files are mapped when a process first asks."""
        if name not in self._columns:
            if self._table is None:
                import pyarrow as pa

                parts = [pa.ipc.open_stream(pa.memory_map(file)).read_all() for file in self._files]
                self._table = pa.concat_tables(parts)
            self._columns[name] = self._table.column(name)
        return self._columns[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}, "_table": None if self._files else self._table}


def _is_class(kind: Any) -> bool:
    import datasets

    return isinstance(kind, datasets.ClassLabel)


def _image_column(table: Any, wanted: str | None, source: str) -> str:
    """The pictures' column: the one named, else one of type `datasets.Image`, else one with a usual name."""
    import datasets

    columns = list(table.features)
    pictures = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    found = usual_column(pictures or columns, IMAGE_NAMES) or (pictures[0] if pictures else None)
    if wanted is not None:
        found = check_column(columns, wanted, "image_column", source)
    if found is None or not _can_hold_pictures(table.data.schema.field(found).type):
        problem = "no column with pictures" if found is None else f"no pictures in its column {found!r}"
        raise ValueError(f"{source} has {problem}; name one by --image_column, of: {', '.join(columns)}")
    return found


def _can_hold_pictures(kind: Any) -> bool:
    """Whether a pyarrow type is bytes, text (a path), or a struct of the two."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.get_field_index(name) >= 0 for name in ("bytes", "path"))
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    return any(check(kind) for check in checks)


def _caption_column(table: Any, wanted: str | None, image_column: str, source: str) -> str | None:
    """The column with captions: the one named, which must hold text, else one of a usual name, or None."""
    if wanted is None:
        return usual_column([name for name in table.features if name != image_column], CAPTION_NAMES)
    kind = table.features[check_column(list(table.features), wanted, "caption_column", source)]
    if not _is_class(kind) and "string" not in str(kind):  # also lists of texts, and mappings with texts
        raise ValueError(f"{source}: column {wanted!r} (--caption_column) holds {kind}, not text")
    return wanted


def _label_column(table: Any) -> tuple[str | None, list[str] | None]:
    """(column with classes as whole numbers, their names); None where there are none."""
    kinds = table.features
    classes = [name for name, kind in kinds.items() if _is_class(kind)]
    numbers = [name for name, kind in kinds.items() if str(getattr(kind, "dtype", "")).startswith("int")]
    if classes:
        column = usual_column(classes, LABEL_NAMES) or classes[0]
        return column, list(kinds[column].names)
    return usual_column(numbers, LABEL_NAMES), None


def _label_texts(names: Sequence[str] | None, label: int) -> list[str]:
    return [label_to_text(names[label])] if names is not None and 0 <= label < len(names) else []


def hashed_order(source: Any, salt: str) -> np.ndarray:
    """Rows of a source in an order drawn by a hash of (salt, key): int64 (n,).

    Depends on the rows' names alone, so a row that comes or goes leaves the order of the others as it was.
    """
    if isinstance(source, TablePictures):  # rows have no names there, only numbers: hashed all at once
        start = np.frombuffer(bytes.fromhex(digest(salt))[:8], dtype="<u8")[0]
        hashes = _mix(np.arange(len(source), dtype=np.uint64) ^ start)
    else:
        keys = (source.key(row) for row in range(len(source)))
        hashes = np.array([int(digest(salt, key)[:16], 16) for key in keys], dtype=np.uint64)
    return np.argsort(hashes, kind="stable")


def _mix(values: np.ndarray) -> np.ndarray:
    """Scatter 64-bit numbers (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
