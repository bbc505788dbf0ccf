"""Variational autoencoder: Gaussian latents with a standard normal prior."""

from __future__ import annotations

import torch

from tokenizer_image.bottlenecks.divergence import Gaussian, KLSchedule, kl_to_standard
from tokenizer_image.bottlenecks.interface import (
    Bottleneck,
    BottleneckOutput,
    Encoded,
    Grid,
    noise_like,
    sum_over_picture,
)
from tokenizer_image.quantizers.distributed import mean_over_ranks


class GaussianBottleneck(Bottleneck):
    """q(z | x) = N(m(x), s(x)^2), p(z) = N(0, 1) (Kingma and Welling 2014; Rezende, Mohamed and Wierstra 2014).

        loss = weight * KL(q(z | x) || p(z)),  z = m + s * noise

    Beside an error summed over a picture this is the negative evidence lower bound where `schedule.weight` is 1: of a
    Bernoulli decoder with cross-entropy, of a Gaussian one with variance 1/2 (for values in [-1, 1]) with squared
    error, of a Laplace one with scale 1 with absolute error. See `KLSchedule` for beta-VAE, warm-up and capacity.
    """

    has_prior = True

    def __init__(self, code_dim: int, schedule: KLSchedule | None = None) -> None:
        super().__init__(code_dim)
        self.schedule = schedule or KLSchedule()

    @property
    def encoder_channels(self) -> int:
        """Means and log variances."""
        return 2 * self.code_dim

    def posterior(self, features: torch.Tensor, classes: torch.Tensor | None = None) -> Gaussian:
        """q(z | x) from features (B, h, w, encoder_channels)."""
        return Gaussian.of(features)

    def forward(self, encoded: Encoded) -> BottleneckOutput:
        """A sample of each latent (in evaluation mode its mean), and the weighted divergence."""
        posterior = self.posterior(encoded.features, encoded.classes)
        latents = posterior.at(noise_like(posterior.mean, True)) if self.training else posterior.mean
        kl = mean_over_ranks(sum_over_picture(kl_to_standard(posterior)))
        loss, figures = self.schedule.loss(kl, encoded.share), self.schedule.figures(kl, encoded.share)
        return BottleneckOutput(self.decoder_input([latents], encoded.classes), loss, figures)

    def encode(self, features: torch.Tensor, classes: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The means (B, h, w, D)."""
        return [self.posterior(features, classes).mean]

    def sample(
        self,
        count: int,
        grid: Grid,
        generator: torch.Generator | None = None,
        classes: torch.Tensor | None = None,
        temperature: float = 1.0,
    ) -> list[torch.Tensor]:
        """N(0, temperature^2) at every place, on the generator's device (without one, the CPU)."""
        device = "cpu" if generator is None else generator.device
        return [temperature * torch.randn(count, *grid, self.code_dim, generator=generator, device=device)]
