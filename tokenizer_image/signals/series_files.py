"""Files of time series, CSV or Parquet: one series each, a column for every channel; and their normalisation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tokenizer_image.pictures.reading_notes import ReadingNotes, ending
from tokenizer_image.pictures.text_intake import decode_text

SERIES_SUFFIXES = (".csv", ".tsv", ".parquet")
TIME_NAMES = ("time", "date", "datetime", "timestamp", "ds", "index", "step")  # columns that are no channel
GAPS = ("", "nan", "na", "n/a", "null", "none", "-")  # cells without a value
SMALLEST_SCALE = 1e-8  # of a channel's size: below it, it is constant


def is_series(file: str) -> bool:
    """Whether a file's ending is that of a table."""
    return ending(file) in SERIES_SUFFIXES


def read_series(file: Path) -> np.ndarray:
    """A file's series, float64 (channels, time), NaN in gaps. A column of one of `TIME_NAMES` is no channel, nor is the
    first where none of its values is a number.

    Raises:
        ValueError: no rows, no channels, rows of different lengths, or text among numbers, with its row and column.
    """
    if ending(file.name) == ".parquet":
        names, columns = _parquet_columns(file)
    else:
        names, columns = _csv_columns(file)
    chosen = [number for number, name in enumerate(names) if name.strip().lower() not in TIME_NAMES]
    if len(chosen) > 1 and chosen[0] == 0 and not any(map(_is_number, columns[0])):
        chosen = chosen[1:]
    if not chosen:
        raise ValueError(f"it has no column of values; its columns are {', '.join(names)}")
    return np.stack([_numbers(columns[number], names[number]) for number in chosen])


def _csv_columns(file: Path) -> tuple[list[str], list[Sequence[object]]]:
    text = decode_text(file.read_bytes(), file.name, ReadingNotes())
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    if rows and any(_is_number(cell) for cell in rows[0]):
        raise ValueError(f"its first row has numbers, such as {rows[0][0]!r}: it should have the columns' names")
    if len(rows) < 2:
        raise ValueError("it has no rows")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {number} has {len(row)} cells, and the first row names {len(rows[0])} columns")
    return rows[0], list(zip(*rows[1:], strict=True))


def _parquet_columns(file: Path) -> tuple[list[str], list[Sequence[object]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"it cannot be read ({' '.join(str(error).split())[:100]})") from error
    if table.num_rows == 0:
        raise ValueError("it has no rows")
    return table.column_names, [column.to_pylist() for column in table.columns]


def _numbers(cells: Sequence[object], name: str) -> np.ndarray:
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if cell is None or str(cell).strip().lower() in GAPS:
            continue
        if not _is_number(cell):
            raise ValueError(f"row {row + 2}, column {name!r}: {cell!r} is no number")
        values[row] = float(str(cell))
    return np.where(np.isfinite(values), values, np.nan)


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True


def normalised(values: np.ndarray, known: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A series (C, T) of mean 0 and deviation 1 over the known ones of its first `context` steps, float32, and the mean
    and the deviation of each channel, float64 (C,): a forecast knows no later steps.

    A gap has the last value before it, and at the start the first one that is known. A constant channel has deviation
    1, and so has one without a known step, whose mean is 0.
    """
    place = np.maximum.accumulate(np.where(known, np.arange(len(known)), -1))
    filled = values[:, np.where(place < 0, int(known.argmax()), place)]
    past = filled[:, :context][:, known[:context]]
    if not known[:context].any():
        return np.zeros_like(values, dtype=np.float32), np.zeros(len(values)), np.ones(len(values))
    location, scale = past.mean(axis=1), past.std(axis=1)
    constant = scale <= SMALLEST_SCALE * np.maximum(np.abs(location), 1)
    scale = np.where(constant, 1.0, scale)
    return ((filled - location[:, None]) / scale[:, None]).astype(np.float32), location, scale


def write_series(file: Path, series: np.ndarray) -> None:
    """Write a series (channels, time) as CSV: a column "step", and one for each channel."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["step", *(f"channel {number}" for number in range(len(series)))])
        writer.writerows([step, *map(float, values)] for step, values in enumerate(series.T))
