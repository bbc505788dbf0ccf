"""Options of what stands between stage 1's encoder and decoder. No torch, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.options.option import option

QUANTIZER = "quantizer"
KL_OPTIONS = {name: name for name in ("kl_weight", "kl_warmup", "capacity", "capacity_share")}
# The arguments of each bottleneck that options set: option -> argument.
BOTTLENECK_OPTIONS: dict[str, dict[str, str]] = {
    QUANTIZER: {},
    "none": {},
    "sparse": {"sparse_penalty": "penalty", "sparse_rate": "rate", "sparse_weight": "weight"},
    "k_sparse": {"sparse_k": "k", "sparse_alpha": "alpha"},
    "contractive": {"contractive_weight": "weight", "contractive_probes": "probes"},
    "denoising": {},
    "gaussian": KL_OPTIONS,
    "conditional": KL_OPTIONS,
    "hierarchical": {**KL_OPTIONS, "level_inference": "inference"},
}
AUTOENCODERS = tuple(name for name in BOTTLENECK_OPTIONS if name != QUANTIZER)
STACKED = ("none", "sparse", "k_sparse", "denoising")  # whose layers can be trained one after another
# Which bottlenecks an option is for, beside those in `BOTTLENECK_OPTIONS`.
TAKERS: dict[str, tuple[str, ...]] = {
    "latents": AUTOENCODERS,
    "tied_weights": ("none", "sparse", "k_sparse", "contractive", "denoising"),
    "condition": ("conditional",),
    "stack_layers": STACKED,
    "stack_share": STACKED,
}


@dataclass
class BottleneckOptions:
    """The bottleneck, and what it is trained by."""

    bottleneck: str = option(
        QUANTIZER,
        "'quantizer': codes, for stage 2. Others have none: 'none', 'sparse', 'k_sparse', 'contractive', 'denoising', "
        "'gaussian' (VAE), 'conditional' (CVAE), 'hierarchical' (VAE of --num_levels 2 or 3)",
        choices=tuple(BOTTLENECK_OPTIONS),
    )
    latents: str | None = option(
        None,
        "'positions': a latent of --code_dim numbers for each place of a grid; 'picture': one for the whole picture "
        "(default: by the bottleneck; not for 'quantizer')",
        choices=("positions", "picture"),
    )
    reconstruction_loss: str = option(
        "squared",
        "'squared' or 'absolute' error, or 'cross_entropy' of values in [0, 1] (not for 'quantizer')",
        choices=("squared", "absolute", "cross_entropy"),
    )
    input_noise: str | None = option(
        None,
        "what the encoder reads is corrupted, and the clean picture reconstructed, with any bottleneck: 'gaussian', "
        "'masking' or 'salt_and_pepper' (default: none; 'gaussian' for 'denoising')",
        choices=("gaussian", "masking", "salt_and_pepper"),
    )
    noise_amount: float | None = option(
        None,
        "standard deviation of the noise on [-1, 1] (default 0.3), or share of the pixels (default 0.25; 0.1 for salt "
        "and pepper)",
        not_negative=True,
    )
    tied_weights: bool | None = option(
        None, "with --network mlp: the decoder's layers are the transposed ones of the encoder (default: no)"
    )
    sparse_penalty: str | None = option(
        None, "sparse: 'kl' to --sparse_rate over sigmoid units, or 'l1' (default 'kl')", choices=("kl", "l1")
    )
    sparse_rate: float | None = option(None, "sparse: mean activity of a unit (default 0.05)", within="(0, 1)")
    sparse_weight: float | None = option(
        None, "sparse: weight of the penalty beside the error summed over a picture (default 1)", not_negative=True
    )
    sparse_k: int | None = option(
        None, "k_sparse: elements of a latent that are kept (default: a quarter of --code_dim)", above_zero=True
    )
    sparse_alpha: float | None = option(
        None, "k_sparse: at encoding, --sparse_k times this are kept (default 1)", within="[1, inf)"
    )
    contractive_weight: float | None = option(
        None,
        "contractive: weight of the squared norm of the encoder's Jacobian beside the error summed over a picture "
        "(default 0.1)",
        not_negative=True,
    )
    contractive_probes: int | None = option(
        None, "contractive, with --network conv: random vectors that estimate that norm (default 1)", above_zero=True
    )
    kl_weight: float | None = option(
        None,
        "gaussian, conditional, hierarchical: weight of the divergence; 1: VAE, more: beta-VAE (default 1)",
        not_negative=True,
    )
    kl_warmup: float | None = option(
        None, "share of the budget over which --kl_weight rises from 0 (default 0)", within="[0, 1]"
    )
    capacity: float | None = option(
        None,
        "in place of a warm-up: the divergence is drawn to this many nats a picture, which rise from 0 (default: none)",
        not_negative=True,
    )
    capacity_share: float | None = option(
        None, "share of the budget over which --capacity rises (default 0.5)", within="(0, 1]"
    )
    level_inference: str | None = option(
        None,
        "hierarchical: 'top_down' (ladder) or 'bottom_up' (default 'top_down')",
        choices=("top_down", "bottom_up"),
    )
    condition: str | None = option(
        None,
        "conditional: on the class 'label' of a picture, or on its 'caption', where captions are classes (default: "
        "'label')",
        choices=("label", "caption"),
    )
    stack_layers: bool | None = option(
        None,
        "train the autoencoder layer by layer, each on what the layers before make of the pictures, then all together "
        "(default: no)",
    )
    stack_share: float | None = option(
        None, "share of the budget that --stack_layers train for, equally many each (default 0.5)", within="(0, 1)"
    )

    @property
    def is_quantized(self) -> bool:
        """Whether the bottleneck is a quantizer, so that there are codes."""
        return self.bottleneck == QUANTIZER

    def bottleneck_options(self) -> dict[str, Any]:
        """The options that were given of those of the bottleneck, under the names of its arguments."""
        options = {argument: getattr(self, name) for name, argument in BOTTLENECK_OPTIONS[self.bottleneck].items()}
        return {name: value for name, value in options.items() if value is not None}

    def check_bottleneck(self) -> None:
        """Raise ValueError for options that do not belong together."""
        for name, takers in _takers().items():
            if getattr(self, name) not in (None, False) and self.bottleneck not in takers:
                *others, last = takers
                listed = f"{', '.join(others)} or {last}" if others else last
                raise ValueError(
                    f"--{name} {getattr(self, name)} is for --bottleneck {listed}, not for {self.bottleneck}: leave it "
                    "out, or choose that"
                )
        self._check_pairs()
        if self.reconstruction_loss == "cross_entropy" and self.is_quantized:
            raise ValueError(
                f"--reconstruction_loss cross_entropy is for --bottleneck {', '.join(AUTOENCODERS)}, not for "
                f"{QUANTIZER}: choose squared or absolute"
            )

    def _check_pairs(self) -> None:
        """Raise ValueError for two options of which one needs or excludes the other."""
        if self.noise_amount is not None and self.input_noise is None and self.bottleneck != "denoising":
            raise ValueError(
                f"--noise_amount {self.noise_amount:g} needs --input_noise gaussian, masking or salt_and_pepper"
            )
        noise = self.input_noise or "gaussian"
        if self.noise_amount is not None and noise != "gaussian" and self.noise_amount > 1:
            raise ValueError(
                f"--noise_amount {self.noise_amount:g} of --input_noise {noise} must be at most 1: a share"
            )
        if self.capacity is not None and self.kl_warmup:
            raise ValueError(
                f"--capacity {self.capacity:g} and --kl_warmup {self.kl_warmup:g} are two schedules: give one of them"
            )
        if self.capacity_share is not None and self.capacity is None:
            raise ValueError(f"--capacity_share {self.capacity_share:g} needs --capacity, in nats")
        if self.stack_share is not None and not self.stack_layers:
            raise ValueError(f"--stack_share {self.stack_share:g} needs --stack_layers")
        if self.sparse_penalty == "l1" and self.sparse_rate is not None:
            raise ValueError(f"--sparse_rate {self.sparse_rate:g} is for --sparse_penalty kl, not for l1: leave it out")


def _takers() -> dict[str, tuple[str, ...]]:
    """Option -> the bottlenecks that take it."""
    found = dict(TAKERS)
    for name in {option_name for options in BOTTLENECK_OPTIONS.values() for option_name in options}:
        found[name] = tuple(kind for kind, options in BOTTLENECK_OPTIONS.items() if name in options)
    return found
