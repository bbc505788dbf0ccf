"""Look at a data set before anything is trained on it.

    python scripts/inspect_data.py --dataset path/to/pictures --image_size 64 --output sheet.png

prints what the data set holds, reads every picture once, and draws captioned pictures beside what the model sees of
them. Exits with 1 and one sentence where training would stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.machine.destinations import check_file, make_folder
from pipelines.options.data import DataOptions
from pipelines.options.option import option
from pipelines.options.parser import run_command


@dataclass
class InspectionOptions(DataOptions):
    """Options of `scripts/inspect_data.py`."""

    split: str = option("train", "split of the data set")
    image_size: int = option(32, "side in pixels of the pictures that a model is trained on", above_zero=True)
    max_examples: int | None = option(None, "look at this many pictures (sprites: 100000)", above_zero=True)
    unconditional: bool = option(False, "accept pictures without captions, as train_lm.py --unconditional does")
    output: str = option("sheet.png", "file for the sheet of pictures")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_file(self.output, "--output", "sheet.png")


def main(options: InspectionOptions) -> None:
    """Print the summary, read every picture, draw the sheet.

    Raises:
        ValueError: training would stop; the message says why, and what to do.
    """
    from pipelines.caching.sources import load_source
    from pipelines.evaluation.data_inspection import contact_sheet, inspect_pictures
    from tokenizer_image.pictures.dataset import PictureSource, print_summary
    from tokenizer_image.pictures.loading import check_captions
    from tokenizer_image.pictures.reading_notes import counted

    source = load_source(options, options.split, image_size=options.image_size)
    if print_summary(source) is None:
        print(f"{source.name}, {options.split}: {counted(len(source), 'picture')}")
    inspection = inspect_pictures(source, options.image_size, options.workers(), options.max_image_pixels)
    print("\n".join(inspection.lines()))
    inspection.check_unreadable(options.max_unreadable_share)
    make_folder(Path(options.output).absolute().parent, "--output")
    contact_sheet(inspection, options.image_size).save(options.output, "PNG")
    print(f"  pictures, each beside what a model of {options.image_size} pixels sees: {options.output}")
    if isinstance(source, PictureSource) and not options.unconditional:
        check_captions(source, options.caption_column)


if __name__ == "__main__":
    run_command(main, InspectionOptions, __doc__)
