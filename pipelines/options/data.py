"""Options of commands that read pictures. No torch, so that --help is quick."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipelines.machine.processors import usable_cores
from pipelines.model_folder import DEFAULT_SHIPPED, named_folder
from pipelines.options.option import check_values, option


@dataclass
class DataOptions:
    """Which pictures."""

    dataset: str = option(
        "sprites", "'sprites', 'sprites-edits', a local folder of pictures, or the name of a data set on the Hub"
    )
    image_column: str | None = option(None, "column of the pictures (found by itself if it has a usual name)")
    caption_column: str | None = option(None, "column of the captions, one text or a list of texts a picture")
    max_examples: int | None = option(
        None, "use at most this many training pictures (sprites: 100000)", above_zero=True
    )
    max_unreadable_share: float = option(
        0.01, "stop when more than this share of the pictures cannot be read", within="[0, 1]"
    )
    max_image_pixels: int | None = option(
        None,
        "read pictures of up to so many pixels (default 178956970; larger JPEGs are read reduced)",
        above_zero=True,
    )
    num_workers: int = option(
        -1, "processes that read pictures; -1: one per core that the process may use", within="[-1, inf)"
    )
    seed: int = option(0, "seed of everything random", not_negative=True)

    def workers(self) -> int:
        """How many processes read pictures."""
        return self.num_workers if self.num_workers >= 0 else usable_cores()

    def __post_init__(self) -> None:
        """Raise ValueError for values that no run can have."""
        check_values(self)


@dataclass
class CacheOptions(DataOptions):
    """Which pictures, and how they become a token cache."""

    image_tokenizer: str = option(
        "runs/tokenizer",
        f"folder of the image tokenizer, or of a model; {DEFAULT_SHIPPED!r} is that of the model which comes with "
        "Tessera",
    )
    token_cache: str | None = option(None, "folder of the token cache (default: OUTPUT_DIR/token_cache)")
    image_sizes: list[str] = option(
        [],
        "sizes that pictures are encoded at, HEIGHTxWIDTH, e.g. 32x32 24x40 40x24: each picture at the one whose shape "
        "is nearest to its own (default: the tokenizer's square)",
    )
    crops: int = option(
        0,
        "further views of each training picture that are encoded: crops of eight ninths of its sides",
        not_negative=True,
    )
    random_flip: bool = option(
        False,
        "mirror half of the crops, or without --crops add one mirrored view (not where a caption says left or right)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.picture_sizes()

    @property
    def tokenizer_folder(self) -> Path:
        """The folder that --image_tokenizer means."""
        return named_folder(self.image_tokenizer)

    def picture_sizes(self) -> list[tuple[int, int]]:
        """--image_sizes as (height, width) each; [] for the square that the tokenizer was trained on."""
        return parse_image_sizes(self.image_sizes)


def parse_image_sizes(texts: Iterable[str]) -> list[tuple[int, int]]:
    """["24x40", ...] -> [(24, 40), ...], heights and widths.

    Raises:
        ValueError: not of that form, or two of the same shape, of which the second would never be chosen.
    """
    sizes: list[tuple[int, int]] = []
    for text in texts:
        match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
        if match is None or not int(match[1]) * int(match[2]):
            raise ValueError(f"--image_sizes {text!r}: give HEIGHTxWIDTH in pixels, e.g. 24x40")
        size = int(match[1]), int(match[2])
        for other in sizes:
            if size[0] * other[1] == size[1] * other[0]:
                raise ValueError(
                    f"--image_sizes {other[0]}x{other[1]} and {size[0]}x{size[1]} have the same shape, so that the "
                    "second would never be chosen: leave one out"
                )
        sizes.append(size)
    return sizes
