"""Which column of a data set holds what: the usual names, and the columns that the user names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizer_image.pictures.reading_notes import ReadingNotes

CAPTION_NAMES = (
    "caption", "captions", "text", "texts", "txt", "prompt", "prompts", "description", "descriptions",
    "sentence", "sentences", "sentences_raw", "raw", "alt_text", "title", "json",
)  # fmt: skip
CAPTION_PARTS = ("caption", "text", "prompt", "description", "sentence", "title")  # in names of columns with texts
IMAGE_NAMES = (
    "image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes",
    "images", "pictures", "photos",
)  # fmt: skip
FILE_NAMES = ("file_name", "filename", "file", "image", "image_path", "path")  # in metadata.jsonl and .csv
LABEL_NAMES = ("label", "labels", "class", "cls", "category", "fine_label")


@dataclass(frozen=True)
class Columns:
    """The columns that the user named by --image_column and --caption_column; None: those with usual names."""

    image: str | None = None
    caption: str | None = None


def check_column(columns: Sequence[str], wanted: str, option: str, source: str) -> str:
    """`wanted`, which the option `option` names. ValueError that lists `columns` if it is not one of them."""
    if wanted not in columns:
        raise ValueError(f"{source} has no column {wanted!r} (--{option}); it has: {', '.join(columns)}")
    return wanted


def usual_columns(columns: Sequence[str], names: Iterable[str]) -> list[str]:
    """The columns that have one of the usual `names`, in any case, in the order of the names."""
    by_name = {column.strip().lower(): column for column in reversed(columns)}
    return [by_name[name] for name in names if name in by_name]


def usual_column(columns: Sequence[str], names: Iterable[str]) -> str | None:
    """The first of `usual_columns`, None if there is none."""
    return next(iter(usual_columns(columns, names)), None)


def caption_columns(columns: Sequence[str], source: str, notes: ReadingNotes) -> list[str]:
    """The columns with usual names for captions: the first of them and its numbered ones (caption, caption_1, ...).

    Warnings list other columns that may hold captions, or all columns if none has a usual name.
    """
    numbered: dict[str, list[tuple[int, str]]] = {}
    for column in columns:
        match = re.fullmatch(r"(.*?)(?:[ _-]?(\d+))?", column.strip().lower(), re.DOTALL)
        base, number = match.groups() if match else (column, None)
        if base in CAPTION_NAMES:
            numbered.setdefault(base, []).append((-1 if number is None else int(number), column))
    chosen = min(numbered, key=CAPTION_NAMES.index, default="")
    used = [column for _, column in sorted(numbered.get(chosen, []))]
    others = [column for column in columns if column not in used]
    similar = [column for column in others if any(part in column.lower() for part in CAPTION_PARTS)]
    if used and similar:
        notes.warn(
            f"{source}: captions are read from {', '.join(used)}; {', '.join(similar)} not used "
            "(--caption_column chooses)"
        )
    elif not used and others:
        notes.warn(
            f"{source}: no column has a usual name for captions, such as caption or text; it has {', '.join(others)} "
            "(--caption_column chooses)"
        )
    return used
