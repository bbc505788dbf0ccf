"""How one code is drawn from logits, and the settings for it at each position."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# One guidance scale, one for each position, or a function of the position (0 .. T - 1).
Guidance = float | Sequence[float] | Callable[[int], float]
# One value, or one for each level (where there is one level: for each depth), or for each level and depth.
ByLevel = float | Sequence[float]


@dataclass(frozen=True)
class SamplingSettings:
    """How codes are drawn; raises TypeError or ValueError for settings that mean nothing.

    Attributes:
        guidance_scale: s in `logits = u + s (c - u)`, c with the prompt, u without it or with the negative
            prompt (classifier-free guidance, Ho and Salimans 2022). Log-probabilities in the place of logits
            would give the same: they differ by one constant a row. 1 is off, 0 ignores the prompt.
        temperature: divides the guided logits; 0 takes the likeliest code.
        top_k: keep the k likeliest codes; 0 keeps all.
        top_p: keep the smallest set of likeliest codes that has at least this probability; 1 keeps all.
        min_p: keep the codes that have at least this share of the likeliest one's probability (Nguyen et al. 2024);
            0 keeps all.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, numbers.Integral):
            raise TypeError(f"top_k must be a whole number, got {self.top_k!r}")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ValueError(f"guidance_scale must be at least 0 (1 is no guidance), got {self.guidance_scale}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be at least 0 (0 is greedy), got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 keeps every code), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] (1 keeps every code), got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1] (0 keeps every code), got {self.min_p}")


def settings_by_position(
    layout: Mapping[str, Sequence[int]], *, guidance_scale: Guidance = 1.0, **by_level: Any
) -> list[SamplingSettings]:
    """The settings at each of a picture's T positions.

    Args:
        layout: a picture's code layout, of which `level` and `depth` are read.
        guidance_scale: a number, T numbers, or a function of the position.
        by_level: temperature, top_k, top_p, min_p: a value, or a list with one for each level. Where there is one
            level, a list has one for each depth; it may also have one for each level and depth, in their order.

    Raises:
        TypeError, ValueError: a list of another length (the message says which), or a setting out of range.
    """
    levels, places = layout["level"], list(zip(layout["level"], layout["depth"], strict=True))
    total = len(places)
    if callable(guidance_scale):
        scales: list[Any] = [guidance_scale(position) for position in range(total)]
    elif isinstance(guidance_scale, Sequence) and not isinstance(guidance_scale, str):
        scales = list(guidance_scale)
        if len(scales) != total:
            raise ValueError(
                f"guidance_scale has {len(scales)} values: give one number, or one for each of a picture's "
                f"{total} codes"
            )
    else:
        scales = [guidance_scale] * total
    kinds = sorted(set(places))
    columns: dict[str, list[Any]] = {"guidance_scale": scales}
    for name, value in by_level.items():
        if not isinstance(value, Sequence) or isinstance(value, str):
            columns[name] = [value] * total
        elif len(value) == len(kinds):
            columns[name] = [value[kinds.index(place)] for place in places]
        elif len(value) == len(set(levels)) > 1:
            columns[name] = [value[level] for level in levels]
        else:
            raise ValueError(f"{name} has {len(value)} values: give one, or {_expected(len(set(levels)), len(kinds))}")
    # Positions share their settings in runs: each is checked once.
    made: dict[tuple[Any, ...], SamplingSettings] = {}
    rows = []
    for values in zip(*columns.values(), strict=True):
        key = tuple((type(value), value) for value in values)
        if key not in made:
            made[key] = SamplingSettings(**dict(zip(columns, values, strict=True)))
        rows.append(made[key])
    return rows


def _expected(num_levels: int, num_kinds: int) -> str:
    if num_levels == 1:
        return f"one for each of the {num_kinds} codes of a place" if num_kinds > 1 else "a list of one"
    levels = f"one for each of the {num_levels} levels"
    return levels if num_kinds == num_levels else f"{levels}, or for each of the {num_kinds} depths of all levels"


def uniforms_of(generators: Sequence[torch.Generator], count: int, device: torch.device) -> torch.Tensor:
    """(B, count) numbers in [0, 1] on `device`, row b from generator b, which may live elsewhere."""

    def widest(place: torch.device) -> torch.dtype:
        return torch.float32 if place.type == "mps" else torch.float64  # mps has nothing wider

    rows = [torch.rand(count, generator=g, device=g.device, dtype=widest(g.device)).cpu() for g in generators]
    return torch.stack(rows).to(widest(device)).to(device)


def choose(logits: torch.Tensor, uniforms: torch.Tensor | None, settings: SamplingSettings) -> torch.Tensor:
    """Draw one column a row, (B,) int64, from logits (B, n) and one number in [0, 1] a row (None: greedy).

    Inverts the cumulative distribution: a row's draw needs one number, whatever n, and no other row.
    """
    if uniforms is None:
        return logits.argmax(-1)
    # The largest becomes 0 first, so that a tiny temperature cannot overflow.
    logits = (logits - logits.amax(-1, keepdim=True)) / settings.temperature
    probabilities = _truncated(logits, settings).softmax(-1, dtype=torch.float32)
    cumulative = probabilities.to(uniforms.dtype).cumsum(-1)
    total = cumulative[:, -1:]
    # Strictly below the total: else rounding could pass the last column that has a probability.
    point = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _truncated(logits: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Logits (B, n), the largest of a row 0, with -inf where top-k, top-p or min-p leave a column out; one stays."""
    if 0 < settings.top_k < logits.shape[-1]:
        smallest = logits.topk(settings.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if settings.top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # what likelier columns have together
        ordered = ordered.masked_fill(before >= settings.top_p, -math.inf)
        logits = torch.empty_like(logits).scatter_(-1, order, ordered)
    if settings.min_p > 0:
        logits = logits.masked_fill(logits < math.log(settings.min_p), -math.inf)
    return logits
