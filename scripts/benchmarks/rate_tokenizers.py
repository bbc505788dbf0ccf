"""The models of `rate_distortion.py`, from about 128 to 2,048 bits a picture, and how they are trained."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks.few_pictures import run_script

SCRIPTS = Path(__file__).resolve().parents[1]
FINE, COARSE = 8, 4  # places a side, at most
WIDTHS = (64, 96, 128)  # channels at each resolution, fine to coarse
LEAST_PATCH = 2


@dataclass(frozen=True)
class TokenizerPlan:
    """A tokenizer of the table.

    Attributes:
        kind: of its quantizer, `--quantizer`.
        places: along each side of its finest level.
        codebook_sizes: of all levels, coarse to fine.
        levels: 1 to 3.
        network: `--network`; "components" has one place.
    """

    kind: str
    places: int
    codebook_sizes: tuple[int, ...]
    levels: int = 1
    network: str = "conv"

    @property
    def series(self) -> str:
        """Its line in the plot: tokenizers of one network and as many levels."""
        if self.network == "components":
            return "VQ of components"
        return "VQ" if self.levels == 1 else f"VQ, {self.levels} levels"

    def settings(self, image_size: int) -> dict[str, Any]:
        """Of `ImageTokenizerOptions`, for pictures of so many pixels a side."""
        sizes = {} if self.network == "components" else _sizes(image_size, self.places)
        return {
            "image_size": image_size, **sizes, "network": self.network, "quantizer": self.kind,
            "num_levels": self.levels, "codebook_sizes": list(self.codebook_sizes),
        }  # fmt: skip


PLANS = {
    "ema_128": TokenizerPlan("ema", COARSE, (256,)),
    "residual_256": TokenizerPlan("residual", COARSE, (256, 256)),
    "ema_256": TokenizerPlan("ema", FINE, (16,)),
    "ema_512": TokenizerPlan("ema", FINE, (256,)),
    "finite_scalar_512": TokenizerPlan("finite_scalar", FINE, (256,)),
    "lookup_free_512": TokenizerPlan("lookup_free", FINE, (256,)),
    "ema_768": TokenizerPlan("ema", FINE, (4096,)),
    "grouped_1024": TokenizerPlan("grouped", FINE, (256, 256)),
    "residual_1024": TokenizerPlan("residual", FINE, (256, 256)),
    "grouped_2048": TokenizerPlan("grouped", FINE, (256, 256, 256, 256)),
    "2_levels_160": TokenizerPlan("ema", COARSE, (256, 256), 2),
    "2_levels_384": TokenizerPlan("ema", FINE, (256, 16), 2),
    "2_levels_512": TokenizerPlan("ema", FINE, (256, 64), 2),
    "2_levels_1280": TokenizerPlan("grouped", FINE, (256, 256, 256, 256), 2),
    "3_levels_480": TokenizerPlan("ema", FINE, (256, 256, 32), 3),
    **{
        f"components_{bits}": TokenizerPlan("grouped", 1, (256,) * (bits // 8), network="components")
        for bits in (128, 256, 384, 512, 1024, 2048)
    },
}


@dataclass(frozen=True)
class AutoencoderPlan:
    """An autoencoder with continuous latents.

    Attributes:
        kind: `--bottleneck`.
        code_dim: numbers of each of `FINE` x `FINE` places.
    """

    kind: str
    code_dim: int

    @property
    def series(self) -> str:
        """Its line in the plot."""
        return {"none": "autoencoder", "gaussian": "VAE"}[self.kind]

    def settings(self, image_size: int) -> dict[str, Any]:
        """As of `TokenizerPlan`."""
        return {
            "image_size": image_size, **_sizes(image_size, FINE), "bottleneck": self.kind, "latents": "positions",
            "code_dim": self.code_dim,
        }  # fmt: skip


AUTOENCODERS = {
    "autoencoder_2": AutoencoderPlan("none", 2),
    "autoencoder_8": AutoencoderPlan("none", 8),
    "vae_2": AutoencoderPlan("gaussian", 2),
    "vae_8": AutoencoderPlan("gaussian", 8),
}


def _largest_divisor(image_size: int, most: int) -> int:
    """Places a side: the most, up to `most`, that divide the side into patches of equal size."""
    return max(places for places in range(1, most + 1) if image_size % places == 0)


def _network(image_size: int, places: int) -> tuple[int, tuple[int, ...]]:
    """Patch size and widths of a network with so many places a side, at as many resolutions as there may be."""
    patch, stages = image_size // places, 1
    while stages < len(WIDTHS) and patch % 2 == 0 and patch // 2 >= LEAST_PATCH:
        patch, stages = patch // 2, stages + 1
    return patch, WIDTHS[-stages:]


def _sizes(image_size: int, places: int) -> dict[str, Any]:
    """Of `ImageTokenizerOptions`, for a convolutional network with at most so many places a side."""
    patch, widths = _network(image_size, _largest_divisor(image_size, places))
    return {"patch_size": patch, "hidden_sizes": list(widths)}


def _arguments(settings: Mapping[str, Any]) -> list[str]:
    """The same on the command line of `train_tokenizer.py`."""
    words: list[str] = []
    for name, value in settings.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def check_plans(names: Sequence[str], image_size: int, channels: int) -> None:
    """Raise ValueError, with the tokenizer's name, for one that pictures of this size cannot have."""
    from pipelines.options.image_tokenizer import ImageTokenizerOptions

    for name in names:
        try:
            ImageTokenizerOptions(num_channels=channels, **PLANS[name].settings(image_size))
        except ValueError as error:
            raise ValueError(f"the tokenizer {name} and --image_size {image_size}: {error}") from error


def train_model(name: str, folder: Path, dataset: str, image_size: int, further: Sequence[str]) -> None:
    """Train a model of the tables into `folder`, by squared error, or go on; a finished one stays as it is.

    Args:
        further: arguments, such as the budget.

    Raises:
        ValueError: the command failed.
    """
    run_script(
        [
            sys.executable, str(SCRIPTS / "train_tokenizer.py"), "--dataset", dataset, "--output_dir", str(folder),
            "--perceptual_weight", "0", "--adversarial_weight", "0", "--resume",
            *_arguments((PLANS | AUTOENCODERS)[name].settings(image_size)), *further,
        ]
    )  # fmt: skip
