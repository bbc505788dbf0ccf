"""Plots of a tokenizer's codebooks: how evenly codes are used, and where they lie among the latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.evaluation.report.plots import figure_image
from tokenizer_image import VQVAE
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.pictures.loading import to_pixel_values
from tokenizer_image.quantizers import Quantizer
from tokenizer_image.quantizers.projected import ProjectedQuantizer

PICTURES = 128  # pictures of which the latents are plotted
MAX_POINTS = 4000  # most latents, and most codes, in a plot


@dataclass
class CodebookView:
    """What is plotted of one codebook.

    Attributes:
        title: level, depth and size of the codebook.
        counts: (K,) int64, how often the data set uses each code.
        codes: (k, 2) float32, the codes in use, projected to the plane in which they vary most.
        latents: (n, 2) float32, latents that the codebook quantizes, projected to the same plane.
    """

    title: str
    counts: np.ndarray
    codes: np.ndarray
    latents: np.ndarray


def codebook_views(tokenizer: ImageTokenizer, codes: torch.Tensor, pictures: DecodedPictures) -> list[CodebookView]:
    """One view for each codebook of a `VQVAE` whose quantizer has code vectors; [] for other tokenizers.

    Args:
        codes: (n, T) int64, the codes of a whole data set, which are counted.
        pictures: of that data set; the latents of the first few are plotted.
    """
    if not isinstance(tokenizer, VQVAE):
        return []
    pixel_values = to_pixel_values(pictures.batch(np.arange(min(PICTURES, len(pictures))))).to(tokenizer.device)
    uses = torch.bincount(codes.reshape(-1), minlength=tokenizer.num_codes).cpu()
    views, first = [], 0
    for level, (quantizer, latents) in enumerate(
        zip(tokenizer.quantizers, tokenizer.latents(pixel_values), strict=True)
    ):
        latents = latents.reshape(-1, quantizer.code_dim)
        sizes = quantizer.codebook_sizes[:1] if quantizer.shares_codebook else quantizer.codebook_sizes
        tables = _depths(quantizer, latents)
        for depth, size in enumerate(sizes):
            counts, first = uses[first : first + size], first + size
            if tables is not None:
                title = f"level {level} depth {depth}: {size:,} codes"
                views.append(_view(title, counts, *tables[depth]))
    return views


@torch.no_grad()
def _depths(quantizer: Quantizer, latents: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """For each depth: the code vectors (K, D), and the residuals (n, D) of the latents that they quantize; None where
    the quantizer has no code vectors."""
    while isinstance(quantizer, ProjectedQuantizer):  # latents and codes are comparable after the projection
        latents, quantizer = quantizer.down(latents), quantizer.inner
    tables = quantizer.code_vectors()
    if tables is None:
        return None
    residuals, depths = quantizer.prepare(latents), []
    for table, codes in zip(tables, quantizer.encode(latents).unbind(-1), strict=True):
        depths.append((table, residuals))
        residuals = residuals - table[codes]
    return depths


def _view(title: str, counts: torch.Tensor, table: torch.Tensor, latents: torch.Tensor) -> CodebookView:
    """Project the used codes of a codebook, and latents, to the plane in which the used codes vary most."""
    used = counts.nonzero()[:, 0].to(table.device)
    codes = table[used] if len(used) > 2 else table
    mean = codes.mean(0)
    directions = torch.linalg.svd(codes - mean, full_matrices=False).Vh[:2]

    def spread(vectors: torch.Tensor) -> torch.Tensor:
        return vectors[torch.linspace(0, len(vectors) - 1, min(MAX_POINTS, len(vectors))).long()]

    def project(vectors: torch.Tensor) -> np.ndarray:
        flat = ((vectors - mean) @ directions.t()).cpu().numpy()
        return flat if flat.shape[1] == 2 else np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))

    return CodebookView(title, counts.numpy(), project(spread(codes)), project(spread(latents)))


def codebook_figure(views: list[CodebookView]) -> Image.Image:
    """A row for each view: how often codes are used, and codes among latents.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * len(views)), layout="tight")
    for (histogram, plane), view in zip(figure.subplots(len(views), 2, squeeze=False), views, strict=True):
        share = view.counts * (len(view.counts) / max(1, view.counts.sum()))
        unused = int((view.counts == 0).sum())
        histogram.hist(np.clip(share, 0.01, 100), bins=np.logspace(-2, 2, 41).tolist())
        histogram.set(
            xscale="log", xlabel="uses of a code (1: its fair share)", ylabel="codes",
            title=f"{view.title}, {unused:,} unused",
        )  # fmt: skip
        plane.scatter(*view.latents.T, s=3, alpha=0.3, color="tab:gray", linewidths=0, label="latents")
        plane.scatter(*view.codes.T, s=5, color="tab:red", linewidths=0, label="codes in use")
        plane.set(title="in the plane where codes vary most", xticks=[], yticks=[])
        plane.legend(markerscale=3, loc="upper right")
    return figure_image(figure)
