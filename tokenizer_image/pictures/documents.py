"""Interleaved documents: texts and pictures in turn, from `documents.jsonl`.

One line is one document, `{"parts": [{"text": "..."}, {"image": "relative/path.png"}, ...]}` or the bare list of parts.
Paths are relative to the file's folder.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokenizer_image.pictures.sources import FolderPictures
from tokenizer_image.pictures.table_columns import digest, file_identity

DOCUMENTS_FILE = "documents.jsonl"


class PictureDocument(NamedTuple):
    """One document of a `DocumentPictures`.

    order: its parts, "t" or "i" each. texts: its texts, in order. pictures: rows of its pictures, in order.
    """

    order: str
    texts: tuple[str, ...]
    pictures: tuple[int, ...]


class DocumentFile:
    """The documents of one split: `files` are its documents.jsonl, relative to `root`.

    Raises ValueError that names file and line: not JSON, not a list of parts, a part that is neither text nor image,
    a document of nothing.
    """

    def __init__(self, root: Path, files: list[str], *, name: str) -> None:
        self.root, self.name = root, name
        self._documents: list[tuple[str, str, tuple[str, ...]]] = []  # (place, order, texts and paths as they come)
        for file in files:
            for number, line in _lines(root / file):
                place = f"{file}, line {number}"
                order, parts = _read_parts(line, f"{root / file}, line {number}", posixpath.dirname(file))
                self._documents.append((place, order, parts))
        if not self._documents:
            raise ValueError(f"{name} holds no documents: {', '.join(files)} has no lines")
        self.fingerprint = digest("documents", [(file, *file_identity(root / file)) for file in files])

    def __len__(self) -> int:
        return len(self._documents)

    def key(self, row: int) -> str:
        return self._documents[row][0]

    def part(self, rows: np.ndarray | None = None) -> DocumentPictures:
        """These documents (default: all) and the pictures that they name, each picture once."""
        chosen = range(len(self)) if rows is None else rows.tolist()
        numbers: dict[str, int] = {}
        places: list[str] = []
        documents = []
        for row in chosen:
            place, order, parts = self._documents[row]
            pictures = []
            for kind, content in zip(order, parts, strict=True):
                if kind == "i":
                    pictures.append(numbers.setdefault(content, len(numbers)))
                    if len(numbers) > len(places):
                        places.append(place)
            texts = tuple(content for kind, content in zip(order, parts, strict=True) if kind == "t")
            documents.append(PictureDocument(order, texts, tuple(pictures)))
        return DocumentPictures(self, list(numbers), places, documents, None if rows is None else rows)


class DocumentPictures(FolderPictures):
    """The pictures of some documents: a `PictureDataset` of pictures without captions, and `documents` beside it.

    Worker processes get a copy without the documents.
    """

    def __init__(
        self,
        file: DocumentFile,
        paths: list[str],
        places: list[str],
        documents: list[PictureDocument],
        rows: np.ndarray | None,
    ) -> None:
        super().__init__(file.root, paths, name=file.name)
        self.documents, self._places = documents, places
        self._file: DocumentFile | None = file
        self._rows = np.arange(len(file)) if rows is None else rows
        self.fingerprint = digest(self.fingerprint, file.fingerprint, None if rows is None else rows.tobytes())

    def key(self, row: int) -> str:
        """Where the picture is named first."""
        return f"{self._places[row]}: {self.files[row]}"

    def part(self, rows: np.ndarray) -> DocumentPictures:
        """Some of these documents, by their place in `documents`, and the pictures that they name."""
        if self._file is None:
            raise ValueError("a copy of DocumentPictures in a worker process has no documents")
        return self._file.part(self._rows[rows])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "documents": [], "_places": [], "_file": None, "_rows": None}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _read_parts(line: str, place: str, folder: str) -> tuple[str, tuple[str, ...]]:
    """(order, contents) of one line; blank texts are left out, paths are made relative to the data set's folder."""
    form = '{"parts": [{"text": "..."}, {"image": "path.png"}, ...]}, or that list'
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}, is not JSON: {error}. A line is one document: {form}") from error
    parts = found.get("parts") if isinstance(found, dict) else found
    if not isinstance(parts, list):
        raise ValueError(f"{place}: {line.strip()[:60]!r} is no document; it should be {form}")
    order, contents = "", []
    for index, part in enumerate(parts, start=1):
        kinds = [kind for kind in ("text", "image") if isinstance(part, dict) and isinstance(part.get(kind), str)]
        if len(kinds) != 1:
            raise ValueError(
                f"{place}: part {index} is {json.dumps(part)[:60]}; it should have either a text or an image, "
                'e.g. {"text": "..."} or {"image": "path.png"}'
            )
        content = part[kinds[0]]
        if not content.strip():
            if kinds[0] == "image":
                raise ValueError(f"{place}: part {index} names no picture (image is {content!r}); leave the part out")
            continue
        order += kinds[0][0]
        contents.append(content if kinds[0] == "text" else _inside(folder, content, place))
    if not order:
        raise ValueError(f"{place}: the document is empty; give it a text or an image, or leave the line out")
    return order, tuple(contents)


def _inside(folder: str, file: str, place: str) -> str:
    path = posixpath.normpath(posixpath.join(folder, file.replace("\\", "/")))
    if posixpath.isabs(path) or path.startswith("../"):
        raise ValueError(f"{place}: the picture {file!r} is outside of the data set's folder; put it inside")
    return path
