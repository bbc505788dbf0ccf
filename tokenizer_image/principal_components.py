"""Principal components of pictures, and the image tokenizer that consists of them (`network="components"`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tokenizer_image.networks import ComponentsDecoder, MLPEncoder
from tokenizer_image.quantizers.grouped import GroupedQuantizer

if TYPE_CHECKING:
    from tokenizer_image.vqvae import VQVAE

EXACT_SIZE = 4096  # numbers a picture up to which all components are computed; above, the leading ones
PASSES = 6  # over the covariance, of the subspace iteration


@dataclass
class PrincipalComponents:
    """Attributes:
    mean: (D,) float64.
    directions: (D, K) float64, orthonormal, by decreasing variance.
    variances: (K,) float64, with n - 1 in the denominator.
    total_variance: of all D numbers, likewise.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    total_variance: float

    def coefficients(self, flat: Tensor) -> Tensor:
        """Pictures (n, D) to coefficients (n, K) float64."""
        return (flat.double() - self.mean) @ self.directions

    def pictures(self, coefficients: Tensor) -> Tensor:
        """Coefficients (n, K) to pictures (n, D) float64."""
        return self.mean + coefficients @ self.directions.T


def fit_components(batches: Callable[[], Iterable[Tensor]], count: int, seed: int = 0) -> PrincipalComponents:
    """The leading principal components of pictures.

    Of more than `EXACT_SIZE` numbers a picture they are found by subspace iteration from random directions (Halko,
    Martinsson and Tropp 2011, algorithm 4.4).

    Args:
        batches: called several times, each time returns all pictures anew, as float (b, D).
        count: components; at most as many as there are numbers in a picture.

    Raises:
        ValueError: fewer than two pictures, or `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count={count}: at least one component is needed")
    pictures, total = 0, torch.zeros(())
    for batch in batches():
        pictures, total = pictures + len(batch), total + batch.double().sum(0)
    if pictures < 2:
        raise ValueError(f"{pictures} pictures have no principal components: give at least two")
    mean = total / pictures
    size = len(mean)
    count = min(count, size)

    def times_covariance(vectors: Tensor) -> Tensor:
        result = torch.zeros_like(vectors)
        for batch in batches():
            centred = batch.to(vectors.dtype) - mean.to(vectors.dtype)
            result += centred.T @ (centred @ vectors)
        return result / (pictures - 1)

    if size <= EXACT_SIZE:
        covariance = torch.zeros(size, size, dtype=torch.float64)
        for batch in batches():
            centred = batch.double() - mean
            covariance += centred.T @ centred
        total_variance = float(covariance.trace()) / (pictures - 1)
        values, vectors = torch.linalg.eigh(covariance / (pictures - 1))
        values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    else:
        total_variance = sum(float((batch.double() - mean).square().sum()) for batch in batches()) / (pictures - 1)
        generator = torch.Generator().manual_seed(seed)
        basis = torch.randn(size, min(size, count + max(16, count // 8)), generator=generator)
        for _ in range(PASSES):
            basis = torch.linalg.qr(times_covariance(basis)).Q
        values, inner = torch.linalg.eigh((basis.T @ times_covariance(basis)).double())
        values, vectors = values.flip(0)[:count], (basis.double() @ inner.flip(1))[:, :count]
    return PrincipalComponents(mean, vectors.contiguous(), values.clamp(min=0), total_variance)


def water_filling(variances: np.ndarray, bits: float) -> tuple[np.ndarray, float]:
    """Bits for each of K independent Gaussian numbers that make their squared error least (Cover and Thomas 2006,
    theorem 10.3.3): R_k = max(0, log2(variance_k / level) / 2), with the level at which they add up to `bits`.

    Args:
        variances: (K,), at least one above zero.

    Returns:
        R, (K,) float64, and the level: the error of number k is min(level, variance_k).

    Raises:
        ValueError: negative bits, or no variance above zero.
    """
    if bits < 0 or not (variances > 0).any():
        raise ValueError(
            f"bits={bits} for {(variances > 0).sum()} numbers that vary: give at least 0 bits, and a number"
        )
    logs = np.sort(np.log2(variances[variances > 0]))[::-1]
    levels = (np.cumsum(logs) - 2 * bits) / np.arange(1, len(logs) + 1)  # if exactly the first k have bits
    # The level falls as long as the next number still lies above it.
    used = int(np.argmax(np.append(logs[1:] <= levels[:-1], True)))
    level = 2.0 ** levels[used]
    rates = np.zeros(len(variances))
    above = variances > level
    rates[above] = np.log2(variances[above] / level) / 2
    return rates, float(level)


def deal_components(variances: np.ndarray, bits: Sequence[float], width: int) -> list[list[int]]:
    """Which components each part of a quantizer gets: the bits that `water_filling` gives them add up to about those of
    the part.

    Each component, by decreasing variance, goes to the part that has the most bits left, of those with fewer than
    `width` components. So a part of large components has few that are worth bits, and the rest of its width is filled
    with components that are worth none. Ge et al. 2013 ("Optimized product quantization") balance the products of
    variances in place of bits, which spends bits on components that are not worth any.

    Args:
        variances: (K,), decreasing, K at most `width` times the number of parts.
        bits: of each part.
        width: components of a part, at most.

    Returns:
        Numbers of components, for each part.
    """
    left = np.asarray(bits, dtype=np.float64).copy()
    rates, _ = water_filling(variances, float(left.sum()))
    dealt: list[list[int]] = [[] for _ in bits]
    for component, rate in enumerate(rates):
        open_ones = np.array([len(one) < width for one in dealt])
        chosen = int(np.where(open_ones, left, -np.inf).argmax())
        dealt[chosen].append(component)
        left[chosen] -= rate
    return dealt


@torch.no_grad()
def start_from_components(tokenizer: VQVAE, batches: Callable[[], Iterable[Tensor]], sample: Iterable[Tensor]) -> None:
    """Give a tokenizer of network "components" those of pictures as its weights, and codebooks fitted to their
    coefficients by k-means.

    Its latents are then the coefficients of `config.code_dim` components, dealt to the codebooks of "grouped" by
    `deal_components`, and its error is that of the codebooks alone (Jegou et al. 2011, product quantization).

    Args:
        batches: called several times, each time returns all training pictures anew, as float (b, C, H, W) in [-1, 1].
        sample: batches of those of them that codebooks are fitted to.

    Raises:
        ValueError: fewer than two pictures.
    """
    config = tokenizer.config
    components = fit_components(lambda: (batch.flatten(1) for batch in batches()), config.code_dim)
    quantizer = tokenizer.quantizer
    parts = quantizer.quantizers if isinstance(quantizer, GroupedQuantizer) else [quantizer]
    bits = [sum(math.log2(size) for size in part.codebook_sizes) for part in parts]
    dealt = deal_components(components.variances.numpy(), bits, config.code_dim // len(parts))
    directions = components.directions[:, [component for one in dealt for component in one]]
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    assert isinstance(encoder, MLPEncoder) and isinstance(decoder, ComponentsDecoder)
    encoder.layers[0].load_state_dict({"weight": directions.T, "bias": -components.mean @ directions})
    decoder.linear.layers[0].load_state_dict({"weight": directions, "bias": components.mean})
    quantizer.train()
    quantizer(torch.cat([encoder(batch) for batch in sample]).movedim(1, -1))
    quantizer.eval()
