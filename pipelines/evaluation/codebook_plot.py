"""A look into a tokenizer's codebooks: how evenly codes are used, and where they lie among the latents."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from tokenizer_image import VQVAE
from tokenizer_image.pictures.loading import DecodedPictures, to_pixel_values
from tokenizer_image.quantizers import Quantizer
from tokenizer_image.quantizers.projected import ProjectedQuantizer

PICTURES = 128  # whose latents are shown
SHOWN = 4000  # latents, and codes, that a panel shows at most


@dataclass
class CodebookView:
    """One codebook.

    Attributes:
        title: which one.
        counts: (K,) int64, how many of the data set's codes are each.
        codes: (k, 2) float32, codes that are in use, in the plane of the codebook's two main directions.
        latents: (n, 2) float32, what they stand for, in the same plane.
    """

    title: str
    counts: np.ndarray
    codes: np.ndarray
    latents: np.ndarray


def codebook_views(tokenizer: Any, codes: torch.Tensor, pictures: DecodedPictures) -> list[CodebookView]:
    """One view for each codebook of a `VQVAE` whose quantizer can say where its codes lie; of others, none.

    Args:
        codes: (n, T) int64, of a whole data set, for the counts.
        pictures: of that data set; the latents are of the first few.
    """
    if not isinstance(tokenizer, VQVAE):
        return []
    some = to_pixel_values(pictures.batch(range(min(PICTURES, len(pictures))))).to(tokenizer.device)
    uses = torch.bincount(codes.reshape(-1), minlength=tokenizer.num_codes).cpu()
    views, first = [], 0
    for level, (quantizer, seen) in enumerate(zip(tokenizer.quantizers, tokenizer.latents(some), strict=True)):
        latents = seen.reshape(-1, quantizer.code_dim)
        sizes = quantizer.codebook_sizes[:1] if quantizer.shares_codebook else quantizer.codebook_sizes
        tables = _depths(quantizer, latents)
        for depth, size in enumerate(sizes):
            counts, first = uses[first : first + size], first + size
            if tables is not None:
                title = f"level {level + 1}, codebook {depth + 1}: {size:,} codes"
                views.append(_view(title, counts, *tables[depth]))
    return views


@torch.no_grad()
def _depths(quantizer: Quantizer, latents: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """For each code of a place: the codes' vectors (K, D), and what is left for them of latents (n, D)."""
    while isinstance(quantizer, ProjectedQuantizer):  # there its latents and its codes are comparable
        latents, quantizer = quantizer.down(latents), quantizer.inner
    tables = quantizer.code_vectors()
    if tables is None:
        return None
    rest, found = quantizer.prepare(latents), []
    for table, codes in zip(tables, quantizer.encode(latents).unbind(-1), strict=True):
        found.append((table, rest))
        rest = rest - table[codes]
    return found


def _view(title: str, counts: torch.Tensor, table: torch.Tensor, latents: torch.Tensor) -> CodebookView:
    """Project what is used of a codebook, and latents, to the plane in which the used codes vary most."""
    used = counts.nonzero()[:, 0].to(table.device)
    codes = table[used] if len(used) > 2 else table
    mean = codes.mean(0)
    directions = torch.linalg.svd(codes - mean, full_matrices=False).Vh[:2]
    some = torch.linspace(0, len(latents) - 1, min(SHOWN, len(latents))).long()
    shown = torch.linspace(0, len(codes) - 1, min(SHOWN, len(codes))).long()

    def project(vectors: torch.Tensor) -> np.ndarray:
        flat = ((vectors - mean) @ directions.t()).cpu().numpy()
        return flat if flat.shape[1] == 2 else np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))

    return CodebookView(title, counts.numpy(), project(codes[shown]), project(latents[some]))


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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer)
