"""A whole evaluation: what `scripts/evaluate.py` measures, in order, and the report page that it makes of it."""

from __future__ import annotations

import hashlib
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lm.sequences import DRAWING_ALONE
from pipelines.caching.sources import first_captions
from pipelines.drawing.captions import caption_room, cut_caption
from pipelines.evaluation.alignment import AlignmentSet, alignment_report, alignment_sets
from pipelines.evaluation.captions import caption_report
from pipelines.evaluation.codebook_plot import codebook_views
from pipelines.evaluation.copies import NearestTraining, copies_report, nearest_training
from pipelines.evaluation.drawing_comparison import best_of_report, completion_report
from pipelines.evaluation.likelihood import measure_likelihood, measure_text
from pipelines.evaluation.pictures_compared import (
    BATCH,
    ExtractorPair,
    FeatureReader,
    PictureFeatures,
    PictureSet,
    batches_of,
    compare_sets,
)
from pipelines.evaluation.probe_training import load_probe
from pipelines.evaluation.reconstruction import TokenizerFigures, device_of, measure_tokenizer
from pipelines.evaluation.report_page import nearest_sheet, write_report
from pipelines.evaluation.result_cache import ResultCache
from pipelines.evaluation.samples import DrawnPictures, draw_set
from pipelines.evaluation.subject import EvaluatedModel, Split, load_data, load_model, load_training
from pipelines.evaluation.tables import figures_table
from pipelines.machine.batches import evenly_spaced
from pipelines.machine.provenance import commit, versions
from pipelines.options.evaluation import EvaluationOptions
from pipelines.text_to_image import TextToImagePipeline
from tokenizer_image.pictures.dataset import PictureDataset

FORMAT_VERSION = 1
CAPTION_CANDIDATES = 16  # captions a picture, of which the best is chosen, for models that also draw from captions
SAMPLE_CAPTIONS, SAMPLES_EACH = 8, 4  # shown on the page
SAMPLE_ROWS = 64  # of the data set, in which captions to show are looked for


@dataclass
class Evaluation:
    """Everything measured, and what a report page shows of it.

    Attributes:
        training: the training pictures; None where there are none to compare with.
        training_figures: what `tokenizer_figures` are, of so many training pictures as the split has.
        report: the figures, ready for JSON.
        sets: measured alignment sets; empty where the data set is not sprites.
        drawn: with `--drawn_per_caption`, what was drawn, and `nearest` training pictures of it.
    """

    model: EvaluatedModel
    split: Split
    training: Split | None
    report: dict[str, Any]
    tokenizer_figures: TokenizerFigures
    training_figures: TokenizerFigures | None = None
    sets: list[AlignmentSet] = field(default_factory=list)
    drawn: DrawnPictures | None = None
    nearest: NearestTraining | None = None


def evaluate(options: EvaluationOptions) -> Evaluation:
    """Measure the image tokenizer, then the language model, then on sprites what pictures and captions say.

    Raises:
        ValueError: options that do not fit the model, before anything is measured.
    """
    started = time.monotonic()
    model = load_model(options)
    extractors = load_extractors(options, device_of(model.image_tokenizer))
    split, training = load_data(options, model), load_training(options, model)
    report = _provenance(options, model, split.source)
    if isinstance(training, str):
        report["notes"].append(training)
    reader = FeatureReader(extractors)
    figures = measure_tokenizer(
        model.image_tokenizer, split.pictures, batch_size=options.batch_size, watch=lambda _, made: reader.update(made)
    )
    report |= figures.figures
    evaluation = Evaluation(model, split, None if isinstance(training, str) else training, report, figures)
    relearned = _training_figures(options, evaluation)
    if model.drawing is not None:
        report |= _language_model_figures(options, evaluation, model.drawing)
        evaluation.drawn = _drawn(options, evaluation, model.drawing)
    _compare_with_training(evaluation, relearned)
    if extractors.describe()["size"] is not None:
        report["compared"] = _compared_figures(evaluation, extractors, reader.result())
    if options.dataset == "sprites":
        evaluation.sets = alignment_sets(options.num_captions, seed=options.seed)
        report["alignment"] = _alignment_figures(options, model, evaluation.sets)
        if model.describing is not None:
            report["captions"] = _caption_figures(options, model, evaluation.sets)
    report["seconds"] = round(time.monotonic() - started, 1)
    return evaluation


def load_extractors(options: EvaluationOptions, device: torch.device) -> ExtractorPair:
    """The networks that --extractor and --classifier name, none where they name none.

    Raises:
        ValueError: one is not here.
    """
    return ExtractorPair.load(options.extractor, options.classifier, options.extractor_size, device)


def write_page(options: EvaluationOptions, evaluation: Evaluation, folder: str | Path) -> Path:
    """Draw samples, plot the codebooks, and write the report's folder; the path of its page."""
    drawing, split = evaluation.model.drawing, evaluation.split
    samples: list[tuple[str, list[Image.Image]]] = []
    if drawing is not None and not evaluation.sets:
        samples = draw_samples(drawing, split.source, options.seed, options.sampling())
    tokenizer_figures = evaluation.tokenizer_figures
    codebooks = codebook_views(evaluation.model.image_tokenizer, tokenizer_figures.codes, split.pictures)
    page, *_ = write_report(
        folder,
        evaluation.report,
        tokenizer_figures,
        table=figures_table(evaluation.report),
        sets=evaluation.sets,
        samples=samples,
        codebooks=codebooks,
        sheets=_sheets(evaluation),
    )
    return page


def _sheets(evaluation: Evaluation) -> dict[str, tuple[str, Image.Image]]:
    """Title -> file name and picture, of what this evaluation has to show beside what every report shows."""
    sheets: dict[str, tuple[str, Image.Image]] = {}
    if evaluation.nearest is not None and evaluation.drawn is not None and evaluation.training is not None:
        title = "Drawn pictures (upper rows) and the nearest training picture of each, most like a copy first"
        sheet = nearest_sheet(evaluation.drawn.pictures, evaluation.nearest, evaluation.training.pictures)
        sheets[title] = ("nearest_training.png", sheet)
    return sheets


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


def _training_figures(options: EvaluationOptions, evaluation: Evaluation) -> Tensor | None:
    """Fill in what is measured of training pictures; their reconstructions uint8 (n, C, H, W), None without any."""
    training = evaluation.training
    if training is None:
        return None
    made: list[Tensor] = []
    evaluation.training_figures = measure_tokenizer(
        evaluation.model.image_tokenizer, training.pictures, batch_size=options.batch_size,
        rows=evenly_spaced(len(training), len(evaluation.split)), watch=lambda _, pictures: made.append(pictures),
    )  # fmt: skip
    evaluation.report["training"] = {
        "split": training.name,
        "dataset_fingerprint": training.source.fingerprint,
        **evaluation.training_figures.figures,
    }
    return torch.cat(made)


def _language_model_figures(
    options: EvaluationOptions, evaluation: Evaluation, pipeline: TextToImagePipeline
) -> dict[str, Any]:
    """`likelihood` of the pictures' codes, `text_likelihood` of captions where the model writes them, and the
    `guidance_scale` of samples."""
    captions = evaluation.split.captions
    if evaluation.model.drawing_from_captions is None:
        captions = [None] * len(captions)
    default, codes = pipeline.vocabulary.default_guidance, evaluation.tokenizer_figures.codes
    text = measure_text(pipeline, codes, evaluation.split.captions, batch_size=options.batch_size)
    return {
        "likelihood": measure_likelihood(pipeline, codes, captions, batch_size=options.batch_size),
        **({} if text is None else {"text_likelihood": text}),
        "guidance_scale": default if options.guidance_scale is None else options.guidance_scale,
    }


def _drawn(options: EvaluationOptions, evaluation: Evaluation, pipeline: TextToImagePipeline) -> DrawnPictures | None:
    """Pictures for every distinct caption, as --drawn_per_caption says."""
    if not options.drawn_per_caption:
        return None
    captions = evaluation.split.captions
    if evaluation.model.drawing_from_captions is None:
        captions = [None] * len(captions)
    return draw_set(
        pipeline, captions, options.drawn_per_caption, seed=options.seed, sampling=options.sampling(),
        cache=ResultCache(),
    )  # fmt: skip


def _compare_with_training(evaluation: Evaluation, reconstructed: Tensor | None) -> None:
    """Look for each drawn picture among the training pictures, and tell how often the criterion of copies errs."""
    drawn, training, report = evaluation.drawn, evaluation.training, evaluation.report
    if drawn is None or training is None or reconstructed is None:
        return
    learned = torch.from_numpy(training.pictures.batch(np.arange(len(training))))
    real = torch.from_numpy(evaluation.split.pictures.batch(np.arange(len(evaluation.split))))
    evaluation.nearest = nearest_training(drawn.pictures, learned)
    sets = {
        "drawn": evaluation.nearest,
        "held_out": nearest_training(real, learned),
        "reconstructed": nearest_training(reconstructed, learned),
    }
    report["nearest_training"] = copies_report(sets, len(training))


def _compared_figures(
    evaluation: Evaluation, extractors: ExtractorPair, reconstructed: PictureFeatures
) -> dict[str, Any]:
    """Distances and classes of reconstructed and drawn pictures; what is wanting is printed, too."""
    cache, split, drawn = ResultCache(), evaluation.split, evaluation.drawn
    key = {"pictures": split.pictures.folder.name, "rows": len(split)}
    real = extractors.cached(cache, key, lambda: batches_of(split.pictures))
    others = {"reconstructed": PictureSet(reconstructed, split.captions)}
    if drawn is not None:
        pictures = drawn.pictures
        key = {"pictures": hashlib.sha256(pictures.numpy().tobytes()).hexdigest(), "rows": len(drawn)}
        others["drawn"] = PictureSet(extractors.cached(cache, key, lambda: pictures.split(BATCH)), drawn.captions)
    figures = compare_sets(extractors, PictureSet(real, split.captions), others)
    for warning in figures["warnings"]:
        print(f"WARNING: {warning}", flush=True)
    return {**figures, "split": split.name}


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
    """What was measured, on which pictures, by which code; `notes` say what was not, and why."""
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
        "notes": [],
    }
