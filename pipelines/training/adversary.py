"""The discriminator of stage 1 in training: what it learns, what the decoder gets from it, and how it fares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

from pipelines.drawing.streams import keyed_stream
from tokenizer_image.losses.discriminator import (
    LeCam,
    PatchDiscriminator,
    augment,
    feature_matching,
    hinge_loss,
)

BETAS = (0.5, 0.9)
ACCURACY_DECAY = 0.99
FIRST_ACCURACY = 0.5  # before it has learned
LEAST_WINDOW = 32  # pixels; it judges a window of half the sides, since its logits are of small patches
CONFIDENT = 0.2  # sum of both accuracies less 1, from which on its weight is whole
WON, LOST = 0.98, 0.52  # accuracies beyond which a discriminator teaches nothing


class Adversary(nn.Module):
    """A patch discriminator with its optimizer. Its parameters and buffers are all that it resumes from, beside the
    optimizer's state.

    Args:
        num_channels: of a picture.
        accelerator: whose processes share each batch.
        learning_rate: peak of the optimizer.
        lecam_weight: of the regularisation.
        seed: of the augmentations, which are keyed by (seed, step, process).
    """

    accuracies: torch.Tensor
    updates: torch.Tensor
    is_stopped: torch.Tensor

    def __init__(
        self, num_channels: int, accelerator: Accelerator, *, learning_rate: float, lecam_weight: float, seed: int
    ) -> None:
        super().__init__()
        self.accelerator, self.lecam_weight, self.seed = accelerator, lecam_weight, seed
        with torch.random.fork_rng(devices=[]):  # stage 1's other random numbers are the same with and without it
            torch.manual_seed(seed)
            self.discriminator = PatchDiscriminator(num_channels)
        self.lecam = LeCam()
        self.register_buffer("accuracies", torch.full((2,), FIRST_ACCURACY))  # of real and drawn pictures
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("is_stopped", torch.zeros((), dtype=torch.bool))
        self.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=learning_rate, betas=BETAS, weight_decay=0.0, fused=True
        )
        self.optimizer.param_groups[0]["peak_lr"] = learning_rate
        # Kept out of this module's children: its parameters are the discriminator's own.
        self._learning: list[Callable[..., tuple[torch.Tensor, list[torch.Tensor]]]] = [
            accelerator.prepare(self.discriminator)
        ]

    def terms(
        self, pixel_values: torch.Tensor, reconstruction: torch.Tensor, *, match_features: bool, step: int
    ) -> dict[str, torch.Tensor]:
        """What the decoder makes small: `adversarial`, minus the mean logit of its pictures, and `matching`, the
        distance of the discriminator's features."""
        logits, found = self.discriminator(self._augmented(reconstruction, step))
        found = [layer[: len(pixel_values)] for layer in found]
        terms = {"adversarial": -logits.float().mean()}
        if match_features:
            with torch.no_grad():
                _, wanted = self.discriminator(self._augmented(pixel_values, step))
            terms["matching"] = feature_matching(wanted, found)
        return terms

    def learn(self, pixel_values: torch.Tensor, reconstruction: torch.Tensor, step: int) -> dict[str, float]:
        """A step of the discriminator on pictures (B, C, H, W) and drawn ones, at least as many, the first of which
        are their reconstructions: its figures.

        A loss that is not finite stops it, for good.
        """
        pictures = [pixel_values, reconstruction.detach().to(pixel_values)]
        logits, _ = self._learning[0](torch.cat([self._augmented(one, step) for one in pictures]))
        real, drawn = logits.float().split([len(one) for one in pictures])
        loss = hinge_loss(real, drawn)
        if self.lecam_weight:
            loss = loss + self.lecam_weight * self.lecam(real, drawn)
        self.accelerator.backward(loss)
        found = torch.stack([
            loss.detach(), real.detach().mean(), drawn.detach().mean(), (real > 0).float().mean(),
            (drawn < 0).float().mean(),
        ])  # fmt: skip
        found = self.accelerator.reduce(found, "mean")
        if not torch.isfinite(found[:3]).all():
            self.stop()
        else:
            self.optimizer.step()
            self.lecam.update(found[1], found[2])
            self.accuracies.lerp_(found[3:], 1 - ACCURACY_DECAY)
            self.updates += 1
        self.optimizer.zero_grad()
        names = ("discriminator_loss", "logit_real", "logit_drawn", "accuracy_real", "accuracy_drawn")
        return dict(zip(names, found.tolist(), strict=True))

    @property
    def confidence(self) -> float:
        """In [0, 1]: how well it tells real from drawn patches of late, 0 for chance and 1 from `CONFIDENT` on.

        The gradient of one that cannot tell them apart is noise, which shares of the gradient would make as loud as any
        other term.
        """
        advantage = float(self.accuracies.sum()) - 1  # Youden's index
        return min(1.0, max(0.0, advantage / CONFIDENT))

    def stop(self) -> None:
        """Have it take no further part."""
        self.is_stopped.fill_(True)

    def advice(self) -> str | None:
        """What to turn where it has won or lost for long, else None."""
        real, drawn = self.accuracies.tolist()
        if min(real, drawn) > WON:
            return (
                f"the discriminator tells {real:.0%} of the real and {drawn:.0%} of the drawn patches: it has won and "
                "teaches little; lower --discriminator_learning_rate or raise --lecam_weight"
            )
        if int(self.updates) > 1 / (1 - ACCURACY_DECAY) and (real + drawn) / 2 < LOST:
            return (
                f"the discriminator tells {(real + drawn) / 2:.0%} of the patches, as by chance: it teaches nothing; "
                "raise --discriminator_learning_rate, lower --lecam_weight or lower --adversarial_weight"
            )
        return None

    def _augmented(self, pictures: torch.Tensor, step: int) -> torch.Tensor:
        """The same windows and the same augmentation for the real and the drawn pictures of a step."""
        height, width = (min(side, max(LEAST_WINDOW, side // 2)) for side in pictures.shape[2:])
        return augment(pictures, keyed_stream(self.seed, step, self.accelerator.process_index), (height, width))
