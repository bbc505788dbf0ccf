"""Any source of pictures -> examples: a picture, its captions, its label.

`load_pictures` finds out what `--dataset` names and which split is meant; `preprocess`, `to_pixel_values` and
`postprocess` convert between files and tensors.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from tokenizer_image.pictures.columns import Columns
from tokenizer_image.pictures.dataset import PictureDataset, PictureSource, SelectedPictures
from tokenizer_image.pictures.opening import open_path
from tokenizer_image.pictures.reading_notes import ReadingNotes, shown
from tokenizer_image.pictures.splits import SplitFiles, choose_split, count_rest, hashed_order, part_rows, split_sizes
from tokenizer_image.pictures.tables import table_splits
from tokenizer_image.preprocessing import Preprocessing, postprocess, preprocess, to_pixel_values

__all__ = [
    "PictureDataset",
    "Preprocessing",
    "SelectedPictures",
    "load_pictures",
    "postprocess",
    "preprocess",
    "to_pixel_values",
]

BUILT_IN = ("sprites", "sprites-edits")
WHAT_IT_MAY_BE = (
    "--dataset takes `sprites`, `sprites-edits`, a folder or file on this machine, or `owner/name` (or "
    "`owner/name:configuration`) on the Hub."
)
HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<config>[\w.-]+))?")


def load_pictures(
    dataset: str = "sprites",
    split: str = "train",
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    need_captions: bool = False,
    max_examples: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
) -> PictureDataset:
    """One split of the built-in world ("sprites", or "sprites-edits": pictures before and after an edit), of a local
    folder or file, or of a data set on the Hub.

    - A folder may hold pictures with `metadata.jsonl`, `.csv`, `.tsv` or `.parquet` (a `file_name` column, relative to
      that file or to the folder, and a column of captions; lines with the same `file_name` are captions of one
      picture); pictures beside `.txt` or `.caption` files of the same name (one caption per line); one folder of
      pictures per class; Parquet files; WebDataset tars; or what `datasets` saved by `save_to_disk`. A Hub data set is
      `owner/name`, or `owner/name:configuration`. A folder called sprites is `./sprites`.
    - A folder with `documents.jsonl` holds interleaved documents (`pictures/documents.py`): what comes back are
      their pictures, each once, with the documents in `documents`. Splits, held-out rows and `max_examples` are
      then of documents.
    - Captions come from `caption_column`: a column of texts or of lists of texts, a key of a tar's `.json`
      members, or a column of class labels; by default from the usual names (caption, text, prompt, ...),
      else they are the class's name, underscores turned into spaces.
    - Texts may be UTF-8, UTF-16 with its mark or Windows-1252; names match in any Unicode form and case where that is
      unambiguous. What is repaired, left out or doubtful is in the source's `summary` (`DataSummary`).
    - Nothing outside of the folder is read: paths and links that lead out of it are refused or left out.
    - Splits are those that names of folders and files say (train/, validation/, data/test-00000.parquet, ...).
      "validation" is the source's own, else its test split. A source that has neither gives up the rows
      that come first in a hashed order: 5%, at most 2,000, at least 1; the same rows whatever the seed.
      "test" and other names are for splits that the source has.
    - `max_examples` keeps that many rows: a choice by `seed`, in the source's order, since many sources are
      sorted by class. A larger number adds rows to those of a smaller one. Of sprites, which have no order,
      it is the first that many (default 100,000 for training, 2,000 else; a third split is "held_out").
    - `image_size` is the side in pixels at which sprites are drawn (default 32, at least 8). Other pictures come as
      they are.

    Raises ValueError that names the value and what there is instead: a data set, split or column that does
    not exist; no pictures; no captions where `need_captions`.
    """
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"--max_examples must be at least 1, got {max_examples}")
    if dataset in BUILT_IN:
        return _sprites(dataset, split, max_examples, seed, image_size)
    notes = ReadingNotes()
    splits = _open(dataset, Columns(image_column, caption_column), notes)
    source = choose_rows(splits, dataset, split, max_examples, seed, notes)
    if need_captions:
        check_captions(source, caption_column)
    return source


def choose_rows(
    splits: dict[str, SplitFiles],
    dataset: str,
    split: str,
    max_examples: int | None,
    seed: int,
    notes: ReadingNotes,
) -> PictureSource:
    """At most `max_examples` rows of one of a data set's splits, chosen by `seed` (`load_pictures` says how)."""
    chosen, part = choose_split(dataset, list(splits), split, notes)
    whole = splits[chosen].open()
    rows = part_rows(whole, part)
    sizes = split_sizes(splits, chosen, len(whole))
    if max_examples is not None and max_examples < len(rows):
        order = hashed_order(whole, f"max_examples {seed}")
        rows = np.sort(order[np.isin(order, rows)][:max_examples])
    source = whole.select(rows)
    source.split, source.split_sizes = split, sizes | {split: len(rows)}
    if source.data_set_size is None:
        source.data_set_size = sum(source.split_sizes.values())
        unknown = [files for name, files in splits.items() if name not in source.split_sizes]
        source.count_rest = partial(count_rest, [files.count_rows for files in unknown if files.count_rows is not None])
    return source


def check_captions(source: PictureSource, caption_column: str | None) -> None:
    """Raise ValueError unless a picture, or a document, has a text."""
    if any(captions for _, captions in source.captioned_rows(ReadingNotes())):
        return
    why = "".join(f"; {warning}" for warning in source.summary.warnings[:3])
    column = "" if caption_column is None else f" in {caption_column!r} (--caption_column)"
    noun = "file" if source.row_name == "example" else "picture"
    raise ValueError(
        f"{source.name} has no captions{column}{why}. Name their column by --caption_column, or put a .txt file of the "
        f"same name beside each {noun}, or the {noun}s of each class into a folder of its own; or train "
        "without captions by --unconditional"
    )


def _sprites(dataset: str, split: str, max_examples: int | None, seed: int, image_size: int | None) -> PictureDataset:
    from tokenizer_image.sprites.data_set import SpriteDataset
    from tokenizer_image.sprites.edit_data_set import SpriteEditDataset
    from tokenizer_image.sprites.scenes import IMAGE_SIZE, drawn_size

    if split not in ("train", "validation", "held_out"):
        raise ValueError(f"{dataset} have no split {split!r}; they have: train, validation, held_out")
    number = max_examples or (100_000 if split == "train" else 2_000)
    side = drawn_size(IMAGE_SIZE if image_size is None else image_size)
    if dataset == "sprites":
        return SpriteDataset(split, num_examples=number, seed=seed, image_size=side)  # type: ignore[arg-type]
    return SpriteEditDataset(split, num_examples=number, seed=seed, image_size=side)  # type: ignore[arg-type]


# ---- what `dataset` names


def _open(dataset: str, columns: Columns, notes: ReadingNotes) -> dict[str, SplitFiles]:
    """The splits of what `dataset` names."""
    path = Path(dataset).expanduser()
    if path.exists():
        return open_path(path, dataset, columns, notes)
    name = HUB_NAME.fullmatch(dataset)
    in_a_folder_here = len(path.parts) > 1 and path.parent.is_dir()
    if name is None or in_a_folder_here:
        raise ValueError(f"dataset {dataset!r} does not exist{_neighbours(path)}. {WHAT_IT_MAY_BE}")
    return _open_hub(dataset, name["name"], name["config"], columns, notes)


def _neighbours(path: Path) -> str:
    """ "; in FOLDER there are: ..." for the nearest folder above `path` that exists."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(shown(entry.name) for entry in folder.iterdir() if not entry.name.startswith("."))
    more = ", ..." if len(names) > 12 else ""
    return f"; in {folder} there are: {', '.join(names[:12])}{more}" if names else f"; {folder} is empty"


def _open_hub(
    dataset: str, name: str, config: str | None, columns: Columns, notes: ReadingNotes
) -> dict[str, SplitFiles]:
    from datasets import load_dataset

    try:
        tables = load_dataset(name, config)
    except Exception as error:  # the library raises a dozen kinds, from no network to no such configuration
        raise ValueError(
            f"dataset {dataset!r} is nothing on this machine and could not be loaded from the Hub "
            f"({type(error).__name__}: {error}). {WHAT_IT_MAY_BE}"
        ) from error
    return table_splits(tables, dataset, columns, notes)
