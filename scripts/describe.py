"""Describe pictures with a trained model.

    python scripts/describe.py --model runs/model dog.png house.jpg

prints a line for each picture: its file, a tab, and its caption.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.options.parser import parse_options

PICTURES = {"pictures": {"nargs": "*", "metavar": "PICTURE", "help": "picture files"}}


@dataclass
class DescribeOptions:
    """What `scripts/describe.py` can be told."""

    pictures: list[str] = field(default_factory=list)
    model: str = field(default="runs/model", metadata={"help": "model folder, or the name of a model on the Hub"})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "most tokens of a caption (default: as many as the model has room for)"}
    )
    best_of: int | None = field(
        default=None,
        metadata={
            "help": "write so many captions a picture, keep the one that tells most of it (default: one, the likeliest)"
        },
    )
    temperature: float | None = field(
        default=None,
        metadata={
            "help": "0 takes the likeliest token each time (default: 0, or 0.7 where --best_of asks for several)"
        },
    )
    top_k: int = field(default=0, metadata={"help": "choose among the k likeliest tokens; 0: among all"})
    top_p: float = field(
        default=1.0, metadata={"help": "choose among the likeliest tokens that have this probability together"}
    )
    seed: int | None = field(default=None, metadata={"help": "the same seed writes the same captions"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto: a GPU where there is one"})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "of the language model"}
    )

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError("no picture: name the files to describe, for example dog.png")


def main(options: DescribeOptions) -> list[str]:
    """Describe, print, and return the captions."""
    import transformers
    from PIL import Image

    from pipelines.image_to_text import ImageToTextPipeline
    from pipelines.machine.devices import choose_device

    transformers.logging.disable_progress_bar()  # loading takes no time to speak of
    images = []
    for file in options.pictures:
        try:
            with Image.open(file) as image:
                image.load()
                images.append(image.copy())
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as a picture: {error}") from error
    pipe = ImageToTextPipeline.from_pretrained(options.model, dtype=options.dtype, device=choose_device(options.device))
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "best_of")
    settings = {name: getattr(options, name) for name in names}
    texts = pipe(images, **settings).texts
    for file, text in zip(options.pictures, texts, strict=True):
        print(f"{file}\t{text}")
    return texts


if __name__ == "__main__":
    try:
        main(parse_options(DescribeOptions, description=__doc__, positional=PICTURES))
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
