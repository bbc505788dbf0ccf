"""Which files, and which rows, belong to a split."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tokenizer_image.pictures.dataset import PictureSource
from tokenizer_image.pictures.reading_notes import ReadingNotes

SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 2_000  # of a source that has no validation split of its own


class RowSource(Protocol):
    """A split whose rows (pictures, or documents) can be chosen from."""

    name: str
    notes: ReadingNotes
    row_name: str  # "picture" or "document"

    def __len__(self) -> int: ...

    def row_hashes(self, salt: str) -> np.ndarray:
        """uint64 (n,): a hash of (salt, name) for each row, independent of the other rows."""

    def select(self, rows: np.ndarray) -> PictureSource:
        """The pictures of some rows, int64, increasing."""


@dataclass(frozen=True)
class SplitFiles:
    """One split of a data set before it is opened.

    count: its rows, None if they are only known once it is opened. count_rows: counts them then, which takes time.
    """

    open: Callable[[], RowSource]
    count: int | None = None
    count_rows: Callable[[], int] | None = None


def split_word(name: str) -> str | None:
    """The split that the name of a folder or a split means ("val" and "val2017" -> "validation"), None if it means
    none."""
    return SPLIT_WORDS.get(name.lower().rstrip("0123456789_- "))


def split_by_name(files: Sequence[str]) -> dict[str, list[str]]:
    """Parquet files or tars by the split that a folder or the file is named after; "train" where none is."""
    splits: dict[str, list[str]] = {}
    for file in files:
        *folders, base = file.lower().split("/")
        words = [split_word(word) for word in (*folders, *re.split(r"[^a-z]+", base))]
        splits.setdefault(next(filter(None, words), "train"), []).append(file)
    return splits


def split_by_folder(pictures: Sequence[str]) -> tuple[int, dict[str, list[str]]]:
    """(number of folders above the classes' or the pictures' own, {split: pictures}).

    Folders are splits only if all of them on their level have a split's name, so that a class "train" beside
    "boat" stays a class. A level with a single folder ("images/...") is passed over.
    """
    depth = 0
    while pictures and all(file.count("/") > depth for file in pictures):
        folders = {file.split("/")[depth] for file in pictures}
        if all(split_word(folder) for folder in folders):
            splits: dict[str, list[str]] = {}
            for file in pictures:
                splits.setdefault(str(split_word(file.split("/")[depth])), []).append(file)
            return depth + 1, splits
        if len(folders) > 1:
            break
        depth += 1
    return depth, {"train": list(pictures)}


def warn_of_unused_split(pictures: Sequence[str], depth: int, notes: ReadingNotes) -> None:
    """Warn of a folder that has a split's name where `split_by_folder`, whose `depth` that is, found no splits."""
    if depth and pictures and split_word(pictures[0].split("/")[depth - 1]):
        return
    for picture in pictures:
        folders = picture.split("/")[:-1]
        level = next((level for level, folder in enumerate(folders) if split_word(folder)), None)
        if level is not None:
            notes.warn(
                f"the folder {'/'.join(folders[: level + 1])} is named like a split, but is none, since pictures or "
                "folders beside it are in no split; put all pictures into folders such as train and validation"
            )
            return


def choose_split(dataset: str, present: Sequence[str], wanted: str, notes: ReadingNotes) -> tuple[str, str]:
    """(split of the source, "all" | "kept" | "held out") for the split `wanted`."""
    own_validation = next((split for split in ("validation", "test") if split in present), None)
    if wanted == "validation" and own_validation:
        return own_validation, "all"
    if wanted in ("train", "validation") and "train" in present:
        return "train", "all" if own_validation else ("kept" if wanted == "train" else "held out")
    if wanted in present:
        return wanted, "all"
    skipped = [
        f"{', '.join(tally.examples)} ({reason})"
        for (kind, reason), tally in notes.left_out.items()
        if kind in (".parquet", ".tar")
    ]
    why = f". Not used: {'; '.join(skipped)}" if skipped else ""
    raise ValueError(f"dataset {dataset!r} has no split {wanted!r}; it has: {', '.join(sorted(present))}{why}")


def held_out_count(rows: int) -> int:
    """How many of so many rows are held out for validation."""
    return max(1, min(int(rows * HELD_OUT_SHARE), HELD_OUT_MOST))


def part_rows(source: RowSource, part: str) -> np.ndarray:
    """Rows of "all", "kept" or "held out", int64, increasing: the held-out ones come first in an order that depends on
    names alone."""
    if part == "all":
        return np.arange(len(source), dtype=np.int64)
    if len(source) < 2:
        skipped = "".join(f"; {reason}" for reason in source.notes.left_out_reasons())
        raise ValueError(
            f"{source.name} holds {len(source)} {source.row_name}; 2 are needed, one of them for validation{skipped}"
        )
    count = held_out_count(len(source))
    order = hashed_order(source, "validation")
    return np.sort(order[:count] if part == "held out" else order[count:])


def hashed_order(source: RowSource, salt: str) -> np.ndarray:
    """Rows of a source in an order drawn by a hash of (salt, name): int64 (n,).

    Depends on the rows' names alone, so a row that comes or goes leaves the order of the others as it was.
    """
    return np.argsort(source.row_hashes(salt), kind="stable")


def count_rest(counts: Sequence[Callable[[], int]]) -> int:
    """Rows of the splits that `counts` count."""
    return sum(count() for count in counts)


def split_sizes(splits: Mapping[str, SplitFiles], chosen: str, rows: int) -> dict[str, int]:
    """Rows of each split as training sees them, as far as they are known; `rows` is the length of `chosen`."""
    sizes = {split: rows if split == chosen else files.count for split, files in splits.items()}
    known = {split: count for split, count in sizes.items() if count is not None}
    if "train" in known and not {"validation", "test"} & set(splits):
        held_out = held_out_count(known["train"])
        known |= {"train": known["train"] - held_out, "validation": held_out}
    return known
