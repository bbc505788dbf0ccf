"""`PictureModel`: what image models have in common, whatever stands between their encoder and decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tokenizer_image.network_configuration import NetworkConfig


class PictureModel(PreTrainedModel):
    """An encoder and a decoder of pictures, saved as config.json and model.safetensors."""

    main_input_name = "pixel_values"
    config: NetworkConfig

    @classmethod
    def from_pretrained(cls, *args: Any, dtype: torch.dtype | str | None = None, **settings: Any) -> Any:
        """As transformers', but in float32 unless a dtype is asked for, also where the files have 16-bit weights: codes
        are of latents in float32."""
        return super().from_pretrained(*args, dtype=torch.float32 if dtype is None else dtype, **settings)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers' default, N(0, 0.02), lets activations vanish in deep convolutional networks. transformers
        # calls this only for modules that hold parameters directly, so a ResidualBlock never arrives here itself.
        if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            return
        if getattr(module, "starts_at_zero", False):
            nn.init.zeros_(module.weight)
        else:
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)

    def corrupted(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the encoder reads of pictures (B, C, H, W) or signals (B, C, T): in train mode with the configuration's
        input noise."""
        noise = self.config.noise() if self.training else None
        return pixel_values if noise is None else noise(pixel_values)

    def _check_pictures(self, pixel_values: torch.Tensor) -> None:
        """Raise ValueError for another number of channels, or a size that the model does not take."""
        axes = "T" if self.config.axes.dimensions == 1 else "H, W"
        if pixel_values.ndim != 2 + self.config.axes.dimensions or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)}: expected (B, {self.config.num_channels}, {axes})"
            )
        self.config.grids(size_of(pixel_values))


def size_of(pixel_values: torch.Tensor) -> tuple[int, int]:
    """(height, width) of pictures (B, C, H, W); (1, T) of signals (B, C, T)."""
    height, width = pixel_values.shape[2:] if pixel_values.ndim == 4 else (1, pixel_values.shape[2])
    return int(height), int(width)
