"""`Autoencoder`: pictures to continuous latents and back, through any bottleneck that is no quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from tokenizer_image.autoencoder_configuration import AutoencoderConfig
from tokenizer_image.bottlenecks.interface import Bottleneck, BottleneckOutput, Encoded
from tokenizer_image.bottlenecks.kinds import Surroundings, build_bottleneck
from tokenizer_image.hierarchy import level_networks
from tokenizer_image.losses.reconstruction import pixel_error
from tokenizer_image.networks import (
    Decoder,
    Encoder,
    MLPDecoder,
    MLPEncoder,
    WholePictureDecoder,
    WholePictureEncoder,
)
from tokenizer_image.picture_model import PictureModel
from tokenizer_image.stack import decoder_layers, encoder_layers

PICTURE_CHANNELS = 32  # per position, between a convolutional network and a latent of the whole picture


@dataclass
class AutoencoderOutput(ModelOutput):
    """What `Autoencoder.forward` returns.

    Attributes:
        loss: scalar, `reconstruction_loss + bottleneck_loss`.
        reconstruction: (B, C, H, W), about [-1, 1], not clipped; None where a layer learns alone.
        reconstruction_loss: scalar, the configuration's `reconstruction_loss`, a mean over values.
        bottleneck_loss: scalar, the bottleneck's loss, already weighted, over the number of a picture's values.
        figures: scalars of the bottleneck, and `latent_norm`, the mean Euclidean norm of what the decoder reads.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    bottleneck_loss: torch.Tensor | None = None
    figures: dict[str, torch.Tensor] | None = None


class Autoencoder(PictureModel):
    """An encoder, a bottleneck and a decoder: plain, sparse, k-sparse, contractive, denoising, or variational.

    It has no codes, so that no language model can draw with it; a `VQVAE` has.

    Raises:
        ValueError: options that the bottleneck does not take.
    """

    config_class = AutoencoderConfig
    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.bottleneck: Bottleneck = build_bottleneck(
            config.bottleneck, config.code_dim, config.bottleneck_options, _surroundings(config)
        )
        channels = (self.bottleneck.encoder_channels, self.bottleneck.decoder_channels)
        self.encoder, self.decoder = _perceptrons(config, *channels) if config.network == "mlp" else _convolutional(
            config, *channels
        )  # fmt: skip
        self.post_init()

    def _encoded(self, pixel_values: torch.Tensor, classes: torch.Tensor | None = None, share: float = 1.0) -> Encoded:
        """What the bottleneck reads of pictures (B, C, H, W)."""
        self._check_pictures(pixel_values)
        layers = self.encoder.layers if isinstance(self.encoder, MLPEncoder) else None
        differentiates = self.bottleneck.needs_input_gradient and layers is None
        with torch.enable_grad() if differentiates else nullcontext():
            if differentiates:
                pixel_values = pixel_values.detach().requires_grad_()
            features = self.encoder(pixel_values).permute(0, 2, 3, 1).float()
        return Encoded(features, pixel_values, layers, classes, share)

    def _outputs(self, latents: torch.Tensor) -> torch.Tensor:
        """The decoder's outputs for what it reads, (B, h, w, decoder_channels): values about [-1, 1], or logits."""
        return self.decoder(latents.permute(0, 3, 1, 2).to(next(self.decoder.parameters()).dtype)).float()

    def _pictures(self, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs as pixel values: 2 sigmoid(logit) - 1 = tanh(logit / 2) for logits."""
        return torch.tanh(outputs / 2) if self.config.reconstruction_loss == "cross_entropy" else outputs

    def forward(
        self,
        pixel_values: torch.Tensor,
        classes: torch.Tensor | None = None,
        share: float = 1.0,
        layer: int | None = None,
    ) -> AutoencoderOutput:
        """Reconstruct pictures (B, C, H, W) in [-1, 1]; in train mode from corrupted ones, where the configuration has
        input noise, and through samples of the latents, where the bottleneck has some.

        Args:
            classes: (B,) int64, places in the configuration's `class_names`, -1 where the class is not known.
            share: of the training budget that is spent, in [0, 1], which schedules follow.
            layer: the one that learns alone, 0 .. num_layers - 1; see `_layer_alone`.

        Raises:
            ValueError: another number of channels, a size that the model does not take, or classes out of range.
        """
        if layer is not None:
            return self._layer_alone(pixel_values, layer, share)
        passed: BottleneckOutput = self.bottleneck(self._encoded(self.corrupted(pixel_values), classes, share))
        outputs = self._outputs(passed.latents)
        error = pixel_error(self.config.reconstruction_loss, pixel_values, outputs)
        penalty = passed.loss / pixel_values[0].numel()
        norm = passed.latents.detach().norm(dim=-1).mean()
        return AutoencoderOutput(
            loss=error + penalty,
            reconstruction=self._pictures(outputs),
            reconstruction_loss=error,
            bottleneck_loss=penalty,
            figures={**passed.figures, "latent_norm": norm},
        )

    @property
    def num_layers(self) -> int:
        """Layers that can learn alone, one after another."""
        return len(encoder_layers(self.encoder))

    def _layer_alone(self, pixel_values: torch.Tensor, layer: int, share: float) -> AutoencoderOutput:
        """A pair of layers as an autoencoder of its own (Bengio et al. 2007; Vincent et al. 2010; Masci et al. 2011).

        It reconstructs what the layers before it make of clean pictures, by squared error (the first one the pictures,
        by the model's own loss), with input noise on what it reads. The bottleneck is the last layer's.
        """
        self._check_pictures(pixel_values)
        encoders, decoders = encoder_layers(self.encoder), decoder_layers(self.decoder)
        target = pixel_values
        with torch.no_grad():
            for before in encoders[:layer]:
                target = before(target)
        noise = self.config.noise() if self.training else None
        hidden = encoders[layer](target if noise is None else noise(target, is_picture=layer == 0))
        penalty, figures = hidden.new_zeros(()), {}
        if layer == len(encoders) - 1:
            passed: BottleneckOutput = self.bottleneck(Encoded(hidden.permute(0, 2, 3, 1).float(), target, share=share))
            penalty, figures = passed.loss / target[0].numel(), passed.figures
            hidden = passed.latents.permute(0, 3, 1, 2).to(hidden.dtype)
        kind = self.config.reconstruction_loss if layer == 0 else "squared"
        error = pixel_error(kind, target, decoders[layer](hidden))
        return AutoencoderOutput(
            loss=error + penalty,
            reconstruction_loss=error,
            bottleneck_loss=penalty,
            figures={**figures, "layer": error.new_tensor(layer), "layer_error": error.detach()},
        )

    @torch.no_grad()
    def measure(self, pixel_values: torch.Tensor, classes: torch.Tensor | None = None) -> dict[str, float]:
        """The bottleneck's figures for pictures (B, C, H, W) in [-1, 1], such as `kl` in nats a picture."""
        passed: BottleneckOutput = self.bottleneck(self._encoded(pixel_values, classes))
        return {name: float(value) for name, value in passed.figures.items()}

    @torch.no_grad()
    def latents(self, pixel_values: torch.Tensor, classes: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Pictures (B, C, H, W) in [-1, 1] to each level's latents (B, h, w, code_dim) float32, coarse to fine, without
        noise: a variational bottleneck's are means.

        Raises:
            ValueError: as `forward`.
        """
        self._check_pictures(pixel_values)
        features = self.encoder(pixel_values).permute(0, 2, 3, 1).float()
        return self.bottleneck.encode(features, classes)

    @torch.no_grad()
    def decode(
        self, levels: Sequence[torch.Tensor] | torch.Tensor, classes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Latents, as `latents` or `sample_latents` return them, to pictures (B, C, H, W) in [-1, 1].

        Args:
            levels: coarse to fine, or one tensor for a single level. Finer levels that are left out are at the mean of
                their prior.
            classes: (B,) int64, of a conditional bottleneck.

        Raises:
            ValueError: more levels than the model has, latents of another size, or classes out of range.
        """
        levels = [levels] if isinstance(levels, torch.Tensor) else list(levels)
        if not 1 <= len(levels) <= self.config.num_levels or levels[0].shape[-1] != self.config.code_dim:
            shapes = [tuple(level.shape) for level in levels]
            raise ValueError(
                f"latents of shapes {shapes}: expected at most {self.config.num_levels} levels, coarse to fine, of (B, "
                f"h, w, {self.config.code_dim})"
            )
        read = self.bottleneck.decoder_input([level.to(self.device) for level in levels], classes)
        return self._pictures(self._outputs(read)).clamp(-1, 1)

    def reconstruct(self, pixel_values: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        """Pictures (B, C, H, W) to their reconstructions in [-1, 1], without noise."""
        return self.decode(self.latents(pixel_values, classes), classes)

    @torch.no_grad()
    def sample_latents(
        self,
        count: int,
        generator: torch.Generator | None = None,
        classes: torch.Tensor | None = None,
        temperature: float = 1.0,
        image_size: int | tuple[int, int] | None = None,
    ) -> list[torch.Tensor]:
        """Latents of `count` pictures from the prior, for `decode`, each level (count, h, w, code_dim).

        Args:
            temperature: the prior's standard deviation is multiplied by it.

        Raises:
            ValueError: the bottleneck has no prior.
        """
        grid = self.config.grids(image_size)[-1]
        return self.bottleneck.sample(count, grid, generator, classes, temperature)


def squared_error(output: AutoencoderOutput, pixel_values: torch.Tensor) -> torch.Tensor:
    """Mean squared error of a reconstruction on [-1, 1], whatever it was trained by."""
    assert output.reconstruction is not None
    return F.mse_loss(output.reconstruction.detach().float(), pixel_values.float())


def _surroundings(config: AutoencoderConfig) -> Surroundings:
    """What the bottleneck has to know beside the size of a latent, with a hierarchy's networks."""
    if config.num_levels == 1:
        return Surroundings(len(config.class_names))
    channels, count = config.hidden_sizes[-1], config.num_levels - 1
    read = config.code_dim if config.bottleneck_options.get("inference") == "bottom_up" else channels
    between = (config.num_res_blocks, count, config.level_scale)
    return Surroundings(
        channels=channels,
        ups=level_networks(read, channels, *between, up=True),
        downs=level_networks(config.code_dim, channels, *between, up=False),
        scale=config.level_scale,
    )


def _perceptrons(config: AutoencoderConfig, encoder: int, decoder: int) -> tuple[nn.Module, nn.Module]:
    """The MLP pair, with so many channels at its inner ends."""
    sizes = (config.num_channels, config.image_size, config.grids()[-1], config.hidden_sizes)
    first = MLPEncoder(*sizes, encoder)
    return first, MLPDecoder(*sizes, decoder, tied_to=first if config.tied_weights else None)


def _convolutional(config: AutoencoderConfig, encoder: int, decoder: int) -> tuple[nn.Module, nn.Module]:
    """The convolutional pair, with so many channels at its inner ends."""
    shape, kernel = config.network_shape, config.encoder_kernel_size
    if config.latents == "positions":
        return Encoder(shape, encoder, kernel_size=kernel), Decoder(shape, decoder)
    channels, grid = PICTURE_CHANNELS, config.feature_grid()
    return (
        WholePictureEncoder(Encoder(shape, channels, kernel_size=kernel), channels, grid, encoder),
        WholePictureDecoder(Decoder(shape, channels), channels, grid, decoder),
    )
