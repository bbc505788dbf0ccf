"""What only reading every picture of a data set shows: sizes, duplicates, unreadable files, and how pictures look."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipelines.drawing.grids import labelled_grid
from pipelines.machine.batches import index_batches
from tokenizer_image.pictures.dataset import PictureDataset, data_set_size, picture_name, too_many_unreadable
from tokenizer_image.pictures.decode_workers import Reading, Unreadable, decode_image, decode_one
from tokenizer_image.pictures.picture_files import allow_pixels
from tokenizer_image.pictures.reading_notes import NUM_EXAMPLES, counted, shown
from tokenizer_image.preprocessing import Preprocessing

ROWS_AT_ONCE = 256  # handed to the threads together
SHOWN, SHEET_COLUMNS, SIDE = 24, 4, 160
# A thumbnail has one of these sizes, (height, width), whose shape is nearest to the picture's.
THUMBNAIL_SIZES = tuple((SIDE, side) for side in range(SIDE, 8, -4)) + tuple((side, SIDE) for side in range(8, SIDE, 4))


@dataclass
class PictureInspection:
    """What reading every picture of `source` has shown.

    unreadable: (row, reason), in order.
    smallest, largest: (row, width, height) by area, as stored in the file; None where no picture can be read.
    num_duplicates: pictures equal to one before them in size and in pixels after the resize.
    duplicates: the first of these, as (row, the row that it equals).
    """

    source: PictureDataset
    unreadable: Unreadable = field(default_factory=list)
    smallest: tuple[int, int, int] | None = None
    largest: tuple[int, int, int] | None = None
    num_duplicates: int = 0
    duplicates: list[tuple[int, int]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The figures for the screen."""
        lines = []
        for label, picture in (("smallest", self.smallest), ("largest", self.largest)):
            if picture is not None:
                row, width, height = picture
                lines.append(f"  {label}: {width}x{height} pixels, {self._name(row)}")
        pairs = "".join(f"\n    {self._name(row)} equals {self._name(first)}" for row, first in self.duplicates)
        lines.append(f"  duplicates: {self.num_duplicates:,}{pairs}")
        reasons = "".join(f"\n    {self._name(row)}: {shown(why)}" for row, why in self.unreadable[:NUM_EXAMPLES])
        return [*lines, f"  unreadable: {len(self.unreadable):,}{reasons}"]

    def check_unreadable(self, max_share: float) -> None:
        """Raise ValueError where training would stop because of pictures that cannot be read.

        max_share: of all pictures in the data set, as in `decode_pictures`.
        """
        count = len(self.unreadable)
        if not count:
            return
        total = data_set_size(self.source)
        if count == len(self.source):
            raise ValueError(
                f"{shown(self.source.name)}: none of {counted(count, 'picture')} can be read: check the files and "
                "--image_column"
            )
        if too_many_unreadable(count, total, max_share):
            raise ValueError(
                f"{shown(self.source.name)}: {count:,} of {total:,} pictures ({count / total:.1%}) cannot be read: "
                f"repair or remove them, or raise --max_unreadable_share (now {max_share:g})"
            )

    def _name(self, row: int) -> str:
        return shown(picture_name(self.source, row))


def inspect_pictures(
    source: PictureDataset, image_size: int, num_threads: int, max_image_pixels: int | None = None
) -> PictureInspection:
    """Read every picture once, as a model of `image_size` pixels sees it; a progress bar shows.

    Memory: one picture per thread, and 8 bytes per row. Large JPEGs are read at a reduced scale.
    num_threads: 0 or 1 read one picture after another.
    """
    allow_pixels(max_image_pixels)
    reading = Reading(Preprocessing(image_size=image_size), ((image_size, image_size),), max_image_pixels)
    found = PictureInspection(source)
    hashes = np.zeros(len(source), np.uint64)

    def read(row: int) -> tuple[int, int, int] | str:
        """(width, height, hash), or why the picture cannot be read."""
        try:
            image = source.image(row)
            width, height = image.info.get("full_size", image.size)
            pixels = decode_image(image, reading)
        except Exception as error:  # decoders of damaged files raise nearly anything
            return " ".join(f"{type(error).__name__}: {error}".split())
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=8, key=f"{width}x{height}".encode())
        return width, height, int.from_bytes(digest.digest(), "little")

    label = f"reading {shown(source.name)}"
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(max(1, num_threads)) as pool,  # Pillow decodes outside the interpreter's lock
        tqdm(total=len(source), desc=label, unit=" pictures", mininterval=0.5) as bar,
    ):
        warnings.simplefilter("ignore")  # about damaged metadata of single files
        for rows in index_batches(len(source), ROWS_AT_ONCE):
            for row, result in zip(rows, pool.map(read, rows), strict=True):
                bar.update()
                if isinstance(result, str):
                    found.unreadable.append((row, result))
                    continue
                width, height, hashes[row] = result
                if found.smallest is None or width * height < found.smallest[1] * found.smallest[2]:
                    found.smallest = (row, width, height)
                if found.largest is None or width * height > found.largest[1] * found.largest[2]:
                    found.largest = (row, width, height)
    find_duplicates(found, hashes)
    return found


def find_duplicates(found: PictureInspection, hashes: np.ndarray) -> None:
    """Fill in the rows of which an earlier one has the same hash."""
    readable = _readable_rows(found)
    _, firsts, number = np.unique(hashes[readable], return_index=True, return_inverse=True)
    first_of = readable[firsts[number]]
    repeated = first_of != readable
    found.num_duplicates = int(repeated.sum())
    pairs = zip(readable[repeated].tolist(), first_of[repeated].tolist(), strict=True)
    found.duplicates = list(pairs)[:NUM_EXAMPLES]


def _readable_rows(found: PictureInspection) -> np.ndarray:
    """int64 rows, increasing."""
    return np.setdiff1d(np.arange(len(found.source)), np.array([row for row, _ in found.unreadable], np.int64))


def contact_sheet(inspection: PictureInspection, image_size: int) -> Image.Image:
    """Up to 24 pictures from all over the data set with their captions (or names), each beside what a model sees.

    Raises:
        ValueError: no picture can be read.
    """
    source = inspection.source
    whole = Reading(Preprocessing(image_size=SIDE), THUMBNAIL_SIZES)
    seen = Reading(Preprocessing(image_size=image_size), ((image_size, image_size),))
    cells = []
    for row in shown_rows(inspection):
        captions = source.texts(row)
        label = captions[0] if captions else shown(picture_name(source, row))
        pair = [Image.fromarray(decode_one(source, row, reading).transpose(1, 2, 0)) for reading in (whole, seen)]
        pair[1] = pair[1].resize((SIDE, SIDE), Image.Resampling.NEAREST)
        cells.append((label, pair))
    return sheet_of_cells(cells)


def shown_rows(inspection: PictureInspection) -> list[int]:
    """Up to `SHOWN` readable rows from all over the data set."""
    readable = _readable_rows(inspection)
    return readable[np.unique(np.linspace(0, len(readable) - 1, min(SHOWN, len(readable))).astype(np.int64))].tolist()


def sheet_of_cells(labelled: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Labels, each above pictures of its own, in rows of `SHEET_COLUMNS`."""
    cells = [labelled_grid([one], min_side=1, font_size=14, margin=6, max_lines=3) for one in labelled]
    lines = [cells[start : start + SHEET_COLUMNS] for start in range(0, len(cells), SHEET_COLUMNS)]
    return labelled_grid([("", line) for line in lines], min_side=1, margin=4)
