"""Quantizers by name: what `VQVAEConfig.quantizer` can say, and what is built for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizer_image.quantizers.finite_scalar import FiniteScalarQuantizer, levels_for
from tokenizer_image.quantizers.grouped import GroupedQuantizer
from tokenizer_image.quantizers.interface import Quantizer
from tokenizer_image.quantizers.lookup_free import LookupFreeQuantizer
from tokenizer_image.quantizers.projected import ProjectedQuantizer
from tokenizer_image.quantizers.residual import ResidualQuantizer
from tokenizer_image.quantizers.vector import VectorQuantizer

Build = Callable[..., Quantizer]


def _one(codebook_sizes: list[int], kind: str) -> int:
    if len(codebook_sizes) != 1:
        raise ValueError(
            f"codebook_sizes {codebook_sizes}: quantizer {kind!r} has one codebook; give one size, or choose "
            "'residual', 'grouped' or 'grouped_residual'"
        )
    return codebook_sizes[0]


def _equal_parts(code_dim: int, count: int, codebook_sizes: list[int]) -> int:
    if code_dim % count:
        raise ValueError(
            f"code_dim {code_dim} cannot be cut into {count} equal parts, as codebook_sizes {codebook_sizes} need: "
            f"choose a multiple of {count}"
        )
    return code_dim // count


def ema(codebook_sizes: list[int], code_dim: int, **options: Any) -> Quantizer:
    return VectorQuantizer(_one(codebook_sizes, "ema"), code_dim, **options)


def gradient(codebook_sizes: list[int], code_dim: int, **options: Any) -> Quantizer:
    return VectorQuantizer(_one(codebook_sizes, "gradient"), code_dim, learning="gradient", **options)


def cosine(codebook_sizes: list[int], code_dim: int, codebook_dim: int = 8, **options: Any) -> Quantizer:
    inner = VectorQuantizer(_one(codebook_sizes, "cosine"), codebook_dim, normalize=True, **options)
    return ProjectedQuantizer(inner, code_dim)


def residual(codebook_sizes: list[int], code_dim: int, **options: Any) -> Quantizer:
    return ResidualQuantizer(codebook_sizes, code_dim, **options)


def grouped(codebook_sizes: list[int], code_dim: int, **options: Any) -> Quantizer:
    width = _equal_parts(code_dim, len(codebook_sizes), codebook_sizes)
    return GroupedQuantizer([VectorQuantizer(size, width, **options) for size in codebook_sizes])


def grouped_residual(codebook_sizes: list[int], code_dim: int, num_groups: int = 2, **options: Any) -> Quantizer:
    if num_groups < 1 or len(codebook_sizes) % num_groups:
        raise ValueError(
            f"codebook_sizes {codebook_sizes} cannot be dealt to num_groups {num_groups}: give each as many depths"
        )
    depths, width = len(codebook_sizes) // num_groups, _equal_parts(code_dim, num_groups, codebook_sizes)
    shares = [codebook_sizes[group * depths : (group + 1) * depths] for group in range(num_groups)]
    return GroupedQuantizer([ResidualQuantizer(share, width, **options) for share in shares])


def finite_scalar(codebook_sizes: list[int], code_dim: int, levels: list[int] | None = None) -> Quantizer:
    size = _one(codebook_sizes, "finite_scalar")
    if size < 2:
        raise ValueError(f"codebook_sizes {codebook_sizes}: a codebook needs at least 2 codes")
    chosen = levels or levels_for(size)
    return ProjectedQuantizer(FiniteScalarQuantizer(chosen), code_dim)


def lookup_free(codebook_sizes: list[int], code_dim: int, **options: Any) -> Quantizer:
    return ProjectedQuantizer(LookupFreeQuantizer(_bits(codebook_sizes, "lookup_free"), **options), code_dim)


def binary_spherical(codebook_sizes: list[int], code_dim: int, **options: Any) -> Quantizer:
    bits = _bits(codebook_sizes, "binary_spherical")
    return ProjectedQuantizer(LookupFreeQuantizer(bits, spherical=True, **options), code_dim)


def _bits(codebook_sizes: list[int], kind: str) -> int:
    size = _one(codebook_sizes, kind)
    if size < 2 or size & (size - 1):
        raise ValueError(f"codebook_sizes {codebook_sizes}: quantizer {kind!r} has a power of two of codes, e.g. 1024")
    return size.bit_length() - 1


CODEBOOK = (
    "commitment_weight", "ema_decay", "revival_threshold", "kmeans_start", "temperature", "rotation_trick",
)  # fmt: skip
ENTROPY = ("commitment_weight", "entropy_weight", "diversity", "entropy_temperature")


@dataclass(frozen=True)
class Kind:
    """How a kind of quantizer is built, and the names of what it can be told."""

    build: Build
    options: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "ema": Kind(ema, CODEBOOK),
    "gradient": Kind(gradient, CODEBOOK),
    "cosine": Kind(cosine, (*CODEBOOK, "codebook_dim", "learning")),
    "residual": Kind(residual, (*CODEBOOK, "shared_codebook")),
    "grouped": Kind(grouped, CODEBOOK),
    "grouped_residual": Kind(grouped_residual, (*CODEBOOK, "shared_codebook", "num_groups")),
    "finite_scalar": Kind(finite_scalar, ("levels",)),
    "lookup_free": Kind(lookup_free, ENTROPY),
    "binary_spherical": Kind(binary_spherical, ENTROPY),
}


def register_quantizer(name: str, build: Build, options: Sequence[str] = ()) -> None:
    """Make a quantizer of your own known to `VQVAEConfig(quantizer=name)`.

    Args:
        build: called as `build(codebook_sizes, code_dim, **quantizer_options)`, answers with a `Quantizer`. A saved
            tokenizer needs it registered again before it is loaded.
        options: names of the `quantizer_options` that it takes.

    Raises:
        ValueError: the name is taken.
    """
    if name in KINDS:
        raise ValueError(f"quantizer {name!r} is known already: choose another name")
    KINDS[name] = Kind(build, tuple(options))


def check_options(kinds: Sequence[str], options: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown kind (the known are listed), or an option that none of the kinds takes."""
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"unknown quantizer {kind!r}: choose one of {', '.join(KINDS)}")
    for name in options:
        if not any(name in KINDS[kind].options for kind in kinds):
            taken = "; ".join(
                f"{kind!r} takes {', '.join(KINDS[kind].options) or 'none'}" for kind in dict.fromkeys(kinds)
            )
            raise ValueError(f"quantizer option {name!r} means nothing here: {taken}")


def build_quantizer(
    kind: str, codebook_sizes: Sequence[int], code_dim: int, options: Mapping[str, Any] | None = None
) -> Quantizer:
    """The quantizer of this name.

    Args:
        kind: a name in `KINDS`.
        codebook_sizes: size of each codebook, first to last; "finite_scalar" takes the nearest size that it can have.
        code_dim: size of a latent.
        options: what else the kind can be told (`KINDS[kind].options`).

    Raises:
        ValueError: an unknown kind (the known are listed), sizes or options that it cannot have.
    """
    check_options([kind], options or {})
    return KINDS[kind].build(list(codebook_sizes), code_dim, **(options or {}))


def build_levels(
    kinds: Sequence[str], codebook_sizes: Sequence[Sequence[int]], code_dim: int, options: Mapping[str, Any]
) -> list[Quantizer]:
    """A quantizer for each level, coarse to fine; each is told those of the options that its kind takes.

    Raises:
        ValueError: as `build_quantizer`; an option that no level's kind takes.
    """
    check_options(kinds, options)
    return [
        build_quantizer(
            kind, sizes, code_dim, {name: value for name, value in options.items() if name in KINDS[kind].options}
        )
        for kind, sizes in zip(kinds, codebook_sizes, strict=True)
    ]
