"""Drawing one token from logits, and the settings that apply at each position of a picture."""

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
CountByLevel = int | Sequence[int]


@dataclass(frozen=True)
class SamplingSettings:
    """How one token is drawn. Raises TypeError or ValueError for a value out of range.

    Attributes:
        guidance_scale: s in `logits = u + s (c - u)`, c with the prompt, u without it or with the negative
            prompt (classifier-free guidance, Ho and Salimans 2022). Log-probabilities in the place of logits
            would give the same: they differ by one constant a row. 1 is off, 0 ignores the prompt.
        image_guidance_scale: s_I in `logits = u + s_I (i - u) + s (c - i)`, of an edit with the source picture and the
            instruction (c), the picture alone (i), and neither (u) (Brooks et al. 2023, eq. 3). 1 is off.
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
    image_guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "temperature", "top_p", "min_p", "image_guidance_scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, numbers.Integral):
            raise TypeError(f"top_k must be a whole number, got {self.top_k!r}")
        for name in ("guidance_scale", "image_guidance_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be at least 0 (1 is no guidance), got {value}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be at least 0 (0 is greedy), got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 keeps every code), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] (1 keeps every code), got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1] (0 keeps every code), got {self.min_p}")


@dataclass(frozen=True)
class SamplingSchedule:
    """`SamplingSettings` of a whole picture: each a value, or several along the picture.

    Attributes:
        guidance_scale, image_guidance_scale: a number, one for each of a picture's T codes, or a function of the
            position.
        temperature, top_k, top_p, min_p: a value, or a list with one for each level. Where there is one level, a list
            has one for each depth; it may also have one for each level and depth, in their order.
    """

    guidance_scale: Guidance = 1.0
    temperature: ByLevel = 1.0
    top_k: CountByLevel = 0
    top_p: ByLevel = 1.0
    min_p: ByLevel = 0.0
    image_guidance_scale: Guidance = 1.0

    def by_position(self, layout: Mapping[str, Sequence[int]]) -> list[SamplingSettings]:
        """The settings at each of a picture's T positions.

        Args:
            layout: a picture's code layout, of which `level` and `depth` are read.

        Raises:
            TypeError, ValueError: a list of another length (the message says which), or a setting out of range.
        """
        values: tuple[Any, ...] = (
            self.guidance_scale, self.temperature, self.top_k, self.top_p, self.min_p, self.image_guidance_scale
        )  # fmt: skip
        if not any(callable(value) or isinstance(value, Sequence) for value in values):
            return [SamplingSettings(*values)] * len(layout["level"])
        places = list(zip(layout["level"], layout["depth"], strict=True))
        columns = [_scales("guidance_scale", self.guidance_scale, len(places))]
        columns += [_spread(name, getattr(self, name), places) for name in ("temperature", "top_k", "top_p", "min_p")]
        columns.append(_scales("image_guidance_scale", self.image_guidance_scale, len(places)))
        # Many positions share their settings: each combination is checked once. The types are part of the key, because
        # True == 1 and the check must see which it is.
        settings: dict[tuple[Any, ...], SamplingSettings] = {}
        rows = []
        for values in zip(*columns, strict=True):
            key = tuple((type(value), value) for value in values)
            if key not in settings:
                settings[key] = SamplingSettings(*values)
            rows.append(settings[key])
        return rows


def _scales(name: str, scale: Guidance, total: int) -> list[Any]:
    """A guidance scale at each position."""
    if callable(scale):
        return [scale(position) for position in range(total)]
    if not isinstance(scale, Sequence) or isinstance(scale, str):
        return [scale] * total
    if len(scale) != total:
        raise ValueError(
            f"{name} has {len(scale)} values: give one number, or one for each of a picture's {total} codes"
        )
    return list(scale)


def _spread(name: str, value: Any, places: list[tuple[int, int]]) -> list[Any]:
    """One setting at each position, of (level, depth) each."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * len(places)
    kinds, num_levels = sorted(set(places)), len({level for level, _ in places})
    if len(value) == len(kinds):
        return [value[kinds.index(place)] for place in places]
    if len(value) == num_levels > 1:
        return [value[level] for level, _ in places]
    raise ValueError(f"{name} has {len(value)} values: give one, or {_expected(num_levels, len(kinds))}")


def _expected(num_levels: int, num_kinds: int) -> str:
    if num_levels == 1:
        return f"one for each of the {num_kinds} codes of a place" if num_kinds > 1 else "a list of one"
    levels = f"one for each of the {num_levels} levels"
    return levels if num_kinds == num_levels else f"{levels}, or for each of the {num_kinds} depths of all levels"


def uniforms_of(generators: Sequence[torch.Generator], count: int, device: torch.device) -> torch.Tensor:
    """(B, count) numbers in [0, 1] on `device`; row b comes from generator b, which may be on another device."""

    def widest(place: torch.device) -> torch.dtype:
        return torch.float32 if place.type == "mps" else torch.float64  # mps has no float64

    rows = [torch.rand(count, generator=g, device=g.device, dtype=widest(g.device)).cpu() for g in generators]
    return torch.stack(rows).to(widest(device)).to(device)


def choose(logits: torch.Tensor, noise: torch.Tensor | None, settings: SamplingSettings) -> torch.Tensor:
    """Draw one column a row, (B,) int64, from logits (B, n) and Gumbel noise (B, n) (`lm.generation.noise`; None:
    greedy)."""
    if noise is None:
        return logits.argmax(-1)
    # The largest logit becomes 0 first, so that dividing by a tiny temperature cannot overflow.
    logits = (logits - logits.amax(-1, keepdim=True)) / settings.temperature
    return (_truncated(logits, settings) + noise).argmax(-1)


def choose_by_row(
    logits: torch.Tensor, noise: torch.Tensor | None, settings: Sequence[SamplingSettings]
) -> torch.Tensor:
    """`choose` where each row has settings of its own: (B,) int64, from logits (B, n) and noise (B, n), None where all
    rows are greedy.

    A row's result is that of `choose` for it alone, to the last bit. Guidance is not applied here.
    """
    if noise is None:
        return logits.argmax(-1)
    truncations = [(one.top_k, one.top_p, one.min_p) for one in settings]
    if len(set(truncations)) == 1 and all(one.temperature == settings[0].temperature for one in settings):
        return choose(logits, None if settings[0].temperature == 0 else noise, settings[0])
    temperature = logits.new_tensor([one.temperature or 1.0 for one in settings])[:, None]
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
    for truncation in dict.fromkeys(truncations):
        members = [row for row, other in enumerate(truncations) if other == truncation]
        if truncation != (0, 1.0, 0.0):
            scaled[members] = _truncated(scaled[members], settings[members[0]])
    drawn = (scaled + noise).argmax(-1)
    greedy = [row for row, one in enumerate(settings) if one.temperature == 0]
    if greedy:
        drawn[greedy] = logits[greedy].argmax(-1)
    return drawn


def _truncated(logits: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Logits (B, n), with -inf where top-k, top-p or min-p exclude a column; the largest of a row is 0 and stays."""
    if 0 < settings.top_k < logits.shape[-1]:
        smallest = logits.topk(settings.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if settings.top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # of the likelier columns together
        ordered = ordered.masked_fill(before >= settings.top_p, -math.inf)
        logits = torch.empty_like(logits).scatter_(-1, order, ordered)
    if settings.min_p > 0:
        logits = logits.masked_fill(logits < math.log(settings.min_p), -math.inf)
    return logits
