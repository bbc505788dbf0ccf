"""k-sparse autoencoder: the k largest latents are kept."""

from __future__ import annotations

import torch

from tokenizer_image.bottlenecks.interface import Bottleneck, BottleneckOutput, Encoded, hoyer_sparsity


class KSparseBottleneck(Bottleneck):
    """h = f(x) with all but its k largest elements set to zero (Makhzani and Frey 2013, k-Sparse Autoencoders).

    In training k elements of each latent are kept, at encoding round(alpha * k): fewer would leave out parts that the
    decoder has learned, and some more make better features. Where latents have positions, k of each position are kept.

    Args:
        k: at least 1, at most `code_dim`.
        alpha: at least 1.
    """

    def __init__(self, code_dim: int, k: int | None = None, alpha: float = 1.0) -> None:
        super().__init__(code_dim)
        k = max(1, code_dim // 4) if k is None else k
        if not 1 <= k <= code_dim:
            raise ValueError(f"k={k} of code_dim={code_dim} latents cannot be kept: choose 1 to {code_dim}")
        self.k, self.alpha = k, alpha

    def forward(self, encoded: Encoded) -> BottleneckOutput:
        """The k largest elements of each latent; the gradient reaches them alone. There is no penalty."""
        latents = keep_largest(encoded.features, self.k)
        return BottleneckOutput(latents, latents.new_zeros(()), {"sparsity": hoyer_sparsity(latents)})

    def encode(self, features: torch.Tensor, classes: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The alpha * k largest elements of each latent, (B, h, w, D)."""
        return [keep_largest(features, min(self.code_dim, round(self.alpha * self.k)))]


def keep_largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """(..., D) with all but the k largest elements of the last dimension set to 0; exactly k where some are equal."""
    places = values.topk(k, dim=-1).indices
    return values * torch.zeros_like(values).scatter(-1, places, 1.0)
