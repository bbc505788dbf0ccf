"""Pictures on sheets, and plots, for the page of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.drawing.grids import labelled_grid
from pipelines.evaluation.metrics.copies import NearestTraining
from pipelines.evaluation.metrics.reconstruction import ReconstructionFigures, TokenizerFigures
from pipelines.evaluation.probes.alignment import AlignmentSet, is_right
from pipelines.evaluation.probes.edits import EditSet
from pipelines.evaluation.probes.probe_readings import PictureKind
from pipelines.evaluation.report.plots import figure_image

SIDE = 96  # pixels of a picture on a sheet, at least
WORST, COLUMNS = 16, 8


def to_images(pictures: Tensor) -> list[Image.Image]:
    """uint8 (n, C, H, W) -> PIL images, "RGB" or "L"."""
    arrays = pictures.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def side_by_side(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets next to each other, on white."""
    whole = Image.new("RGB", (sum(sheet.width for sheet in sheets), max(sheet.height for sheet in sheets)), "white")
    left = 0
    for sheet in sheets:
        whole.paste(sheet, (left, 0))
        left += sheet.width
    return whole


def pairs_sheet(upper: Tensor, lower: Tensor, labels: Sequence[str] = ()) -> Image.Image:
    """As `image_pairs`, of pictures uint8 (n, C, H, W)."""
    return image_pairs(to_images(upper), to_images(lower), labels)


def image_pairs(
    originals: Sequence[Image.Image], copies: Sequence[Image.Image], labels: Sequence[str] = (), columns: int = COLUMNS
) -> Image.Image:
    """Rows of pictures, each with the row of their partners below.

    Args:
        labels: of each pair of rows.
        columns: pictures of a row.
    """
    rows: list[tuple[str, Sequence[Image.Image]]] = []
    for number, start in enumerate(range(0, len(originals), columns)):
        end = start + columns
        rows += [(labels[number] if labels else "", originals[start:end]), ("", copies[start:end])]
    return labelled_grid(rows, min_side=SIDE, smooth=False, margin=4, font_size=13)


def worst_sheet(
    reconstruct_rows: Callable[[Tensor, np.ndarray], Tensor],
    pictures: DecodedPictures,
    figures: ReconstructionFigures,
    count: int = WORST,
) -> Image.Image:
    """The pictures with the lowest PSNR, the worst first, above their reconstructions; the label has each one's dB.

    Args:
        reconstruct_rows: as of `measure_reconstructions`.
    """
    psnr = figures.per_picture["psnr"]
    worst = psnr.argsort(stable=True)[:count]
    originals = torch.from_numpy(np.ascontiguousarray(pictures.batch(worst.numpy())))
    labels = [
        f"{', '.join(f'{value:.1f}' for value in part.tolist())} dB PSNR; below, the reconstructions"
        for part in psnr[worst].split(COLUMNS)
    ]
    return pairs_sheet(originals, reconstruct_rows(originals, worst.numpy()), labels)


def alignment_sheet(scene_set: AlignmentSet, count: int = 16) -> Image.Image:
    """Under each caption the real picture, its reconstruction and the sample, and what the probe read wrong."""
    images = {kind: to_images(pictures[:count]) for kind, pictures in scene_set.pictures.items()}
    judged: PictureKind = "sampled" if "sampled" in images else "reconstructed"
    rows = []
    for number in range(len(images["real"])):
        verdict = is_right(scene_set.scenes[number], scene_set.readings[judged][number])
        wrong = [name for name, right in verdict.items() if not right and name != "all"]
        label = f"{scene_set.captions[number]} ({judged}: {'right' if not wrong else 'wrong ' + ', '.join(wrong)})"
        rows.append((label, [images[kind][number] for kind in images]))
    columns = [rows[start : start + 4] for start in range(0, len(rows), 4)]
    return side_by_side([labelled_grid(column, min_side=SIDE, smooth=False, font_size=13) for column in columns])


def edits_sheet(edit_set: EditSet, count: int = 16) -> Image.Image:
    """Under each instruction the source, the real picture after the edit, its reconstruction and the result, and
    whether what should change, and what should stay, has."""
    images = {kind: to_images(pictures[:count]) for kind, pictures in edit_set.pictures.items()}
    words = {True: "yes", False: "no"}
    rows = [
        (
            f"{edit_set.instructions[number]} (changed: {words[verdict['changed']]}, kept: {words[verdict['kept']]})",
            [images[kind][number] for kind in images],
        )
        for number, verdict in enumerate(edit_set.verdicts[:count])
    ]
    columns = [rows[start : start + 4] for start in range(0, len(rows), 4)]
    return side_by_side([labelled_grid(column, min_side=SIDE, smooth=False, font_size=13) for column in columns])


def nearest_sheet(drawn: Tensor, nearest: NearestTraining, training: DecodedPictures, count: int = 32) -> Image.Image:
    """Rows of drawn pictures, the nearest training picture below each: those of the least ratio to the second nearest
    first.

    Args:
        drawn: uint8 (n, C, H, W).
    """
    order = nearest.ratios.argsort(stable=True)[:count]
    found = torch.from_numpy(training.batch(nearest.indices[order].numpy()))
    return pairs_sheet(drawn[order], found)


def quality_plot(
    figures: ReconstructionFigures, training: ReconstructionFigures | None, num_codes: int = 0
) -> Image.Image:
    """How the PSNR of pictures is distributed, of training pictures too; of `TokenizerFigures` with `num_codes`, also
    how often each code is used.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    has_codes = isinstance(figures, TokenizerFigures)
    figure = Figure(figsize=(9 if has_codes else 4.5, 3), layout="tight")
    axes = figure.subplots(1, 2 if has_codes else 1, squeeze=False)[0]
    sets = {"measured split": figures} | ({} if training is None else {"training pictures": training})
    values = {label: one.per_picture["psnr"].numpy() for label, one in sets.items()}
    bins = np.histogram_bin_edges(np.concatenate([*values.values()]), bins=40).tolist()
    for label, one in values.items():
        axes[0].hist(
            one, bins=bins, weights=np.full(len(one), 1 / len(one)), histtype="step", linewidth=1.5, label=label
        )
    axes[0].set(xlabel="PSNR of a picture (dB)", ylabel="share of pictures")
    axes[0].legend(fontsize=8)
    if isinstance(figures, TokenizerFigures):
        counts = torch.bincount(figures.codes.reshape(-1), minlength=num_codes)
        share = np.sort(counts.numpy())[::-1] / max(1, int(counts.sum()))
        axes[1].plot(np.arange(1, len(share) + 1), np.maximum(share, 0.1 / max(1, int(counts.sum()))))
        axes[1].set(xlabel="code, most frequent first", ylabel="share of all codes", yscale="log")
    return figure_image(figure)
