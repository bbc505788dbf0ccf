"""The registry of quantizers: `VQVAEConfig.quantizer` names an entry, `build_quantizer` builds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizer_image.quantizers.finite_scalar import FiniteScalarQuantizer, levels_for
from tokenizer_image.quantizers.grouped import GroupedQuantizer
from tokenizer_image.quantizers.interface import Quantizer, check_values
from tokenizer_image.quantizers.lookup_free import LookupFreeQuantizer
from tokenizer_image.quantizers.projected import ProjectedQuantizer
from tokenizer_image.quantizers.residual import ResidualQuantizer
from tokenizer_image.quantizers.vector import VectorQuantizer

Build = Callable[..., Quantizer]


def _only_size(codebook_sizes: list[int], kind: str) -> int:
    if len(codebook_sizes) != 1:
        raise ValueError(
            f"codebook_sizes {codebook_sizes}: quantizer {kind!r} has one codebook; give one size, or choose "
            "'residual', 'grouped' or 'grouped_residual'"
        )
    return codebook_sizes[0]


def _equal_parts(code_dim: int, count: int, codebook_sizes: list[int]) -> int:
    if code_dim % count:
        raise ValueError(
            f"code_dim {code_dim} cannot be split into the {count} equal parts that codebook_sizes {codebook_sizes} "
            f"need: choose a multiple of {count}"
        )
    return code_dim // count


def ema(codebook_sizes: list[int], code_dim: int, **options: Any) -> Quantizer:
    return VectorQuantizer(_only_size(codebook_sizes, "ema"), code_dim, **options)


def gradient(codebook_sizes: list[int], code_dim: int, **options: Any) -> Quantizer:
    return VectorQuantizer(_only_size(codebook_sizes, "gradient"), code_dim, learning="gradient", **options)


def cosine(codebook_sizes: list[int], code_dim: int, codebook_dim: int = 8, **options: Any) -> Quantizer:
    inner = VectorQuantizer(_only_size(codebook_sizes, "cosine"), codebook_dim, normalize=True, **options)
    return ProjectedQuantizer(inner, code_dim)


def residual(codebook_sizes: list[int], code_dim: int, **options: Any) -> Quantizer:
    return ResidualQuantizer(codebook_sizes, code_dim, **options)


def grouped(codebook_sizes: list[int], code_dim: int, **options: Any) -> Quantizer:
    width = _equal_parts(code_dim, len(codebook_sizes), codebook_sizes)
    return GroupedQuantizer([VectorQuantizer(size, width, **options) for size in codebook_sizes])


def grouped_residual(codebook_sizes: list[int], code_dim: int, num_groups: int = 2, **options: Any) -> Quantizer:
    if num_groups < 1 or len(codebook_sizes) % num_groups:
        raise ValueError(
            f"codebook_sizes {codebook_sizes} cannot be split evenly among num_groups {num_groups}: give every group "
            "the same number of depths"
        )
    depths, width = len(codebook_sizes) // num_groups, _equal_parts(code_dim, num_groups, codebook_sizes)
    groups = [codebook_sizes[group * depths : (group + 1) * depths] for group in range(num_groups)]
    return GroupedQuantizer([ResidualQuantizer(sizes, width, **options) for sizes in groups])


def finite_scalar(codebook_sizes: list[int], code_dim: int, levels: list[int] | None = None) -> Quantizer:
    size = _only_size(codebook_sizes, "finite_scalar")
    if size < 2:
        raise ValueError(f"codebook_sizes {codebook_sizes}: a codebook needs at least 2 codes")
    return ProjectedQuantizer(FiniteScalarQuantizer(levels or levels_for(size)), code_dim)


def lookup_free(codebook_sizes: list[int], code_dim: int, **options: Any) -> Quantizer:
    return ProjectedQuantizer(LookupFreeQuantizer(_bits(codebook_sizes, "lookup_free"), **options), code_dim)


def binary_spherical(codebook_sizes: list[int], code_dim: int, **options: Any) -> Quantizer:
    bits = _bits(codebook_sizes, "binary_spherical")
    return ProjectedQuantizer(LookupFreeQuantizer(bits, spherical=True, **options), code_dim)


def _bits(codebook_sizes: list[int], kind: str) -> int:
    size = _only_size(codebook_sizes, kind)
    if size < 2 or size & (size - 1):
        raise ValueError(f"codebook_sizes {codebook_sizes}: quantizer {kind!r} needs a power of two, e.g. 1024")
    return size.bit_length() - 1


CODEBOOK_OPTIONS = (
    "commitment_weight", "ema_decay", "revival_threshold", "kmeans_start", "temperature", "rotation_trick",
)  # fmt: skip
ENTROPY_OPTIONS = ("commitment_weight", "entropy_weight", "diversity", "entropy_temperature")


@dataclass(frozen=True)
class Kind:
    """A registered kind of quantizer.

    Attributes:
        build: called as `build(codebook_sizes, code_dim, **options)`.
        options: names of the keyword arguments that `quantizer_options` may set.
    """

    build: Build
    options: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "ema": Kind(ema, CODEBOOK_OPTIONS),
    "gradient": Kind(gradient, CODEBOOK_OPTIONS),
    "cosine": Kind(cosine, (*CODEBOOK_OPTIONS, "codebook_dim", "learning")),
    "residual": Kind(residual, (*CODEBOOK_OPTIONS, "shared_codebook", "depth_dropout")),
    "grouped": Kind(grouped, CODEBOOK_OPTIONS),
    "grouped_residual": Kind(grouped_residual, (*CODEBOOK_OPTIONS, "shared_codebook", "num_groups", "depth_dropout")),
    "finite_scalar": Kind(finite_scalar, ("levels",)),
    "lookup_free": Kind(lookup_free, ENTROPY_OPTIONS),
    "binary_spherical": Kind(binary_spherical, ENTROPY_OPTIONS),
}


def register_quantizer(name: str, build: Build, options: Sequence[str] = ()) -> None:
    """Register a kind of quantizer for `VQVAEConfig(quantizer=name)`.

    A process that loads a saved tokenizer must have registered its kind before.

    Args:
        build: called as `build(codebook_sizes, code_dim, **quantizer_options)`; returns a `Quantizer`.
        options: names of the `quantizer_options` that it takes.

    Raises:
        ValueError: the name is taken.
    """
    if name in KINDS:
        raise ValueError(f"quantizer {name!r} is registered already: choose another name")
    KINDS[name] = Kind(build, tuple(options))


def check_options(kinds: Sequence[str], options: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> None:
    """Raise ValueError for an unknown kind, an option that none of the kinds takes, or a value out of its range.

    Args:
        labels: what messages call options instead of their names, such as {"ema_decay": "--codebook_decay"}.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"unknown quantizer {kind!r}: choose one of {', '.join(KINDS)}")
    labels = labels or {}
    for name in options:
        if not any(name in KINDS[kind].options for kind in kinds):
            choices = "; ".join(
                f"{kind!r} takes {', '.join(labels.get(o, o) for o in KINDS[kind].options) or 'none'}"
                for kind in dict.fromkeys(kinds)
            )
            raise ValueError(f"no quantizer option {labels.get(name) or repr(name)}: {choices}")
    check_values(options, labels)


def build_quantizer(
    kind: str, codebook_sizes: Sequence[int], code_dim: int, options: Mapping[str, Any] | None = None
) -> Quantizer:
    """Build a quantizer by the name of its kind.

    Args:
        kind: a name in `KINDS`.
        codebook_sizes: size of each codebook, first to last; "finite_scalar" takes the nearest size that it can have.
        code_dim: size of a latent.
        options: keyword arguments of the kind, of those in `KINDS[kind].options`.

    Raises:
        ValueError: an unknown kind, or sizes or options that the kind does not take.
    """
    check_options([kind], options or {})
    return KINDS[kind].build(list(codebook_sizes), code_dim, **(options or {}))


def build_levels(
    kinds: Sequence[str], codebook_sizes: Sequence[Sequence[int]], code_dim: int, options: Mapping[str, Any]
) -> list[Quantizer]:
    """Build one quantizer per level, coarse to fine; each gets those of the options that its kind takes.

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
