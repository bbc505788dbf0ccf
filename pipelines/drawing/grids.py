"""Pictures with their captions on one sheet, for `scripts/generate.py`, reports and training samples."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pipelines.drawing.fonts import CaptionPen

PAPER, INK = (255, 255, 255), (32, 32, 32)


def labelled_grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    *,
    min_side: int = 128,
    font_size: int = 16,
    margin: int = 8,
    max_lines: int = 4,
    smooth: bool = True,
) -> Image.Image:
    """Draw each (caption, pictures) of `rows` as a line of text above a row of pictures, on one RGB sheet.

    Args:
        rows: pictures of any mode and size; an empty caption takes no room. Captions may be in any script that
            Pillow's or the system's fonts have; see `CaptionPen`.
        min_side: small pictures are enlarged by a whole number until the shorter side has this many pixels.
        font_size, margin: in pixels.
        max_lines: a caption that is wrapped to more lines than this ends in "...".
        smooth: enlarge with a bicubic filter; otherwise show the pixels as squares.

    Raises:
        ValueError: there is no picture.
    """
    if not any(pictures for _, pictures in rows):
        raise ValueError("a grid needs at least one picture, got none")
    pens = [CaptionPen(caption, font_size) for caption, _ in rows]
    enlarged = [(caption, [_enlarge(image, min_side, smooth) for image in images]) for caption, images in rows]
    columns = max(len(images) for _, images in enlarged)
    cell_width = max(image.width for _, images in enlarged for image in images)
    width = margin + columns * (cell_width + margin)
    line_height = math.ceil(font_size * 1.25)
    captions = [_wrap(pen, width - 2 * margin, max_lines) for pen in pens]
    heights = [
        _row_height(lines, images, line_height, margin) for lines, (_, images) in zip(captions, enlarged, strict=True)
    ]
    sheet = Image.new("RGB", (width, margin + sum(heights)), PAPER)
    top = margin
    for pen, lines, (_, images), height in zip(pens, captions, enlarged, heights, strict=True):
        for number, line in enumerate(lines):
            pen.draw(sheet, (margin, top + number * line_height), line, INK)
        below = top + len(lines) * line_height + (margin // 2 if lines else 0)
        for column, image in enumerate(images):
            sheet.paste(image, (margin + column * (cell_width + margin), below))
        top += height
    return sheet


def save_pictures(rows: Sequence[tuple[str, Sequence[Image.Image]]], folder: Path) -> None:
    """Write the pictures of (caption, pictures) `rows` into a folder, each a PNG named by `file_name`."""
    for number, (text, images) in enumerate(rows):
        for place, image in enumerate(images):
            image.save(folder / f"{file_name(number, text, place)}.png")


def file_name(number: int, text: str, place: int) -> str:
    """A file's name without its ending: the number of a caption, its words, and the number of what was drawn for it.

    The first number tells captions apart that have the same Latin letters, or none.
    """
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
    return f"{number:03d}-{words}-{place}".replace("--", "-")


def _row_height(lines: list[str], images: list[Image.Image], line_height: int, margin: int) -> int:
    text = len(lines) * line_height + (margin // 2 if lines else 0)
    return text + max((image.height for image in images), default=0) + margin


def _enlarge(image: Image.Image, min_side: int, smooth: bool) -> Image.Image:
    factor = max(1, math.ceil(min_side / min(image.size)))
    filter_ = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    image = image.convert("RGB")
    return image if factor == 1 else image.resize((image.width * factor, image.height * factor), filter_)


def _wrap(pen: CaptionPen, width: int, max_lines: int) -> list[str]:
    """Break a caption into at most `max_lines` lines of at most `width` pixels, between words where possible."""
    lines: list[str] = []
    for word in pen.text.split():
        if lines and pen.length(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while word and len(lines) <= max_lines:  # a word wider than the sheet is broken
            fits = 1
            while fits < len(word) and pen.length(word[: fits + 1]) <= width:
                fits += 1
            lines.append(word[:fits])
            word = word[fits:]
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and pen.length(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], f"{last}..."]
