"""Describe pictures with a trained model.

    python scripts/describe.py --model runs/model dog.png house.jpg

prints a line for each picture: its file, a tab, and its caption.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.machine.startup import hide_unused_packages
from pipelines.options.inference import ModelOptions, SamplingOptions
from pipelines.options.option import check_values, option
from pipelines.options.parser import run_command

if TYPE_CHECKING:
    from PIL import Image

PICTURES = {"pictures": {"nargs": "*", "metavar": "PICTURE", "help": "picture files"}}


@dataclass
class DescribeOptions(SamplingOptions, ModelOptions):
    """Options of `scripts/describe.py`."""

    pictures: list[str] = option([], "picture files")
    max_new_tokens: int | None = option(
        None, "most tokens of a caption (default: as many as the model has positions for)", above_zero=True
    )
    best_of: int | None = option(
        None,
        "write so many captions a picture, keep the one that tells most of it (default: one, the likeliest)",
        above_zero=True,
    )
    temperature: float | None = option(
        None, "0 takes the likeliest token each time (default: 0, or 0.7 where --best_of asks for several)"
    )

    seed: int | None = option(None, "the same seed writes the same captions", not_negative=True)
    tokens_per_call: int | None = option(
        None,
        "tokens of a caption computed in one call of the model, at most; what is written is the same (default: several "
        "where that is faster)",
        above_zero=True,
    )

    def __post_init__(self) -> None:
        check_values(self)
        self.check_sampling()
        if not self.pictures:
            raise ValueError("no picture: name the files to describe, for example dog.png")


def main(options: DescribeOptions) -> list[str]:
    """Describe, print, and return the captions."""
    from pipelines.image_to_text import ImageToTextPipeline

    for _ in read_pictures(options.pictures, pixels=False):  # finds wrong files before the model is loaded
        pass
    pipe = options.load(ImageToTextPipeline)
    texts = pipe(
        read_pictures(options.pictures),
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        best_of=options.best_of,
        tokens_per_call=options.tokens_per_call,
        **options.sampling(),
    ).texts
    for file, text in zip(options.pictures, texts, strict=True):
        print(f"{file}\t{text}")
    return texts


def read_pictures(files: Iterable[str], pixels: bool = True) -> Iterator[Image.Image]:
    """Open one picture after the other; each is closed when the next one is asked for.

    Args:
        pixels: decode them; otherwise only their headers are read.

    Raises:
        ValueError: a file that is no picture, or a damaged one.
    """
    from PIL import Image

    for file in files:
        try:
            image = Image.open(file)
            if pixels:
                image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as a picture: {error}") from error
        with image:
            yield image
        del image  # before the next one is decoded


if __name__ == "__main__":
    hide_unused_packages()
    run_command(main, DescribeOptions, __doc__, PICTURES)
