"""`VQVAE`, the image tokenizer: pictures to rows of integer codes and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from tokenizer_image.configuration import VQVAEConfig
from tokenizer_image.fingerprint import fingerprint_of
from tokenizer_image.frame_networks import FrameDecoder, FrameEncoder
from tokenizer_image.hierarchy import CoarseLevel, with_context
from tokenizer_image.layout import CodeLayout, build_layout
from tokenizer_image.networks import ComponentsDecoder, Decoder, Encoder, MLPDecoder, MLPEncoder
from tokenizer_image.picture_model import PictureModel, size_of
from tokenizer_image.quantizers import Quantizer, QuantizerOutput
from tokenizer_image.quantizers.kinds import build_levels

MAX_CODES = 2**32  # a token cache stores codes as uint32 at most


@dataclass
class VQVAEOutput(ModelOutput):
    """What `VQVAE.forward` returns.

    Attributes:
        loss: scalar, `reconstruction_loss + commitment_loss`.
        reconstruction: (B + b, C, H, W), about [-1, 1], not clipped; the last b are of the codes that were given.
        codes: (B, T) int64.
        reconstruction_loss: scalar, mean squared error on [-1, 1].
        commitment_loss: scalar, the sum of the levels' quantizer losses, already weighted.
        dead: number of codes whose moving count is below the revival threshold.
        revived: number of dead codes replaced in this step.
        latent_norm: scalar, mean Euclidean norm of the finest latents.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    dead: int | None = None
    revived: int | None = None
    latent_norm: torch.Tensor | None = None

    @property
    def bottleneck_loss(self) -> torch.Tensor | None:
        """What stands in the loss beside the reconstruction's error: the quantizers' loss."""
        return self.commitment_loss


class VQVAE(PictureModel):
    """Vector-quantized autoencoder (van den Oord et al. 2017), with any kind of quantizer and one to three levels.

    With several levels (VQ-VAE-2, Razavi et al. 2019) the coarsest is quantized first. A finer level is conditioned on
    its context, the decoded coarser levels, so that it only encodes what they lack.

    Raises:
        ValueError: codebook sizes or options that a quantizer does not take, or more than `MAX_CODES` codes.
    """

    config_class = VQVAEConfig
    outer_layers = ("head",)
    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        self.has_frozen_codes = False
        quantizers = build_levels(
            config.level_quantizers, config.level_codebook_sizes, config.code_dim, config.quantizer_options
        )
        # "finite_scalar" takes the nearest size that it can have
        config.codebook_sizes = [size for quantizer in quantizers for size in quantizer.codebook_sizes]
        if (num_codes := sum(quantizer.codebook_size for quantizer in quantizers)) > MAX_CODES:
            raise ValueError(
                f"codebook_sizes={config.codebook_sizes}: {num_codes:,} codes in all are more than the {MAX_CODES:,} "
                "that a token cache can store; choose smaller codebooks, or several codes per position"
            )
        self.encoder: nn.Module
        self.decoder: nn.Module
        self.quantizer: Quantizer = quantizers[-1]
        self.coarser = nn.ModuleList()
        self.head: nn.Module = nn.Identity()
        if config.network == "conv":
            self._build_convolutional(quantizers[:-1])
        else:
            self._build_whole_picture()
        self.post_init()

    def _build_whole_picture(self) -> None:
        config = self.config
        widths = config.hidden_sizes if config.network == "mlp" else []
        sizes = (config.num_channels, config.image_size, config.grids()[0], widths, config.code_dim)
        self.encoder = MLPEncoder(*sizes)
        self.decoder = MLPDecoder(*sizes)
        if config.network == "components":
            self.decoder = ComponentsDecoder(self.decoder, config.hidden_sizes[0], config.num_res_blocks)
            self.freeze_codes()

    def _build_convolutional(self, coarser: list[Quantizer]) -> None:
        config = self.config
        channels = config.hidden_sizes[-1]
        context_channels = channels if coarser else 0
        shape = config.network_shape
        features = channels if coarser else config.code_dim
        if config.signal == "video":
            self.encoder = FrameEncoder(shape, config.frame_patch, config.code_dim, config.encoder_kernel_size)
            self.decoder = FrameDecoder(shape, config.frame_patch, config.code_dim)
            return
        self.encoder = Encoder(shape, features, kernel_size=config.encoder_kernel_size)
        self.coarser = nn.ModuleList(
            CoarseLevel(channels, index > 0, config.num_res_blocks, quantizer, config.axes)
            for index, quantizer in enumerate(coarser)
        )
        self.head = config.axes.conv(channels + context_channels, config.code_dim, 1) if coarser else nn.Identity()
        self.decoder = Decoder(shape, config.code_dim + context_channels)

    @property
    def num_codes(self) -> int:
        """Codes are 0 .. num_codes - 1: each codebook has its own range."""
        return sum(quantizer.codebook_size for quantizer in self.quantizers)

    @property
    def quantizers(self) -> list[Quantizer]:
        """The quantizer of each level, coarse to fine."""
        return [*(level.quantizer for level in self._coarser), self.quantizer]

    @property
    def _coarser(self) -> list[CoarseLevel]:
        return list(self.coarser)  # type: ignore[arg-type]

    @property
    def tokens_per_image(self) -> int:
        """Codes of a picture of the default size."""
        return len(self.layout())

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that change whenever the same picture may get other codes.

        A hash of the configuration and the float32 state that decide codes: encoder, heads, codebooks, and in a
        hierarchy the decoders of the coarse levels, which finer codes depend on. The finest decoder and moving averages
        are not in it, so that a decoder can be trained further without a new token cache or language model.
        """
        ignored = ["decoder."]
        for path, module in self.named_modules():
            if isinstance(module, Quantizer):
                is_finest = not path.startswith("coarser.")
                names = module.learning_state + (module.decoding_state if is_finest else ())
                ignored += [f"{path}.{name}" for name in names]
        state = {name: value for name, value in self.state_dict().items() if not name.startswith(tuple(ignored))}
        return fingerprint_of(self.config, state)

    @property
    def legacy_fingerprint(self) -> str:
        """The fingerprint that earlier versions wrote: a hash that also covers decoder and moving averages."""
        return fingerprint_of(self.config, self.state_dict())

    def code_vectors(self) -> torch.Tensor | None:
        """(num_codes, code_dim) float32: each code's contribution to a quantized latent of its level.

        None if a quantizer's codes have no such vectors.
        """
        tables = []
        for quantizer in self.quantizers:
            vectors = quantizer.code_vectors()
            if vectors is None:
                return None
            tables += vectors[:1] if quantizer.shares_codebook else vectors
        return torch.cat(tables)

    def layout(self, image_size: int | tuple[int, int] | None = None) -> CodeLayout:
        """The layout of the row of codes of a picture of `image_size` pixels (default: the configuration's).

        Raises:
            ValueError: the downsampling does not divide the size.
        """
        shared = [quantizer.shares_codebook for quantizer in self.quantizers]
        sizes = [quantizer.codebook_sizes for quantizer in self.quantizers]
        return build_layout(self.config.grids(image_size), sizes, shared)

    def _quantize_levels(
        self, pixel_values: torch.Tensor, quantize: Callable[[Quantizer, torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode pictures (B, C, H, W) and quantize the latents of every level, coarse to fine.

        Args:
            quantize: called once per level as `quantize(quantizer, latents)`, latents (B, h, w, code_dim); returns
                the quantized latents of the same shape, which the finer levels are conditioned on.

        Returns:
            The input of the finest decoder, (B, code_dim + context channels, h, w), and the finest level's latents.
        """
        self._check_pictures(pixel_values)
        features = [self.encoder(pixel_values)]
        for level in reversed(self._coarser):
            features.append(level.encoder(features[-1]))
        context = None
        for level in self._coarser:
            latents = level.head(with_context(features.pop(), context)).movedim(1, -1)
            quantized = self._channels_first(quantize(level.quantizer, latents))
            context = level.decoder(with_context(quantized, context))
        latents = self.head(with_context(features.pop(), context)).movedim(1, -1)
        return with_context(self._channels_first(quantize(self.quantizer, latents)), context), latents

    def _channels_first(self, quantized: torch.Tensor) -> torch.Tensor:
        """(B, ..., D) float32 to (B, D, ...) in the dtype of the weights."""
        return quantized.movedim(-1, 1).to(next(self.decoder.parameters()).dtype)

    @torch.no_grad()
    def latents(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Pictures (B, C, H, W) to each level's latents (B, h, w, code_dim) float32, coarse to fine."""
        levels: list[torch.Tensor] = []

        def quantize(quantizer: Quantizer, latents: torch.Tensor) -> torch.Tensor:
            levels.append(latents.float())
            return quantizer.decode(quantizer.encode(latents)) if quantizer is not self.quantizer else latents

        self._quantize_levels(pixel_values, quantize)
        return levels

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (B, C, H, W) float in [-1, 1] to codes (B, T) int64. Never changes a buffer.

        Raises:
            ValueError: another number of channels, or a size that the downsampling does not divide.
        """
        codes: list[torch.Tensor] = []

        def quantize(quantizer: Quantizer, latents: torch.Tensor) -> torch.Tensor:
            codes.append(quantizer.encode(latents))
            return quantizer.decode(codes[-1]) if quantizer is not self.quantizer else latents

        self._quantize_levels(pixel_values, quantize)
        return self._code_row(codes, size_of(pixel_values))

    @torch.no_grad()
    def quantize_latents(
        self, levels: Sequence[torch.Tensor], image_size: int | tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Each level's latents, as `latents` returns them, to codes (B, T) int64 of pictures of `image_size` pixels."""
        codes = [quantizer.encode(latents) for quantizer, latents in zip(self.quantizers, levels, strict=True)]
        return self._code_row(codes, image_size)

    def _code_row(self, codes: list[torch.Tensor], image_size: int | tuple[int, int] | None) -> torch.Tensor:
        """Concatenate each level's codes (B, h, w, depths) to (B, T) and shift each codebook's to its own range."""
        row = torch.cat([level.flatten(1) for level in codes], dim=1)
        low = self.layout(image_size).low
        return row + torch.from_numpy(low).to(row.device)

    @torch.no_grad()
    def decode(
        self, codes: torch.Tensor, image_size: int | tuple[int, int] | None = None, depths: int | None = None
    ) -> torch.Tensor:
        """Codes (B, t <= T) int64 to pictures (B, C, H, W), columns of frames or sounds (B, 1, samples), in [-1, 1], or
        to normalised series (B, C, steps), which have no bounds.

        Absent positions (t < T) are filled with the mean of their codebook, so that coarse levels alone, or a
        half-drawn picture, can be decoded. With `depths`, so are the codes of further depths: fewer bits a second,
        of a tokenizer that was trained with depth dropout.

        Raises:
            ValueError: too many codes, or a code outside the range of its position.
        """
        decoded = self.decoder(self._decoder_inputs(codes, image_size, depths)).float()
        return decoded if self.config.signal == "series" else decoded.clamp(-1, 1)

    def _decoder_inputs(
        self, codes: torch.Tensor, image_size: int | tuple[int, int] | None, depths: int | None = None
    ) -> torch.Tensor:
        """What the finest decoder reads for codes (B, t <= T): (B, code_dim + context channels, h, w)."""
        layout = self.layout(image_size)
        total = len(layout)
        if codes.ndim != 2 or codes.shape[1] > total:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)}: expected (B, at most {total}) for this picture size"
            )
        low = torch.from_numpy(layout.low).to(codes.device)
        check_codes(codes, low, torch.from_numpy(layout.high).to(codes.device))
        absent = torch.arange(total, device=codes.device) >= codes.shape[1]
        if depths is not None:
            absent = absent | (torch.from_numpy(layout.depth).to(codes.device) >= depths)
        local = torch.where(absent, 0, F.pad(codes, (0, total - codes.shape[1])) - low)
        context, first = None, 0
        grids = self.config.grids(image_size)
        for index, (quantizer, (rows, columns)) in enumerate(zip(self.quantizers, grids, strict=True)):
            shape = (*(rows, columns)[-self.config.axes.dimensions :], quantizer.codes_per_position)
            level = slice(first, first := first + rows * columns * quantizer.codes_per_position)
            quantized = quantizer.decode(local[:, level].reshape(-1, *shape), absent[level].view(shape))
            inputs = with_context(self._channels_first(quantized), context)
            if index < len(self._coarser):
                context = self._coarser[index].decoder(inputs)
        return inputs

    def forward(
        self, pixel_values: torch.Tensor, codes: torch.Tensor | None = None, known: torch.Tensor | None = None
    ) -> VQVAEOutput:
        """Reconstruct pictures (B, C, H, W) in [-1, 1]; in train mode, the only call that updates the codebooks, and
        that corrupts what the encoder reads, where the configuration has input noise.

        Args:
            codes: (b, T) int64, of further pictures of the same size to decode; they follow the reconstructions.
            known: bool, of a shape that broadcasts to that of `pixel_values`: where their values count in the
                reconstruction's error; the others are gaps of series. None: everywhere.

        Raises:
            ValueError: another number of channels, a size that the downsampling does not divide, or codes that are out
                of range.
            NotFiniteError: in train mode, latents have NaN or infinity (codebooks are left as they were).
        """
        outputs: list[QuantizerOutput] = []
        kept = self._kept_levels(pixel_values)

        def quantize(quantizer: Quantizer, latents: torch.Tensor) -> torch.Tensor:
            outputs.append(output := quantizer(latents))
            if kept is None or len(outputs) == 1:
                return output.quantized
            absent = kept < len(outputs)
            filling = quantizer.decode(output.codes, torch.ones_like(output.codes, dtype=torch.bool)).detach()
            return torch.where(absent.view(-1, *[1] * (latents.ndim - 1)), filling, output.quantized)

        inputs, latents = self._quantize_levels(self.corrupted(pixel_values), quantize)
        if codes is not None:
            with torch.no_grad():
                further = self._decoder_inputs(codes, size_of(pixel_values)).to(inputs)
            inputs = torch.cat([inputs, further])
        reconstruction = self.decoder(inputs)
        reconstruction_loss = _squared_error(reconstruction[: len(pixel_values)].float(), pixel_values.float(), known)
        quantizer_loss = torch.stack([output.loss for output in outputs]).sum()
        return VQVAEOutput(
            loss=reconstruction_loss + quantizer_loss,
            reconstruction=reconstruction,
            codes=self._code_row([output.codes for output in outputs], size_of(pixel_values)),
            reconstruction_loss=reconstruction_loss,
            commitment_loss=quantizer_loss,
            dead=sum(output.dead for output in outputs),
            revived=sum(output.revived for output in outputs),
            latent_norm=latents.detach().float().norm(dim=-1).mean(),
        )

    def freeze_codes(self) -> None:
        """From now on, let only the finest decoder learn: each picture keeps its codes, and `fingerprint` stays.

        Of network "components", only what follows its linear layer."""
        self.requires_grad_(False)
        self.decoder.requires_grad_(True)
        if isinstance(self.decoder, ComponentsDecoder):
            self.decoder.linear.requires_grad_(False)
        self.has_frozen_codes = True
        self.train(self.training)

    def train(self, mode: bool = True) -> VQVAE:
        """Train mode; with frozen codes, all but the finest decoder stay in evaluation mode, so that no codebook
        learns."""
        super().train(mode)
        for child in self.children() if self.has_frozen_codes else ():
            child.train(mode and child is self.decoder)
        return self

    def _kept_levels(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """Level dropout: how many levels of each picture are decoded, (B,) int64; None if none is left out."""
        levels, count = self.config.num_levels, len(pixel_values)
        if not self.training or levels == 1 or self.config.level_dropout == 0:
            return None
        fewer = torch.randint(1, levels, (count,), device=pixel_values.device)
        return torch.where(torch.rand(count, device=pixel_values.device) < self.config.level_dropout, fewer, levels)

    @torch.no_grad()
    def refit_codebook(self, batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Move each code to the mean of the latents that are quantized to it, over batches of pixel_values.

        A codebook that followed the raw encoder does not fit the averaged weights. One pass per level, coarse to fine,
        because a level's latents depend on the codes of the coarser levels.

        Args:
            batches: called once per level; returns the batches anew, so that they need not fit in memory.

        Raises:
            NotFiniteError: latents have NaN or infinity.
        """
        for level, quantizer in enumerate(self.quantizers):
            quantizer.refit([self.latents(pixels)[level].reshape(-1, self.config.code_dim) for pixels in batches()])


def _squared_error(
    reconstruction: torch.Tensor, pixel_values: torch.Tensor, known: torch.Tensor | None
) -> torch.Tensor:
    """Mean squared error over the values that are known."""
    if known is None:
        return F.mse_loss(reconstruction, pixel_values)
    weights = known.to(reconstruction.dtype).expand_as(pixel_values)
    return ((reconstruction - pixel_values).square() * weights).sum() / weights.sum().clamp(min=1)


def check_codes(codes: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
    """Raise ValueError unless low <= code < high at every position: codes (B, t <= T), bounds (T,)."""
    invalid = ((codes < low[: codes.shape[1]]) | (codes >= high[: codes.shape[1]])).nonzero()
    if len(invalid):
        row, place = invalid[0].tolist()
        raise ValueError(
            f"code {int(codes[row, place])} at place {place} of row {row}: the codes there are {int(low[place])} to "
            f"{int(high[place]) - 1}"
        )
