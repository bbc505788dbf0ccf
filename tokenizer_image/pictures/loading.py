"""Any source of pictures -> examples: a picture, its captions, its label.

`load_pictures` finds out what `--dataset` names and which split is meant; `decode_pictures` reads every
picture once; `preprocess`, `to_pixel_values` and `postprocess` are the one way between files and tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenizer_image.pictures.dataset import PictureDataset, SelectedPictures
from tokenizer_image.pictures.documents import DocumentFile, DocumentPictures
from tokenizer_image.pictures.folders import Opener, open_path, table_splits
from tokenizer_image.pictures.pixel_cache import DecodedPictures, decode_pictures
from tokenizer_image.pictures.sources import hashed_order
from tokenizer_image.pictures.table_columns import Columns
from tokenizer_image.preprocessing import Preprocessing, postprocess, preprocess, to_pixel_values

__all__ = [
    "DecodedPictures",
    "PictureDataset",
    "Preprocessing",
    "SelectedPictures",
    "decode_pictures",
    "load_pictures",
    "postprocess",
    "preprocess",
    "to_pixel_values",
]

HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 2_000  # of a source that has no validation split of its own
WHAT_IT_MAY_BE = (
    "--dataset takes `sprites`, a folder or file on this machine, or `owner/name` (or "
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
    """One split of the built-in world ("sprites"), of a local folder or file, or of a data set on the Hub.

    - A folder may hold pictures with `metadata.jsonl` or `metadata.csv` (a `file_name` column, relative to
      that file, and a column of captions; lines with the same `file_name` are captions of one picture);
      pictures beside `.txt` files of the same name (one caption per line); one folder of pictures per class;
      Parquet files; WebDataset tars; or what `datasets` saved by `save_to_disk`. A Hub data set is
      `owner/name`, or `owner/name:configuration`. A folder called sprites is `./sprites`.
    - A folder with `documents.jsonl` holds interleaved documents (`pictures/documents.py`): what comes back are
      their pictures, each once, with the documents in `documents`. Splits, held-out rows and `max_examples` are
      then of documents.
    - Captions come from `caption_column`: a column of texts or of lists of texts, a key of a tar's `.json`
      members, or a column of class labels; by default from the usual names (caption, text, prompt, ...),
      else they are the class's name, underscores turned into spaces.
    - Splits are told by the names of folders and files (train/, validation/, data/test-00000.parquet, ...).
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
    if dataset == "sprites":
        return _sprites(split, max_examples, seed, image_size)
    splits = _open(dataset, Columns(image_column, caption_column))
    chosen, part = _choose_split(dataset, list(splits), split)
    source = splits[chosen]()
    rows = np.arange(len(source), dtype=np.int64)
    if part != "all":
        rows = _part(source, part)
    if max_examples is not None and max_examples < len(rows):
        order = hashed_order(source, f"max_examples {seed}")
        rows = np.sort(order[np.isin(order, rows)][:max_examples])
    if isinstance(source, DocumentFile):
        source = source.part(rows if len(rows) < len(source) else None)
    elif len(rows) < len(source):
        source = SelectedPictures(source, rows)
    if need_captions and not any(_texts(source)):
        raise ValueError(
            f"{dataset} has no captions. Name their column by --caption_column, or put a .txt file of the "
            "same name beside each picture, or the pictures of each class into a folder of its own; or train "
            "without captions by --unconditional"
        )
    return source


def _texts(source: Any) -> Iterator[Sequence[str]]:
    """Texts of each row, or of each document."""
    if isinstance(source, DocumentPictures):
        return (document.texts for document in source.documents)
    return (source.texts(row) for row in range(len(source)))


def _sprites(split: str, max_examples: int | None, seed: int, image_size: int | None) -> PictureDataset:
    from tokenizer_image.sprites.data_set import SpriteDataset
    from tokenizer_image.sprites.scenes import IMAGE_SIZE, LEAST_IMAGE_SIZE

    if split not in ("train", "validation", "held_out"):
        raise ValueError(f"sprites have no split {split!r}; they have: train, validation, held_out")
    number = max_examples or (100_000 if split == "train" else 2_000)
    side = IMAGE_SIZE if image_size is None else max(image_size, LEAST_IMAGE_SIZE)
    return SpriteDataset(split, num_examples=number, seed=seed, image_size=side)  # type: ignore[arg-type]


# ---- what `dataset` names


def _open(dataset: str, columns: Columns) -> dict[str, Opener]:
    """{split: function that returns its source}."""
    path = Path(dataset).expanduser()
    if path.exists():
        return open_path(path, dataset, columns)
    name = HUB_NAME.fullmatch(dataset)
    in_a_folder_here = len(path.parts) > 1 and path.parent.is_dir()
    if name is None or in_a_folder_here:
        raise ValueError(f"dataset {dataset!r} does not exist{_neighbours(path)}. {WHAT_IT_MAY_BE}")
    return _open_hub(dataset, name["name"], name["config"], columns)


def _neighbours(path: Path) -> str:
    """ "; in FOLDER there are: ..." for the nearest folder above `path` that exists."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    more = ", ..." if len(names) > 12 else ""
    return f"; in {folder} there are: {', '.join(names[:12])}{more}" if names else f"; {folder} is empty"


def _open_hub(dataset: str, name: str, config: str | None, columns: Columns) -> dict[str, Opener]:
    from datasets import load_dataset

    try:
        tables = load_dataset(name, config)
    except Exception as error:  # the library raises a dozen kinds, from no network to no such configuration
        raise ValueError(
            f"dataset {dataset!r} is nothing on this machine and could not be loaded from the Hub "
            f"({type(error).__name__}: {error}). {WHAT_IT_MAY_BE}"
        ) from error
    return table_splits(tables, dataset, columns)


# ---- which rows


def _choose_split(dataset: str, present: list[str], wanted: str) -> tuple[str, str]:
    """(split of the source, "all" | "kept" | "held out") for the split that is asked for."""
    own_validation = next((split for split in ("validation", "test") if split in present), None)
    if wanted == "validation" and own_validation:
        return own_validation, "all"
    if wanted in ("train", "validation") and "train" in present:
        return "train", "all" if own_validation else ("kept" if wanted == "train" else "held out")
    if wanted in present:
        return wanted, "all"
    raise ValueError(f"dataset {dataset!r} has no split {wanted!r}; it has: {', '.join(sorted(present))}")


def _part(source: Any, part: str) -> np.ndarray:
    """Rows of "kept" or "held out": the held-out ones come first in an order that depends on names alone."""
    if len(source) < 2:
        what = "document" if isinstance(source, DocumentFile) else "picture"
        raise ValueError(f"{source.name} holds {len(source)} {what}; 2 are needed, one of them for validation")
    count = max(1, min(int(len(source) * HELD_OUT_SHARE), HELD_OUT_MOST))
    order = hashed_order(source, "validation")
    return np.sort(order[:count] if part == "held out" else order[count:])
