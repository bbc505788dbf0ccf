"""Denoising autoencoder: the input is corrupted, the target is not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

INPUT_NOISES = ("gaussian", "masking", "salt_and_pepper")
DEFAULT_AMOUNTS = {"gaussian": 0.3, "masking": 0.25, "salt_and_pepper": 0.1}


@dataclass(frozen=True)
class InputNoise:
    """x~ ~ q(x~ | x), from which the clean x is reconstructed (Vincent et al. 2008, and 2010, Stacked Denoising
    Autoencoders, section 3.3). It goes with every bottleneck.

    Args:
        kind: "gaussian": x + amount * noise; "masking": a share `amount` of the values is set to the middle of the
            range, 0; "salt_and_pepper": such a share is set to the lowest or the highest value, each as often. A pixel
            of several channels is masked as a whole.
        amount: the standard deviation, for pictures in [-1, 1]; or the share, in [0, 1].
    """

    kind: str
    amount: float

    @classmethod
    def of(cls, kind: str | None, amount: float | None) -> InputNoise | None:
        """The noise of this name, None without; by default with the amount in `DEFAULT_AMOUNTS`.

        Raises:
            ValueError: an unknown name, an amount without a name, or one that is out of range.
        """
        if kind is None:
            if amount is not None:
                raise ValueError(f"noise_amount={amount} without input_noise: choose {', '.join(INPUT_NOISES)}")
            return None
        if kind not in INPUT_NOISES:
            raise ValueError(f"unknown input_noise {kind!r}: choose one of {', '.join(INPUT_NOISES)}")
        amount = DEFAULT_AMOUNTS[kind] if amount is None else amount
        if amount < 0 or (kind != "gaussian" and amount > 1):
            wanted = "at least 0" if kind == "gaussian" else "in [0, 1]: a share of the pixels"
            raise ValueError(f"noise_amount={amount} of input_noise={kind!r} must be {wanted}")
        return cls(kind, amount)

    def __call__(self, values: torch.Tensor, *, is_picture: bool = True) -> torch.Tensor:
        """Corrupt pictures (B, C, H, W) in [-1, 1] or hidden values (B, ...), with torch's global generator.

        Hidden values have a range of their own: Gaussian noise is in proportion to the batch's standard deviation, and
        salt and pepper are its lowest and its highest value.
        """
        if self.kind == "gaussian":
            scale = 1.0 if is_picture else values.detach().std()
            return values + self.amount * scale * torch.randn_like(values)
        places = values[:, :1] if is_picture else values
        hit = torch.rand_like(places, dtype=torch.float32) < self.amount
        if self.kind == "masking":
            return values.masked_fill(hit, 0.0)
        low, high = (-1.0, 1.0) if is_picture else (float(values.min()), float(values.max()))
        is_salt = torch.rand_like(places, dtype=torch.float32) < 0.5
        return values.masked_fill(hit & is_salt, high).masked_fill(hit & ~is_salt, low)
