"""Options of what stage 1 learns from."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options.option import option

CAPTIONS = "captions"  # the extractor that a run trains for itself
PHOTOGRAPH_WEIGHT = 20.0  # of an extractor's features, beside 1 for pixels


@dataclass
class LossOptions:
    """Terms of stage 1's loss beside squared error, and how they are mixed."""

    absolute_share: float = option(
        0.0, "share of absolute error in the pixels' error; the rest is squared", within="[0, 1]"
    )
    frequency_weight: float = option(
        0.0, "weight of the focal frequency loss in the pixels' error, beside 1", not_negative=True
    )
    perceptual_weight: float | None = option(
        None,
        "share of the gradient that features of --extractor get, beside 1 for pixels (default: 20 for "
        "photographs and with --extractor, else 0)",
        not_negative=True,
    )  # fmt: skip
    logits_weight: float = option(
        0.0,
        "weight of the distance of the extractor's logits in the perceptual term, beside 1 for features; those of "
        "small pictures are so large that they drown the features",
        not_negative=True,
    )
    extractor: str = option(
        "efficientnet_lite0",
        "whose features are compared: 'efficientnet_lite0', 'efficientnet_lite1', 'efficientnet_lite2', 'lpips', "
        "'inception' or 'torchvision:NAME'; '=FILE' behind one of the last three gives its weights; 'captions': a "
        "classifier of the data set's captions that is trained first, or 'classifier=FOLDER', one that an earlier run "
        "left",
    )
    perceptual_size: int = option(
        128,
        "side that smaller pictures are enlarged to for --extractor, which sees little in pictures much smaller than "
        "those it learned from; so many of a batch are read that this costs no more; 0: as they are",
        not_negative=True,
    )
    adversarial_weight: float | None = option(
        None,
        "share of the gradient that a patch discriminator gets, beside 1 for pixels (default: 0.5 where there is no "
        "extractor and with --codes_from, else 0)",
        not_negative=True,
    )
    adversarial_start: float = option(
        0.2, "share of the budget after which the discriminator comes in", within="[0, 1)"
    )
    feature_matching_weight: float | None = option(
        None,
        "share of the gradient that distances of the discriminator's features get (default: 1 where "
        "there is no extractor, else 0)",
        not_negative=True,
    )
    lecam_weight: float = option(0.01, "weight of LeCam regularisation of the discriminator", not_negative=True)
    discriminator_learning_rate: float = option(5e-4, "peak learning rate of the discriminator", above_zero=True)
    balance_gradients: bool = option(
        True, "weights are shares of the gradient at the decoder's output; else they multiply the terms"
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of the options that this class is mixed into
        if self.extractor != CAPTIONS and (self.perceptual_weight or self.extractor != type(self).extractor):
            # Imports torch, which --help need not wait for.
            from tokenizer_image.losses.extractors import check_extractor

            check_extractor(self.extractor, "--extractor")

    def wanted_perceptual_weight(self, photographs: bool) -> float:
        """The weight of the perceptual term: where it is not given, 0 but for photographs and with --extractor."""
        if self.perceptual_weight is not None:
            return self.perceptual_weight
        return PHOTOGRAPH_WEIGHT if photographs or self.extractor != type(self).extractor else 0.0

    def compares_features(self, photographs: bool) -> bool:
        """Whether the loss has terms of an extractor or a discriminator."""
        weights = (self.wanted_perceptual_weight(photographs), self.adversarial_weight, self.feature_matching_weight)
        return any(weights)
