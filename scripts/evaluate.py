"""Measure a trained model, or an image tokenizer alone.

    python scripts/evaluate.py --model runs/model --output report.json --report runs/model/report
    python scripts/evaluate.py --image_tokenizer runs/tokenizer --dataset path/to/pictures

Writes the figures as JSON, prints a table, and with --report makes a page to look at. On sprites it also
counts how many samples show what their captions say, and how many captions say what their pictures show.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.machine.processors import usable_cores
from pipelines.options.parser import run_command

if TYPE_CHECKING:
    from pipelines.evaluation.alignment import AlignmentSet
    from pipelines.evaluation.reconstruction import TokenizerFigures

FORMAT_VERSION = 1


@dataclass
class EvaluateOptions:
    """What `scripts/evaluate.py` can be told."""

    model: str = field(default="runs/model", metadata={"help": "model folder, or the name of a model on the Hub"})
    image_tokenizer: str | None = field(
        default=None, metadata={"help": "measure this image tokenizer alone, instead of a model"}
    )
    dataset: str = field(default="sprites", metadata={"help": "sprites, a local folder, or a name on the Hub"})
    split: str = field(default="validation", metadata={"help": "split of the data set"})
    image_column: str | None = field(default=None, metadata={"help": "column of the pictures"})
    caption_column: str | None = field(default=None, metadata={"help": "column of the captions"})
    max_examples: int | None = field(
        default=None, metadata={"help": "measure on this many pictures (default: all of the split)"}
    )
    max_unreadable_share: float = field(
        default=0.01, metadata={"help": "largest share of pictures that may be unreadable"}
    )
    output: str = field(default="report.json", metadata={"help": "file for the figures"})
    report: str | None = field(
        default=None, metadata={"help": "folder for a page with pictures and plots (default: none)"}
    )
    num_captions: int = field(
        default=500,
        metadata={"help": "captions of seen and of held-out pairs each; half as many of two objects"},
    )
    best_of: int = field(
        default=1, metadata={"help": "on sprites, also draw so many pictures a caption and choose one; 1: do not"}
    )
    best_of_captions: int = field(default=2000, metadata={"help": "captions of held-out pairs for --best_of"})
    completion_captions: int = field(
        default=0, metadata={"help": "on sprites, also complete the upper half of so many held-out pictures"}
    )
    describe_best_of: int | None = field(
        default=None,
        metadata={
            "help": "on sprites, also write so many captions a picture and choose one; 1: do not (default: 16 where "
            "the model draws from captions, too)"
        },
    )
    batch_size: int = field(default=100, metadata={"help": "pictures worked on at once"})
    guidance_scale: float | None = field(default=None, metadata={"help": "of the samples (default: the model's own)"})
    temperature: float = field(default=1.0, metadata={"help": "of the samples"})
    top_k: int = field(default=0, metadata={"help": "of the samples; 0: all codes"})
    top_p: float = field(default=1.0, metadata={"help": "of the samples"})
    seed: int = field(default=0, metadata={"help": "of scenes, captions and samples"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto: a GPU where there is one"})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "of the language model"}
    )
    cpu_threads: int | None = field(default=None, metadata={"help": "PyTorch's threads (default: cores)"})
    num_workers: int = field(default=2, metadata={"help": "processes that read pictures"})

    def __post_init__(self) -> None:
        ones = ("num_captions", "batch_size", "best_of", "best_of_captions", "describe_best_of")
        for name, value in (dict.fromkeys(ones, 1) | {"completion_captions": 0, "seed": 0}).items():
            if getattr(self, name) is not None and getattr(self, name) < value:
                raise ValueError(f"--{name} must be at least {value}, got {getattr(self, name)}")
        if Path(self.output).is_dir():
            raise ValueError(f"--output {self.output} is a folder: name a file, for example report.json")
        if self.report is not None and Path(self.report).is_file():
            raise ValueError(f"--report {self.report} is a file: name a folder")

    def sampling(self) -> dict[str, Any]:
        """Settings of the pipeline's call."""
        return {name: getattr(self, name) for name in ("guidance_scale", "temperature", "top_k", "top_p")}


def main(options: EvaluateOptions) -> dict[str, Any]:
    """Measure, write, print, and return the report."""
    import torch
    import transformers

    from lm.sequences import DESCRIBING, DRAWING_ALONE, DRAWING_CAPTIONS, FORMATS
    from pipelines.evaluation.captions import caption_report
    from pipelines.evaluation.reconstruction import (
        draws_from_captions,
        language_model_figures,
        measure_tokenizer,
        sample_rows,
    )
    from tokenizer_image.pictures.loading import decode_pictures, load_pictures
    from tokenizer_image.preprocessing import preprocessing_of

    transformers.logging.disable_progress_bar()  # loading takes no time to speak of
    started = time.monotonic()
    torch.set_num_threads(options.cpu_threads or usable_cores())
    pipeline, image_tokenizer = _load(options)
    formats = [] if pipeline is None else pipeline.vocabulary.formats
    drawing = pipeline if {*DRAWING_ALONE, *DRAWING_CAPTIONS} & set(formats) else None
    side = image_tokenizer.config.image_size
    size = (side, side) if pipeline is None else tuple(pipeline.vocabulary.image_size)
    if options.dataset == "sprites" and formats and not any(FORMATS[name].has_text for name in formats):
        raise ValueError(
            f"--model {options.model} has learned no captions, and the figures of sprites are about captions: measure "
            f"its tokenizer alone with --image_tokenizer {options.model}/image_tokenizer, or give another --dataset"
        )
    source = load_pictures(
        options.dataset,
        options.split,
        image_column=options.image_column,
        caption_column=options.caption_column,
        max_examples=options.max_examples,
        seed=options.seed,
    )
    pictures = decode_pictures(
        source,
        preprocessing_of(image_tokenizer),
        sizes=() if size == (side, side) else [size],  # a model of several sizes is measured at its default one
        num_workers=options.num_workers,
        max_unreadable_share=options.max_unreadable_share,
    )
    found = measure_tokenizer(image_tokenizer, pictures, batch_size=options.batch_size)
    report = {**_header(options, source, image_tokenizer), **found.figures}
    sets: list[AlignmentSet] = []
    if drawing is not None:
        report |= language_model_figures(
            drawing, source, pictures, found, guidance_scale=options.guidance_scale, batch_size=options.batch_size
        )
    if options.dataset == "sprites":
        captioned = drawing if drawing is not None and draws_from_captions(drawing) else None
        report["alignment"], sets = _alignment(options, captioned, image_tokenizer)
        if set(DESCRIBING) & set(formats):
            report["captions"] = caption_report(
                pipeline,
                sets,
                best_of=options.describe_best_of or (16 if captioned else 1),
                batch_size=options.batch_size,
                seed=options.seed,
            )
    report["seconds"] = round(time.monotonic() - started, 1)
    samples: list[tuple[str, Any]] = []
    if options.report is not None and drawing is not None and not sets:
        samples = sample_rows(drawing, source, options.seed, options.sampling())
    return _publish(options, report, found, sets, samples, image_tokenizer, pictures)


def _load(options: EvaluateOptions) -> tuple[Any, Any]:
    """The pipeline, None where a tokenizer is measured alone, and the image tokenizer."""
    from lm.generation.images import SamplingSettings
    from pipelines.drawing.best_of import check_can_rank, check_can_rank_texts
    from pipelines.machine.devices import choose_device
    from pipelines.text_to_image import TextToImagePipeline
    from tokenizer_image.vqvae import load_tokenizer

    given = {name: value for name, value in options.sampling().items() if value is not None}
    SamplingSettings(**given)  # complains now, and not after minutes
    device = choose_device(options.device)
    if options.image_tokenizer is not None:
        return None, load_tokenizer(options.image_tokenizer).to(device)
    pipeline = TextToImagePipeline.from_pretrained(options.model, dtype=options.dtype, device=device)
    pipeline.set_progress_bar_config(disable=True)
    if options.best_of > 1:
        check_can_rank(pipeline, [""])  # likewise
    if (options.describe_best_of or 1) > 1:
        check_can_rank_texts(pipeline)
    return pipeline, pipeline.image_tokenizer


def _header(options: EvaluateOptions, source: Any, image_tokenizer: Any) -> dict[str, Any]:
    """Where the figures come from."""
    from pipelines.training.run_folder import commit, versions

    alone = options.image_tokenizer is not None
    return {
        "format_version": FORMAT_VERSION,
        **({"image_tokenizer": options.image_tokenizer} if alone else {"model": options.model}),
        "image_tokenizer_fingerprint": image_tokenizer.fingerprint,
        "dataset": options.dataset,
        "split": options.split,
        "dataset_fingerprint": source.fingerprint,
        "seed": options.seed,
        "settings": asdict(options),
        "command": shlex.join(sys.argv),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "commit": commit(),
    }


def _alignment(
    options: EvaluateOptions, pipeline: Any, image_tokenizer: Any
) -> tuple[dict[str, Any], list[AlignmentSet]]:
    from pipelines.evaluation.alignment import alignment_report, alignment_sets
    from pipelines.evaluation.drawing_uses import use_reports
    from pipelines.evaluation.reconstruction import device_of
    from pipelines.evaluation.sprites_probe import load_probe

    sets, probe = alignment_sets(options.num_captions, seed=options.seed), load_probe(device=device_of(image_tokenizer))
    same = {"batch_size": options.batch_size, "seed": options.seed, "sampling": options.sampling()}
    report = alignment_report(pipeline, image_tokenizer, probe, sets=sets, **same)
    if pipeline is not None:
        asked = {name: getattr(options, name) for name in ("best_of", "best_of_captions", "completion_captions")}
        report |= use_reports(pipeline, probe, **asked, **same)
    return report, sets


def _publish(
    options: EvaluateOptions,
    report: dict[str, Any],
    found: TokenizerFigures,
    sets: list[AlignmentSet],
    samples: list[tuple[str, Any]],
    image_tokenizer: Any,
    pictures: Any,
) -> dict[str, Any]:
    """Write the JSON file, print the table, make the page."""
    from pipelines.evaluation.reconstruction import figures_table

    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    table = figures_table(report)
    print(f"\n{table}\n\nall figures: {output}")
    if options.report is not None:
        from pipelines.evaluation.codebook_plot import codebook_views
        from pipelines.evaluation.report_page import write_report

        codebooks = codebook_views(image_tokenizer, found.codes, pictures)
        page = write_report(
            options.report, report, found, table=table, sets=sets, samples=samples, codebooks=codebooks
        )[0]
        print(f"pictures:    {page}")
    return report


if __name__ == "__main__":
    run_command(main, EvaluateOptions, __doc__)
