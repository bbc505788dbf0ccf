"""Conditional variational autoencoder: the class of a picture is known to encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tokenizer_image.bottlenecks.divergence import Gaussian, KLSchedule
from tokenizer_image.bottlenecks.gaussian import GaussianBottleneck

CONDITION_CHANNELS = 16
FEATURES_PER_LATENT = 4


class ConditionalBottleneck(GaussianBottleneck):
    """q(z | x, c) and p(x | z, c) with p(z) = N(0, 1) for every class c (Kingma et al. 2014, Semi-supervised learning
    with deep generative models, M2; Sohn, Lee and Yan 2015).

    The class is embedded as a vector. It is concatenated to the encoder's features, from which a hidden layer makes
    means and log variances; and to each latent that the decoder reads. What the class says need not be in the latents.

    Args:
        num_classes: classes are 0 .. num_classes - 1, and -1 for a picture whose class is not known, which has an
            embedding of its own.
    """

    outer_layers = ("head.2",)  # to latents; see `pipelines.training.optimizers`

    def __init__(self, code_dim: int, num_classes: int, schedule: KLSchedule | None = None) -> None:
        super().__init__(code_dim, schedule)
        self.num_classes = num_classes
        self.embedding = nn.Embedding(num_classes + 1, CONDITION_CHANNELS)
        hidden = self.encoder_channels
        self.head = nn.Sequential(
            nn.Linear(hidden + CONDITION_CHANNELS, hidden), nn.SiLU(), nn.Linear(hidden, 2 * code_dim)
        )

    @property
    def encoder_channels(self) -> int:
        """Of the features that are joined with the class, before they become means and log variances."""
        return FEATURES_PER_LATENT * self.code_dim

    @property
    def decoder_channels(self) -> int:
        """A latent and the vector of the class."""
        return self.code_dim + CONDITION_CHANNELS

    def posterior(self, features: torch.Tensor, classes: torch.Tensor | None = None) -> Gaussian:
        """q(z | x, c) from features (B, h, w, encoder_channels) and classes (B,)."""
        return Gaussian.of(self.head(self._with_class(features, classes)))

    def decoder_input(self, levels: Sequence[torch.Tensor], classes: torch.Tensor | None = None) -> torch.Tensor:
        """Latents (B, h, w, D) with the classes' vectors, (B, h, w, decoder_channels)."""
        return self._with_class(levels[-1], classes)

    def _with_class(self, values: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        """(B, h, w, n) with the class's vector behind each of its vectors; -1, or None for all, is not known."""
        batch, rows, columns, _ = values.shape
        if classes is None:
            classes = torch.full((batch,), -1, device=values.device)
        if len(classes) != batch or int(classes.min()) < -1 or int(classes.max()) >= self.num_classes:
            raise ValueError(
                f"classes {classes.tolist()[:8]} of {batch} pictures: expected one each, from 0 to "
                f"{self.num_classes - 1}, or -1 where it is not known"
            )
        vectors = self.embedding(torch.where(classes < 0, self.num_classes, classes).to(values.device))
        return torch.cat([values, vectors[:, None, None].expand(-1, rows, columns, -1).to(values)], dim=-1)
