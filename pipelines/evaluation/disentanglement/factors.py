"""Latents beside the factors that pictures were made from: where factors come from, how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.caching.pixel_cache import decode_pictures
from pipelines.evaluation.metrics.reconstruction import device_of
from pipelines.machine.batches import evenly_spaced
from tokenizer_image.pictures.dataset import PictureSource
from tokenizer_image.preprocessing import Preprocessing, to_pixel_values
from tokenizer_image.sprites.factors import FACTORS, draw_factors

POOLINGS = ("mean", "flat")
BATCH = 100  # pictures encoded at once


@dataclass(frozen=True)
class FactorPictures:
    """Pictures with known factors.

    Attributes:
        pictures: uint8 (n, C, H, W).
        factors: int64 (n, K); the values of factor k are 0 .. v_k - 1, and each occurs.
        names: of the K factors.
    """

    pictures: Tensor
    factors: np.ndarray
    names: tuple[str, ...]


def sprite_factors(count: int, seed: int, settings: Preprocessing) -> FactorPictures:
    """Pictures of the built-in world, as a model reads them.

    Raises:
        ValueError: a model of grey pictures, in which colours are not to be seen.
    """
    if settings.num_channels != 3:
        raise ValueError(f"sprites are in colour, but the model reads {settings.num_channels} channel: give --dataset")
    pictures, factors = draw_factors(count, seed, settings.image_size)
    return FactorPictures(torch.from_numpy(pictures), as_classes(factors), tuple(FACTORS))


def column_factors(source: PictureSource, columns: Sequence[str], most: int, settings: Preprocessing) -> FactorPictures:
    """Pictures of a data set, at most so many, evenly spaced, whose factors are columns of whole numbers or names.

    Raises:
        ValueError: a column that the data set does not have, or values that are neither.
    """
    values = {name: source.values(name) for name in columns}
    decoded = decode_pictures(source, settings)
    chosen = evenly_spaced(len(decoded), most)
    rows = decoded.rows[chosen]
    factors = np.stack([_numbered([one[row] for row in rows], name) for name, one in values.items()], axis=1)
    return FactorPictures(torch.from_numpy(decoded.batch(chosen)), as_classes(factors), tuple(columns))


def _numbered(values: Sequence[Any], name: str) -> np.ndarray:
    """Values as integers: whole numbers as they are, names in their order."""
    strange = next((one for one in values if not isinstance(one, (int, str)) and not _is_whole(one)), None)
    if strange is not None or None in values:
        raise ValueError(
            f"--factor_columns {name}: {strange!r} is neither a whole number nor a name; leave the column out, or give "
            "its values in steps"
        )
    if len({isinstance(one, str) for one in values}) > 1:
        raise ValueError(f"--factor_columns {name}: some values are numbers and others names; give one kind")
    number = {value: index for index, value in enumerate(sorted(set(values)))}
    return np.array([number[one] for one in values], np.int64)


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def as_classes(factors: np.ndarray) -> np.ndarray:
    """Integers (n, K) with the values of each column renumbered to 0, 1, ... in their order."""
    return np.stack([np.unique(column, return_inverse=True)[1].reshape(-1) for column in factors.T], axis=1)


@torch.inference_mode()
def latents_of(model: Any, pictures: Tensor, pooling: str) -> np.ndarray:
    """The latents of pictures as rows of numbers: (n, D) float64.

    Args:
        model: has `latents(pixel_values)`, which returns each level's (B, h, w, D); a `VQVAE` or an autoencoder.
        pictures: uint8 (n, C, H, W).
        pooling: "mean" over positions, D numbers a level; or "flat", all of them.

    Raises:
        ValueError: a model without continuous latents, or another pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r}: choose {' or '.join(POOLINGS)}")
    if not callable(getattr(model, "latents", None)):
        raise ValueError(f"{type(model).__name__} has no latents(pixel_values): its disentanglement cannot be measured")
    rows = []
    for batch in pictures.split(BATCH):
        levels = model.latents(to_pixel_values(batch).to(device_of(model)))
        pooled = [one.mean((1, 2)) if pooling == "mean" else one.flatten(1) for one in levels]
        rows.append(torch.cat(pooled, dim=1).double().cpu().numpy())
    return np.concatenate(rows)


def checked(latents: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents (N, D) as float64 and factors (N, K) as classes.

    Raises:
        ValueError: other shapes, numbers that are not finite, fewer than two rows or a factor that never changes.
    """
    latents, factors = np.asarray(latents, np.float64), np.asarray(factors)
    if latents.ndim != 2 or factors.ndim != 2 or len(latents) != len(factors) or len(latents) < 2:
        raise ValueError(
            f"latents {latents.shape} and factors {factors.shape}: expected (N, D) and (N, K) with N of at least 2"
        )
    if not np.isfinite(latents).all():
        raise ValueError("latents must be finite numbers, but some are NaN or infinite")
    if not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"factors must be integers, but are {factors.dtype}")
    classes = as_classes(factors)
    constant = np.flatnonzero(classes.max(axis=0) == 0)
    if len(constant):
        raise ValueError(f"factor {constant[0]} has one value in all pictures: leave it out, or give more pictures")
    return latents, classes


def standardised(latents: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1, n in its denominator; a column that never changes is 0."""
    centred = latents - latents.mean(axis=0)
    scale = centred.std(axis=0)
    return centred / np.where(scale > 1e-12 * (np.abs(latents).max() or 1.0), scale, np.inf)


def split_rows(count: int, test_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit a classifier to, and rows to test it on, at least one: two of int64."""
    order = np.random.default_rng(seed).permutation(count)
    test, train = np.split(order, [max(1, int(test_share * count))])
    return train, test


class FactorSampler:
    """Draws rows of a finite set that agree in one factor.

    Args:
        factors: (N, K), the values of factor k being 0 .. v_k - 1.
        rng: what draws.
    """

    def __init__(self, factors: np.ndarray, rng: np.random.Generator) -> None:
        self.factors, self._rng = factors, rng
        self._order = np.argsort(factors, axis=0, kind="stable")
        self._counts = [np.bincount(column) for column in factors.T]

    @property
    def num_factors(self) -> int:
        """K."""
        return self.factors.shape[1]

    def factor(self) -> int:
        """One of the factors, each as likely."""
        return int(self._rng.integers(self.num_factors))

    def _rows(self, factor: int, values: np.ndarray) -> np.ndarray:
        """A row with each of the values (n,) of a factor."""
        counts = self._counts[factor]
        starts = np.cumsum(counts) - counts
        places = starts[values] + (self._rng.random(len(values)) * counts[values]).astype(np.int64)
        return self._order[places, factor]

    def pairs(self, factor: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of rows with the same value of a factor, which differs from pair to pair: two (count,) int64."""
        first = self._rng.integers(len(self.factors), size=count)
        return first, self._rows(factor, self.factors[first, factor])

    def equal(self, factor: int, count: int) -> np.ndarray:
        """Rows that all have one value of a factor, each value as likely: (count,) int64."""
        value = int(self._rng.integers(len(self._counts[factor])))
        return self._rows(factor, np.full(count, value))
