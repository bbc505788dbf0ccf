"""An encoder and a decoder as pairs of layers, each of which can learn alone: a stacked autoencoder."""

from __future__ import annotations

from torch import nn

from tokenizer_image.networks import (
    Decoder,
    Encoder,
    MLPDecoder,
    MLPEncoder,
    WholePictureDecoder,
    WholePictureEncoder,
)

MODULES_PER_RESOLUTION = 3  # of a decoder: two that double the resolution, and its residual blocks


def encoder_layers(encoder: nn.Module) -> list[nn.Sequential]:
    """The layers of an encoder, from pictures to latents; one after another they are the encoder.

    A layer of a convolutional encoder is a resolution: a strided convolution and its residual blocks.

    Raises:
        TypeError: a network that is none of `tokenizer_image.networks`.
    """
    if isinstance(encoder, WholePictureEncoder):
        last = nn.Sequential(nn.SiLU(), nn.Flatten(), encoder.to_latents, nn.Unflatten(1, (-1, 1, 1)))
        return [*encoder_layers(encoder.encoder), last]
    if isinstance(encoder, Encoder):
        stages = list(encoder.stages)
        first = nn.Sequential(encoder.stem, stages[0])
        inner = [nn.Sequential(*stages[at : at + 2]) for at in range(1, len(stages), 2)]
        return [first, *inner, nn.Sequential(encoder.norm, nn.SiLU(), encoder.head)]
    if isinstance(encoder, MLPEncoder):
        return _perceptron_layers(encoder.layers, encoder.shape)
    raise TypeError(f"{type(encoder).__name__} has no layers that can learn alone")


def decoder_layers(decoder: nn.Module) -> list[nn.Sequential]:
    """The layers of a decoder, each in the place of the encoder's layer whose input it reconstructs; in reverse order,
    one after another, they are the decoder.

    Raises:
        TypeError: as `encoder_layers`.
    """
    if isinstance(decoder, WholePictureDecoder):
        last = nn.Sequential(nn.Flatten(), decoder.from_latents, nn.Unflatten(1, decoder.shape))
        *others, inner = decoder_layers(decoder.decoder)
        return [*others, nn.Sequential(nn.SiLU(), *inner), last]
    if isinstance(decoder, Decoder):
        stages, step = list(decoder.stages), MODULES_PER_RESOLUTION
        coarsest = nn.Sequential(decoder.stem, stages[0])
        inner_layers = [nn.Sequential(*stages[at : at + step]) for at in range(1, len(stages), step)]
        ends = (decoder.shuffle, decoder.head) if decoder.overlaps else (decoder.head, decoder.shuffle)
        pixels = nn.Sequential(decoder.norm, nn.SiLU(), *ends, nn.SiLU(), decoder.to_pixels)
        return [pixels, *reversed(inner_layers), coarsest]
    if isinstance(decoder, MLPDecoder):
        return _perceptron_layers(decoder.layers, decoder.shape)[::-1]
    raise TypeError(f"{type(decoder).__name__} has no layers that can learn alone")


def _perceptron_layers(layers: nn.Sequential, shape: tuple[int, ...]) -> list[nn.Sequential]:
    """Each linear layer, with the SiLU before it; the first flattens, the last gives `shape`."""
    modules = list(layers)  # linear, SiLU, linear, ..., linear
    found = [[nn.Flatten(), modules[0]], *(modules[at : at + 2] for at in range(1, len(modules), 2))]
    found[-1] = [*found[-1], nn.Unflatten(1, shape)]
    return [nn.Sequential(*part) for part in found]
