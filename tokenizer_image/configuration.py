"""Settings of the image tokenizer, and what to start from for each picture size."""

from __future__ import annotations

import math
from typing import Any

from tokenizer_image.network_configuration import NetworkConfig
from tokenizer_image.quantizers.kinds import check_options

CODES_PER_PICTURE = range(32, 513)  # of presets: the language model's cost grows with their number
# Patch sizes, widths and codebooks by picture size.
PRESETS: dict[int, dict[str, Any]] = {
    28: {"patch_size": 2, "hidden_sizes": [64, 128], "codebook_sizes": [512]},
    32: {"patch_size": 4, "hidden_sizes": [64, 128], "codebook_sizes": [512, 512]},
    64: {"patch_size": 4, "hidden_sizes": [128, 256], "codebook_sizes": [1024, 1024]},
    128: {"patch_size": 4, "hidden_sizes": [128, 192, 256], "codebook_sizes": [4096]},
    256: {"patch_size": 4, "hidden_sizes": [128, 192, 256], "codebook_sizes": [8192]},
}
# The same for photographs, with networks that leave no grid of tiles.
PHOTOGRAPH_PRESETS: dict[int, dict[str, Any]] = {
    32: {"patch_size": 2, "hidden_sizes": [64, 128], "codebook_sizes": [1024]},
    64: {"patch_size": 2, "hidden_sizes": [32, 64, 128], "codebook_sizes": [1024, 1024]},
    128: {"patch_size": 2, "hidden_sizes": [32, 64, 128, 128], "codebook_sizes": [4096]},
    256: {"patch_size": 4, "hidden_sizes": [96, 128, 192], "codebook_sizes": [8192]},
}
# Of network="components": 32 codes of 9 bits a picture, and components for each code of a position.
COMPONENTS_CODEBOOKS, COMPONENTS_PER_CODE = [512] * 32, 8
COMPONENTS_QUANTIZERS = ("grouped", "residual", "grouped_residual", "ema", "gradient")
PHOTOGRAPH_NETWORK = {"resampling": "overlapping"}
# Of signals: at 16,000 samples a second, sounds get 50 positions of three codes, 1.5 kbit/s. A forecast encodes what
# comes before it, whose codes must not depend on what comes after.
SIGNAL_PRESETS: dict[str, dict[str, Any]] = {
    "audio": {
        "patch_size": 80, "hidden_sizes": [96, 128, 256], "num_res_blocks": 1, "encoder_kernel_size": 3,
        "code_dim": 64, "resampling": "patches", "quantizer": "residual", "codebook_sizes": [1024, 1024, 1024],
    },
    "series": {
        "patch_size": 4, "hidden_sizes": [96, 128], "encoder_kernel_size": 3, "resampling": "patches",
        "quantizer": "residual", "codebook_sizes": [256, 256], "causal": True,
    },
    "video": {
        "patch_size": 4, "frame_patch": 4, "hidden_sizes": [64, 128], "resampling": "patches", "quantizer": "grouped",
        "codebook_sizes": [512, 512],
    },
}  # fmt: skip


class VQVAEConfig(NetworkConfig):
    """Settings of `VQVAE`.

    Args:
        image_size, num_channels, patch_size, network, hidden_sizes, num_res_blocks, encoder_kernel_size, resampling,
            code_dim, input_noise, noise_amount, preprocessing: see `NetworkConfig`.
        num_levels: 1, or 2 or 3 as in VQ-VAE-2 (Razavi et al. 2019): each coarser level has half the height and width
            of the next finer one.
        level_dropout: share of training pictures that are decoded without their finer levels (from 1 or 2 levels, with
            equal probability), so that the coarse levels alone give a picture. At 0, coarse levels may learn nothing
            if the finest level has capacity for the whole picture.
        codebook_sizes: size of each codebook; every codebook adds one code per position. With several levels: coarse
            to fine, split evenly among the levels.
        quantizer: a name in `quantizers.KINDS`, or a list with one per level: "ema", "gradient", "cosine",
            "finite_scalar", "lookup_free" and "binary_spherical" have one codebook; "grouped", "residual" and
            "grouped_residual" may have several.
        quantizer_options: further arguments of the quantizer, e.g. {"revival_threshold": 0.1} (see `VectorQuantizer`,
            `ResidualQuantizer`, `LookupFreeQuantizer` and `quantizers.kinds`).

    Raises:
        ValueError: a value out of range, sizes that do not fit each other, an unknown quantizer or quantizer option.
    """

    model_type = "tessera_vqvae"

    def __init__(
        self,
        hidden_sizes: list[int] | None = None,
        level_dropout: float = 0.1,
        codebook_sizes: list[int] | None = None,
        quantizer: str | list[str] = "grouped",
        quantizer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.level_dropout = level_dropout
        self.codebook_sizes = [1024, 1024] if codebook_sizes is None else list(codebook_sizes)
        self.quantizer = quantizer
        self.quantizer_options = dict(quantizer_options or {})
        if hidden_sizes == [] or not self.codebook_sizes:
            raise ValueError(
                f"hidden_sizes={hidden_sizes}, codebook_sizes={codebook_sizes}: each needs at least one entry"
            )
        super().__init__(hidden_sizes=hidden_sizes, **kwargs)

    def _check_levels(self) -> None:
        """Raise ValueError unless every level has a known quantizer, options that it takes, and codebooks."""
        super()._check_levels()
        if not 0 <= self.level_dropout < 1:
            raise ValueError(f"level_dropout={self.level_dropout} must be in [0, 1): a share of the pictures")
        if self.network != "conv" and self.num_levels > 1:
            raise ValueError(
                f"num_levels={self.num_levels}: network={self.network!r} has one level; use network='conv'"
            )
        if len(self.codebook_sizes) % self.num_levels:
            raise ValueError(
                f"codebook_sizes={self.codebook_sizes} cannot be split evenly among num_levels={self.num_levels} "
                "levels: give every level the same number of codebooks"
            )
        if not isinstance(self.quantizer, str) and len(self.quantizer) != self.num_levels:
            raise ValueError(
                f"quantizer={self.quantizer}: give one name for all num_levels={self.num_levels} levels, or a list "
                "with one per level"
            )
        check_options(self.level_quantizers, self.quantizer_options)
        if self.network == "components":
            self._check_components()

    def _check_components(self) -> None:
        """Raise ValueError unless principal components can be quantized as they are."""
        numbers = self.num_channels * self.image_size**2
        if self.code_dim > numbers:
            raise ValueError(
                f"code_dim={self.code_dim}: a picture of {numbers:,} numbers has as many components; choose fewer"
            )
        if self.quantizer_options.get("kmeans_start") is False:
            raise ValueError(
                "kmeans_start=False with network='components', whose codebooks do not learn after it: leave it out"
            )
        if self.quantizer not in COMPONENTS_QUANTIZERS:
            raise ValueError(
                f"quantizer={self.quantizer!r} with network='components': choose one of "
                f"{', '.join(COMPONENTS_QUANTIZERS)}, whose codes have the scale of the components"
            )

    @property
    def level_codebook_sizes(self) -> list[list[int]]:
        """Each level's share of `codebook_sizes`, coarse to fine."""
        share = len(self.codebook_sizes) // self.num_levels
        return [self.codebook_sizes[level * share : (level + 1) * share] for level in range(self.num_levels)]

    @property
    def level_quantizers(self) -> list[str]:
        """The name of each level's quantizer, coarse to fine."""
        return [self.quantizer] * self.num_levels if isinstance(self.quantizer, str) else list(self.quantizer)


def preset(image_size: int, photographs: bool = False) -> dict[str, Any]:
    """Settings to start from for square pictures of `image_size` pixels, a multiple of 4.

    Of all presets with codes per picture in `CODES_PER_PICTURE`, those whose patch size needs the least change, and of
    these the one for the smallest size that is not smaller, else for the largest.

    Args:
        photographs: of the presets for photographs, where one fits, and in any case with their kind of network.

    Raises:
        ValueError: no preset fits.
    """
    candidates = (_fitting_presets(image_size, PHOTOGRAPH_PRESETS) if photographs else []) or _fitting_presets(
        image_size
    )
    if not candidates:
        sizes = [size for size in range(4, 2 * image_size + 16, 4) if _fitting_presets(size)]
        nearest = sorted(sorted(sizes, key=lambda size: abs(size - image_size))[:2])
        raise ValueError(
            f"image_size={image_size}: no preset has {CODES_PER_PICTURE[0]} to {CODES_PER_PICTURE[-1]} codes per "
            f"picture at this size; the nearest sizes with one are {' and '.join(map(str, nearest))}, or give "
            "--patch_size and --hidden_sizes"
        )
    chosen = min(candidates, key=lambda candidate: candidate[0])[1]
    return chosen | PHOTOGRAPH_NETWORK if photographs else chosen


def _fitting_presets(
    image_size: int, presets: dict[int, dict[str, Any]] = PRESETS
) -> list[tuple[tuple[float, bool, int], dict[str, Any]]]:
    """Every preset and patch size that fits pictures of `image_size` pixels, with a sort key (the best first)."""
    candidates = []
    largest_change = math.log(2 * max(1.0, image_size / max(presets)))
    for size, settings in presets.items() if image_size % 4 == 0 else ():
        for patch_size in range(1, image_size + 1):
            side, rest = divmod(image_size, patch_size * 2 ** (len(settings["hidden_sizes"]) - 1))
            change = abs(math.log(patch_size / settings["patch_size"]))
            if rest or change > largest_change or side**2 * len(settings["codebook_sizes"]) not in CODES_PER_PICTURE:
                continue
            is_smaller = size < image_size
            candidates.append(
                ((change, is_smaller, -size if is_smaller else size), {**settings, "patch_size": patch_size})
            )
    return candidates
