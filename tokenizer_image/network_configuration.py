"""`NetworkConfig`: the settings of encoder and decoder, which all image models share."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from tokenizer_image.bottlenecks.denoising import InputNoise
from tokenizer_image.networks import RESAMPLINGS, Axes, NetworkShape

NETWORKS = ("conv", "mlp", "components")
SIGNALS = ("audio", "series", "video")
COMPONENTS_WIDTH = 64  # default channels of network="components"


class NetworkConfig(PretrainedConfig):
    """Settings of an encoder and a decoder, whatever stands between them.

    Args:
        image_size: default side of a picture in pixels; `downsampling` must divide it.
        num_channels: 3 for RGB, 1 for grey.
        patch_size: kernel size and stride of the first convolution, in pixels.
        network: "conv"; "mlp": fully connected layers over the whole picture, which fix its size to `image_size`; or
            "components": one latent of the whole picture, its principal components, and a decoder that learns to
            correct the quantization error, see `ComponentsDecoder`. It fixes the size, too.
        hidden_sizes: channels at each resolution, fine to coarse; each further one halves height and width. For
            "mlp": the widths of its layers; its grid of latents has one position per `patch_size` pixels along each
            side. For "components": one entry, the channels of its convolutions.
        num_res_blocks: residual blocks at each resolution, in the encoder and in the decoder; of "components" in the
            decoder alone.
        encoder_kernel_size: kernel size of the encoder's convolutions at its finest resolution, or with overlapping
            patches at every one. With 1 a latent depends on the pixels of its own position alone; with 3 each block
            adds one patch on every side. See `Encoder`.
        resampling: how the networks change resolution: "patches" or "overlapping", see `NetworkShape`.
        code_dim: size of a latent and of a code.
        num_levels: 1, or 2 or 3: each coarser level has half the height and width of the next finer one.
        input_noise, noise_amount: in training the encoder reads corrupted pictures, and the clean ones are
            reconstructed; see `InputNoise`. None: without.
        preprocessing: `Preprocessing.to_dict()` of the training pictures, `SignalSettings.to_dict()` of signals.
        signal: None for pictures; "audio" and "series" have one axis, time: `image_size` is their length in samples,
            what is said of sides holds for time, and 3x3 is 3. A "video" is a picture: a column of `num_frames` square
            frames, whose side is `image_size`.
        num_frames: of videos: frames of one by default.
        frame_patch: of videos: frames that become one grid of latents together; it divides `num_frames`.
        causal: of sounds and series: codes depend on no later samples, and decoded samples on no later codes than those
            of their own position.

    Raises:
        ValueError: a value out of range, or sizes that do not fit each other.
    """

    def __init__(
        self,
        image_size: int = 32,
        num_channels: int = 3,
        patch_size: int = 4,
        network: str = "conv",
        hidden_sizes: list[int] | None = None,
        num_res_blocks: int = 2,
        encoder_kernel_size: int = 1,
        resampling: str = "patches",
        code_dim: int = 32,
        num_levels: int = 1,
        input_noise: str | None = None,
        noise_amount: float | None = None,
        preprocessing: dict[str, Any] | None = None,
        signal: str | None = None,
        causal: bool = False,
        num_frames: int = 1,
        frame_patch: int = 1,
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.network = network
        default = [COMPONENTS_WIDTH] if network == "components" else [128, 256]
        self.hidden_sizes = default if hidden_sizes is None else list(hidden_sizes)
        self.num_res_blocks = num_res_blocks
        self.encoder_kernel_size = encoder_kernel_size
        self.resampling = resampling
        self.code_dim = code_dim
        self.num_levels = num_levels
        self.input_noise, self.noise_amount = input_noise, noise_amount
        self.preprocessing = preprocessing
        self.signal, self.causal = signal, causal
        self.num_frames, self.frame_patch = num_frames, frame_patch
        self._check_networks()
        self._check_levels()
        self.noise()
        self.grids(image_size)
        super().__init__(**kwargs)

    def _check_networks(self) -> None:
        """Raise ValueError for a setting of the networks that is out of range."""
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes=[]: the networks need at least one entry")
        for name in ("patch_size", "hidden_sizes", "code_dim", "num_channels", "num_frames", "frame_patch"):
            value = getattr(self, name)
            if min(value if isinstance(value, list) else [value]) < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.num_res_blocks < 0:
            raise ValueError(f"num_res_blocks={self.num_res_blocks} must be at least 0")
        if self.encoder_kernel_size < 1 or self.encoder_kernel_size % 2 == 0:
            raise ValueError(f"encoder_kernel_size={self.encoder_kernel_size} must be odd: 1, 3, ...")
        known = {"network": NETWORKS, "resampling": RESAMPLINGS}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        if self.network == "components" and len(self.hidden_sizes) > 1:
            raise ValueError(
                f"hidden_sizes={self.hidden_sizes}: network='components' has one resolution; give one entry"
            )
        if self.signal not in (None, *SIGNALS):
            raise ValueError(f"unknown signal {self.signal!r}: choose one of {', '.join(SIGNALS)}")
        if self.causal and self.axes.dimensions != 1:
            raise ValueError("causal=True is for signal='audio': pictures have no axis of time")
        if self.signal == "video" and self.num_levels > 1:
            raise ValueError(f"num_levels={self.num_levels}: videos have one level")
        if self.network != "conv" and self.signal is not None:
            raise ValueError(
                f"network={self.network!r} is for pictures, not for signal={self.signal!r}: use network='conv'"
            )

    def _check_levels(self) -> None:
        """Raise ValueError unless what stands between encoder and decoder fits its levels."""
        if not 1 <= self.num_levels <= 3:
            raise ValueError(f"num_levels={self.num_levels}: choose 1, 2 or 3")

    def noise(self) -> InputNoise | None:
        """What corrupts the encoder's input in training."""
        return InputNoise.of(self.input_noise, self.noise_amount)

    @property
    def axes(self) -> Axes:
        """Which axes the networks convolve along."""
        return Axes() if self.signal in (None, "video") else Axes(1, self.causal)

    @property
    def network_shape(self) -> NetworkShape:
        """Of the convolutional networks."""
        return NetworkShape(
            self.num_channels * self.frame_patch, self.patch_size, self.hidden_sizes, self.num_res_blocks,
            self.resampling, self.axes,
        )  # fmt: skip

    @property
    def example_size(self) -> tuple[int, int]:
        """(height, width) of what the model takes by default: of sounds and series (1, samples), of videos
        (num_frames * side, side)."""
        return (1 if self.axes.dimensions == 1 else self.image_size * self.num_frames, self.image_size)

    @property
    def has_fixed_size(self) -> bool:
        """Whether pictures have one size, `image_size`."""
        return self.network != "conv"

    @property
    def level_scale(self) -> int:
        """How many times finer a level's grid is than the next coarser one's, along each side."""
        return 2

    @property
    def downsampling(self) -> int:
        """Pixels per position of the (coarsest) grid of latents, along each side."""
        if self.network != "conv":
            return self.patch_size if self.network == "mlp" else self.image_size
        return self.patch_size * 2 ** (len(self.hidden_sizes) - 1) * self.level_scale ** (self.num_levels - 1)

    def grids(self, image_size: int | tuple[int, int] | None = None) -> list[tuple[int, int]]:
        """(rows, columns) of each level's grid of positions, coarse to fine; of sounds and series, (1, steps), of
        videos the grids of all steps of time below each other.

        Args:
            image_size: side, or (height, width), of the picture in pixels, of a sound or series (1, samples); default:
                the configuration's.

        Raises:
            ValueError: the downsampling does not divide it, or it is not the one size of a model of whole
                pictures.
        """
        size = self.example_size if image_size is None else image_size
        if self.axes.dimensions == 1:
            return self._steps(*(1, size) if isinstance(size, int) else size)
        height, width = (size * self.num_frames, size) if isinstance(size, int) else size
        if self.signal == "video":
            return self._video_grid(height, width)
        if height < 1 or width < 1 or height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"image_size {height}x{width} is not a multiple of the tokenizer's downsampling, {self.downsampling}; "
                f"choose a multiple of {self.downsampling}, or other --patch_size and --hidden_sizes"
            )
        if self.has_fixed_size and (height, width) != (self.image_size, self.image_size):
            whole = "a model with latents of the whole picture"
            what = {"mlp": "an MLP", "components": "a model of components"}.get(self.network, whole)
            raise ValueError(
                f"image_size {height}x{width}: {what} has one size, {self.image_size}x{self.image_size}; resize the "
                "pictures to it, or train a tokenizer with network='conv'"
            )
        coarse = height // self.downsampling, width // self.downsampling
        scales = [self.level_scale**level for level in range(self.num_levels)]
        return [(coarse[0] * scale, coarse[1] * scale) for scale in scales]

    def _video_grid(self, height: int, width: int) -> list[tuple[int, int]]:
        """`grids` of a video."""
        frames, rest = divmod(height, max(1, width))
        if width < 1 or width % self.downsampling or rest or frames < 1 or frames % self.frame_patch:
            raise ValueError(
                f"image_size {height}x{width}: a video is a column of square frames, whose side is a multiple of the "
                f"tokenizer's downsampling, {self.downsampling}, and whose number is one of frame_patch="
                f"{self.frame_patch}; choose such sizes, or other --patch_size, --hidden_sizes and --frame_patch"
            )
        side = width // self.downsampling
        return [(frames // self.frame_patch * side, side)]

    def _steps(self, height: int, samples: int) -> list[tuple[int, int]]:
        """`grids` of a signal."""
        if height != 1 or samples < 1 or samples % self.downsampling:
            raise ValueError(
                f"image_size {height}x{samples}: a signal has the size 1xSAMPLES, a multiple of the tokenizer's "
                f"downsampling, {self.downsampling}; choose one, or other --patch_size and --hidden_sizes"
            )
        coarse = samples // self.downsampling
        return [(1, coarse * self.level_scale**level) for level in range(self.num_levels)]
