"""Hierarchical variational autoencoder: two or three levels of Gaussian latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tokenizer_image.bottlenecks.divergence import Gaussian, KLSchedule, kl_between, kl_to_standard
from tokenizer_image.bottlenecks.interface import (
    Bottleneck,
    BottleneckOutput,
    Encoded,
    Grid,
    noise_like,
    sum_over_picture,
)
from tokenizer_image.quantizers.distributed import mean_over_ranks

INFERENCES = ("top_down", "bottom_up")


class HierarchicalBottleneck(Bottleneck):
    """p(z_1 .. z_L) = p(z_L) p(z_{L-1} | z_L) ... p(z_1 | z_2), z_1 the finest, which alone the decoder reads.

    inference "bottom_up" (Rezende, Mohamed and Wierstra 2014; Burda et al. 2016): q(z_1 | x) q(z_2 | z_1) ..., each
    level inferred from a sample of the finer one. The divergence of a level but the coarsest is estimated by that
    sample, log q(z_l | .) - log p(z_l | z_{l+1}).

    inference "top_down" (ladder VAE, Sonderby et al. 2016): features d_1 = f(x), d_{l+1} = up(d_l) go up without noise;
    then, coarse to fine, what the features say of z_l, N(m, s^2), is combined with the prior N(p, t^2) by precisions,

        q(z_l | z_{l+1}, x) = N((m / s^2 + p / t^2) / (1 / s^2 + 1 / t^2), 1 / (1 / s^2 + 1 / t^2)),

    and every divergence is in closed form. loss = weight * sum_l KL_l.

    Args:
        channels: of the features at every level.
        ups: L - 1 networks, fine to coarse: features ("top_down", of `channels`) or latents ("bottom_up", of
            `code_dim`) to features of the next coarser level, channels first.
        downs: L - 1 networks, coarse to fine: latents to features of the next finer level's prior, channels first.
        inference: "top_down" or "bottom_up".
        scale: how many times finer each level's grid is than that of the next coarser one: 2, or 1.
    """

    has_prior = True

    def __init__(
        self,
        code_dim: int,
        channels: int,
        ups: Sequence[nn.Module],
        downs: Sequence[nn.Module],
        inference: str = "top_down",
        schedule: KLSchedule | None = None,
        scale: int = 2,
    ) -> None:
        super().__init__(code_dim)
        self.channels, self.inference, self.scale = channels, inference, scale
        self.schedule = schedule or KLSchedule()
        self.num_levels = len(ups) + 1
        self.ups, self.downs = nn.ModuleList(ups), nn.ModuleList(downs)
        self.heads = nn.ModuleList(nn.Linear(channels, 2 * code_dim) for _ in range(self.num_levels))  # fine to coarse
        self.priors = nn.ModuleList(nn.Linear(channels, 2 * code_dim) for _ in downs)  # coarse to fine
        self.outer_layers = tuple(
            f"{name}.{index}" for name, part in (("heads", self.heads), ("priors", self.priors))
            for index in range(len(part))
        )  # fmt: skip

    @property
    def encoder_channels(self) -> int:
        """Of the features."""
        return self.channels

    def forward(self, encoded: Encoded) -> BottleneckOutput:
        """Samples of the finest latents, and the weighted divergence of all levels."""
        levels, kls = self._infer(encoded.features, samples=True)
        kls = [mean_over_ranks(kl) for kl in kls]
        kl = torch.stack(kls).sum()
        figures = self.schedule.figures(kl, encoded.share)
        figures |= {f"kl_level{level}": one.detach() for level, one in enumerate(kls)}
        return BottleneckOutput(levels[-1], self.schedule.loss(kl, encoded.share), figures)

    def encode(self, features: torch.Tensor, classes: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Means, coarse to fine, each given the means that its level is inferred from."""
        return self._infer(features, samples=False)[0]

    def decoder_input(self, levels: Sequence[torch.Tensor], classes: torch.Tensor | None = None) -> torch.Tensor:
        """The finest latents; where coarse ones alone are given, the means of the finer levels given these."""
        latents = levels[-1]
        for level in range(len(levels) - 1, self.num_levels - 1):
            latents = self.prior(level, latents).mean
        return latents

    def sample(
        self,
        count: int,
        grid: Grid,
        generator: torch.Generator | None = None,
        classes: torch.Tensor | None = None,
        temperature: float = 1.0,
    ) -> list[torch.Tensor]:
        """z_L from N(0, 1), then each finer level given the next coarser one."""
        device = "cpu" if generator is None else generator.device
        factor = self.scale ** (self.num_levels - 1)
        shape = (count, grid[0] // factor, grid[1] // factor, self.code_dim)
        levels = [temperature * torch.randn(shape, generator=generator, device=device)]
        for level in range(self.num_levels - 1):
            prior = self.prior(level, levels[-1].to(self.priors[0].weight.device))  # type: ignore[arg-type]
            noise = torch.randn(prior.mean.shape, generator=generator, device=device)
            levels.append(prior.at(temperature * noise.to(prior.mean)))
        return levels

    def prior(self, level: int, coarser: torch.Tensor) -> Gaussian:
        """p of level + 1 (0 is the coarsest) given the latents (B, h, w, D) of `level`."""
        return Gaussian.of(self.priors[level](_channel_last(self.downs[level](_channels_first(coarser)))))

    def _infer(self, features: torch.Tensor, *, samples: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Each level's latents, and its divergence in nats a picture, coarse to fine."""
        if self.inference == "top_down":
            return self._top_down(features, samples)
        return self._bottom_up(features, samples)

    def _top_down(self, features: torch.Tensor, samples: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        hidden = [features]
        for up in self.ups:
            hidden.append(_channel_last(up(_channels_first(hidden[-1]))))
        posterior = Gaussian.of(self.heads[-1](hidden.pop()))
        kls = [sum_over_picture(kl_to_standard(posterior))]
        levels = [self._draw(posterior, samples)]
        for level in range(self.num_levels - 1):
            prior = self.prior(level, levels[-1])
            seen = Gaussian.of(self.heads[self.num_levels - 2 - level](hidden.pop()))
            posterior = combined(seen, prior)
            kls.append(sum_over_picture(kl_between(posterior, prior)))
            levels.append(self._draw(posterior, samples))
        return levels, kls

    def _bottom_up(self, features: torch.Tensor, samples: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        posteriors = [Gaussian.of(self.heads[0](features))]
        drawn = [self._draw(posteriors[0], samples)]
        for up, head in zip(self.ups, list(self.heads)[1:], strict=True):
            posteriors.append(Gaussian.of(head(_channel_last(up(_channels_first(drawn[-1]))))))
            drawn.append(self._draw(posteriors[-1], samples))
        posteriors, levels = posteriors[::-1], drawn[::-1]  # coarse to fine
        kls = [sum_over_picture(kl_to_standard(posteriors[0]))]
        for level, posterior in enumerate(posteriors[1:]):
            values = levels[level + 1]
            ratio = posterior.log_density(values) - self.prior(level, levels[level]).log_density(values)
            kls.append(sum_over_picture(ratio))
        return levels, kls

    def _draw(self, posterior: Gaussian, samples: bool) -> torch.Tensor:
        return posterior.at(noise_like(posterior.mean, self.training)) if samples else posterior.mean


def combined(one: Gaussian, other: Gaussian) -> Gaussian:
    """The product of two Gaussians, normalised: precisions add up, and weight the means (Sonderby et al. 2016)."""
    precision = (-one.log_variance).exp() + (-other.log_variance).exp()
    weighted = one.mean * (-one.log_variance).exp() + other.mean * (-other.log_variance).exp()
    return Gaussian(weighted / precision, -precision.log())


def _channels_first(values: torch.Tensor) -> torch.Tensor:
    return values.permute(0, 3, 1, 2)


def _channel_last(values: torch.Tensor) -> torch.Tensor:
    return values.permute(0, 2, 3, 1).float()
