"""`CodeLayout`, which describes every entry of a row of codes, and `ImageTokenizer`, the interface of stage 1."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch


@dataclass(frozen=True)
class CodeLayout:
    """Level, depth, place and range of each of the T codes of a picture: int64 arrays of shape (T,).

    Order: levels coarse to fine; inside a level row by row; inside a position depth by depth.

    Attributes:
        level: 0 is the coarsest.
        depth: 0 is the first code of a position (residual and grouped quantizers have several).
        row, column: of the position in its level's grid.
        low, high: range of the code, `low <= code < high`.
    """

    level: np.ndarray
    depth: np.ndarray
    row: np.ndarray
    column: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __len__(self) -> int:
        return len(self.level)

    def to_dict(self) -> dict[str, list[int]]:
        """Plain lists, for JSON."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}


def build_layout(
    grids: list[tuple[int, int]], codebook_sizes: list[list[int]], shared: list[bool] | None = None
) -> CodeLayout:
    """The layout of `len(grids)` levels, coarse to fine.

    Args:
        grids: (rows, columns) of each level.
        codebook_sizes: for each level, the codebook size of each of its depths. Every (level, depth) has its
            own range of codes, in this order.
        shared: for each level, whether all its depths share one codebook, and so one range.
    """
    parts: dict[str, list[np.ndarray]] = {field.name: [] for field in fields(CodeLayout)}
    first = 0
    for level, ((rows, columns), sizes) in enumerate(zip(grids, codebook_sizes, strict=True)):
        is_shared = shared is not None and shared[level]
        ends = first + (np.asarray(sizes, np.int64) if is_shared else np.cumsum(np.asarray(sizes, np.int64)))
        shape = (rows, columns, len(sizes))
        row, column, depth = (axis.reshape(-1).astype(np.int64) for axis in np.indices(shape))
        parts["level"].append(np.full(row.shape, level, np.int64))
        parts["depth"].append(depth)
        parts["row"].append(row)
        parts["column"].append(column)
        parts["low"].append((ends - np.asarray(sizes))[depth])
        parts["high"].append(ends[depth])
        first = int(ends[-1])
    return CodeLayout(**{name: np.concatenate(arrays) for name, arrays in parts.items()})


def example_size(config: Any) -> tuple[int, int]:
    """(height, width) of what a tokenizer with this configuration takes by default: the `example_size` that it names,
    (1, samples) of signals, else its square."""
    size: tuple[int, int] = getattr(config, "example_size", (config.image_size, config.image_size))
    return size


@runtime_checkable
class ImageTokenizer(Protocol):
    """The interface of an image tokenizer for stage 2 and the pipelines, which `VQVAE` has.

    `register_tokenizer` makes another class with these members known to commands and pipelines. Optional members:

    - `code_vectors() -> (num_codes, D) float`, a vector per code, near each other for codes that look alike: the
      language model's embeddings of codes are initialised from them;
    - `legacy_fingerprint`, another fingerprint with the same meaning, which earlier versions wrote.

    Attributes:
        config: has `image_size` (side of the default square, in pixels), `num_channels` (1 or 3), `downsampling`
            (sides of pictures are its multiples) and `preprocessing` (`Preprocessing.to_dict()`, or None for the
            defaults).
    """

    config: Any

    @property
    def num_codes(self) -> int:
        """Codes are 0 .. num_codes - 1."""
        ...

    @property
    def tokens_per_image(self) -> int:
        """Number of codes of a picture of the default size."""
        ...

    @property
    def fingerprint(self) -> str:
        """A string that changes whenever the same picture may get other codes."""
        ...

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) float in [-1, 1] to codes (B, T) int64."""
        ...

    def decode(self, codes: torch.Tensor, image_size: int | tuple[int, int] | None = None) -> torch.Tensor:
        """Codes (B, t <= T) to pixel_values (B, C, H, W) in [-1, 1]."""
        ...

    def layout(self, image_size: int | tuple[int, int] | None = None) -> CodeLayout:
        """The layout of the row of codes of a picture; ValueError for a size that cannot be encoded."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Move to a device, in place; returns the tokenizer."""
        ...

    def save_pretrained(self, save_directory: str) -> Any:
        """Write config.json, with a `model_type`, and model.safetensors."""
        ...

    @classmethod
    def from_pretrained(cls, folder: str, /) -> Any:
        """Load what `save_pretrained` wrote, ready to encode and decode."""
        ...
