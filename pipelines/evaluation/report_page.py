"""A report as a folder to look at: report.html, which contains its pictures; the pictures as PNG files, which report.md
shows; and all figures in report.json."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.drawing.grids import labelled_grid
from pipelines.evaluation.alignment import AlignmentSet, PictureKind, is_right
from pipelines.evaluation.codebook_plot import CodebookView, codebook_figure
from pipelines.evaluation.copies import NearestTraining
from pipelines.evaluation.reconstruction import TokenizerFigures

_ABOUT = (
    "command",
    "settings",
    "guidance_scale",
    "image_tokenizer_fingerprint",
    "versions",
    "commit",
    "created",
)
_SIDE = 96  # pixels of a picture on the page, at least
_STYLE = """
body { font-family: sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
img { max-width: 100% } pre { overflow-x: auto; background: #f5f5f5; padding: 1rem }
"""


def write_report(
    folder: str | Path,
    report: Mapping[str, Any],
    tokenizer_figures: TokenizerFigures,
    *,
    table: str,
    sets: Sequence[AlignmentSet] = (),
    samples: Sequence[tuple[str, Sequence[Image.Image]]] = (),
    codebooks: Sequence[CodebookView] = (),
    sheets: Mapping[str, tuple[str, Image.Image]] | None = None,
) -> list[Path]:
    """Write report.html, the same as report.md, report.json and PNG files into `folder`; returns the paths of page and
    pictures, the page first.

    Args:
        report: what evaluate.py writes as JSON.
        tokenizer_figures: for the pictures beside their reconstructions.
        table: the main figures as text.
        sets: measured alignment sets, shown as real picture, reconstruction and sample under each caption.
        samples: (caption, pictures) to show where there are no alignment sets.
        codebooks: views of the tokenizer's codebooks to plot.
        sheets: further pictures, by title: the name of a PNG file, and the picture.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "Pictures and their reconstructions": (
            "reconstructions.png",
            pairs_sheet(tokenizer_figures.pictures, tokenizer_figures.reconstructions),
        )
    }
    for scene_set in sets:
        title = f"Captions, {scene_set.name.replace('_', '-')}: {', '.join(scene_set.pictures)}"
        pictures[title] = (f"alignment_{scene_set.name}.png", alignment_sheet(scene_set))
    if samples:
        pictures["Samples"] = ("samples.png", labelled_grid(samples, min_side=_SIDE, smooth=False))
    pictures |= sheets or {}
    pictures |= _plots(report, tokenizer_figures, codebooks)
    parts = [f"<h2>Figures</h2><pre>{html.escape(table)}</pre>"]
    paths = []
    for title, (name, image) in pictures.items():
        image.save(folder / name)
        paths.append(folder / name)
        parts.append(f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" src="{_data_url(image)}">')
    about = json.dumps({name: report[name] for name in _ABOUT if name in report}, indent=2)
    parts.append(f"<h2>Settings</h2><pre>{html.escape(about)}</pre>")
    title = html.escape(f"Evaluation of {report.get('model') or report.get('image_tokenizer')}")
    page = folder / "report.html"
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1>{''.join(parts)}</html>\n",
        encoding="utf-8",
    )
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    names = {title: name for title, (name, _) in pictures.items()}
    (folder / "report.md").write_text(_markdown(report, table, names, about), encoding="utf-8")
    return [page, *paths]


def _markdown(report: Mapping[str, Any], table: str, pictures: Mapping[str, str], about: str) -> str:
    """The page as Markdown, whose pictures are the files of these names beside it."""
    shown = "".join(f"## {title}\n\n![{title}]({name})\n\n" for title, name in pictures.items())
    return (
        f"# Evaluation of {report.get('model') or report.get('image_tokenizer')}\n\n## Figures\n\n```\n{table}\n```\n\n"
        f"{shown}## Settings\n\n```json\n{about}\n```\n"
    )


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
    sheets = [labelled_grid(column, min_side=_SIDE, smooth=False, font_size=13) for column in columns]
    whole = Image.new("RGB", (sum(sheet.width for sheet in sheets), max(sheet.height for sheet in sheets)), "white")
    left = 0
    for sheet in sheets:
        whole.paste(sheet, (left, 0))
        left += sheet.width
    return whole


def nearest_sheet(drawn: Tensor, nearest: NearestTraining, training: DecodedPictures, count: int = 32) -> Image.Image:
    """Rows of drawn pictures, the nearest training picture below each: those of the least ratio to the second nearest
    first.

    Args:
        drawn: uint8 (n, C, H, W).
    """
    order = nearest.ratios.argsort(stable=True)[:count]
    found = torch.from_numpy(training.batch(nearest.indices[order].numpy()))
    return pairs_sheet(drawn[order], found)


def to_images(pictures: Tensor) -> list[Image.Image]:
    """uint8 (n, C, H, W) -> PIL images, "RGB" or "L"."""
    arrays = pictures.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def pairs_sheet(upper: Tensor, lower: Tensor, columns: int = 8) -> Image.Image:
    """Rows of pictures uint8 (n, C, H, W), each with the row of their partners below."""
    originals, copies = to_images(upper), to_images(lower)
    rows: list[tuple[str, list[Image.Image]]] = []
    for start in range(0, len(originals), columns):
        rows += [("", originals[start : start + columns]), ("", copies[start : start + columns])]
    return labelled_grid(rows, min_side=_SIDE, smooth=False, margin=4)


def _plots(
    report: Mapping[str, Any], figures: TokenizerFigures, codebooks: Sequence[CodebookView]
) -> dict[str, tuple[str, Image.Image]]:
    """Title -> file name and plot; none, and a message, where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("The report has no plots: they need matplotlib (pip install 'tessera[evaluation]').")
        return {}
    figure = Figure(figsize=(9, 3), layout="tight")
    quality, codes = figure.subplots(1, 2)
    quality.hist(figures.per_picture["psnr"].numpy(), bins=40)
    quality.set(xlabel="PSNR of a picture (dB)", ylabel="pictures")
    counts = torch.bincount(figures.codes.reshape(-1), minlength=report["codebook"]["num_codes"])
    share = np.sort(counts.numpy())[::-1] / max(1, int(counts.sum()))
    codes.plot(np.arange(1, len(share) + 1), np.maximum(share, 0.1 / max(1, int(counts.sum()))))
    codes.set(xlabel="code, most frequent first", ylabel="share of all codes", yscale="log")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plots: dict[str, tuple[str, Image.Image]] = {"Quality of pictures, use of codes": ("plots.png", Image.open(buffer))}
    if codebooks:
        plots["Codebooks"] = ("codebooks.png", codebook_figure(list(codebooks)))
    return plots


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
