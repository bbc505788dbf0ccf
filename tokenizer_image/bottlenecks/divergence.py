"""What variational bottlenecks share: diagonal Gaussians, their divergence, and how it is weighted over training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOG_VARIANCES = (-30.0, 20.0)  # between which exp() and its inverse are far from the ends of float32


@dataclass
class Gaussian:
    """Independent normal distributions of latents.

    Attributes:
        mean, log_variance: (B, h, w, D) float32.
    """

    mean: torch.Tensor
    log_variance: torch.Tensor

    @classmethod
    def of(cls, parameters: torch.Tensor) -> Gaussian:
        """From (B, h, w, 2D): means, then log variances."""
        mean, log_variance = parameters.float().chunk(2, dim=-1)
        return cls(mean, log_variance.clamp(*LOG_VARIANCES))

    @property
    def deviation(self) -> torch.Tensor:
        """Standard deviations, (B, h, w, D)."""
        return (0.5 * self.log_variance).exp()

    def at(self, noise: torch.Tensor) -> torch.Tensor:
        """mean + deviation * noise: a sample, for standard normal noise (reparameterisation, Kingma and Welling)."""
        return self.mean + self.deviation * noise

    def log_density(self, values: torch.Tensor) -> torch.Tensor:
        """log N(values; mean, variance) in nats, element by element, without -log(2 pi) / 2."""
        return -0.5 * (self.log_variance + (values - self.mean).square() * (-self.log_variance).exp())


def kl_to_standard(posterior: Gaussian) -> torch.Tensor:
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2 in nats, element by element (Kingma and Welling 2014,
    appendix B)."""
    return 0.5 * (posterior.mean.square() + posterior.log_variance.exp() - 1 - posterior.log_variance)


def kl_between(posterior: Gaussian, prior: Gaussian) -> torch.Tensor:
    """KL(N(m, s^2) || N(p, t^2)) = (log t^2 - log s^2 + (s^2 + (m - p)^2) / t^2 - 1) / 2 in nats, each element's."""
    difference = posterior.log_variance - prior.log_variance
    distance = (posterior.mean - prior.mean).square() * (-prior.log_variance).exp()
    return 0.5 * (difference.exp() + distance - 1 - difference)


@dataclass(frozen=True)
class KLSchedule:
    """How the divergence counts in the loss, over the share of the training budget that is spent.

    Without a capacity, weight(share) * KL, with a weight that rises linearly from 0 over the first `warmup` of the
    budget (Bowman et al. 2016; Sonderby et al. 2016). Weight 1 is the evidence lower bound (VAE), more than 1 the
    beta-VAE (Higgins et al. 2017).

    With a capacity, weight * |KL - C(share)|, where C rises linearly from 0 to `capacity` nats over the first
    `capacity_share` of the budget (Burgess et al. 2018, Understanding disentangling in beta-VAE).

    Args:
        weight: at least 0.
        warmup: in [0, 1].
        capacity: in nats a picture; None: without.
        capacity_share: in (0, 1].
    """

    weight: float = 1.0
    warmup: float = 0.0
    capacity: float | None = None
    capacity_share: float = 0.5

    def __post_init__(self) -> None:
        if self.capacity is not None and self.warmup:
            raise ValueError(
                f"kl_warmup={self.warmup} and capacity={self.capacity}: both are schedules of the KL term; give one"
            )

    def capacity_at(self, share: float) -> float:
        """C in nats; 0 without a capacity."""
        return 0.0 if self.capacity is None else self.capacity * min(1.0, share / self.capacity_share)

    def weight_at(self, share: float) -> float:
        """The weight of the term."""
        return self.weight * (min(1.0, share / self.warmup) if self.warmup else 1.0)

    def loss(self, kl: torch.Tensor, share: float) -> torch.Tensor:
        """The weighted term, from the KL in nats a picture, averaged over pictures."""
        if self.capacity is None:
            return self.weight_at(share) * kl
        return self.weight * (kl - self.capacity_at(share)).abs()

    def figures(self, kl: torch.Tensor, share: float) -> dict[str, torch.Tensor]:
        """What to log: `kl` in nats a picture, and `capacity`, where there is one."""
        capacity = {} if self.capacity is None else {"capacity": kl.new_tensor(self.capacity_at(share))}
        return {"kl": kl.detach(), **capacity}
