"""The registry of bottlenecks: `AutoencoderConfig.bottleneck` names an entry, `build_bottleneck` builds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tokenizer_image.bottlenecks.conditional import ConditionalBottleneck
from tokenizer_image.bottlenecks.contractive import ContractiveBottleneck
from tokenizer_image.bottlenecks.divergence import KLSchedule
from tokenizer_image.bottlenecks.gaussian import GaussianBottleneck
from tokenizer_image.bottlenecks.hierarchical import INFERENCES, HierarchicalBottleneck
from tokenizer_image.bottlenecks.interface import Bottleneck
from tokenizer_image.bottlenecks.k_sparse import KSparseBottleneck
from tokenizer_image.bottlenecks.plain import PlainBottleneck
from tokenizer_image.bottlenecks.sparse import PENALTIES, SparseBottleneck

QUANTIZER = "quantizer"  # what stands in a VQVAE, beside the names in `BOTTLENECKS`
KL_OPTIONS = ("kl_weight", "kl_warmup", "capacity", "capacity_share")


@dataclass
class Surroundings:
    """What some bottlenecks have to know of the autoencoder, beside the size of a latent.

    Attributes:
        num_classes: of a conditional one.
        channels: of a hierarchy's features.
        ups, downs: a hierarchy's networks (see `HierarchicalBottleneck`).
        scale: between the grids of a hierarchy's levels.
    """

    num_classes: int = 0
    channels: int = 0
    ups: Sequence[nn.Module] = field(default_factory=list)
    downs: Sequence[nn.Module] = field(default_factory=list)
    scale: int = 2


def _schedule(options: Mapping[str, Any]) -> tuple[KLSchedule, dict[str, Any]]:
    """The schedule that the options give, and the other options."""
    given = {name.removeprefix("kl_"): value for name, value in options.items() if name in KL_OPTIONS}
    return KLSchedule(**given), {name: value for name, value in options.items() if name not in KL_OPTIONS}


def _plain(code_dim: int, around: Surroundings) -> Bottleneck:
    return PlainBottleneck(code_dim)


def _sparse(code_dim: int, around: Surroundings, **options: Any) -> Bottleneck:
    return SparseBottleneck(code_dim, **options)


def _k_sparse(code_dim: int, around: Surroundings, **options: Any) -> Bottleneck:
    return KSparseBottleneck(code_dim, **options)


def _contractive(code_dim: int, around: Surroundings, **options: Any) -> Bottleneck:
    return ContractiveBottleneck(code_dim, **options)


def _gaussian(code_dim: int, around: Surroundings, **options: Any) -> Bottleneck:
    return GaussianBottleneck(code_dim, _schedule(options)[0])


def _conditional(code_dim: int, around: Surroundings, **options: Any) -> Bottleneck:
    if around.num_classes < 1:
        raise ValueError("bottleneck='conditional' needs class_names: the classes that it is conditioned on")
    return ConditionalBottleneck(code_dim, around.num_classes, _schedule(options)[0])


def _hierarchical(code_dim: int, around: Surroundings, **options: Any) -> Bottleneck:
    schedule, others = _schedule(options)
    return HierarchicalBottleneck(
        code_dim, around.channels, around.ups, around.downs, schedule=schedule, scale=around.scale, **others
    )


@dataclass(frozen=True)
class Kind:
    """A registered kind of bottleneck.

    Attributes:
        build: called as `build(code_dim, surroundings, **options)`.
        options: names of the keyword arguments that `bottleneck_options` may set.
        latents: "positions" or "picture", what latents are of by default.
        input_noise: by default.
        plain_features: whether the encoder has one feature a latent, which nothing but the latent's own value decides,
            so that weights can be tied and layers stacked.
    """

    build: Callable[..., Bottleneck]
    options: tuple[str, ...] = ()
    latents: str = "positions"
    input_noise: str | None = None
    plain_features: bool = False


BOTTLENECKS: dict[str, Kind] = {
    "none": Kind(_plain, plain_features=True),
    "sparse": Kind(_sparse, ("penalty", "rate", "weight"), plain_features=True),
    "k_sparse": Kind(_k_sparse, ("k", "alpha"), plain_features=True),
    "contractive": Kind(_contractive, ("weight", "probes"), plain_features=True),
    "denoising": Kind(_plain, input_noise="gaussian", plain_features=True),
    "gaussian": Kind(_gaussian, KL_OPTIONS, latents="picture"),
    "conditional": Kind(_conditional, KL_OPTIONS, latents="picture"),
    "hierarchical": Kind(_hierarchical, (*KL_OPTIONS, "inference")),
}


def register_bottleneck(
    name: str, build: Callable[..., Bottleneck], options: Sequence[str] = (), *, latents: str = "positions"
) -> None:
    """Register a kind of bottleneck for `AutoencoderConfig(bottleneck=name)`.

    A process that loads a saved autoencoder must have registered its kind before.

    Args:
        build: called as `build(code_dim, surroundings, **bottleneck_options)`; returns a `Bottleneck`.
        options: names of the `bottleneck_options` that it takes.
        latents: "positions" or "picture", what latents are of by default.

    Raises:
        ValueError: the name is taken.
    """
    if name in BOTTLENECKS or name == QUANTIZER:
        raise ValueError(f"bottleneck {name!r} is registered already: choose another name")
    BOTTLENECKS[name] = Kind(build, tuple(options), latents)


Check = tuple[Callable[[Any], bool], str]
NOT_NEGATIVE: Check = (lambda value: value >= 0, "at least 0")
SHARE: Check = (lambda value: 0 <= value <= 1, "in [0, 1]: a share of the training budget")
CHECKS: dict[str, Check] = {
    "penalty": (lambda value: value in PENALTIES, f"one of {', '.join(PENALTIES)}"),
    "inference": (lambda value: value in INFERENCES, f"one of {', '.join(INFERENCES)}"),
    "rate": (lambda value: 0 < value < 1, "above 0 and below 1: a unit's mean activity"),
    "weight": NOT_NEGATIVE,
    "kl_weight": NOT_NEGATIVE,
    "capacity": NOT_NEGATIVE,
    "kl_warmup": SHARE,
    "capacity_share": (lambda value: 0 < value <= 1, "above 0, at most 1: a share of the training budget"),
    "probes": (lambda value: value >= 1, "at least 1"),
    "alpha": (lambda value: value >= 1, "at least 1"),
}


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown kind, an option that it does not take, a value out of range, or two schedules."""
    if kind not in BOTTLENECKS:
        raise ValueError(f"unknown bottleneck {kind!r}: choose one of {', '.join(BOTTLENECKS)}")
    for name, value in options.items():
        if name not in BOTTLENECKS[kind].options:
            taken = ", ".join(BOTTLENECKS[kind].options) or "none"
            raise ValueError(f"no option {name!r} of bottleneck {kind!r}, which takes {taken}")
        if name in CHECKS and not CHECKS[name][0](value):
            raise ValueError(f"{name}={value} must be {CHECKS[name][1]}")
    if options.get("capacity_share") is not None and options.get("capacity") is None:
        raise ValueError(f"capacity_share={options['capacity_share']} without capacity: give the capacity in nats")
    _schedule(options)


def build_bottleneck(
    kind: str, code_dim: int, options: Mapping[str, Any] | None = None, surroundings: Surroundings | None = None
) -> Bottleneck:
    """Build a bottleneck by the name of its kind.

    Args:
        kind: a name in `BOTTLENECKS`.
        code_dim: size of a latent.
        options: keyword arguments of the kind, of those in `BOTTLENECKS[kind].options`.

    Raises:
        ValueError: an unknown kind, or options that it does not take.
    """
    check_options(kind, options or {})
    return BOTTLENECKS[kind].build(code_dim, surroundings or Surroundings(), **(options or {}))
