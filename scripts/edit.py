"""Change a picture as an instruction says, with a trained model.

    python scripts/edit.py dog.png "make it blue" "put it on the left" --model runs/model --output edited.png

A file name writes one sheet, under each instruction the picture and its results; else it is a folder of single results.
"""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.machine.destinations import PICTURE_SUFFIXES, check_pictures, is_sheet
from pipelines.options.inference import GuidedSamplingOptions, ModelOptions
from pipelines.options.option import check_values, option
from pipelines.options.parser import run_command

if TYPE_CHECKING:
    from PIL import Image

    from pipelines.text_to_image import TextToImagePipeline

WORDS = {
    "picture": {"nargs": "?", "default": None, "metavar": "PICTURE", "help": "the picture file to start from"},
    "instructions": {"nargs": "*", "metavar": "INSTRUCTION", "help": "what to change, each in quotes"},
}


@dataclass
class EditOptions(GuidedSamplingOptions, ModelOptions):
    """Options of `scripts/edit.py`."""

    picture: str | None = option(None, "the picture file to start from")
    instructions: list[str] = option([], "what to change")
    output: str = option("edited.png", "a picture file (one sheet), or a folder (single pictures)")
    num_images_per_prompt: int = option(4, "results of each instruction", above_zero=True)
    image_guidance_scale: float | None = option(
        None, "how strongly to stay with the picture: 1 is off (default: the model's own)", not_negative=True
    )
    negative_prompt: str | None = option(None, "an instruction to lead away from")
    source_prompt: str | None = option(None, "what the picture shows, for models that have learned from such texts")
    resize: bool = option(False, "resize and crop a picture of another size to the model's size of the nearest shape")
    codes_per_call: int | None = option(
        None, "codes of a picture computed in one call of the model, at most (default: as many as pay)", above_zero=True
    )
    seed: int | None = option(None, "the same seed draws the same results", not_negative=True)

    def __post_init__(self) -> None:
        check_values(self)
        self.check_sampling()
        if self.picture is None:
            raise ValueError('no picture: name the file to start from, then say what to change: dog.png "make it blue"')
        if not self.instructions:
            raise ValueError(f'no instruction: say in quotes what to change, for example {self.picture} "make it blue"')
        for text in self.instructions:
            if not text.strip():
                raise ValueError('an instruction is empty: say what to change, for example "make it blue"')
            if Path(text).suffix.lower() in PICTURE_SUFFIXES and Path(text).is_file():
                raise ValueError(
                    f"{self.picture} and {text} are two pictures: an edit starts from one; the words after it say what "
                    "to change"
                )
        check_pictures(self.output, "--output")


def main(options: EditOptions) -> Path:
    """Draw the results, write them, and return where they are."""
    from pipelines.text_to_image import TextToImagePipeline

    source = _read(str(options.picture))
    output = Path(options.output)
    (output.parent if is_sheet(output) else output).mkdir(parents=True, exist_ok=True)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    pipe = options.load(TextToImagePipeline)
    gc.enable()
    if options.resize:
        source = _resized(pipe, source)
    images = pipe.edit(
        source,
        options.instructions,
        num_images_per_prompt=options.num_images_per_prompt,
        image_guidance_scale=options.image_guidance_scale,
        negative_prompt=options.negative_prompt,
        source_prompt=options.source_prompt,
        codes_per_call=options.codes_per_call,
        seed=seed,
        **options.sampling(),
    ).images
    count = options.num_images_per_prompt
    rows = [(text, images[place * count : (place + 1) * count]) for place, text in enumerate(options.instructions)]
    _write(output, source, rows)
    print(f"{output} ({len(images)} results, seed {seed})")
    return output


def _read(file: str) -> Image.Image:
    """The picture in a file. Raises ValueError where there is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a picture: {error}") from error


def _resized(pipe: TextToImagePipeline, source: Image.Image) -> Image.Image:
    """The picture as the model sees it."""
    from PIL import Image

    (pixels,) = pipe.prepare_images(source)
    array: Any = pixels.transpose(1, 2, 0)
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _write(output: Path, source: Image.Image, rows: list[tuple[str, list[Image.Image]]]) -> None:
    """A sheet with the source before the results of each instruction, or single results in a folder."""
    from pipelines.drawing.grids import labelled_grid, save_pictures

    if is_sheet(output):
        labelled_grid([(f"{text}   (source | results)", [source, *images]) for text, images in rows]).save(output)
    else:
        save_pictures(rows, output)


if __name__ == "__main__":
    gc.disable()  # until the model is loaded: garbage collection during imports takes half a second
    run_command(main, EditOptions, __doc__, WORDS)
