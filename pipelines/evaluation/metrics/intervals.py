"""Confidence intervals of shares, of means, and of the difference that a change makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

Statistic = Callable[[np.ndarray, np.ndarray], float]


def wilson_interval(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95% confidence interval of a share `right / n` (Wilson, JASA 1927).

    Raises:
        ValueError: `right` of `n` is no share.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"{right} right of {n} is not a share.")
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return max(0.0, centre - half), min(1.0, centre + half)


def shares(counts: Mapping[str, int], n: int) -> dict[str, Any]:
    """The share of n that each count is, and under `interval` a 95% Wilson interval for each."""
    return {
        **{name: count / n for name, count in counts.items()},
        "interval": {name: list(wilson_interval(count, n)) for name, count in counts.items()},
    }


def mean_interval(values: Tensor, z: float = 1.959964) -> list[float] | None:
    """95% confidence interval of the mean of independent values (n,): mean -+ z s / sqrt(n), with n - 1 in s. It takes
    the mean for normal, so that of a few values it is narrower than Student's.

    None for a single value, which says nothing of the others.
    """
    if len(values) < 2:
        return None
    values = values.double()
    mean, half = float(values.mean()), z * float(values.std()) / len(values) ** 0.5
    return [mean - half, mean + half]


def mean_with_interval(name: str, values: Tensor) -> dict[str, Any]:
    """The mean of values (n,) under `name`, `n`, and under `interval` its 95% interval."""
    return {name: float(values.double().mean()), "n": len(values), "interval": {name: mean_interval(values)}}


def paired_comparison(
    statistic: Statistic, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], draws: int = 2000
) -> dict[str, Any]:
    """`statistic(before, after)` of each score, and under `interval` its middle 95% over cases drawn anew with
    replacement (Efron 1979, the bootstrap).

    Args:
        before, after: score -> verdicts (n,) bool, or values, the same n cases in the same order. A score for which the
            statistic is NaN becomes None, and so does its interval.
    """
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {}
    intervals: dict[str, list[float] | None] = {}
    for name in before:
        value = statistic(before[name], after[name])
        if np.isnan(value):
            values[name] = intervals[name] = None
            continue
        cases = len(before[name])
        resampled = [
            statistic(before[name][rows], after[name][rows]) for rows in rng.integers(cases, size=(draws, cases))
        ]
        values[name] = value
        intervals[name] = np.nanpercentile(resampled, [2.5, 97.5]).tolist()
    return {**values, "interval": intervals}


def share_of_misses_removed(before: np.ndarray, after: np.ndarray) -> float:
    """1 - misses after / misses before, of verdicts (n,) bool; NaN where there were no misses."""
    misses = (~before).sum()
    return float(1 - (~after).sum() / misses) if misses else float("nan")


def difference_of_shares(before: np.ndarray, after: np.ndarray) -> float:
    """Share of right verdicts after, less the share before; (n,) bool."""
    return float(after.mean() - before.mean())


def ratio_of_means(before: np.ndarray, after: np.ndarray) -> float:
    """Mean of values (n,) after, over the mean before: of verdicts, of the shares of right ones; NaN where all are zero
    before."""
    return float(after.mean() / before.mean()) if before.any() else float("nan")
