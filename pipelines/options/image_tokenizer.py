"""Options of `scripts/train_tokenizer.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines.options.option import option
from pipelines.options.training import TrainingOptions

# The quantizers' arguments, and the options that set them.
QUANTIZER_OPTIONS = {
    "commitment_weight": "commitment_weight", "ema_decay": "codebook_decay", "revival_threshold": "revival_threshold",
    "kmeans_start": "kmeans_start", "rotation_trick": "rotation_trick", "temperature": "code_temperature",
    "shared_codebook": "shared_codebook", "num_groups": "num_groups", "codebook_dim": "codebook_dim",
    "entropy_weight": "entropy_weight",
}  # fmt: skip


@dataclass
class ImageTokenizerOptions(TrainingOptions):
    """Options of `scripts/train_tokenizer.py`."""

    script: ClassVar[str | None] = "train_tokenizer.py"
    output_dir: str = option("runs/tokenizer", "folder of the run and of the tokenizer")
    image_size: int | None = option(None, "side of the pictures in pixels (default 32)")
    num_channels: int = option(3, "3: colour, 1: grey")
    resize: str = option("crop", "'crop': resize the short side and cut the middle out; 'squash': change the shape")
    sixteen_bit: str = option(
        "full",
        "white in pictures of 16 bits that do not say how many they use: 'full' 65535, 'data' their largest value",
    )
    random_flip: bool = option(False, "mirror pictures at random (makes 'left' in a caption untrue)")
    batch_size: int = option(64, "pictures a step, over all processes")
    weight_decay: float = option(0.01, "weight decay of the convolutions")
    patch_size: int | None = option(None, "pixels that the first convolution reads at once (default: by image size)")
    network: str = option("conv", "'conv', or 'mlp' (--hidden_sizes are its layers, --patch_size the grid of codes)")
    hidden_sizes: list[int] | None = option(
        None, "channels at each resolution, fine to coarse (default: by image size)"
    )
    num_levels: int = option(1, "1; 2 or 3: a hierarchy, each coarser level at half the height and width")
    level_dropout: float = option(
        0.1, "share of pictures whose finer levels are left out, so that coarse ones stand alone"
    )
    codebook_sizes: list[int] | None = option(
        None, "codes of each codebook, of several levels coarse to fine (default: by image size)"
    )
    quantizer: str = option(
        "grouped",
        "'grouped', 'residual' or 'grouped_residual' for several codes a place; 'ema', 'gradient', 'cosine', "
        "'finite_scalar', 'lookup_free' or 'binary_spherical' for one; or one a level, with commas between",
    )
    encoder_kernel_size: int = option(
        1, "1: a code depends on the pixels of its own place alone; 3: each block sees one patch further"
    )
    num_res_blocks: int = option(2, "residual blocks at each resolution")
    code_dim: int = option(32, "size of a latent and of a code")
    commitment_weight: float | None = option(None, "weight of the commitment loss (default 0.25)")
    codebook_decay: float | None = option(None, "decay of the codebook's moving averages (default 0.99)")
    revival_threshold: float | None = option(
        None, "share of the mean use under which a code is dead and revived; 0: never (default 0.1)"
    )
    kmeans_start: bool | None = option(None, "start codebooks by k-means over the first batch (default: yes)")
    rotation_trick: bool | None = option(None, "pass gradients by rotation in place of straight-through (default: no)")
    code_temperature: float | None = option(None, "in training, draw codes by distance at this temperature")
    shared_codebook: bool | None = option(None, "residual: one codebook for all depths (default: no)")
    num_groups: int | None = option(None, "grouped_residual: groups, each of several depths (default 2)")
    codebook_dim: int | None = option(None, "cosine: size of a code (default 8)")
    entropy_weight: float | None = option(None, "lookup_free, binary_spherical: weight of the entropy loss")

    def quantizer_options(self) -> dict[str, Any]:
        """The options that were given of those that concern the quantizer, under the names of its arguments."""
        options = {name: getattr(self, option_name) for name, option_name in QUANTIZER_OPTIONS.items()}
        return {name: value for name, value in options.items() if value is not None}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.init_from:
            self.check_quantizer([name.strip() for name in self.quantizer.split(",")])

    def check_quantizer(self, kinds: Sequence[str]) -> None:
        """Raise ValueError, with the names of options, for what quantizers of these kinds do not take."""
        from tokenizer_image.quantizers.kinds import check_options  # imports torch, which --help need not wait for

        labels = {name: f"--{option_name}" for name, option_name in QUANTIZER_OPTIONS.items()}
        check_options(kinds, self.quantizer_options(), labels)
