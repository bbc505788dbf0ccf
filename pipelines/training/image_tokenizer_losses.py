"""What stage 1 learns from: terms by the options, mixed by shares of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pipelines.machine.printing import say
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.image_tokenizer_losses import CAPTIONS, LossOptions
from pipelines.training.adversary import Adversary
from tokenizer_image.autoencoder import AutoencoderOutput
from tokenizer_image.autoencoder_configuration import AutoencoderConfig
from tokenizer_image.losses.balance import GradientBalancer
from tokenizer_image.losses.extractors import INSTALL, check_extractor, load_extractor, missing_package
from tokenizer_image.losses.perceptual import PerceptualLoss
from tokenizer_image.losses.reconstruction import ReconstructionLoss
from tokenizer_image.losses.spectral import SpectralLoss
from tokenizer_image.network_configuration import NetworkConfig
from tokenizer_image.vqvae import VQVAEOutput

TERMS = ("pixels", "perceptual", "adversarial", "matching")
OPTIONS_OF_TERMS = {
    "perceptual": "perceptual_weight",
    "adversarial": "adversarial_weight",
    "matching": "feature_matching_weight",
    "spectral": "spectral_weight",
}
ADVERSARIAL = {"adversarial", "matching"}  # those of the discriminator
SPECTRAL_WEIGHT = 20.0  # of sounds, at the end of the budget
# Of a discriminator and of its features, where these stand in for an extractor's, or it judges drawn pictures.
ADVERSARIAL_WEIGHT, MATCHING_WEIGHT = 0.5, 1.0
ADVICE_STEPS = 1000  # between two pieces of advice about the discriminator
Output = VQVAEOutput | AutoencoderOutput


class StageOneLoss(nn.Module):
    """The loss of a step, from the output of the image tokenizer.

    With the error alone that the model computes itself (`own_error`) it is the model's own loss. Otherwise its gradient
    at the reconstruction is a mixture of the terms' gradients, beside that of the bottleneck's loss.

    Args:
        pixels: error of the pixels; weight 1.
        weights: of the terms `perceptual`, `adversarial`, `matching` and `spectral`; one of 0 is left out. That of
            `spectral` is reached at the end of the budget, and grows with the square of what is spent; at the same time
            parts of sounds come to count alike (`evened`). Samples are learned first, since magnitudes do not tell
            phases, then the loudness of noises, whose samples cannot be told.
        perceptual: for the term of that name.
        adversary: for the other two.
        adversarial_start: share of the budget after which the discriminator learns. The decoder learns from it as soon
            as it tells real from drawn pictures, with a weight in proportion to that (`Adversary.confidence`).
        balanced: weights are shares of the gradient; else they multiply the terms.
        own_error: the reconstruction loss in the model's own loss, by name.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        pixels: ReconstructionLoss,
        weights: Mapping[str, float],
        *,
        perceptual: PerceptualLoss | None = None,
        adversary: Adversary | None = None,
        adversarial_start: float = 0.0,
        balanced: bool = True,
        own_error: str = "squared",
    ) -> None:
        super().__init__()
        self.accelerator, self.pixels, self.adversary = accelerator, pixels, adversary
        self.weights = {"pixels": 1.0} | {name: weight for name, weight in weights.items() if weight}
        self._perceptual = (perceptual,)  # frozen: no part of this module's state
        self.spectral = SpectralLoss() if "spectral" in self.weights else None
        self.adversarial_start = adversarial_start
        terms = TERMS if self.spectral is None else (*TERMS, "spectral")
        self.balancer = GradientBalancer(terms, fixed=not balanced)
        shares = {"squared": 0.0, "absolute": 1.0}  # cross-entropy stands alone
        is_own = pixels.absolute_share == shares.get(own_error, pixels.absolute_share) and not pixels.frequency_weight
        self.is_plain = list(self.weights) == ["pixels"] and is_own

    @property
    def perceptual(self) -> PerceptualLoss | None:
        """What the term of that name is computed by."""
        return self._perceptual[0]

    @property
    def score(self) -> Callable[[dict[str, float]], float] | None:
        """What is small in the best validation, of its figures: the perceptual or the spectral distance, where it is
        learned from, since it makes the squared error larger, as an adversarial term does; where there is no such term,
        the model's own `loss` or, of a model that does not measure it, the squared error; else nothing."""
        if self.perceptual is None and self.adversary is not None:
            return None

        def score(figures: dict[str, float]) -> float:
            if "layer" in figures:  # layers learn one by one: the model is not yet one
                return math.inf
            return next(figures[name] for name in ("perceptual", "spectral", "loss", "mse") if name in figures)

        return score

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Of what trains here."""
        return [] if self.adversary is None else [self.adversary.optimizer]

    def forward(
        self, pixel_values: torch.Tensor, output: Output, *, share: float, step: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """What to call backward on, and figures to log: each term, and its share of the gradient.

        Args:
            pixel_values: (B, C, H, W) in [-1, 1].
            output: of the image tokenizer for them. Further pictures in its reconstruction, from codes that were given,
                have no original: the discriminator alone judges them.
            share: of the budget that is spent, in [0, 1].
            step: which random numbers are keyed by.
        """
        assert output.loss is not None and output.bottleneck_loss is not None
        if self.is_plain or output.reconstruction is None:  # or a layer learns alone
            return output.loss, {}
        reconstruction = output.reconstruction
        weights = self._weights_at(share)
        with self.accelerator.autocast():
            terms = self._terms(pixel_values, reconstruction, weights, share, step)
        mixture = self.balancer(terms, weights, reconstruction, self._mean)
        if self.adversary is not None and ADVERSARIAL & set(mixture.not_finite):
            self.adversary.stop()
            self._say_stopped(step)
        figures = {name: float(term.detach()) for name, term in terms.items()}
        figures |= {f"share_{name}": part for name, part in mixture.shares.items()}
        # Its gradient at the reconstruction is the mixture; from there, backward goes through the model as ever.
        return (reconstruction.float() * mixture.gradient).sum() + output.bottleneck_loss, figures

    def learn(self, pixel_values: torch.Tensor, output: Output, *, share: float, step: int) -> dict[str, float]:
        """The discriminator's step, after the model's: its figures; {} where there is none yet, or none any more."""
        adversary = self.adversary
        if adversary is None or output.reconstruction is None or not self._adversary_takes_part(share):
            return {}
        figures = adversary.learn(pixel_values, output.reconstruction, step)
        if adversary.is_stopped:
            self._say_stopped(step)
        elif step % ADVICE_STEPS == ADVICE_STEPS - 1 and (advice := adversary.advice()):
            say(self.accelerator, f"step {step + 1}: {advice}")
        return figures

    def _adversary_takes_part(self, share: float) -> bool:
        return self.adversary is not None and share >= self.adversarial_start and not self.adversary.is_stopped

    def _weights_at(self, share: float) -> dict[str, float]:
        """The weights of the terms that take part when `share` of the budget is spent."""
        adversary = self.adversary
        confidence = adversary.confidence if adversary is not None and self._adversary_takes_part(share) else 0.0
        weights = {name: weight for name, weight in self.weights.items() if confidence or name not in ADVERSARIAL}
        if "spectral" in weights:
            weights["spectral"] *= share**2
        if "adversarial" in weights:
            weights["adversarial"] *= confidence
        return weights

    def _terms(
        self,
        pixel_values: torch.Tensor,
        reconstruction: torch.Tensor,
        weights: Mapping[str, float],
        share: float,
        step: int,
    ) -> dict[str, torch.Tensor]:
        """The terms that have a weight."""
        paired = reconstruction[: len(pixel_values)]
        evenness = share if self.spectral is not None else 0.0
        terms = {"pixels": self.pixels(pixel_values, paired, evenness)}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(pixel_values, paired)
        if self.spectral is not None:
            terms["spectral"] = self.spectral(pixel_values, paired)
        if self.adversary is not None and ADVERSARIAL & weights.keys():
            found = self.adversary.terms(pixel_values, reconstruction, match_features="matching" in weights, step=step)
            terms |= {name: term for name, term in found.items() if name in weights}
        return terms

    def _mean(self, values: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(values, "mean")

    def _say_stopped(self, step: int) -> None:
        say(
            self.accelerator,
            f"step {step + 1}: the discriminator diverged (NaN or infinity): the run goes on without it; a lower "
            "--discriminator_learning_rate may keep it",
        )


def build_loss(
    options: LossOptions,
    accelerator: Accelerator,
    photographs: bool,
    config: NetworkConfig,
    own_extractor: Callable[[], str],
    *,
    seed: int,
    reconstruction_loss: str = "squared",
    spectral_weight: float | None = None,
    judges_drawn: bool = False,
) -> StageOneLoss:
    """What the options ask for, and where they leave it open, what suits photographs or drawings; it is told.

    Args:
        photographs: whether there is a perceptual term by default.
        config: of the image model.
        own_extractor: trains the classifier of --extractor captions, and returns its name.
        seed: of the discriminator.
        reconstruction_loss: the pixels' error, by name.
        spectral_weight: of the STFT's magnitudes, of sounds (default `SPECTRAL_WEIGHT`).
        judges_drawn: whether there are drawn pictures, which a discriminator alone learns from.
    """
    perceptual = options.wanted_perceptual_weight(photographs)
    name = own_extractor() if options.extractor == CAPTIONS and perceptual else options.extractor
    package = missing_package(name) if perceptual else None
    if package is not None:  # an option that asks for it ends earlier
        perceptual = 0.0
        say(
            accelerator,
            f"{package.replace('_', '-')} is not installed: features of a discriminator are compared in place of "
            f"{name}'s, which are better ({INSTALL})",
        )
    adversarial, matching = options.adversarial_weight, options.feature_matching_weight
    if adversarial is None:
        adversarial = ADVERSARIAL_WEIGHT if package is not None or judges_drawn else 0.0
    if matching is None:
        matching = MATCHING_WEIGHT if package is not None else 0.0
    adversary = None
    if adversarial or matching:
        adversary = Adversary(
            config.num_channels, accelerator, learning_rate=options.discriminator_learning_rate,
            lecam_weight=options.lecam_weight, seed=seed,
        )  # fmt: skip
    weights = {"perceptual": perceptual, "adversarial": adversarial, "matching": matching}
    if config.signal == "audio":
        weights["spectral"] = SPECTRAL_WEIGHT if spectral_weight is None else spectral_weight
    said = [f"{name} {weight:g}" for name, weight in {"pixels": 1.0, **weights}.items() if weight]
    if len(said) > 1:
        unit = "shares of the gradient" if options.balance_gradients else "weights"
        start = f"; discriminator from {options.adversarial_start:.0%} on" if adversary is not None else ""
        say(accelerator, f"loss: {', '.join(said)} ({unit}){start}")
    own_error = config.reconstruction_loss if isinstance(config, AutoencoderConfig) else "squared"
    absolute_share = 1.0 if reconstruction_loss == "absolute" else options.absolute_share
    return StageOneLoss(
        accelerator,
        ReconstructionLoss(absolute_share, options.frequency_weight),
        weights,
        perceptual=_perceptual_loss(options, name, accelerator, config.image_size) if perceptual else None,
        adversary=adversary,
        adversarial_start=options.adversarial_start,
        balanced=options.balance_gradients,
        own_error=own_error,
    ).to(accelerator.device)


def keep_weights(options: ImageTokenizerOptions, info: dict[str, Any], accelerator: Accelerator) -> None:
    """Give weights that the options leave open the values that a resumed run began with, whatever the defaults are now.

    Args:
        info: run.json of the run; {} where it begins.

    Raises:
        ValueError: its features are of an extractor that is not installed here.
    """
    weights = info.get("loss_weights")
    if weights is None:
        if "parameters" in info and options.perceptual_weight is None:
            say(
                accelerator,
                "the run began with an earlier version, which noted no weights of the loss: of sounds the loss changes "
                "here, and of photographs, unless --perceptual_weight and --adversarial_weight are given",
            )
        return
    for term, name in OPTIONS_OF_TERMS.items():
        if getattr(options, name) is None:
            setattr(options, name, weights.get(term, 0.0))
    if options.perceptual_weight and options.extractor != CAPTIONS:
        check_extractor(options.extractor, "--extractor")


def _perceptual_loss(options: LossOptions, name: str, accelerator: Accelerator, image_size: int) -> PerceptualLoss:
    """The distance over the features of this extractor; what it enlarges pictures to is told."""
    extractor = load_extractor(name).to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = options.perceptual_size if extractor.resize is None else 0  # else it enlarges all pictures by itself
    read_at = max(size, extractor.least_size)
    if image_size < read_at:
        say(accelerator, f"{name} reads pictures of {image_size} pixels enlarged to {read_at}")
    return PerceptualLoss(extractor, options.logits_weight, size or None)
