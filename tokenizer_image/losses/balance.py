"""Shares of the gradient for several terms of a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

SMALLEST = 1e-12


@dataclass
class Mixture:
    """The mixed gradient of several terms.

    Attributes:
        gradient: float32, of the shape of the output.
        shares: of each term in this step's mixture, by norm; they sum to 1.
        not_finite: terms with NaN or infinity, which were left out.
    """

    gradient: torch.Tensor
    shares: dict[str, float]
    not_finite: list[str]


class GradientBalancer(nn.Module):
    """Mixes terms of a loss by the gradient that each has at the decoder's output (Défossez et al. 2022, EnCodec).

    With w_i the weights, g_i the gradient of term i at the output y, and n_i the moving average of its mean norm over
    pictures, the mixed gradient is

        n_first * sum_i w_i / (sum_j w_j) * g_i / n_i,

    so that each term's share of the gradient is its share of the weights, whatever the scale of the term. The norm is
    that of the first term, so that with this one alone nothing changes. With `fixed`, it is sum_i w_i g_i.

    Args:
        names: of the terms that may come.
        fixed: weights multiply the terms.
        decay: of the moving averages, in [0, 1).
    """

    norms: torch.Tensor
    counts: torch.Tensor

    def __init__(self, names: tuple[str, ...], *, fixed: bool = False, decay: float = 0.99) -> None:
        super().__init__()
        self.names, self.fixed, self.decay = names, fixed, decay
        self.register_buffer("norms", torch.zeros(len(names), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(len(names), dtype=torch.int64))

    def forward(
        self,
        terms: Mapping[str, torch.Tensor],
        weights: Mapping[str, float],
        output: torch.Tensor,
        mean: Callable[[torch.Tensor], torch.Tensor] = lambda norms: norms,
    ) -> Mixture:
        """The mixed gradient at `output`, and how it was mixed.

        Args:
            terms: scalars that depend on `output`, by name; the first sets the norm.
            weights: of each, at least 0.
            output: (B, ...), what the decoder returned.
            mean: of a tensor over all processes.
        """
        gradients = {
            name: torch.autograd.grad(term, output, retain_graph=True)[0].float() for name, term in terms.items()
        }
        # A process's gradients are those of the mean over its own pictures; times their number, of each picture. A term
        # that is not finite makes its norm so.
        found = torch.stack(
            [one.flatten(1).norm(dim=1).sum() + 0 * terms[name].detach() for name, one in gradients.items()]
        )
        norms = dict(zip(gradients, mean(found).tolist(), strict=True))
        first = next(iter(gradients))
        not_finite = [name for name, norm in norms.items() if name != first and not math.isfinite(norm)]
        kept = [name for name in gradients if name not in not_finite]
        factors = self._factors(kept, weights, norms)
        mixed = torch.zeros_like(output, dtype=torch.float32)
        for name in kept:
            mixed.add_(gradients[name], alpha=factors[name])
        parts = {name: factors[name] * norms[name] for name in kept}
        total = sum(parts.values())
        return Mixture(mixed, {name: part / max(total, SMALLEST) for name, part in parts.items()}, not_finite)

    def _factors(self, kept: list[str], weights: Mapping[str, float], norms: Mapping[str, float]) -> dict[str, float]:
        """What each gradient is multiplied by; this step's norms go into the moving averages first."""
        if self.fixed:
            return {name: weights[name] for name in kept}
        averages = {}
        for name in kept:
            place = self.names.index(name)
            self.counts[place] += 1
            self.norms[place] = self.decay * self.norms[place] + (1 - self.decay) * norms[name]
            averages[name] = float(self.norms[place]) / (1 - self.decay ** int(self.counts[place]))
        total = sum(weights[name] for name in kept)
        scale = averages[kept[0]]
        return {name: weights[name] / total * scale / max(averages[name], SMALLEST) for name in kept}
