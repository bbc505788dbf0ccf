"""A whole evaluation: what `scripts/evaluate.py` measures, in order, and the report page that it makes of it."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from lm.sequences import DESCRIBING, DRAWING_ALONE, DRAWING_CAPTIONS, FORMATS
from lm.vocabulary import Size
from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.caching.sources import load_split, read_pictures
from pipelines.drawing.best_of import check_can_rank, check_can_rank_texts
from pipelines.drawing.captions import caption_room, cut_caption
from pipelines.evaluation.alignment import AlignmentSet, alignment_report, alignment_sets
from pipelines.evaluation.captions import caption_report
from pipelines.evaluation.codebook_plot import codebook_views
from pipelines.evaluation.drawing_comparison import best_of_report, completion_report
from pipelines.evaluation.likelihood import measure_likelihood
from pipelines.evaluation.pictures_compared import ExtractorPair, compare_pictures
from pipelines.evaluation.probe_training import load_probe
from pipelines.evaluation.reconstruction import TokenizerFigures, device_of, measure_tokenizer
from pipelines.evaluation.report_page import write_report
from pipelines.evaluation.tables import figures_table
from pipelines.machine.devices import choose_device
from pipelines.machine.provenance import commit, versions
from pipelines.options.evaluation import EvaluationOptions
from pipelines.text_to_image import TextToImagePipeline
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.pictures.dataset import PictureDataset, print_summary
from tokenizer_image.preprocessing import preprocessing_of
from tokenizer_image.registry import load_tokenizer

FORMAT_VERSION = 1
CAPTION_CANDIDATES = 16  # captions a picture, of which the best is chosen, for models that also draw from captions
SAMPLE_CAPTIONS, SAMPLES_EACH = 8, 4  # shown on the page
SAMPLE_ROWS = 64  # of the data set, in which captions to show are looked for


@dataclass(frozen=True)
class EvaluatedModel:
    """What is measured.

    Attributes:
        pipeline: None where an image tokenizer is measured alone.
    """

    image_tokenizer: ImageTokenizer
    pipeline: TextToImagePipeline | None = None

    @property
    def formats(self) -> set[str]:
        """The sequence formats that the language model was trained on."""
        return set() if self.pipeline is None else set(self.pipeline.vocabulary.formats)

    @property
    def drawing(self) -> TextToImagePipeline | None:
        """The pipeline if its model has learned to draw, with or without captions."""
        return self.pipeline if self.formats & {*DRAWING_ALONE, *DRAWING_CAPTIONS} else None

    @property
    def drawing_from_captions(self) -> TextToImagePipeline | None:
        """The pipeline if its model has learned to draw what a caption says."""
        return self.pipeline if self.formats & set(DRAWING_CAPTIONS) else None

    @property
    def describing(self) -> TextToImagePipeline | None:
        """The pipeline if its model has learned to describe pictures."""
        return self.pipeline if self.formats & set(DESCRIBING) else None

    @property
    def picture_size(self) -> Size:
        """(height, width) of the pictures to measure: the default of a model of several sizes."""
        if self.pipeline is None:
            return (self.image_tokenizer.config.image_size,) * 2
        height, width = self.pipeline.vocabulary.image_size
        return height, width


@dataclass
class Evaluation:
    """Everything measured, and what a report page shows of it.

    Attributes:
        report: the figures, ready for JSON.
        sets: measured alignment sets; empty where the data set is not sprites.
    """

    model: EvaluatedModel
    source: PictureDataset
    pictures: DecodedPictures
    tokenizer_figures: TokenizerFigures
    report: dict[str, Any]
    sets: list[AlignmentSet] = field(default_factory=list)


def evaluate(options: EvaluationOptions) -> Evaluation:
    """Measure the image tokenizer, then the language model, then on sprites what pictures and captions say.

    Raises:
        ValueError: options that do not fit the model, before anything is measured.
    """
    started = time.monotonic()
    model = load_model(options)
    source, pictures = load_data(options, model)
    tokenizer_figures = measure_tokenizer(model.image_tokenizer, pictures, batch_size=options.batch_size)
    report = {**_provenance(options, model, source), **tokenizer_figures.figures}
    evaluation = Evaluation(model, source, pictures, tokenizer_figures, report)
    if model.drawing is not None:
        report |= _language_model_figures(options, evaluation, model.drawing)
    if options.extractor or options.classifier:
        report["compared"] = _compared_figures(options, evaluation)
    if options.dataset == "sprites":
        evaluation.sets = alignment_sets(options.num_captions, seed=options.seed)
        report["alignment"] = _alignment_figures(options, model, evaluation.sets)
        if model.describing is not None:
            report["captions"] = _caption_figures(options, model, evaluation.sets)
    report["seconds"] = round(time.monotonic() - started, 1)
    return evaluation


def load_model(options: EvaluationOptions) -> EvaluatedModel:
    """The model, or the image tokenizer alone, that the options name.

    Raises:
        ValueError: there is none, or it has not learned what the options ask for.
    """
    if options.image_tokenizer is not None:
        return EvaluatedModel(load_tokenizer(options.image_tokenizer).to(choose_device(options.device)))
    pipeline = options.load(TextToImagePipeline)
    pipeline.set_progress_bar_config(disable=True)
    if options.best_of > 1:
        check_can_rank(pipeline, [""])
    if (options.describe_best_of or 1) > 1:
        check_can_rank_texts(pipeline)
    model = EvaluatedModel(pipeline.image_tokenizer, pipeline)
    if options.dataset == "sprites" and model.formats and not any(FORMATS[name].has_text for name in model.formats):
        raise ValueError(
            f"--model {options.model} has learned no captions, and the figures of sprites are about captions: measure "
            f"its tokenizer alone with --image_tokenizer {options.model}/image_tokenizer, or give another --dataset"
        )
    return model


def load_data(options: EvaluationOptions, model: EvaluatedModel) -> tuple[PictureDataset, DecodedPictures]:
    """The data set's split, and its pictures as the image tokenizer takes them."""
    side = model.image_tokenizer.config.image_size
    source = load_split(options, options.split, options.max_examples, options.seed, image_size=side)
    print_summary(source)
    sizes = [] if model.picture_size == (side, side) else [model.picture_size]
    pictures = read_pictures(options, source, preprocessing_of(model.image_tokenizer), sizes)
    return source, pictures


def write_page(options: EvaluationOptions, evaluation: Evaluation, folder: str | Path) -> Path:
    """Draw samples, plot the codebooks, and write the report's folder; the path of its page."""
    drawing = evaluation.model.drawing
    samples: list[tuple[str, list[Image.Image]]] = []
    if drawing is not None and not evaluation.sets:
        samples = draw_samples(drawing, evaluation.source, options.seed, options.sampling())
    tokenizer_figures = evaluation.tokenizer_figures
    codebooks = codebook_views(evaluation.model.image_tokenizer, tokenizer_figures.codes, evaluation.pictures)
    page, *_ = write_report(
        folder,
        evaluation.report,
        tokenizer_figures,
        table=figures_table(evaluation.report),
        sets=evaluation.sets,
        samples=samples,
        codebooks=codebooks,
    )
    return page


def draw_samples(
    pipeline: TextToImagePipeline, source: PictureDataset, seed: int, sampling: Mapping[str, Any]
) -> list[tuple[str, list[Image.Image]]]:
    """A few pictures for each of the first captions of a data set, to look at; where it has none, or the model has
    learned none, a few without a caption; [] where the model has learned neither.

    A caption that leaves no room for the picture loses its last words.
    """
    model, vocabulary = EvaluatedModel(pipeline.image_tokenizer, pipeline), pipeline.vocabulary
    captions: list[str] = []
    if model.drawing_from_captions is not None:
        room = caption_room(pipeline.model, vocabulary)
        texts = [text for text in first_captions(source, range(min(SAMPLE_ROWS, len(source)))) if text]
        cut = [cut_caption(vocabulary, text, room) for text in dict.fromkeys(texts)]
        captions = list(dict.fromkeys(text for text in cut if text))[:SAMPLE_CAPTIONS]
    if not captions and not model.formats & set(DRAWING_ALONE):
        return []
    images = pipeline(captions or None, num_images_per_prompt=SAMPLES_EACH, seed=seed, **sampling).images
    assert isinstance(images, list)
    labels = captions or ["without a caption"]
    return [(label, images[SAMPLES_EACH * row : SAMPLES_EACH * (row + 1)]) for row, label in enumerate(labels)]


def first_captions(source: PictureDataset, rows: Iterable[int]) -> list[str | None]:
    """The first caption of each of `rows`, None where there is none: the same at each evaluation."""
    texts = [source.texts(int(row)) for row in rows]
    return [captions[0] if captions else None for captions in texts]


def _language_model_figures(
    options: EvaluationOptions, evaluation: Evaluation, pipeline: TextToImagePipeline
) -> dict[str, Any]:
    """`likelihood` of the pictures' codes, and the `guidance_scale` of samples."""
    captions: list[str | None] = [None] * len(evaluation.pictures)
    if evaluation.model.drawing_from_captions is not None:
        captions = first_captions(evaluation.source, evaluation.pictures.rows)
    default = pipeline.vocabulary.default_guidance
    return {
        "likelihood": measure_likelihood(
            pipeline, evaluation.tokenizer_figures.codes, captions, batch_size=options.batch_size
        ),
        "guidance_scale": default if options.guidance_scale is None else options.guidance_scale,
    }


def _compared_figures(options: EvaluationOptions, evaluation: Evaluation) -> dict[str, Any]:
    """Frechet distances and classes of reconstructed and drawn pictures."""
    model = evaluation.model
    device = device_of(model.image_tokenizer)
    pipeline = model.drawing_from_captions or model.drawing
    captions: list[str | None] = [None] * len(evaluation.pictures)
    if model.drawing is None or model.drawing_from_captions is not None:
        captions = first_captions(evaluation.source, evaluation.pictures.rows)
    extractors = ExtractorPair.load(options.extractor, options.classifier, options.extractor_size, device)
    return compare_pictures(
        extractors, model.image_tokenizer, evaluation.pictures, captions, pipeline=pipeline,
        drawn_per_caption=options.drawn_per_caption, seed=options.seed, sampling=options.sampling(),
    )  # fmt: skip


def _alignment_figures(options: EvaluationOptions, model: EvaluatedModel, sets: list[AlignmentSet]) -> dict[str, Any]:
    """What the probe reads in pictures of sprites; `best_of` and `completion` where the options ask for them."""
    probe = load_probe(device=device_of(model.image_tokenizer))
    pipeline, batch_size, seed, sampling = (
        model.drawing_from_captions, options.batch_size, options.seed, options.sampling(),
    )  # fmt: skip
    report = alignment_report(
        pipeline, model.image_tokenizer, probe, sets=sets, batch_size=batch_size, seed=seed, sampling=sampling
    )
    if pipeline is not None and options.best_of > 1:
        report["best_of"] = best_of_report(
            pipeline, probe, options.best_of, num_captions=options.best_of_captions, batch_size=batch_size, seed=seed,
            sampling=sampling,
        )  # fmt: skip
    if pipeline is not None and options.completion_captions:
        report["completion"] = completion_report(
            pipeline, probe, num_captions=options.completion_captions, batch_size=batch_size, seed=seed,
            sampling=sampling,
        )  # fmt: skip
    return report


def _caption_figures(options: EvaluationOptions, model: EvaluatedModel, sets: list[AlignmentSet]) -> dict[str, Any]:
    """What the model's captions of sprites state rightly."""
    assert model.pipeline is not None
    default = 1 if model.drawing_from_captions is None else CAPTION_CANDIDATES
    return caption_report(
        model.pipeline,
        sets,
        best_of=options.describe_best_of or default,
        batch_size=options.batch_size,
        seed=options.seed,
    )


def _provenance(options: EvaluationOptions, model: EvaluatedModel, source: PictureDataset) -> dict[str, Any]:
    """What was measured, on which pictures, by which code."""
    alone = options.image_tokenizer is not None
    return {
        "format_version": FORMAT_VERSION,
        **({"image_tokenizer": options.image_tokenizer} if alone else {"model": options.model}),
        "image_tokenizer_fingerprint": model.image_tokenizer.fingerprint,
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
