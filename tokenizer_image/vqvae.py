"""The image tokenizer: pictures to rows of integers and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from tokenizer_image.configuration import VQVAEConfig
from tokenizer_image.layout import CodeLayout, build_layout
from tokenizer_image.networks import Decoder, Encoder, MLPDecoder, MLPEncoder
from tokenizer_image.quantizers import Quantizer, QuantizerOutput, build_quantizer

# The configuration that changes which codes a picture gets, beside the weights.
FINGERPRINT_FIELDS = (
    "image_size",
    "num_channels",
    "network",
    "patch_size",
    "hidden_sizes",
    "quantizer",
    "codebook_sizes",
    "preprocessing",
)


@dataclass
class VQVAEOutput(ModelOutput):
    """What `VQVAE.forward` returns.

    Attributes:
        loss: scalar, reconstruction plus commitment.
        reconstruction: (B, C, H, W), about [-1, 1], not clipped.
        codes: (B, T) int64.
        reconstruction_loss: scalar, mean squared error on [-1, 1].
        commitment_loss: scalar, weighted.
        revived: dead codes replaced in this step.
        latent_norm: scalar, mean Euclidean norm of the latents.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    revived: int | None = None
    latent_norm: torch.Tensor | None = None


class VQVAE(PreTrainedModel):
    """Vector-quantized autoencoder (van den Oord et al. 2017), with any kind of quantizer."""

    config_class = VQVAEConfig
    main_input_name = "pixel_values"
    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        if config.network == "mlp":
            sizes = (config.num_channels, config.image_size, config.grid(), config.hidden_sizes, config.code_dim)
            self.encoder: nn.Module = MLPEncoder(*sizes)
            self.decoder: nn.Module = MLPDecoder(*sizes)
        else:
            shape = (
                config.num_channels, config.patch_size, config.hidden_sizes, config.num_res_blocks, config.code_dim
            )  # fmt: skip
            self.encoder = Encoder(*shape, kernel_size=config.encoder_kernel_size)
            self.decoder = Decoder(*shape)
        self.quantizer: Quantizer = build_quantizer(
            config.quantizer, config.codebook_sizes, config.code_dim, config.quantizer_options
        )
        config.codebook_sizes = self.quantizer.codebook_sizes  # finite_scalar cannot have every size
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers' default, N(0, 0.02), starves deep convolutions. Of a model that is not its own, transformers
        # passes only modules with weights of their own, so a ResidualBlock cannot be asked for here.
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Conv2d):
            if getattr(module, "starts_at_zero", False):
                nn.init.zeros_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def num_codes(self) -> int:
        """The language model sees one alphabet, 0 .. num_codes - 1: each codebook has its own range."""
        return self.quantizer.codebook_size

    @property
    def tokens_per_image(self) -> int:
        """Codes of a picture of the default size."""
        return len(self.layout())

    @property
    def fingerprint(self) -> str:
        """Hash of the float32 weights and of the settings that change codes; never of versions or paths."""
        digest = hashlib.sha256()
        settings = {name: getattr(self.config, name) for name in FINGERPRINT_FIELDS}
        digest.update(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def code_vectors(self) -> torch.Tensor:
        """(num_codes, code_dim) float32: what each code alone adds to a quantized latent."""
        vectors = self.quantizer.code_vectors()
        return vectors[0] if self.quantizer.shares_codebook else torch.cat(vectors)

    def layout(self, image_size: int | tuple[int, int] | None = None) -> CodeLayout:
        """What each position of a row of codes is, for pictures of `image_size` (default: the configuration's)."""
        grid = self.config.grid(image_size)
        return build_layout([grid], [self.config.codebook_sizes], shared=[self.quantizer.shares_codebook])

    def _code_offsets(self, device: torch.device) -> torch.Tensor:
        """(depths,) first code of each depth's range."""
        if self.quantizer.shares_codebook:
            return torch.zeros(self.quantizer.codes_per_position, dtype=torch.int64, device=device)
        sizes = torch.tensor([0, *self.config.codebook_sizes[:-1]], device=device)
        return sizes.cumsum(0)

    def latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) float in [-1, 1] to channel-last latents (B, h, w, code_dim)."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)}: expected (B, {self.config.num_channels}, H, W)"
            )
        self.config.grid((pixel_values.shape[2], pixel_values.shape[3]))
        return self.encoder(pixel_values).permute(0, 2, 3, 1)

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (B, C, H, W) float in [-1, 1] to codes (B, T) int64. Never changes a buffer."""
        codes = self.quantizer.encode(self.latents(pixel_values))
        return (codes + self._code_offsets(codes.device)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, image_size: int | tuple[int, int] | None = None) -> torch.Tensor:
        """Codes (B, t <= T) int64 to pictures (B, C, H, W) in [-1, 1].

        Positions that are absent (t < T) are filled with the mean of their codebook, so that a half-drawn picture
        can be shown.

        Raises:
            ValueError: too many codes, or a code outside the range of its position.
        """
        rows, columns = self.config.grid(image_size)
        depths = len(self.config.codebook_sizes)
        total = rows * columns * depths
        if codes.ndim != 2 or codes.shape[1] > total:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)}: expected (B, at most {total}) for this picture size"
            )
        self._check_ranges(codes, depths)
        local = F.pad(codes, (0, total - codes.shape[1]), value=-1).view(-1, rows, columns, depths)
        absent = torch.arange(total, device=codes.device).view(rows, columns, depths) >= codes.shape[1]
        local = torch.where(absent, 0, local - self._code_offsets(codes.device))
        quantized = self.quantizer.decode(local, absent)
        return self._to_pixels(quantized).float().clamp(-1, 1)

    def _check_ranges(self, codes: torch.Tensor, depths: int) -> None:
        """Raise ValueError, in the caller's numbers, for a code outside the range of its place."""
        low = self._code_offsets(codes.device)
        high = low + torch.tensor(self.config.codebook_sizes, device=codes.device)
        depth = torch.arange(codes.shape[1], device=codes.device) % depths
        wrong = ((codes < low[depth]) | (codes >= high[depth])).nonzero()
        if len(wrong):
            row, place = wrong[0].tolist()
            bounds = int(low[depth[place]]), int(high[depth[place]]) - 1
            raise ValueError(
                f"code {int(codes[row, place])} at place {place} of row {row}: the codes there are {bounds[0]} to "
                f"{bounds[1]}"
            )

    def _to_pixels(self, quantized: torch.Tensor) -> torch.Tensor:
        return self.decoder(quantized.permute(0, 3, 1, 2).to(next(self.decoder.parameters()).dtype))

    def forward(self, pixel_values: torch.Tensor) -> VQVAEOutput:
        """Reconstruct pictures (B, C, H, W) in [-1, 1]. In train mode this is where the codebooks learn."""
        latents = self.latents(pixel_values)
        quantized: QuantizerOutput = self.quantizer(latents)
        reconstruction = self._to_pixels(quantized.quantized)
        reconstruction_loss = F.mse_loss(reconstruction.float(), pixel_values.float())
        return VQVAEOutput(
            loss=reconstruction_loss + quantized.loss,
            reconstruction=reconstruction,
            codes=(quantized.codes + self._code_offsets(quantized.codes.device)).flatten(1),
            reconstruction_loss=reconstruction_loss,
            commitment_loss=quantized.loss,
            revived=quantized.revived,
            latent_norm=latents.detach().float().norm(dim=-1).mean(),
        )

    @torch.no_grad()
    def refit_codebook(self, batches: Iterable[torch.Tensor]) -> None:
        """Move each code to the mean of the latents that it stands for, over `batches` of pixel_values.

        Averaged encoder weights do not fit a codebook that followed the raw encoder; one pass per depth mends it.
        """
        # The latents take a fraction of the pictures' memory, and the encoder runs once for all depths.
        latents = [self.latents(pixel_values).reshape(-1, self.config.code_dim).float() for pixel_values in batches]
        self.quantizer.refit(latents)


def load_tokenizer(folder: str | Path, **settings: Any) -> VQVAE:
    """Read a tokenizer folder, or the image_tokenizer/ of a model folder, in eval mode.

    `settings` take the place of those in its configuration (how it learns; sizes are those of its weights).

    Raises:
        ValueError: there is no tokenizer there.
    """
    path = Path(folder)
    if (path / "image_tokenizer" / "config.json").is_file():
        path = path / "image_tokenizer"
    remedy = "give the --output_dir of scripts/train_tokenizer.py"
    if not path.is_dir():
        raise ValueError(f"there is no image tokenizer folder {folder}: {remedy}")
    try:
        kind = json.loads((path / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != VQVAEConfig.model_type or not (path / "model.safetensors").is_file():
        raise ValueError(f"{folder} is not an image tokenizer (no config.json of one, or no weights): {remedy}")
    return VQVAE.from_pretrained(path, use_safetensors=True, **settings).eval()
