"""Draw pictures from captions with a trained model.

    python scripts/generate.py "a red dog" "a small blue house" --output pictures.png

A file name writes one sheet, a row of pictures under each caption; else it is a folder of single pictures. A model of
sounds writes each as WAV, one of series as CSV, one of videos as GIF: into the folder, or of a sheet into the folder of
its name.
"""

from __future__ import annotations

import gc
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.machine.destinations import check_pictures, is_sheet
from pipelines.machine.startup import hide_unused_packages
from pipelines.options.inference import GuidedSamplingOptions, ModelOptions
from pipelines.options.option import check_values, given_options, option
from pipelines.options.parser import run_command

if TYPE_CHECKING:
    from PIL import Image

    from lm.generation.progress import DrawingInterrupted

PROMPTS = {"prompts": {"nargs": "*", "metavar": "PROMPT", "help": "what to draw, each prompt in quotes"}}


@dataclass
class GenerateOptions(GuidedSamplingOptions, ModelOptions):
    """Options of `scripts/generate.py`."""

    prompts: list[str] = option([], "what to draw")
    output: str = option("generated.png", "a picture file (one sheet), or a folder (single pictures)")
    unconditional: bool = option(False, "draw without a prompt")
    num_images_per_prompt: int = option(4, "pictures for each prompt", above_zero=True)
    best_of: int | None = option(
        None,
        "draw so many for each prompt and keep those after which the model finds it likeliest (models that have "
        "learned to describe)",
    )
    negative_prompt: str | None = option(None, "what to lead away from")
    height: int | None = option(None, "in pixels, one of the sizes that the model draws (default: its first)")
    width: int | None = option(None, "in pixels; one of height and width is enough where it decides the size")

    codes_per_call: int | None = option(
        None,
        "codes of a picture computed in one call of the model, at most; the pictures are the same (default: 4 "
        "for one picture of a large model, with guidance on processors with AVX-512 alone, else 1)",
        above_zero=True,
    )
    seed: int | None = option(None, "the same seed draws the same pictures", not_negative=True)

    def __post_init__(self) -> None:
        check_values(self)
        self.check_sampling()
        if not self.prompts and not self.unconditional:
            raise ValueError('no prompt: say in quotes what to draw, for example "a dog", or give --unconditional')
        if self.prompts and self.unconditional:
            raise ValueError(f"--unconditional draws without a prompt: leave {self.prompts[0]!r} out, or the option")
        if self.best_of is not None and self.best_of < self.num_images_per_prompt:
            raise ValueError(
                f"--best_of {self.best_of} is less than --num_images_per_prompt {self.num_images_per_prompt}: "
                "draw more, or keep fewer"
            )
        check_pictures(self.output, "--output")


def main(options: GenerateOptions) -> Path:
    """Draw, write, and return where the pictures are."""
    from lm.generation.progress import DrawingInterrupted
    from pipelines.text_to_signal import TextToSignalPipeline, drawing_class

    kind = drawing_class(options.chosen_model)
    if kind is TextToSignalPipeline:
        return draw_signals(options)
    output = Path(options.output)
    make_folder(output.parent if is_sheet(output) else output, single_files=not is_sheet(output))
    seed = random.randrange(2**32) if options.seed is None else options.seed
    pipe: Any = options.load(kind)
    gc.enable()
    try:
        images = pipe(
            options.prompts or None,
            negative_prompt=options.negative_prompt,
            num_images_per_prompt=options.num_images_per_prompt,
            height=options.height,
            width=options.width,
            seed=seed,
            best_of=options.best_of,
            codes_per_call=options.codes_per_call,
            **options.sampling(),
        ).images
    except DrawingInterrupted as interrupt:
        _keep_finished(options, interrupt, output, seed)
        raise
    _write(output, _labelled(options, list(enumerate(images)), options.num_images_per_prompt))
    print(f"{output} ({len(images)} pictures, seed {seed})")
    return output


def make_folder(folder: Path, *, single_files: bool) -> None:
    """Make the folder that is written into, before any time is spent on drawing.

    Raises:
        ValueError: single files would go among those of a model.
    """
    from pipelines.model_folder import INDEX_FILE

    if single_files and (folder / INDEX_FILE).exists():
        raise ValueError(f"--output: what is drawn would go into {folder}, which is a model folder: name another")
    folder.mkdir(parents=True, exist_ok=True)


def draw_signals(options: GenerateOptions) -> Path:
    """Draw signals and write each as WAV, CSV or GIF; of a sheet, into the folder of its name without the ending."""
    from pipelines.drawing.grids import file_name
    from pipelines.text_to_signal import TextToSignalPipeline
    from tokenizer_image.signals.series_files import write_series
    from tokenizer_image.signals.sound_files import write_sound
    from tokenizer_image.signals.video_files import write_gif

    if given := given_options(options, ("best_of", "height", "width")):
        raise ValueError(f"{options.chosen_model} draws signals, which have no {', '.join(given)}: leave out")
    output = Path(options.output)
    folder = output.with_suffix("") if is_sheet(output) else output
    make_folder(folder, single_files=True)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    pipe = options.load(TextToSignalPipeline)
    gc.enable()
    drawn = pipe(
        options.prompts or None, options.negative_prompt, options.num_images_per_prompt, seed=seed,
        codes_per_call=options.codes_per_call, **options.sampling(),
    )  # fmt: skip
    texts, count = options.prompts or ["(no prompt)"], options.num_images_per_prompt
    names = [file_name(number, text, one) for number, text in enumerate(texts) for one in range(count)]
    for name, values in zip(names, drawn.signals, strict=True):
        if pipe.settings.signal == "audio":
            write_sound(folder / f"{name}.wav", values, pipe.settings.rate)
        elif pipe.settings.signal == "series":
            write_series(folder / f"{name}.csv", values)
        else:
            write_gif(folder / f"{name}.gif", values)
    if is_sheet(output):
        _write(output, _labelled(options, list(enumerate(drawn.images)), count))
    print(f"{output} ({len(names)} files in {folder}, seed {seed})")
    return output


def _keep_finished(options: GenerateOptions, interrupt: DrawingInterrupted, output: Path, seed: int) -> None:
    """Write the pictures that were complete when Ctrl-C was pressed."""
    complete = (interrupt.codes >= 0).all(1).tolist()
    finished = [(number, image) for number, image in enumerate(interrupt.output.images) if complete[number]]
    if finished:
        _write(output, _labelled(options, finished, options.best_of or options.num_images_per_prompt))
    where = f", in {output}" if finished else ""
    print(f"interrupted: {len(finished)} of {len(complete)} pictures finished{where} (seed {seed})", file=sys.stderr)


def _labelled(
    options: GenerateOptions, images: list[tuple[int, Image.Image]], count: int
) -> list[tuple[str, list[Image.Image]]]:
    """The pictures, numbered from 0 with `count` for each prompt, as (prompt, its pictures)."""
    rows: list[tuple[str, list[Image.Image]]] = [(text, []) for text in options.prompts or ["(no prompt)"]]
    for number, image in images:
        rows[number // count][1].append(image)
    return [row for row in rows if row[1]]


def _write(output: Path, rows: list[tuple[str, list[Image.Image]]]) -> None:
    from pipelines.drawing.grids import labelled_grid, save_pictures

    if is_sheet(output):
        labelled_grid(rows).save(output)
    else:
        save_pictures(rows, output)


if __name__ == "__main__":
    hide_unused_packages()
    gc.disable()  # until the model is loaded: garbage collection during imports takes half a second
    run_command(main, GenerateOptions, __doc__, PROMPTS)
