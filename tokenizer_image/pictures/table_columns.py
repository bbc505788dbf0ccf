"""Which column of a data set holds what: usual names, and the texts in whatever stands there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

CAPTION_NAMES = (
    "caption", "captions", "text", "texts", "txt", "prompt", "prompts", "description", "descriptions",
    "sentence", "sentences", "sentences_raw", "raw", "alt_text", "title", "json",
)  # fmt: skip
IMAGE_NAMES = (
    "image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes",
)  # fmt: skip
FILE_NAMES = ("file_name", "filename", "file", "image", "image_path", "path")  # in metadata.jsonl and .csv
LABEL_NAMES = ("label", "labels", "class", "cls", "category", "fine_label")


@dataclass(frozen=True)
class Columns:
    """The columns that the user named by --image_column and --caption_column; None: find them."""

    image: str | None = None
    caption: str | None = None


def check_column(columns: Sequence[str], wanted: str, option: str, source: str) -> str:
    """`wanted`, which the option `option` names. ValueError that lists `columns` if it is not one of them."""
    if wanted not in columns:
        raise ValueError(f"{source} has no column {wanted!r} (--{option}); it has: {', '.join(columns)}")
    return wanted


def usual_column(columns: Sequence[str], names: Iterable[str]) -> str | None:
    """The column that has the first of the usual `names`, in any case; None if none has."""
    by_name = {column.lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def texts_in(value: Any) -> list[str]:
    """A cell's captions: a string, a list of such cells, or a mapping with a usual caption name -> list[str].

    Blank ones and repetitions are dropped; anything else that is not text yields nothing.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, dict):
        name = usual_column(list(value), CAPTION_NAMES)
        return texts_in(value[name]) if name else []
    if isinstance(value, (list, tuple)):
        return list(dict.fromkeys(text for item in value for text in texts_in(item)))
    return []


def label_to_text(name: str) -> str:
    """A class's name as a caption: underscores become spaces and nothing is added ("sports_car")."""
    return " ".join(name.replace("_", " ").split())


def digest(*parts: Any) -> str:
    """Short hash of plain values."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


def file_identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(size, time of last change) of a file, (-1, -1) if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
