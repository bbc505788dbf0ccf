"""Look at a data set before anything is trained on it.

    python scripts/inspect_data.py --dataset path/to/pictures --image_size 64 --output sheet.png
    python scripts/inspect_data.py --signal audio --dataset path/to/sounds --output sheet.png

prints what the data set holds, reads every picture (sound, series) once, and draws captioned ones as the model sees
them. Exits with 1 and one sentence where training would stop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.machine.destinations import check_file, make_folder
from pipelines.options.data import DataOptions
from pipelines.options.option import option
from pipelines.options.parser import run_command
from pipelines.options.signals import SignalDataOptions

if TYPE_CHECKING:
    from PIL import Image

    from pipelines.evaluation.data_inspection import PictureInspection

    Look = tuple[PictureInspection, Callable[[], Image.Image], str]  # what was found, its sheet, what that shows


@dataclass
class InspectionOptions(SignalDataOptions, DataOptions):
    """Options of `scripts/inspect_data.py`."""

    split: str = option("train", "split of the data set")
    image_size: int = option(32, "side in pixels of the pictures that a model is trained on", above_zero=True)
    max_examples: int | None = option(None, "look at this many pictures (sprites: 100000)", above_zero=True)
    unconditional: bool = option(False, "accept pictures without captions, as train_lm.py --unconditional does")
    output: str = option("sheet.png", "file for the sheet of pictures")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_signal()
        check_file(self.output, "--output", "sheet.png")


def main(options: InspectionOptions) -> None:
    """Print the summary, read every picture or signal, draw the sheet.

    Raises:
        ValueError: training would stop; the message says why, and what to do.
    """
    from tokenizer_image.pictures.dataset import PictureSource
    from tokenizer_image.pictures.loading import check_captions

    inspection, draw, shown = look_at_signals(options) if options.signal else look_at_pictures(options)
    print("\n".join(inspection.lines()))
    inspection.check_unreadable(options.max_unreadable_share)
    make_folder(Path(options.output).absolute().parent, "--output")
    draw().save(options.output, "PNG")
    print(f"  {shown}: {options.output}")
    if isinstance(inspection.source, PictureSource) and not options.unconditional:
        check_captions(inspection.source, options.caption_column)


def look_at_pictures(options: InspectionOptions) -> Look:
    """What reading every picture shows."""
    from pipelines.caching.sources import load_source
    from pipelines.evaluation.data_inspection import contact_sheet, inspect_pictures
    from tokenizer_image.pictures.dataset import print_summary
    from tokenizer_image.pictures.reading_notes import counted

    size = options.image_size
    source = load_source(options, options.split, image_size=size)
    if print_summary(source) is None:
        print(f"{source.name}, {options.split}: {counted(len(source), 'picture')}")
    inspection = inspect_pictures(source, size, options.workers(), options.max_image_pixels)
    shown = f"pictures, each beside what a model of {size} pixels sees"
    return inspection, partial(contact_sheet, inspection, size), shown


def look_at_signals(options: InspectionOptions) -> Look:
    """What reading every sound or series shows."""
    from pipelines.caching.sources import open_signals, read_pictures
    from pipelines.evaluation.signal_inspection import example_line, inspect_signals, signal_sheet
    from tokenizer_image.pictures.dataset import print_summary
    from tokenizer_image.pictures.reading_notes import counted

    settings = options.signal_settings()
    source: Any = open_signals(options, options.split, settings, options.max_examples, options.seed)
    if print_summary(source) is None:
        print(f"{source.name}, {options.split}: {counted(len(source), 'example')}")
    signals = read_pictures(options, source, settings)
    print(example_line(signals))
    inspection = inspect_signals(source, signals)
    return inspection, partial(signal_sheet, inspection, signals), "examples, as a model is given them"


if __name__ == "__main__":
    run_command(main, InspectionOptions, __doc__)
