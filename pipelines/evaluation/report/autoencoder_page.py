"""What the page of a report shows of an autoencoder: reconstructions, samples, and walks through latent space."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.drawing.grids import labelled_grid
from pipelines.drawing.latents import Rows, interpolation_rows, sample_rows, traversal_rows, widest_latents
from pipelines.evaluation.autoencoders import AutoencoderEvaluation, known_classes, reconstructor
from pipelines.evaluation.report.contents import WALK_STEPS, WALKS, has_plots, latent_map_sheet, reconstruction_sheets
from pipelines.evaluation.report.figure_rows import figure_rows
from pipelines.evaluation.report.page import Sheet, write_report
from pipelines.evaluation.report.sheets import SIDE, quality_plot
from pipelines.evaluation.report.tables import figures_table
from pipelines.machine.batches import evenly_spaced
from pipelines.options.evaluation import EvaluationOptions
from tokenizer_image.preprocessing import to_pixel_values

TRAVERSED, SAMPLES = 8, 16  # latents that are traversed; samples that are shown
SAMPLES_OF_CLASS = 8  # that are shown of a conditional model
COMPARED = 256  # pictures that say which latents vary most


def write_autoencoder_page(options: EvaluationOptions, found: AutoencoderEvaluation, folder: str | Path) -> Path:
    """Draw the sheets and plots, and write the report's folder; the path of its page."""
    report = found.report
    return write_report(folder, report, [*_sheets(options, found)], figures_table(report), figure_rows(report))


def _sheets(options: EvaluationOptions, found: AutoencoderEvaluation) -> Iterator[Sheet]:
    """Reconstructions, samples, and walks through latent space."""
    model, split, figures = found.model, found.split, found.figures
    yield from reconstruction_sheets(figures, split, reconstructor(model, split))
    if model.bottleneck.has_prior:
        count, text = SAMPLES, f"Seed {options.seed}, nothing picked."
        if model.config.class_names:
            count, text = SAMPLES_OF_CLASS, "A row for each class; those below each other are from the same latent."
        yield Sheet("samples.png", "Samples of the prior", text, _grid(sample_rows(model, count, seed=options.seed)))
    if len(split) > 1:
        chosen = evenly_spaced(len(split), 2 * min(WALKS, len(split) // 2))
        pixels = to_pixel_values(split.pictures.batch(chosen)).to(model.device)
        rows = interpolation_rows(model, pixels, WALK_STEPS, known_classes(model, split, chosen))
        yield Sheet(
            "interpolation.png", "Walks between two pictures",
            "From the left picture to the right one on a straight line: of latents, decoded (upper row), and of pixels "
            "(lower row), which is a double exposure.",
            _grid(rows),
        )  # fmt: skip
    yield _traversal_sheet(found)
    yield from _plots(options, found)


def _traversal_sheet(found: AutoencoderEvaluation) -> Sheet:
    """One picture, as one latent at a time changes."""
    model, split = found.model, found.split
    first = np.arange(1)
    varied = to_pixel_values(split.pictures.batch(evenly_spaced(len(split), COMPARED))).to(model.device)
    pixels = to_pixel_values(split.pictures.batch(first)).to(model.device)
    rows = traversal_rows(
        model, pixels, widest_latents(model, varied, 0, TRAVERSED), classes=known_classes(model, split, first)
    )  # fmt: skip
    text = "From left to right one latent goes from -3 to 3 standard deviations; those that vary most between pictures."
    return Sheet("traversal.png", "One latent at a time", text, _grid(rows))


def _plots(options: EvaluationOptions, found: AutoencoderEvaluation) -> Iterator[Sheet]:
    """Plots of reconstructions and latents."""
    if not has_plots():
        return
    model, split = found.model, found.split
    yield Sheet(
        "plots.png", "Quality of pictures",
        f"PSNR of the reconstructions of {split.name} and of training pictures.",
        quality_plot(found.figures, found.training_figures),
    )  # fmt: skip
    yield from latent_map_sheet(options, model, split)


def _grid(rows: Rows) -> Image.Image:
    return labelled_grid(rows, min_side=SIDE, smooth=False, font_size=13, margin=4)
