"""Which column of a table holds pictures, captions and classes, by the names and the types of the columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizer_image.pictures.columns import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    LABEL_NAMES,
    caption_columns,
    check_column,
    usual_column,
)
from tokenizer_image.pictures.reading_notes import ReadingNotes

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features


def is_class(kind: Any) -> bool:
    import datasets

    return isinstance(kind, datasets.ClassLabel)


def find_image_column(table: Dataset, wanted: str | None, source: str) -> str:
    """The pictures' column: the one named, else one of type `datasets.Image`, else one with a usual name."""
    import datasets

    columns = list(table.features)
    pictures = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    column = usual_column(pictures or columns, IMAGE_NAMES) or (pictures[0] if pictures else None)
    if wanted is not None:
        column = check_column(columns, wanted, "image_column", source)
    if column is None or not can_hold_pictures(table.data.schema.field(column).type):
        problem = "no column with pictures" if column is None else f"no pictures in its column {column!r}"
        raise ValueError(f"{source} has {problem}; name one by --image_column, of: {', '.join(columns)}")
    return column


def is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    names = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def can_hold_pictures(kind: pa.DataType) -> bool:
    """Whether an Arrow type is bytes, text (a path), a struct of the two, or a list of these."""
    import pyarrow as pa

    if is_list(kind) or pa.types.is_dictionary(kind):
        return can_hold_pictures(kind.value_type)
    if pa.types.is_struct(kind):
        return any(kind.get_field_index(name) >= 0 for name in ("bytes", "path"))
    return _is_text_or_bytes(kind)


def _can_hold_texts(kind: pa.DataType) -> bool:
    """Whether an Arrow type is text, or holds texts where captions are looked for."""
    import pyarrow as pa

    if is_list(kind) or pa.types.is_dictionary(kind):
        return _can_hold_texts(kind.value_type)
    if pa.types.is_struct(kind):
        name = usual_column([field.name for field in kind], CAPTION_NAMES)
        return name is not None and _can_hold_texts(kind.field(name).type)
    return _is_text_or_bytes(kind)


def _is_text_or_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def find_caption_columns(
    table: Dataset, wanted: str | None, image_column: str, source: str, notes: ReadingNotes
) -> list[str]:
    """The columns with captions: the one named, which must hold texts, else those of usual names."""
    if wanted is None:
        classes = [
            name for name, kind in table.features.items() if is_class(kind) and name.lower() not in CAPTION_NAMES
        ]
        others = [name for name in table.features if name not in (image_column, *classes)]
        labels = [name for name in others if name.strip().lower() in LABEL_NAMES]
        chosen = caption_columns([name for name in others if name not in labels], source, notes)
        named = [name for name in labels if _can_hold_texts(table.data.schema.field(name).type)]
        if named and not chosen and not classes:
            notes.warn(f"{source}: the names of classes in {', '.join(named)} are not used (--caption_column chooses)")
        return chosen
    kind = table.features[check_column(list(table.features), wanted, "caption_column", source)]
    if not is_class(kind) and not _can_hold_texts(table.data.schema.field(wanted).type):
        raise ValueError(
            f"{source}: column {wanted!r} (--caption_column) holds {kind}, not text; a column of captions holds texts, "
            "lists of texts, mappings with a key such as caption or text, or classes"
        )
    return [wanted]


def find_label_column(kinds: Features) -> tuple[str | None, list[str] | None]:
    """(column with classes as whole numbers, their names); None where there are none."""
    classes = [name for name, kind in kinds.items() if is_class(kind)]
    numbers = [name for name, kind in kinds.items() if str(getattr(kind, "dtype", "")).startswith("int")]
    if classes:
        column = usual_column(classes, LABEL_NAMES) or classes[0]
        return column, list(kinds[column].names)
    return usual_column(numbers, LABEL_NAMES), None
