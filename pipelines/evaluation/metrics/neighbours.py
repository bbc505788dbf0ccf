"""Nearest neighbours by Euclidean distance, in blocks: no table of all distances is ever held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

QUERIES_AT_ONCE, REFERENCES_AT_ONCE = 1024, 4096


@dataclass(frozen=True)
class Neighbours:
    """The nearest references of n queries, nearest first.

    Attributes:
        distances: (n, k) float64, Euclidean.
        indices: (n, k) int64, of the references.
    """

    distances: Tensor
    indices: Tensor


def nearest_neighbours(queries: Tensor, references: Tensor, k: int, *, skip_same: bool = False) -> Neighbours:
    """The k nearest references of each query, in float64.

    Args:
        queries, references: (n, D) and (m, D), of any real dtype.
        k: at least 1.
        skip_same: queries and references are the same rows, and a row is no neighbour of itself.

    Raises:
        ValueError: there are fewer references than neighbours, or the rows differ in length.
    """
    found = len(references) - skip_same
    if k < 1 or found < k:
        raise ValueError(f"{k} nearest neighbours among {found} rows: give at least {k + skip_same} rows, and k >= 1")
    distances, indices = [], []
    for first, block in _blocks(queries, QUERIES_AT_ONCE):
        best = torch.full((len(block), 0), torch.inf, dtype=torch.float64)
        best_of = torch.zeros((len(block), 0), dtype=torch.int64)
        for start, squares in _squared_distances(block, references):
            if skip_same:
                same = torch.arange(first, first + len(block)) - start
                inside = (same >= 0) & (same < squares.shape[1])
                squares[inside.nonzero()[:, 0], same[inside]] = torch.inf
            near = squares.topk(min(k, squares.shape[1]), dim=1, largest=False)
            best, best_of = torch.cat([best, near.values], dim=1), torch.cat([best_of, near.indices + start], dim=1)
            order = best.argsort(dim=1, stable=True)[:, :k]
            best, best_of = best.gather(1, order), best_of.gather(1, order)
        distances.append(best.sqrt())
        indices.append(best_of)
    return Neighbours(torch.cat(distances), torch.cat(indices))


def balls_around(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """How many balls each point lies in: int64 (n,).

    Args:
        points: (n, D).
        centres: (m, D), of the balls.
        radii: (m,) float64; the surface belongs to its ball.

    Raises:
        ValueError: the rows differ in length.
    """
    counts = []
    for _, block in _blocks(points, QUERIES_AT_ONCE):
        count = torch.zeros(len(block), dtype=torch.int64)
        for start, squares in _squared_distances(block, centres):
            count += (squares.sqrt() <= radii[start : start + squares.shape[1]]).sum(dim=1)
        counts.append(count)
    return torch.cat(counts)


def _blocks(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """(index of the first row, rows (b, D) float64) of each block."""
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size].cpu().double()


def _squared_distances(block: Tensor, references: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(index of the first reference, |q - r|^2 (b, m) float64) of a block of queries and each block of references.

    It is |q|^2 + |r|^2 - 2 q.r, whose rounding error in float64 is about 1e-16 of the squared lengths.
    """
    if block.shape[1:] != references.shape[1:]:
        raise ValueError(f"rows of {tuple(block.shape[1:])} and {tuple(references.shape[1:])} have no distance")
    for start, part in _blocks(references, REFERENCES_AT_ONCE):
        lengths = block.square().sum(dim=1, keepdim=True) + part.square().sum(dim=1)
        yield start, torch.addmm(lengths, block, part.T, alpha=-2).clamp(min=0)
