"""How well an image tokenizer reconstructs pictures, and how evenly it uses its codes.

Every figure is over a whole set of pictures, never a mean over batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.evaluation.metrics.intervals import mean_interval
from pipelines.evaluation.metrics.rate import rate_figures
from pipelines.machine.batches import index_batches
from tokenizer_image.layout import CodeLayout, ImageTokenizer
from tokenizer_image.metrics import CodeUsage, grid_ratio, mse, psnr, ssim, tile_powers
from tokenizer_image.preprocessing import to_pixel_values

NUM_EXAMPLES = 32  # pictures that are kept to show beside their reconstructions


@dataclass
class ReconstructionFigures:
    """How near reconstructions are to their pictures.

    Attributes:
        figures: `reconstruction` (`mse` on [0, 1], `psnr` in dB, `ssim`: means over pictures; `n`;
            `grid_ratio`, see `tokenizer_image.metrics`; `interval`: 95%, of the means).
        pictures, reconstructions: (k, C, H, W) uint8, the first k pictures.
        per_picture: `mse`, `psnr` and `ssim` of each picture, (n,) float32.
    """

    figures: dict[str, Any]
    pictures: Tensor
    reconstructions: Tensor
    per_picture: dict[str, Tensor]


@dataclass
class TokenizerFigures(ReconstructionFigures):
    """What `measure_tokenizer` measures.

    Attributes:
        figures: also `codebook` (`usage`, `perplexity` of all codes; `parts`: of each level and depth, if several) and
            `rate` (`rate_figures`).
        codes: (n, T) int64, the codes of every picture, in the pictures' order.
    """

    codes: Tensor


def as_8_bit(pixel_values: Tensor) -> Tensor:
    """Float (B, C, H, W), about [-1, 1] -> uint8, as the picture would be stored."""
    return ((pixel_values.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def reconstruct(image_tokenizer: ImageTokenizer, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures uint8 (B, C, H, W) -> reconstructions, uint8 of the same shape, and codes (B, T) int64."""
    height, width = pictures.shape[-2:]
    with torch.inference_mode():
        codes = image_tokenizer.encode(to_pixel_values(pictures).to(device_of(image_tokenizer)))
        return as_8_bit(image_tokenizer.decode(codes, (height, width))).cpu(), codes.cpu()


def encode(image_tokenizer: ImageTokenizer, pictures: Tensor) -> Tensor:
    """Pictures uint8 (B, C, H, W) -> codes (B, T) int64, on the CPU."""
    with torch.inference_mode():
        return image_tokenizer.encode(to_pixel_values(pictures).to(device_of(image_tokenizer))).cpu()


def device_of(image_model: object) -> torch.device:
    """The device of a model's parameters; the CPU for a tokenizer that is no module."""
    parameters = image_model.parameters() if isinstance(image_model, torch.nn.Module) else ()
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


Rows = Sequence[int] | np.ndarray


def measure_reconstructions(
    reconstruct_rows: Callable[[Tensor, np.ndarray], Tensor],
    pictures: DecodedPictures,
    *,
    tile: int,
    batch_size: int = 100,
    num_examples: int = NUM_EXAMPLES,
    rows: Rows | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
    progress: bool = True,
) -> ReconstructionFigures:
    """Reconstruct every picture, and measure how near the reconstructions are.

    Args:
        reconstruct_rows: pictures uint8 (B, C, H, W) and their positions (B,) to reconstructions uint8 (B, C, H, W).
        tile: side in pixels of what one position of the latents stands for.
        rows: positions of the pictures to measure (default: all).
        watch: called with the originals and the reconstructions of each batch, uint8 (B, C, H, W) each, so that
            whatever else is measured of reconstructions needs no second pass.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    measures = {"mse": mse, "psnr": psnr, "ssim": ssim}
    values: dict[str, list[Tensor]] = {name: [] for name in measures}
    examples, powers = [], []
    rows = np.arange(len(pictures)) if rows is None else np.asarray(rows)
    batches = [*index_batches(len(rows), batch_size)]
    for indices in tqdm(batches, desc="reconstruction", unit=" batches", disable=not progress, leave=False):
        chosen = rows[indices.start : indices.stop]
        originals = torch.from_numpy(np.ascontiguousarray(pictures.batch(chosen)))
        reconstructions = reconstruct_rows(originals, chosen)
        for name, measure in measures.items():
            values[name].append(measure(reconstructions / 255, originals / 255))
        if min(originals.shape[-2:]) >= 2 * tile > 2:
            powers.append(tile_powers(reconstructions / 255, originals / 255, tile))
        if watch is not None:
            watch(originals, reconstructions)
        if indices[0] < num_examples:
            examples.append(torch.stack([originals, reconstructions]))
    per_picture = {name: torch.cat(parts) for name, parts in values.items()}
    means = {name: float(numbers.double().mean()) for name, numbers in per_picture.items()}
    if powers:
        drawn, real, variance = (torch.cat(parts).flatten() for parts in zip(*powers, strict=True))
        ratio = grid_ratio(drawn, real, variance)
        means |= {} if ratio is None else {"grid_ratio": ratio}
    shown = torch.cat(examples, dim=1)[:, :num_examples]
    intervals = {name: mean_interval(numbers) for name, numbers in per_picture.items()}
    figures = {"reconstruction": {**means, "n": len(rows), "interval": intervals}}
    return ReconstructionFigures(figures, shown[0], shown[1], per_picture)


def measure_tokenizer(
    image_tokenizer: ImageTokenizer,
    pictures: DecodedPictures,
    *,
    batch_size: int = 100,
    num_examples: int = NUM_EXAMPLES,
    rows: Rows | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
    progress: bool = True,
) -> TokenizerFigures:
    """`measure_reconstructions` of a tokenizer, which is put in eval mode, and how it uses its codes."""
    if isinstance(image_tokenizer, torch.nn.Module):
        image_tokenizer.eval()
    usage, codes = CodeUsage(image_tokenizer.num_codes), []

    def reconstruct_rows(originals: Tensor, _: np.ndarray) -> Tensor:
        made, batch_codes = reconstruct(image_tokenizer, originals)
        usage.update(batch_codes)
        codes.append(batch_codes)
        return made

    height, width = pictures.batch([0]).shape[-2:]
    layout = image_tokenizer.layout((height, width))
    measured = measure_reconstructions(
        reconstruct_rows, pictures, tile=height // (int(layout.row.max()) + 1), batch_size=batch_size,
        num_examples=num_examples, rows=rows, watch=watch, progress=progress,
    )  # fmt: skip
    all_codes, shape = torch.cat(codes), (int(measured.pictures.shape[1]), int(height), int(width))
    figures = {
        **measured.figures,
        "codebook": _codebook_figures(usage, layout),
        "rate": rate_figures(all_codes, layout, shape),
    }
    return TokenizerFigures(figures, measured.pictures, measured.reconstructions, measured.per_picture, codes=all_codes)


def _codebook_figures(usage: CodeUsage, layout: CodeLayout) -> dict[str, Any]:
    """Usage and perplexity of all codes, and of each level and depth where there are several."""
    figures: dict[str, Any] = {
        "usage": usage.usage,
        "perplexity": usage.perplexity,
        "num_codes": usage.num_codes,
        "tokens_per_image": len(layout),
    }
    columns = (layout.level, layout.depth, layout.low, layout.high)
    parts = sorted({tuple(map(int, place)) for place in zip(*columns, strict=True)})
    if len(parts) > 1:
        figures["parts"] = [
            {
                "level": level,
                "depth": depth,
                "codebook_size": high - low,
                "usage": usage.usage_of(low, high),
                "perplexity": usage.perplexity_of(low, high),
            }
            for level, depth, low, high in parts
        ]
    return figures
