"""No bottleneck but the size of the latents: the plain autoencoder."""

from __future__ import annotations

import torch

from tokenizer_image.bottlenecks.interface import Bottleneck, BottleneckOutput, Encoded


class PlainBottleneck(Bottleneck):
    """h = f(x), the features as they are (Rumelhart, Hinton and Williams 1986; Hinton and Salakhutdinov 2006).

    Undercomplete where a picture has fewer latents than values, overcomplete where it has more: then nothing keeps the
    network from the identity but input noise or a penalty, which are the other bottlenecks.
    """

    def forward(self, encoded: Encoded) -> BottleneckOutput:
        """The features, and no loss."""
        return BottleneckOutput(encoded.features, encoded.features.new_zeros(()))

    def encode(self, features: torch.Tensor, classes: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The features (B, h, w, D)."""
        return [features]
