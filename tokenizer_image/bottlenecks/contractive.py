"""Contractive autoencoder: latents that change little with the picture."""

from __future__ import annotations

import torch
from torch import nn

from tokenizer_image.bottlenecks.interface import BottleneckOutput, Encoded
from tokenizer_image.bottlenecks.plain import PlainBottleneck


class ContractiveBottleneck(PlainBottleneck):
    """loss = weight * |J|_F^2, J the Jacobian of the latents with respect to the picture (Rifai et al. 2011,
    Contractive Auto-Encoders), averaged over pictures.

    For a fully connected encoder the norm is exact. For a convolutional one it is estimated from `probes` random
    vectors: E |v^T J|^2 = |J|_F^2 for v with independent elements of -1 and 1 (Hutchinson 1990), each of which takes
    one more backward pass.

    Args:
        weight: of the penalty, beside the squared error summed over a picture.
        probes: at least 1; not used for a fully connected encoder.
    """

    needs_input_gradient = True

    def __init__(self, code_dim: int, weight: float = 0.1, probes: int = 1) -> None:
        super().__init__(code_dim)
        self.weight, self.probes = weight, probes

    def forward(self, encoded: Encoded) -> BottleneckOutput:
        """The features, and the penalty."""
        if encoded.layers is not None:
            norms = perceptron_jacobian(encoded.layers, encoded.pixel_values.flatten(1))
        else:
            norms = estimated_jacobian(encoded.features, encoded.pixel_values, self.probes, self.training)
        jacobian = norms.float().mean()
        return BottleneckOutput(encoded.features, self.weight * jacobian, {"jacobian": jacobian.detach()})


def perceptron_jacobian(layers: nn.Sequential, inputs: torch.Tensor) -> torch.Tensor:
    """|J|_F^2 of linear layers with SiLU in between, for each row of inputs (B, n): (B,) float32.

    J = W_L D_{L-1} W_{L-1} ... D_1 W_1 with D_i the diagonal of SiLU' before layer i + 1. It is built from the left,
    and never multiplied by the widest matrix, W_1: |A W_1|_F^2 = tr(A (W_1 W_1^T) A^T).
    """
    with torch.autocast(inputs.device.type, enabled=False):
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        hidden, slopes = inputs.float(), []
        for layer in linear[:-1]:
            hidden = layer(hidden)
            gate = torch.sigmoid(hidden)
            slopes.append(gate * (1 + hidden * (1 - gate)))  # SiLU'
            hidden = hidden * gate
        product = linear[-1].weight.expand(len(inputs), -1, -1)
        for layer, slope in zip(reversed(linear[1:-1]), reversed(slopes[1:]), strict=True):
            product = (product * slope[:, None, :]) @ layer.weight
        product = product * slopes[0][:, None, :] if slopes else product
        if not slopes:
            return product.square().sum(dim=(1, 2))
        gram = linear[0].weight @ linear[0].weight.mT
        return ((product @ gram) * product).sum(dim=(1, 2))


def estimated_jacobian(
    features: torch.Tensor, pixel_values: torch.Tensor, probes: int, training: bool = True
) -> torch.Tensor:
    """Hutchinson's estimate of |J|_F^2 for each picture, (B,) float32.

    Args:
        features: (B, ...), with a graph that leads to `pixel_values`; picture b's from pixel_values[b] alone.
        training: whether the estimate is differentiable and its probes random; else they have a fixed seed.
    """
    generator = None if training else torch.Generator(features.device).manual_seed(0)
    total = features.new_zeros(len(features))
    for _ in range(probes):
        bits = torch.randint(2, features.shape, generator=generator, device=features.device)
        (slope,) = torch.autograd.grad(
            features, pixel_values, (2 * bits - 1).to(features.dtype), create_graph=training, retain_graph=True
        )
        total = total + slope.float().flatten(1).square().sum(dim=1)
    return total / probes
