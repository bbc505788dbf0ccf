"""Options of `scripts/train_tokenizer.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.options.bottlenecks import BOTTLENECK_OPTIONS, BottleneckOptions
from pipelines.options.image_tokenizer_losses import LossOptions
from pipelines.options.option import given_options, option, option_defaults, with_option_names
from pipelines.options.signals import SignalOptions
from pipelines.options.training import TrainingOptions
from tokenizer_image.preprocessing import RESIZE_MODES, SIXTEEN_BIT_RANGES, Preprocessing
from tokenizer_image.signals.settings import BUILT_IN, SignalSettings

if TYPE_CHECKING:
    from tokenizer_image import AutoencoderConfig, VQVAEConfig

DEFAULT_IMAGE_SIZE = 32
# Options that override what the size and the kind of the pictures choose.
PRESET_SETTINGS = ("patch_size", "hidden_sizes", "codebook_sizes", "resampling")
OWN_SETTINGS = (
    "num_channels", "network", "num_res_blocks", "encoder_kernel_size", "code_dim", "num_levels", "level_dropout",
)  # fmt: skip

# The quantizers' arguments, and the options that set them.
QUANTIZER_OPTIONS = {
    "commitment_weight": "commitment_weight", "ema_decay": "codebook_decay", "revival_threshold": "revival_threshold",
    "kmeans_start": "kmeans_start", "rotation_trick": "rotation_trick", "temperature": "code_temperature",
    "shared_codebook": "shared_codebook", "num_groups": "num_groups", "codebook_dim": "codebook_dim",
    "entropy_weight": "entropy_weight", "depth_dropout": "depth_dropout",
}  # fmt: skip
FIXED_FORM = ("shared_codebook", "num_groups")  # those that say which codes there are, not how they learn
# Further options that other bottlenecks have no use for.
CODE_OPTIONS = (
    "quantizer", "codebook_sizes", "level_dropout", "train", "decoder_share", "codes_from", "drawn_pictures",
)  # fmt: skip
# Settings of `VQVAEConfig`, and the options that set them.
SETTINGS = {
    name: name for name in ("image_size", "frame_patch", "quantizer", *PRESET_SETTINGS, *OWN_SETTINGS)
} | QUANTIZER_OPTIONS
# Settings of `AutoencoderConfig` beside those of its bottleneck, and the options that set them.
AUTOENCODER_SETTINGS = {
    name: name
    for name in (
        "image_size", *PRESET_SETTINGS, *OWN_SETTINGS, "bottleneck", "latents", "reconstruction_loss", "tied_weights",
        "input_noise", "noise_amount", "condition",
    )
}  # fmt: skip


@dataclass
class ImageTokenizerOptions(SignalOptions, BottleneckOptions, LossOptions, TrainingOptions):
    """Options of `scripts/train_tokenizer.py`."""

    script: ClassVar[str | None] = "train_tokenizer.py"
    output_dir: str = option("runs/tokenizer", "folder of the run and of the tokenizer")
    image_size: int | None = option(None, "side of the pictures in pixels (default 32)", above_zero=True)
    num_channels: int = option(3, "3: colour, 1: grey", choices=(1, 3))
    resize: str = option(
        "crop",
        "'crop': resize the short side and cut the middle out; 'squash': change the shape",
        choices=RESIZE_MODES,
    )
    sixteen_bit: str = option(
        "full",
        "white in pictures of 16 bits that do not say how many they use: 'full' 65535, 'data' their largest value",
        choices=SIXTEEN_BIT_RANGES,
    )
    random_flip: bool = option(False, "mirror pictures at random (makes 'left' in a caption untrue)")
    batch_size: int = option(64, "pictures a step, over all processes", above_zero=True)
    weight_decay: float = option(0.01, "weight decay of the convolutions", not_negative=True)
    muon_learning_rate: float | None = option(  # type: ignore[assignment]  # `main` settles it before it is read
        None,
        "peak learning rate of Muon, on AdamW's scale (default: 0.01, or 0.003 where patches overlap)",
        above_zero=True,
    )
    patch_size: int | None = option(
        None, "pixels that the first convolution reads at once (default: by image size)", above_zero=True
    )
    network: str = option(
        "conv",
        "'conv'; 'mlp' (--hidden_sizes are its layers, --patch_size the grid of codes); or 'components': "
        "principal components of whole pictures (default: 32 codes of 512, --hidden_sizes 64)",
        choices=("conv", "mlp", "components"),
    )
    hidden_sizes: list[int] | None = option(
        None, "channels at each resolution, fine to coarse (default: by image size)", above_zero=True
    )
    num_levels: int = option(
        1,
        "1; 2 or 3: a hierarchy, each coarser level at half the height and width (hierarchical: at least 2)",
        choices=(1, 2, 3),
    )
    level_dropout: float = option(
        0.1, "share of pictures whose finer levels are left out, so that coarse ones stand alone", within="[0, 1)"
    )
    codebook_sizes: list[int] | None = option(
        None, "codes of each codebook, of several levels coarse to fine (default: by image size)", within="[2, inf)"
    )
    quantizer: str = option(
        "grouped",
        "'grouped', 'residual' or 'grouped_residual' for several codes a place; 'ema', 'gradient', 'cosine', "
        "'finite_scalar', 'lookup_free' or 'binary_spherical' for one; or one a level, with commas between",
    )
    encoder_kernel_size: int = option(
        1, "1: a code depends on the pixels of its own place alone; 3: each block sees one patch further"
    )
    train: str = option(
        "all",
        "'all', or 'decoder': encoder and codebook of --init_from stay, and with them codes, token caches and language "
        "models",
        choices=("all", "decoder"),
    )
    decoder_share: float | None = option(
        None,
        "share of the budget, its last part, in which the decoder alone learns; before, terms that compare features "
        "are left out; 0: everything learns from all terms throughout (default: 0.3 where there are such terms, for "
        "photographs for one)",
        within="[0, 1)",
    )
    codes_from: str | None = option(
        None, "with --train decoder: also learn from what this model draws (a model folder of the same tokenizer)"
    )
    drawn_pictures: int = option(2048, "pictures that --codes_from draws, once, before training", above_zero=True)
    photographs: bool | None = option(
        None, "networks and losses for photographs (default: where few neighbouring pixels have one colour)"
    )
    resampling: str | None = option(
        None,
        "'patches', or 'overlapping': no grid in flat areas (default: 'overlapping' for photographs)",
        choices=("patches", "overlapping"),
    )
    num_res_blocks: int = option(2, "residual blocks at each resolution", not_negative=True)
    code_dim: int | None = option(
        None, "size of a latent and of a code (default: 32; of components, 8 for each code)", above_zero=True
    )
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
        self.check_signal()
        if self.signal and self.dataset == type(self).dataset:
            self.dataset = BUILT_IN[self.signal]
        self.check_bottleneck()
        self._check_codes()
        self._check_loss()
        self._check_network()
        self._check_decoder_training()
        if self.init_from:  # whose settings they have to fit, once it is loaded
            return
        if self.is_quantized:
            self.check_quantizer(self.configuration(False).level_quantizers if self.signal else self.quantizer_names())
        self._check_settings()

    def _check_settings(self) -> None:
        """Raise ValueError for settings of a new model that do not fit each other."""
        import torch

        from tokenizer_image import VQVAE, Autoencoder

        arguments = {argument: name for name, argument in BOTTLENECK_OPTIONS[self.bottleneck].items()}
        names = SETTINGS if self.is_quantized else AUTOENCODER_SETTINGS | arguments
        try:
            with torch.device("meta"):  # takes neither time nor memory, and raises for whatever does not fit together
                for photographs in (False, True) if self.photographs is None else (self.photographs,):
                    if self.is_quantized:
                        VQVAE(self.configuration(photographs))
                    else:
                        Autoencoder(self.autoencoder_configuration(photographs, ["one"]))
        except ValueError as error:
            raise ValueError(with_option_names(str(error), names)) from error

    def _check_codes(self) -> None:
        """Raise ValueError for options about codes, where the bottleneck has none."""
        if self.is_quantized:
            return
        given = given_options(self, (*CODE_OPTIONS, *QUANTIZER_OPTIONS.values()))
        if given:
            raise ValueError(
                f"--bottleneck {self.bottleneck} has no codes: leave out {', '.join(given)}, or choose --bottleneck "
                "quantizer"
            )
        if self.num_levels > 1 and self.bottleneck != "hierarchical":
            raise ValueError(
                f"--num_levels {self.num_levels} is for --bottleneck quantizer or hierarchical, not for "
                f"{self.bottleneck}: leave it out"
            )

    def _check_loss(self) -> None:
        """Raise ValueError for terms of the loss that do not go with --reconstruction_loss."""
        kind = self.reconstruction_loss
        if kind == "squared":
            return
        others = ["absolute_share"]
        if kind == "cross_entropy":  # whose gradient at the reconstruction, behind a sigmoid, has no bound
            others += ["frequency_weight", "perceptual_weight", "adversarial_weight", "feature_matching_weight"]
        given = [f"--{name}" for name in others if getattr(self, name)]
        if kind == "cross_entropy" and self.extractor != type(self).extractor:
            given.append("--extractor")
        if given:
            raise ValueError(
                f"--reconstruction_loss {kind} does not go with {', '.join(given)}: leave out one or the other"
            )

    def _check_network(self) -> None:
        """Raise ValueError for options of convolutions and of grids, where there are none."""
        if self.network != "components":
            return
        given = given_options(self, ("patch_size", "resampling", "encoder_kernel_size"))
        if given:
            raise ValueError(f"--network components has one position and no patches: leave out {', '.join(given)}")
        learning = [name for argument, name in QUANTIZER_OPTIONS.items() if argument not in FIXED_FORM]
        given = given_options(self, learning)
        if given:
            raise ValueError(
                f"--network components has codebooks that do not learn after their start: leave out {', '.join(given)}"
            )

    def _check_decoder_training(self) -> None:
        """Raise ValueError unless --train decoder has what it needs, and nothing that would change codes."""
        if self.train == "all":
            if self.codes_from:
                raise ValueError(f"--codes_from {self.codes_from} needs --train decoder, so that its codes stay valid")
            return
        if not self.init_from:
            raise ValueError("--train decoder needs --init_from: the tokenizer whose decoder goes on learning")
        given = [name for name in QUANTIZER_OPTIONS.values() if getattr(self, name) is not None]
        if self.decoder_share:
            raise ValueError(
                f"--decoder_share {self.decoder_share:g} is of a run that trains all: with --train decoder it is the "
                "whole budget; leave it out"
            )
        if given:
            raise ValueError(
                f"--train decoder leaves codes as they are: leave out {', '.join(f'--{name}' for name in given)}"
            )

    def check_quantizer(self, kinds: Sequence[str]) -> None:
        """Raise ValueError, with the names of options, for what quantizers of these kinds do not take."""
        # Imports torch, which --help need not wait for.
        from tokenizer_image.quantizers.kinds import KINDS, check_options

        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"--quantizer {kind!r}: choose {', '.join(KINDS)}")
        labels = {name: f"--{option_name}" for name, option_name in QUANTIZER_OPTIONS.items()}
        check_options(kinds, self.quantizer_options(), labels)

    def quantizer_names(self) -> list[str]:
        """One name for all levels, or what commas separate: one for each."""
        return [name.strip() for name in self.quantizer.split(",")]

    def input_settings(self) -> Preprocessing | SignalSettings:
        """What a new tokenizer takes: pictures, or signals with --signal."""
        return self.signal_settings() if self.signal else self.preprocessing()

    def preprocessing(self) -> Preprocessing:
        """How pictures become a new tokenizer's pixels."""
        size = DEFAULT_IMAGE_SIZE if self.image_size is None else self.image_size
        return Preprocessing(size, self.num_channels, self.resize, sixteen_bit=self.sixteen_bit)

    def configuration(self, photographs: bool, signals: SignalSettings | None = None) -> VQVAEConfig:
        """The configuration of a new tokenizer: what --image_size chooses, and the options that override it.

        Args:
            photographs: whether it is for photographs.
            signals: with --signal, what was found in the data.

        Raises:
            ValueError: settings that do not fit each other; the message has the names of `VQVAEConfig`.
        """
        from tokenizer_image import VQVAEConfig

        if self.signal:
            settings = self.signal_configuration(self._given(), signals)
            return VQVAEConfig(quantizer_options=self.quantizer_options(), **settings)
        preprocessing = self.preprocessing()
        size = preprocessing.image_size
        names = self.quantizer_names()
        return VQVAEConfig(
            image_size=size, quantizer=names[0] if len(names) == 1 else names,
            quantizer_options=self.quantizer_options(), preprocessing=preprocessing.to_dict(),
            input_noise=self.input_noise, noise_amount=self.noise_amount,
            **(self._own_settings() | self._preset(size, photographs)),
        )  # fmt: skip

    def _own_settings(self) -> dict[str, Any]:
        """The settings that no picture size chooses, without those that are left to the configuration."""
        return {name: value for name in OWN_SETTINGS if (value := getattr(self, name)) is not None}

    def _given(self) -> dict[str, Any]:
        """The settings of `VQVAEConfig` that the command line gives, without those that it leaves at their defaults."""
        defaults = option_defaults(self)
        names = ("quantizer", *PRESET_SETTINGS, *OWN_SETTINGS)
        return {name: value for name in names if (value := getattr(self, name)) != defaults[name]}

    def autoencoder_configuration(self, photographs: bool, class_names: Sequence[str] = ()) -> AutoencoderConfig:
        """The configuration of a new autoencoder whose bottleneck is no quantizer.

        Args:
            photographs: whether it is for photographs.
            class_names: what a conditional one is conditioned on.

        Raises:
            ValueError: settings that do not fit each other; the message has the names of `AutoencoderConfig`.
        """
        from tokenizer_image import AutoencoderConfig

        preprocessing = self.preprocessing()
        settings = self._own_settings()
        settings.pop("level_dropout")
        settings |= self._preset(preprocessing.image_size, photographs)
        settings.pop("codebook_sizes", None)
        is_conditional = self.bottleneck == "conditional"
        if self.bottleneck == "hierarchical":
            settings["num_levels"] = max(2, self.num_levels)
        return AutoencoderConfig(
            image_size=preprocessing.image_size, bottleneck=self.bottleneck,
            bottleneck_options=self.bottleneck_options(), latents=self.latents,
            reconstruction_loss=self.reconstruction_loss, tied_weights=bool(self.tied_weights),
            input_noise=self.input_noise, noise_amount=self.noise_amount,
            class_names=list(class_names) if is_conditional else None,
            condition=self.wanted_condition if is_conditional else None,
            preprocessing=preprocessing.to_dict(), **settings,
        )  # fmt: skip

    @property
    def wanted_condition(self) -> str:
        """Where a picture's class is found, of a conditional bottleneck."""
        return self.condition or "label"

    def _preset(self, size: int, photographs: bool) -> dict[str, Any]:
        """What size and kind of the pictures choose, and the options that override it."""
        from tokenizer_image.configuration import (
            COMPONENTS_CODEBOOKS,
            COMPONENTS_PER_CODE,
            PHOTOGRAPH_NETWORK,
            preset,
        )

        given = {name: getattr(self, name) for name in PRESET_SETTINGS if getattr(self, name) is not None}
        if self.network == "components":
            sizes = self.codebook_sizes or COMPONENTS_CODEBOOKS
            each = max(1, min(COMPONENTS_PER_CODE, self.num_channels * size**2 // len(sizes)))
            return given | {"codebook_sizes": sizes, "code_dim": self.code_dim or each * len(sizes)}
        try:
            return preset(size, photographs) | given
        except ValueError:
            if {"patch_size", "hidden_sizes"} <= given.keys():
                return PHOTOGRAPH_NETWORK | given if photographs else given
            raise
