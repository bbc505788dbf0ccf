"""Interleaved documents: texts and pictures in turn, from `documents.jsonl`.

One line is one document, `{"parts": [{"text": "..."}, {"image": "relative/path.png"}, ...]}` or the bare list of parts.
Paths are relative to the file's folder.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tokenizer_image.pictures.columns import CAPTION_NAMES, usual_columns
from tokenizer_image.pictures.fingerprints import digest, file_identity, hash_keys
from tokenizer_image.pictures.folder_files import FolderFiles
from tokenizer_image.pictures.folder_pictures import FolderCaptions, FolderPictures
from tokenizer_image.pictures.json_lines import json_lines, read_text_file
from tokenizer_image.pictures.reading_notes import ReadingNotes
from tokenizer_image.pictures.text_intake import clean_text

DOCUMENTS_FILE = "documents.jsonl"
FORM = '{"parts": [{"text": "..."}, {"image": "path.png"}, ...]}, or that list'


class PictureDocument(NamedTuple):
    """One document of a `DocumentPictures`.

    order: its parts, "t" or "i" each. texts: its texts, in order. pictures: rows of its pictures, in order.
    """

    order: str
    texts: tuple[str, ...]
    pictures: tuple[int, ...]


@dataclass(frozen=True)
class DocumentLine:
    """One parsed line: its file and line number, its parts ("t" or "i" each), and their texts and paths."""

    place: str
    order: str
    contents: tuple[str, ...]


class DocumentFile:
    """The documents of one split: `names` are its documents.jsonl, relative to the root of `files`.

    Raises ValueError that names file and line: not JSON, not a list of parts, a part that is neither text nor image,
    a document of nothing.
    """

    row_name = "document"

    def __init__(self, files: FolderFiles, names: list[str], *, name: str, notes: ReadingNotes) -> None:
        self.root, self.name, self.notes = files.root, name, notes
        self._documents: list[DocumentLine] = []
        for file in names:
            # Keys have the path relative to the root, so that they do not change when the folder is moved.
            for place, value in json_lines(
                read_text_file(self.root / file, notes), self.root / file, f"A line is one document: {FORM}", notes
            ):
                order, contents = _read_parts(value, place, posixpath.dirname(file), files, notes)
                key = f"{file}{place[len(str(self.root / file)) :]}"
                self._documents.append(DocumentLine(key, order, contents))
        if not self._documents:
            raise ValueError(f"{name} holds no documents: {', '.join(names)} has no lines")
        self.fingerprint = digest("documents", [(file, *file_identity(self.root / file)) for file in names])

    def __len__(self) -> int:
        return len(self._documents)

    def places(self, rows: np.ndarray) -> list[str]:
        """File and line of some documents."""
        return [self._documents[row].place for row in rows]

    def row_hashes(self, salt: str) -> np.ndarray:
        """uint64 (n,): a hash of (salt, place) for each document."""
        return hash_keys((document.place for document in self._documents), salt)

    def select(self, rows: np.ndarray) -> DocumentPictures:
        """The pictures of some documents, int64, increasing."""
        return self.part(rows if len(rows) < len(self) else None)

    def part(self, rows: np.ndarray | None = None) -> DocumentPictures:
        """These documents (default: all) and the pictures that they name, each picture once."""
        chosen = range(len(self)) if rows is None else rows.tolist()
        numbers: dict[str, int] = {}
        places: list[str] = []
        documents = []
        for row in chosen:
            document = self._documents[row]
            pictures = []
            for kind, content in zip(document.order, document.contents, strict=True):
                if kind == "i":
                    pictures.append(numbers.setdefault(content, len(numbers)))
                    if len(numbers) > len(places):
                        places.append(document.place)
            texts = tuple(c for kind, c in zip(document.order, document.contents, strict=True) if kind == "t")
            documents.append(PictureDocument(document.order, texts, tuple(pictures)))
        part = DocumentPictures(self, list(numbers), places, documents, None if rows is None else rows)
        part.data_set_size = len(
            {c for d in self._documents for k, c in zip(d.order, d.contents, strict=True) if k == "i"}
        )
        return part


class DocumentPictures(FolderPictures):
    """The pictures of some documents: a `PictureDataset` of pictures without captions, and `documents` beside it.

    Worker processes get a copy without the documents.
    """

    row_name = "document"

    def __init__(
        self,
        file: DocumentFile,
        paths: list[str],
        places: list[str],
        documents: list[PictureDocument],
        rows: np.ndarray | None,
    ) -> None:
        super().__init__(file.root, paths, name=file.name, captions=FolderCaptions(), notes=file.notes)
        self.documents, self._places = documents, places
        self._file: DocumentFile | None = file
        self._rows = np.arange(len(file)) if rows is None else rows
        self.fingerprint = digest(self.fingerprint, file.fingerprint, None if rows is None else rows.tobytes())

    def key(self, row: int) -> str:
        """File and line of the first document with the picture, and its path."""
        return f"{self._places[row]}: {self.files[row]}"

    def part(self, rows: np.ndarray) -> DocumentPictures:
        """Some of these documents, by their place in `documents`, and the pictures that they name."""
        if self._file is None:
            raise ValueError("a copy of DocumentPictures in a worker process has no documents")
        return self._file.part(self._rows[rows])

    def count_rows(self) -> int:
        return len(self.documents)

    def captioned_rows(self, notes: ReadingNotes) -> Iterator[tuple[str, Sequence[str]]]:
        """(place, texts) of each document."""
        places = self._file.places(self._rows) if self._file is not None else []
        return zip(places, (document.texts for document in self.documents), strict=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "documents": [], "_places": [], "_file": None, "_rows": None}


def _read_parts(
    value: Any, place: str, folder: str, files: FolderFiles, notes: ReadingNotes
) -> tuple[str, tuple[str, ...]]:
    """(order, contents) of one line; blank texts are left out, paths are made relative to the data set's folder."""
    parts = value.get("parts") if isinstance(value, dict) else value
    if not isinstance(parts, list):
        raise ValueError(f"{place}: {json.dumps(value):.60} is no document; it should be {FORM}")
    beside = usual_columns(list(value), CAPTION_NAMES) if isinstance(value, dict) else []
    if beside:
        notes.leave_out_caption(f"a key beside the parts of a document ({', '.join(beside)})", place)
    order, contents = "", []
    for index, part in enumerate(parts, start=1):
        kinds = [kind for kind in ("text", "image") if isinstance(part, dict) and isinstance(part.get(kind), str)]
        if len(kinds) != 1:
            raise ValueError(
                f"{place}: part {index} is {json.dumps(part):.60}; it should have either a text or an image, "
                'e.g. {"text": "..."} or {"image": "path.png"}'
            )
        content = part[kinds[0]]
        if kinds[0] == "image" and (not content.strip() or "\0" in content):
            raise ValueError(f"{place}: part {index} names no picture (image is {content!r}); leave the part out")
        content = clean_text(content, place, notes) if kinds[0] == "text" else content
        if not content.strip():
            continue
        order += kinds[0][0]
        contents.append(content if kinds[0] == "text" else files.resolve(folder, content, place))
    if not order:
        raise ValueError(f"{place}: the document is empty; give it a text or an image, or leave the line out")
    return order, tuple(contents)
