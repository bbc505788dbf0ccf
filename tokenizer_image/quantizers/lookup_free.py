"""Lookup-free quantization: the signs of a latent are its code."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tokenizer_image.quantizers.distributed import check_finite, mean_over_ranks
from tokenizer_image.quantizers.estimators import straight_through_with_loss
from tokenizer_image.quantizers.interface import Quantizer, QuantizerOutput, check_range, check_values

JOINT_BITS = 16  # bits whose joint distribution is computed exactly, from 2 x 2^8 probabilities per latent


class LookupFreeQuantizer(Quantizer):
    """One bit per element of a latent: its sign (Yu et al. 2023, MAGVIT-v2, LFQ).

    With `spherical`, latents are normalised to the unit sphere and the corners of the cube are scaled to lie on it,
    too (Zhao et al. 2024, BSQ), which bounds the quantization error.

    The entropy loss is low if each latent's code is certain and if all codes are equally frequent:

        entropy_weight * (E[H(p(c | z))] - diversity * H(E[p(c | z)])),   p(c | z) ~ exp(-|z - c|^2 / T)

    with T the `entropy_temperature`. Given z, the bits are independent, P(bit i = 1) = sigmoid(4 a z_i / T) with a the
    absolute value of a corner's elements, so the first term is exactly a sum over bits. The second is exact for up to
    16 bits: with A and B the distributions of the two halves of the bits, (N, 2^(bits / 2)) for N latents, the joint
    distribution is A^T B / N, one small matrix product. Beyond 16 bits, groups of 16 bits are taken as independent
    (BSQ, section 3.3, takes single bits as independent).

    Args:
        num_bits: elements of a latent; there are 2^num_bits codes.
        spherical: BSQ.
        commitment_weight: weight of |latents - sg(quantized)|^2; default 0.25, and 0 with `spherical`, where
            normalisation already bounds the latents.
        entropy_weight: weight of the entropy loss, which is a mean over bits: 1 for 12 bits weighs the entropy of
            whole codes by 1 / 12, about as the paper does.
        diversity: weight of the second term.
        entropy_temperature: T, above 0.

    Raises:
        ValueError: `num_bits` outside 1 .. 30, a negative weight, a temperature that is not positive.
    """

    def __init__(
        self,
        num_bits: int,
        *,
        spherical: bool = False,
        commitment_weight: float | None = None,
        entropy_weight: float = 1.0,
        diversity: float = 1.0,
        entropy_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not 1 <= num_bits <= 30:
            raise ValueError(f"num_bits={num_bits}: choose 1 to 30 (2 to 1,073,741,824 codes)")
        if commitment_weight is None:
            commitment_weight = 0.0 if spherical else 0.25
        weights = {"commitment_weight": commitment_weight, "entropy_weight": entropy_weight, "diversity": diversity}
        check_values({"entropy_temperature": entropy_temperature, **weights})
        self.code_dim = num_bits
        self.spherical = spherical
        self.commitment_weight = commitment_weight
        self.entropy_weight = entropy_weight
        self.diversity = diversity
        self.entropy_temperature = entropy_temperature
        self.corner = num_bits**-0.5 if spherical else 1.0

    @property
    def codebook_sizes(self) -> list[int]:
        return [2**self.code_dim]

    def prepare(self, latents: torch.Tensor) -> torch.Tensor:
        return F.normalize(latents.float(), dim=-1) if self.spherical else latents.float()

    def pack(self, bits: torch.Tensor) -> torch.Tensor:
        """Bits (..., code_dim) bool to codes (..., 1) int64, the first bit the least significant."""
        return (bits.long() << torch.arange(self.code_dim, device=bits.device)).sum(-1, keepdim=True)

    def corners(self, bits: torch.Tensor) -> torch.Tensor:
        """Bits (..., code_dim) bool to quantized (..., code_dim) float32, each element `corner` or `-corner`."""
        return torch.where(bits, self.corner, -self.corner)

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.pack(latents > 0)

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        check_range(codes, 2**self.code_dim)
        quantized = self.corners((codes >> torch.arange(self.code_dim, device=codes.device)) & 1 == 1)
        return quantized if absent is None else torch.where(absent, torch.zeros_like(quantized), quantized)

    def code_vectors(self) -> list[torch.Tensor]:
        return [self.decode(torch.arange(2**self.code_dim)[:, None])]

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim)."""
        if self.learns:
            check_finite(latents)
        vectors = self.prepare(latents)
        bits = vectors > 0
        corners = self.corners(bits)
        quantized, distance = straight_through_with_loss(vectors, corners)
        loss = self.commitment_weight * distance
        if self.training and self.entropy_weight:
            loss = loss + self.entropy_weight * self.entropy_loss(vectors.reshape(-1, self.code_dim))
        return QuantizerOutput(quantized, self.pack(bits), loss)

    def entropy_loss(self, vectors: torch.Tensor) -> torch.Tensor:
        """The entropy loss of vectors (N, code_dim), without its weight, in nats per bit."""
        logits = vectors * (4 * self.corner / self.entropy_temperature)
        ones = torch.sigmoid(logits)
        # H(p) = softplus(x) - p x, with p = sigmoid(x)
        conditional = (F.softplus(logits) - ones * logits).sum(1).mean()
        marginal = logits.new_zeros(())
        for group in ones.split(JOINT_BITS, dim=1):
            half = group.shape[1] // 2
            with torch.autocast(group.device.type, enabled=False):  # small probabilities need float32
                mean = _joint(group[:, :half]).t() @ _joint(group[:, half:]) / len(group)
            mean = mean_over_ranks(mean)
            # A combination of probability 0 adds nothing; the clamp keeps its gradient finite.
            marginal = marginal - torch.xlogy(mean, mean.clamp(min=torch.finfo(mean.dtype).tiny)).sum()
        return (conditional - self.diversity * marginal) / self.code_dim


def _joint(ones: torch.Tensor) -> torch.Tensor:
    """P(bit = 1) of independent bits, (N, b), to the probability of each combination, (N, 2^b)."""
    joint = ones.new_ones(len(ones), 1)
    for bit in ones.unbind(1):
        joint = torch.cat([joint * (1 - bit[:, None]), joint * bit[:, None]], dim=1)
    return joint
