"""Sparse autoencoder: a penalty on the activity of the latents."""

from __future__ import annotations

import torch

from tokenizer_image.bottlenecks.interface import (
    Bottleneck,
    BottleneckOutput,
    Encoded,
    hoyer_sparsity,
    sum_over_picture,
)
from tokenizer_image.quantizers.distributed import mean_over_ranks

PENALTIES = ("kl", "l1")
SMALLEST_RATE = 1e-6  # keeps the logarithm of a unit that is always off, or always on, finite


class SparseBottleneck(Bottleneck):
    """Latents of which few are active at a time.

    penalty "kl" (Lee, Ekanadham and Ng 2008; Ng 2011, Sparse autoencoder, CS294A): h = sigmoid(f(x)), and with r_j the
    mean of unit j over the batch

        loss = weight * sum_j KL(rho || r_j),  KL(rho || r) = rho log(rho / r) + (1 - rho) log((1 - rho) / (1 - r))

    penalty "l1" (Olshausen and Field 1996): h = f(x), loss = weight * sum_j |h_j|, averaged over pictures.

    Where latents have positions, a unit is a channel, whose mean is over positions, too, and the sum counts it once a
    position.

    Args:
        penalty: "kl" or "l1".
        rate: rho, in (0, 1).
        weight: of the penalty, beside the squared error summed over a picture.
    """

    def __init__(self, code_dim: int, penalty: str = "kl", rate: float = 0.05, weight: float = 1.0) -> None:
        super().__init__(code_dim)
        self.penalty, self.rate, self.weight = penalty, rate, weight

    def forward(self, encoded: Encoded) -> BottleneckOutput:
        """Latents of all pictures, and the penalty of the batch; over all ranks, as one large batch has it."""
        latents = self.encode(encoded.features)[0]
        figures = {"sparsity": hoyer_sparsity(latents)}
        if self.penalty == "l1":
            return BottleneckOutput(latents, self.weight * sum_over_picture(latents.abs()), figures)
        rates = mean_over_ranks(latents.flatten(0, 2).mean(dim=0))
        positions = latents.shape[1] * latents.shape[2]
        loss = self.weight * positions * bernoulli_kl(self.rate, rates).sum()
        return BottleneckOutput(latents, loss, figures | {"active_rate": rates.detach().mean()})

    def encode(self, features: torch.Tensor, classes: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Activities (B, h, w, D): in (0, 1) with penalty "kl"."""
        return [torch.sigmoid(features) if self.penalty == "kl" else features]


def bernoulli_kl(rate: float, rates: torch.Tensor) -> torch.Tensor:
    """KL(Bernoulli(rate) || Bernoulli(r)) in nats, for each r of `rates` in [0, 1]."""
    rates = rates.clamp(SMALLEST_RATE, 1 - SMALLEST_RATE)
    target = torch.as_tensor(rate, device=rates.device, dtype=rates.dtype)
    return target * (target / rates).log() + (1 - target) * ((1 - target) / (1 - rates)).log()
