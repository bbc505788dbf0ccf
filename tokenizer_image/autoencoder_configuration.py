"""Settings of the autoencoders whose bottleneck is no quantizer."""

from __future__ import annotations

from typing import Any

from tokenizer_image.bottlenecks.kinds import BOTTLENECKS, check_options
from tokenizer_image.losses.reconstruction import RECONSTRUCTION_LOSSES
from tokenizer_image.network_configuration import NetworkConfig

LATENTS = ("positions", "picture")
CONDITIONS = ("label", "caption")


class AutoencoderConfig(NetworkConfig):
    """Settings of `Autoencoder`.

    Args:
        image_size, num_channels, patch_size, network, hidden_sizes, num_res_blocks, encoder_kernel_size, resampling,
            code_dim, input_noise, noise_amount, preprocessing: see `NetworkConfig`. Input noise is by default that of
            the bottleneck.
        num_levels: 1; of a hierarchical bottleneck 2 or 3.
        bottleneck: a name in `bottlenecks.BOTTLENECKS`.
        bottleneck_options: further arguments of the bottleneck, e.g. {"kl_weight": 4.0} (see `bottlenecks.kinds`).
        latents: "positions": one of `code_dim` numbers per position of a grid, or "picture": one per picture (of one
            size, `image_size`); default: as the bottleneck's papers have it.
        reconstruction_loss: a name in `RECONSTRUCTION_LOSSES`; with "cross_entropy" the decoder's outputs are logits of
            values in [0, 1].
        tied_weights: whether the layers of an MLP decoder are the transposed ones of its encoder.
        class_names: of a conditional bottleneck.
        condition: "label" or "caption", where a picture's class name is found.

    Raises:
        ValueError: a value out of range, settings that do not fit each other, an unknown bottleneck or option of it.
    """

    model_type = "tessera_autoencoder"

    def __init__(
        self,
        num_levels: int = 1,
        input_noise: str | None = None,
        bottleneck: str = "none",
        bottleneck_options: dict[str, Any] | None = None,
        latents: str | None = None,
        reconstruction_loss: str = "squared",
        tied_weights: bool = False,
        class_names: list[str] | None = None,
        condition: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.bottleneck = bottleneck
        self.bottleneck_options = dict(bottleneck_options or {})
        check_options(bottleneck, self.bottleneck_options)
        kind = BOTTLENECKS[bottleneck]
        self.latents = kind.latents if latents is None else latents
        self.reconstruction_loss = reconstruction_loss
        self.tied_weights = tied_weights
        self.class_names = list(class_names or [])
        self.condition = condition
        super().__init__(num_levels=num_levels, input_noise=input_noise or kind.input_noise, **kwargs)

    def _check_levels(self) -> None:
        """Raise ValueError unless the bottleneck fits the networks."""
        super()._check_levels()
        known = {"latents": LATENTS, "reconstruction_loss": RECONSTRUCTION_LOSSES}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        if self.network == "components":
            raise ValueError(
                f"network='components' is for a quantizer, not for bottleneck={self.bottleneck!r}: use 'mlp'"
            )
        is_hierarchy = self.bottleneck == "hierarchical"
        if is_hierarchy and self.num_levels == 1:
            raise ValueError(f"num_levels={self.num_levels}: bottleneck='hierarchical' has 2 or 3")
        if not is_hierarchy and self.num_levels > 1:
            raise ValueError(
                f"num_levels={self.num_levels}: bottleneck={self.bottleneck!r} has one level; choose 'hierarchical'"
            )
        if self.tied_weights and (self.network != "mlp" or not BOTTLENECKS[self.bottleneck].plain_features):
            tied = ", ".join(name for name, kind in BOTTLENECKS.items() if kind.plain_features)
            raise ValueError(
                f"tied_weights=True with network={self.network!r} and bottleneck={self.bottleneck!r}: the layers of "
                f"the MLP pair alone can be tied, around {tied}"
            )
        if self.bottleneck == "conditional" and not self.class_names:
            raise ValueError("class_names=[]: bottleneck='conditional' needs the classes that it is conditioned on")
        if self.class_names and self.bottleneck != "conditional":
            raise ValueError(f"class_names={self.class_names[:3]}: bottleneck={self.bottleneck!r} has no condition")
        if self.condition not in (None, *CONDITIONS):
            raise ValueError(f"unknown condition {self.condition!r}: choose one of {', '.join(CONDITIONS)}")

    @property
    def has_fixed_size(self) -> bool:
        """Whether pictures have one size, `image_size`."""
        return self.network == "mlp" or self.latents == "picture"

    @property
    def level_scale(self) -> int:
        """2, or 1 where nothing but a convolutional network's grid becomes coarser."""
        return 1 if self.has_fixed_size else 2

    @property
    def downsampling(self) -> int:
        """Pixels per position of the encoder's (coarsest) grid, along each side."""
        return self.image_size if self.network == "mlp" and self.latents == "picture" else super().downsampling

    def feature_grid(self, image_size: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns of the grid that the networks work on at their coarsest."""
        return super().grids(image_size)[-1]

    def grids(self, image_size: int | tuple[int, int] | None = None) -> list[tuple[int, int]]:
        """(rows, columns) of each level's latents, coarse to fine; 1 x 1 where they are of the whole picture.

        Raises:
            ValueError: as `NetworkConfig.grids`.
        """
        grids = super().grids(image_size)
        return [(1, 1)] * len(grids) if self.latents == "picture" else grids
