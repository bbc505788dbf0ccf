"""A whole evaluation: what `scripts/evaluate.py` measures, in order."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipelines.evaluation.class_figures import accuracy_score, own_extractor, required_classes
from pipelines.evaluation.likelihood import measure_likelihood, measure_text
from pipelines.evaluation.metrics.copies import NearestTraining, copies_report, nearest_training
from pipelines.evaluation.metrics.reconstruction import TokenizerFigures, device_of, measure_tokenizer
from pipelines.evaluation.metrics.result_cache import ResultCache
from pipelines.evaluation.perceptual_figures import PerceptualReader
from pipelines.evaluation.pictures_compared import (
    BATCH,
    ExtractorPair,
    FeatureReader,
    PictureFeatures,
    PictureSet,
    batches_of,
    compare_sets,
)
from pipelines.evaluation.probe_figures import probe_figures
from pipelines.evaluation.probes.alignment import AlignmentSet, alignment_sets
from pipelines.evaluation.probes.edits import EditSet, edit_sets
from pipelines.evaluation.samples import DrawnPictures, draw_set
from pipelines.evaluation.sprites_figures import alignment_figures, caption_figures, edit_figures
from pipelines.evaluation.subject import EvaluatedModel, Split, check_can, load_data, load_training, provenance
from pipelines.machine.batches import evenly_spaced
from pipelines.options.evaluation import EvaluationOptions
from pipelines.options.image_tokenizer_losses import CAPTIONS
from pipelines.text_to_image import TextToImagePipeline
from tokenizer_image.autoencoder import Autoencoder
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.losses.extractors import Extractor, load_extractor
from tokenizer_image.pictures.loading import BUILT_IN


@dataclass
class Evaluation:
    """Everything measured, and what a report page shows of it.

    Attributes:
        training: the training pictures; None where there are none to compare with.
        training_figures: what `tokenizer_figures` are, of so many training pictures as the split has.
        report: the figures, ready for JSON.
        sets: measured alignment sets; empty where the data set is not sprites.
        edits: measured edits; empty where the data set is not sprites, or the model has not learned edits.
        drawn: with `--drawn_per_caption`, what was drawn, and `nearest` training pictures of it.
    """

    model: EvaluatedModel
    split: Split
    training: Split | None
    report: dict[str, Any]
    tokenizer_figures: TokenizerFigures
    training_figures: TokenizerFigures | None = None
    sets: list[AlignmentSet] = field(default_factory=list)
    edits: list[EditSet] = field(default_factory=list)
    drawn: DrawnPictures | None = None
    nearest: NearestTraining | None = None


def evaluate(options: EvaluationOptions, model: EvaluatedModel) -> Evaluation:
    """Measure the image tokenizer, then the language model, then on sprites what pictures and captions say.

    Raises:
        ValueError: options that do not fit the model, before anything is measured.
    """
    started = time.monotonic()
    check_can(options, model)
    seen = PerceptualReader.load(options.perceptual, device_of(model.image_tokenizer))
    seen_as = (model.image_tokenizer, model.picture_size)
    split, training = load_data(options, *seen_as), load_training(options, *seen_as)
    classes = required_classes(options, split, training)
    extractors = load_extractors(options, training, classes, device_of(model.image_tokenizer))
    reader = FeatureReader(extractors)
    watch = watching(reader, seen)
    figures = measure_tokenizer(model.image_tokenizer, split.pictures, batch_size=options.batch_size, watch=watch)
    report = {**provenance(options, model.image_tokenizer, split.source), **figures.figures}
    if isinstance(training, str):
        report["notes"].append(training)
    evaluation = Evaluation(model, split, None if isinstance(training, str) else training, report, figures)
    if seen is not None:
        report["perceptual"] = {"split": split.name, **seen.figures()}
    relearned = _training_figures(options, evaluation)
    if model.pipeline is not None:
        report |= _language_model_figures(options, evaluation, model.pipeline)
    evaluation.drawn = _drawn(options, evaluation)
    _compare_with_training(evaluation, relearned)
    _measure_classes(options, evaluation, classes)
    if extractors.features is not None or extractors.classifier is not None:
        report["compared"] = compared_figures(split, evaluation.drawn, extractors, reader.result())
    if options.dataset in BUILT_IN and model.editing is not None:
        evaluation.edits = edit_sets(options.num_edits, options.seed)
        report["edits"] = edit_figures(options, model, evaluation.edits)
    if options.dataset == "sprites":
        evaluation.sets = alignment_sets(options.num_captions, seed=options.seed)
        report["alignment"] = alignment_figures(options, model, evaluation.sets)
        if model.describing is not None:
            report["captions"] = caption_figures(options, model, evaluation.sets)
    report["seconds"] = round(time.monotonic() - started, 1)
    return evaluation


def watching(reader: FeatureReader, seen: PerceptualReader | None) -> Callable[[Tensor, Tensor], None]:
    """What gives originals and reconstructions to their readers, as `measure_reconstructions` makes them."""

    def watch(originals: Tensor, made: Tensor) -> None:
        reader.update(made)
        if seen is not None:
            seen.update(originals, made)

    return watch


def load_extractors(
    options: EvaluationOptions, training: Split | str, classes: list[str], device: torch.device
) -> ExtractorPair:
    """The networks that --extractor and --classifier name, none where they name none; "captions" is trained.

    Raises:
        ValueError: one is not here.
    """

    def load(name: str) -> Extractor:
        if name == CAPTIONS and isinstance(training, Split):
            return own_extractor(options, training, classes, device)
        return load_extractor(name)

    return ExtractorPair.load(options.extractor, options.classifier, options.extractor_size, device, load)


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
    """`text_likelihood` of captions where the model writes them, and where it draws `likelihood` of the pictures' codes
    (of training pictures, too) and the `guidance_scale` of samples."""
    model, split, codes = evaluation.model, evaluation.split, evaluation.tokenizer_figures.codes
    text = measure_text(pipeline, codes, split.captions, batch_size=options.batch_size)
    found: dict[str, Any] = {} if text is None else {"text_likelihood": text}
    if model.drawing is None:
        return found
    settings: dict[str, Any] = {"batch_size": options.batch_size, "cache": ResultCache()}
    if evaluation.training is not None and evaluation.training_figures is not None:
        rows = evenly_spaced(len(evaluation.training), len(split))
        learned = model.captions_for_drawing([evaluation.training.captions[row] for row in rows.tolist()])
        evaluation.report["training"]["likelihood"] = measure_likelihood(
            pipeline, evaluation.training_figures.codes, learned, **settings
        )
    default = pipeline.vocabulary.default_guidance
    return {
        **found,
        "likelihood": measure_likelihood(pipeline, codes, model.captions_for_drawing(split.captions), **settings),
        "guidance_scale": default if options.guidance_scale is None else options.guidance_scale,
    }


def _drawn(options: EvaluationOptions, evaluation: Evaluation) -> DrawnPictures | None:
    """Pictures for every distinct caption, as --drawn_per_caption says."""
    model = evaluation.model
    if not options.drawn_per_caption or model.drawing is None:
        return None
    return draw_set(
        model.drawing, model.captions_for_drawing(evaluation.split.captions), options.drawn_per_caption,
        seed=options.seed, sampling=options.sampling(), cache=ResultCache(),
    )  # fmt: skip


def _measure_classes(options: EvaluationOptions, evaluation: Evaluation, classes: list[str]) -> None:
    """Add `label_efficiency` and `classification_accuracy` to the report, where there are classes."""
    model, split, training, report = evaluation.model, evaluation.split, evaluation.training, evaluation.report
    if not classes or training is None:
        return
    add_probes(options, model.image_tokenizer, split, training, classes, report)
    if options.classification_accuracy:
        report["classification_accuracy"] = accuracy_score(
            options, model.image_tokenizer, split, training, classes, evaluation.drawn
        )


def add_probes(
    options: EvaluationOptions,
    image_model: ImageTokenizer | Autoencoder,
    split: Split,
    training: Split,
    classes: list[str],
    report: dict[str, Any],
) -> None:
    """Add `label_efficiency` to the report, and to its notes what was left out."""
    probes = probe_figures(options, image_model, split, training, classes)
    report["notes"] += probes.notes
    if probes.rows:
        report["label_efficiency"] = {"split": split.name, "train_split": training.name, "rows": probes.rows}


def _compare_with_training(evaluation: Evaluation, reconstructed: Tensor | None) -> None:
    """Look for each drawn picture among the training pictures, and tell how often the criterion of copies errs."""
    drawn, training, report = evaluation.drawn, evaluation.training, evaluation.report
    if drawn is None or training is None or reconstructed is None:
        return
    learned, real = training.tensor(), evaluation.split.tensor()
    evaluation.nearest = nearest_training(drawn.pictures, learned)
    sets = {
        "drawn": evaluation.nearest,
        "held_out": nearest_training(real, learned),
        "reconstructed": nearest_training(reconstructed, learned),
    }
    report["nearest_training"] = copies_report(sets, len(training))


def compared_figures(
    split: Split, drawn: DrawnPictures | None, extractors: ExtractorPair, reconstructed: PictureFeatures
) -> dict[str, Any]:
    """Distances and classes of reconstructed and drawn pictures; what is wanting is printed, too."""
    cache = ResultCache()
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
