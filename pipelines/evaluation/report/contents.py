"""What the page of a report shows of an evaluation: samples, sheets of pictures, plots."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm.sequences import DRAWING_ALONE
from pipelines.caching.sources import first_captions
from pipelines.drawing.captions import caption_room, cut_caption
from pipelines.drawing.grids import labelled_grid
from pipelines.drawing.latents import quantized_interpolation_rows
from pipelines.evaluation.evaluation import Evaluation
from pipelines.evaluation.metrics.label_efficiency import latents_of
from pipelines.evaluation.metrics.reconstruction import ReconstructionFigures, device_of, reconstruct
from pipelines.evaluation.report.code_gallery import gallery_sheet
from pipelines.evaluation.report.codebook_plot import CodebookView, codebook_figure, codebook_views
from pipelines.evaluation.report.figure_rows import figure_rows
from pipelines.evaluation.report.latent_map import MAPS, POINTS, latent_map_figure, shown_labels
from pipelines.evaluation.report.page import Clip, Sheet, write_report
from pipelines.evaluation.report.sheets import (
    SIDE,
    alignment_sheet,
    edits_sheet,
    nearest_sheet,
    pairs_sheet,
    quality_plot,
    worst_sheet,
)
from pipelines.evaluation.report.tables import figures_table
from pipelines.evaluation.subject import EvaluatedModel, Split
from pipelines.machine.batches import evenly_spaced
from pipelines.options.evaluation import EvaluationOptions
from tokenizer_image import VQVAE
from tokenizer_image.preprocessing import to_pixel_values

WALKS, WALK_STEPS = 4, 8  # pairs of pictures with a walk between them; pictures of a walk
SAMPLE_CAPTIONS, SAMPLES_EACH = 8, 4  # shown on the page
SAMPLE_ROWS = 64  # of the data set, in which captions to show are looked for


def write_page(options: EvaluationOptions, evaluation: Evaluation, folder: str | Path) -> Path:
    """Draw samples, sheets and plots, and write the report's folder; the path of its page."""
    sheets = [*_stage_one_sheets(options, evaluation), *_drawn_sheets(options, evaluation)]
    report = evaluation.report
    return write_report(folder, report, sheets, figures_table(report), figure_rows(report))


def _stage_one_sheets(options: EvaluationOptions, evaluation: Evaluation) -> Iterator[Sheet]:
    """Reconstructions, codes and latents."""
    tokenizer, figures, split = evaluation.model.image_tokenizer, evaluation.tokenizer_figures, evaluation.split
    pictures = split.pictures
    yield from reconstruction_sheets(figures, split, lambda originals, _: reconstruct(tokenizer, originals)[0])
    yield Sheet(
        "codes.png", "Gallery of codes",
        "A row for each of the most frequent codes. From the left: the grid of its places, white where most pictures "
        f"of {split.name} have it; the mean of reconstructions that have it in its most used place; pictures that are "
        "encoded with it there. The frame is around that place.",
        gallery_sheet(tokenizer, figures.codes, pictures),
    )  # fmt: skip
    if isinstance(tokenizer, VQVAE) and len(split) > 1:
        chosen = evenly_spaced(len(split), 2 * min(WALKS, len(split) // 2))
        pixel_values = to_pixel_values(pictures.batch(chosen)).to(device_of(tokenizer))
        rows = quantized_interpolation_rows(tokenizer, pixel_values, WALK_STEPS)
        yield Sheet(
            "interpolation.png", "Walks between two pictures",
            "From the left picture to the right one on a straight line: of latents, quantized and decoded (upper row), "
            "and of pixels (lower row), which is a double exposure.",
            labelled_grid(rows, min_side=SIDE, smooth=False, font_size=13, margin=4),
        )  # fmt: skip
    yield from _plots(options, evaluation)


def reconstruction_sheets(
    figures: ReconstructionFigures, split: Split, reconstruct_rows: Callable[[Tensor, np.ndarray], Tensor]
) -> Iterator[Sheet]:
    """The first pictures beside their reconstructions, and those that are reconstructed worst.

    Args:
        reconstruct_rows: as of `measure_reconstructions`.
    """
    yield Sheet(
        "reconstructions.png", "Pictures and their reconstructions",
        f"The first pictures of {split.name}, each above its reconstruction.",
        pairs_sheet(figures.pictures, figures.reconstructions),
    )  # fmt: skip
    yield Sheet(
        "worst_reconstructions.png", "Worst reconstructions",
        f"The pictures with the lowest PSNR among all {len(split):,} of {split.name}, the worst first, each above its "
        "reconstruction.",
        worst_sheet(reconstruct_rows, split.pictures, figures),
    )  # fmt: skip


def latent_map_sheet(options: EvaluationOptions, image_model: Any, split: Split) -> Iterator[Sheet]:
    """Pictures as points, by their latents; none where the model has no latents, or the pictures are too few."""
    rows = evenly_spaced(len(split), POINTS)
    latents = latents_of(image_model, torch.from_numpy(split.pictures.batch(rows)), options.batch_size)
    if latents is None or len(rows) <= 2:
        return
    captions = [split.captions[row] for row in rows.tolist()]
    colours = " and coloured by its caption" if shown_labels(captions) else "; most captions are of few pictures"
    maps = [MAPS[name](latents, options.seed) for name in options.latent_maps or ["pca"]]
    yield Sheet(
        "latent_map.png", "Maps of latents by caption",
        f"Each point is one of {len(rows):,} pictures of {split.name}, placed by its latents ({latents.shape[1]:,} "
        f"values){colours}.",
        latent_map_figure(maps, captions),
    )  # fmt: skip


def _plots(options: EvaluationOptions, evaluation: Evaluation) -> Iterator[Sheet]:
    """Plots of stage 1."""
    if not has_plots():
        return
    tokenizer, figures, split = evaluation.model.image_tokenizer, evaluation.tokenizer_figures, evaluation.split
    yield Sheet(
        "plots.png", "Quality of pictures, use of codes",
        f"Left: PSNR of the reconstructions of {split.name} and of training pictures. Right: how often each code "
        "occurs, which is level where all are used alike.",
        quality_plot(figures, evaluation.training_figures, evaluation.report["codebook"]["num_codes"]),
    )  # fmt: skip
    yield from latent_map_sheet(options, tokenizer, split)
    codebooks = codebook_views(tokenizer, figures.codes, split.pictures)
    if codebooks:
        yield codebook_sheet(codebooks)


def has_plots() -> bool:
    """Whether plots can be drawn; where matplotlib is missing, a message says so."""
    found = importlib.util.find_spec("matplotlib") is not None
    if not found:
        print("The report has no plots: they need matplotlib (pip install 'tessera[evaluation]').")
    return found


def codebook_sheet(views: list[CodebookView]) -> Sheet:
    """How codes are used, and where they lie."""
    return Sheet(
        "codebooks.png", "Codebooks",
        "Left: how many codes are used how often, against an even use. Right: the codes among the latents that they "
        "quantize.",
        codebook_figure(views),
    )  # fmt: skip


def _drawn_sheets(options: EvaluationOptions, evaluation: Evaluation) -> Iterator[Sheet]:
    """What the model draws: beside real pictures of sprites, else a few samples; and the nearest training pictures."""
    drawing = evaluation.model.drawing
    for scene_set in evaluation.sets:
        kinds = ", ".join(scene_set.pictures)
        yield Sheet(
            f"alignment_{scene_set.name}.png", f"Captions, {scene_set.name.replace('_', '-')}: {kinds}",
            f"Under each caption, from the left: {kinds}; behind it what the probe read in the last one.",
            alignment_sheet(scene_set),
        )  # fmt: skip
    for edit_set in evaluation.edits:
        kinds = ", ".join(edit_set.pictures)
        yield Sheet(
            f"edits_{edit_set.name}.png", f"Edits, {edit_set.name.replace('_', '-')}: {kinds}",
            f"Under each instruction, from the left: {kinds}; behind it what the probe found in the last one.",
            edits_sheet(edit_set),
        )  # fmt: skip
    if drawing is not None and not evaluation.sets and not evaluation.edits:
        samples = draw_samples(evaluation.model, evaluation.split.source, options.seed, options.sampling())
        if samples is not None:
            yield samples_sheet(*samples, options.seed)
    if evaluation.nearest is not None and evaluation.drawn is not None and evaluation.training is not None:
        yield Sheet(
            "nearest_training.png", "Drawn pictures and the nearest training picture of each",
            "Drawn pictures (upper rows), each above the nearest training picture by squared error of pixels; those "
            "most like a copy first.",
            nearest_sheet(evaluation.drawn.pictures, evaluation.nearest, evaluation.training.pictures),
        )  # fmt: skip


def draw_samples(
    model: EvaluatedModel, source: Any, seed: int, sampling: Mapping[str, Any]
) -> tuple[list[str], Any] | None:
    """A few pictures, or signals, for each of the first captions of a data set, to look at; where it has none, or the
    model has learned none, a few without a caption; None where the model has learned neither.

    A caption that leaves no room for the picture loses its last words.

    Returns:
        The captions, and what the pipeline's call gave.
    """
    pipeline: Any = model.pipeline
    captions: list[str] = []
    if model.drawing_from_captions is not None:
        room = caption_room(pipeline.model, pipeline.vocabulary)
        texts = [text for text in first_captions(source, range(min(SAMPLE_ROWS, len(source)))) if text]
        cut = [cut_caption(pipeline.vocabulary, text, room) for text in dict.fromkeys(texts)]
        captions = list(dict.fromkeys(text for text in cut if text))[:SAMPLE_CAPTIONS]
    if not captions and not model.formats & set(DRAWING_ALONE):
        return None
    return captions or ["without a caption"], pipeline(captions or None, None, SAMPLES_EACH, seed=seed, **sampling)


def samples_sheet(labels: Sequence[str], output: Any, seed: int, clips: Sequence[Clip] = ()) -> Sheet:
    """What `draw_samples` gave."""
    rows = [(text, output.images[SAMPLES_EACH * row : SAMPLES_EACH * (row + 1)]) for row, text in enumerate(labels)]
    grid = labelled_grid(rows, min_side=SIDE, smooth=False)
    return Sheet("samples.png", "Samples", f"Drawn from the first captions, seed {seed}.", grid, clips)
