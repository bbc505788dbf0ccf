"""Curves of rate and distortion, where they cross, and their plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.evaluation.rates.rate_distortion import RatePoint
from pipelines.evaluation.report.plots import figure_image

FIXED, HISTOGRAM = "fixed_bits", "histogram_bits"
RATES = {FIXED: "at a fixed rate", HISTOGRAM: "under the code histogram"}
FIGURES = {"mse": "MSE", "psnr": "PSNR (dB)", "ssim": "SSIM", "frechet": "Frechet distance"}


def curve(points: Iterable[RatePoint], rate: str, figure: str = "mse") -> tuple[np.ndarray, np.ndarray]:
    """The points of a series as a curve: rates, increasing, and at each the best figure at that rate or below.

    Args:
        rate: FIXED or HISTOGRAM; points without this rate, or without the figure, are left out.
        figure: a field of `Distortion`; a larger `psnr` or `ssim` is better, a smaller of the others.
    """
    pairs = [(getattr(one, rate), getattr(one.distortion, figure)) for one in points]
    known = sorted((bits, value) for bits, value in pairs if bits is not None and value is not None)
    if not known:
        return np.zeros(0), np.zeros(0)
    rates, values = (np.array(one, np.float64) for one in zip(*known, strict=True))
    best = np.maximum.accumulate(values) if figure in ("psnr", "ssim") else np.minimum.accumulate(values)
    last_of_rate = np.append(np.diff(rates) > 0, True)
    return rates[last_of_rate], best[last_of_rate]


def best_at(points: Iterable[RatePoint], bits: float, rate: str = FIXED) -> float | None:
    """The least MSE at a rate or below; None where no point has so low a rate."""
    rates, errors = curve(points, rate)
    reached = np.searchsorted(rates, bits * (1 + 1e-9), side="right")
    return None if reached == 0 else float(errors[reached - 1])


@dataclass(frozen=True)
class Comparison:
    """Which of two series has the lower MSE at which rates.

    Attributes:
        shared: the least and the greatest rate that both reach; None where they share none.
        crossings: rates at which the curves cross, increasing.
        first_is_lower: whether the first series has the lower MSE at the least shared rate.
    """

    one: str
    other: str
    rate: str
    shared: tuple[float, float] | None
    crossings: tuple[float, ...]
    first_is_lower: bool

    def sentence(self) -> str:
        """In words."""
        words = f"{self.one} and {self.other}, {RATES[self.rate]}"
        if self.shared is None:
            return f"{words}: no rate that both reach"
        low, high = self.shared
        lower = self.one if self.first_is_lower else self.other
        if not self.crossings:
            return f"{words}: {lower} has the lower MSE from {low:.0f} to {high:.0f} bits; the curves do not cross"
        places = " and ".join(f"{one:.0f}" for one in self.crossings)
        first = f"from {low:.0f} to {high:.0f} bits, {lower} has the lower MSE first"
        return f"{words}: {first}; they cross at {places} bits"


def compare(one: Sequence[RatePoint], other: Sequence[RatePoint], rate: str, names: tuple[str, str]) -> Comparison:
    """Compare two series by MSE, log-linear in the rate's logarithm between their points.

    Args:
        one, other: the points of each.
        rate: FIXED or HISTOGRAM.
        names: what the series are called.
    """
    curves = [curve(points, rate) for points in (one, other)]
    if not all(len(rates) for rates, _ in curves):
        return Comparison(*names, rate, None, (), False)
    low, high = max(rates[0] for rates, _ in curves), min(rates[-1] for rates, _ in curves)
    if low > high:
        return Comparison(*names, rate, None, (), False)
    ends = np.unique(np.concatenate([rates for rates, _ in curves]))
    places = np.log(np.unique([low, *ends[(ends > low) & (ends < high)], high]))
    first, second = (np.interp(places, np.log(rates), np.log(np.maximum(errors, 1e-12))) for rates, errors in curves)
    gap = first - second
    crossings = [
        float(np.exp(places[i] + (places[i + 1] - places[i]) * gap[i] / (gap[i] - gap[i + 1])))
        for i in range(len(gap) - 1)
        if gap[i] * gap[i + 1] < 0
    ]
    is_lower = bool(gap[np.flatnonzero(gap)[:1]].sum() < 0)
    return Comparison(*names, rate, (low, high), tuple(crossings), is_lower)


def plot(points: Sequence[RatePoint]) -> Image.Image:
    """Each figure against bits a picture: at a fixed rate above, under the code histogram below.

    Points are marked; the line of a series joins those that no point of it with a lower rate is better than.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figures = [name for name in FIGURES if any(getattr(one.distortion, name) is not None for one in points)]
    series = list(dict.fromkeys(one.series for one in points))
    figure = Figure(figsize=(4.2 * len(figures), 8), layout="constrained")
    grid = figure.subplots(len(RATES), len(figures), squeeze=False)
    for axes_row, (rate, words) in zip(grid, RATES.items(), strict=True):
        for axes, name in zip(axes_row, figures, strict=True):
            for number, one in enumerate(series):
                members = [point for point in points if point.series == one and getattr(point, rate) is not None]
                rates, values = curve(members, rate, name)
                colour = f"C{number % 10}"
                axes.plot(rates, values, color=colour, label=one, linestyle="-" if number < 10 else "--")
                marks = [(getattr(point, rate), getattr(point.distortion, name)) for point in members]
                axes.scatter([bits for bits, _ in marks], [value for _, value in marks], s=12, color=colour)
            axes.set(xlabel=f"bits a picture, {words}", ylabel=FIGURES[name])
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(ScalarFormatter())  # 256, not 2^8
            if name in ("mse", "frechet"):
                axes.set_yscale("log")
            axes.grid(alpha=0.3)
    grid[0][-1].legend(fontsize=8)
    return figure_image(figure)
