"""Reconstruction error (MSE, PSNR, SSIM, of signals SNR) and codebook use (usage, perplexity).

Picture metrics take float tensors (B, C, H, W) in [0, 1] and return one number per picture, (B,) float32: the mean over
a whole set is not the mean of batch means if the last batch is smaller.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_SSIM_K1, _SSIM_K2 = 0.01, 0.03
_SMALLEST_MSE = 1e-10  # 100 dB: keeps the mean over a set finite if one reconstruction is exact
LEAST_POWER = 1e-8  # of a window of originals, a thousandth of what 8-bit rounding leaves: with less it has one colour


def mse(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each picture: two (B, C, H, W) in [0, 1] -> (B,) float32."""
    reconstruction, target = _checked(reconstruction, target)
    return (reconstruction - target).square().mean(dim=(1, 2, 3))


def psnr(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB: (B, C, H, W) in [0, 1] -> (B,) float32.

    It is -10 log10(mse), for a range of 1. An exact reconstruction counts as 100 dB instead of infinity. The PSNR of a
    set is the mean over its pictures, not that of their mean error.
    """
    return -10.0 * mse(reconstruction, target).clamp(min=_SMALLEST_MSE).log10()


def ssim(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each picture: (B, C, H, W) in [0, 1] -> (B,) float32, 1 if they are equal.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
    similarity", IEEE TIP 2004: an 11 x 11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, averaged over
    the positions where the window lies inside the picture, and over channels; variances are means under the window, for
    a range of 1. That is scikit-image's with `gaussian_weights` and without `use_sample_covariance`; torchmetrics also
    counts positions at the edges, where it mirrors the picture. If a side is shorter than 11 pixels, the window has the
    largest odd size that fits.
    """
    x, y = _checked(reconstruction, target)
    c1, c2 = _SSIM_K1**2, _SSIM_K2**2
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _local_mean(torch.stack([x, y, x * x, y * y, x * y]))
    variance_x = mean_xx - mean_x * mean_x
    variance_y = mean_yy - mean_y * mean_y
    covariance = mean_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def tile_powers(pictures: Tensor, originals: Tensor, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Power at the frequencies of a grid of tiles, window by window, and how flat the originals are there.

    A decoder that draws tile by tile leaves a pattern whose period is the tile's side, which shows where a picture is
    flat. Each picture is cut into windows of two by two tiles. The power of a window is the sum of its power spectrum
    over the frequencies that are multiples of 1 / tile along both axes, zero apart.

    Args:
        pictures, originals: (B, C, H, W) float in [0, 1].
        tile: side of a tile in pixels, at least 2.

    Returns:
        The pictures' power, the originals' power, the originals' variance: (B, windows) each, means over channels.

    Raises:
        ValueError: pictures that are smaller than a window.
    """
    pictures, originals = _checked(pictures, originals)
    side = 2 * tile
    if min(pictures.shape[-2:]) < side:
        raise ValueError(f"Pictures of {tuple(pictures.shape[-2:])} pixels have no window of {side} x {side}.")
    windows = [one.unfold(2, side, side).unfold(3, side, side).flatten(2, 3) for one in (pictures, originals)]
    powers = []
    for one in windows:
        spectrum = torch.fft.fft2(one - one.mean(dim=(-2, -1), keepdim=True), norm="ortho").abs().square()
        powers.append(spectrum[..., ::2, ::2].sum(dim=(-2, -1)).mean(dim=1))
    return powers[0], powers[1], windows[1].var(dim=(-2, -1)).mean(dim=1)


def grid_ratio(power: Tensor, power_of_originals: Tensor, variance: Tensor, flat_share: float = 0.1) -> float | None:
    """Power at the tiles' frequency over that of the originals, in the flattest windows of a whole set; None where the
    originals have none there, as drawings on a ground of one colour.

    Args:
        power, power_of_originals, variance: (n,), of all windows, from `tile_powers`.
        flat_share: share of the windows that are measured, those of the least variance.
    """
    count = max(1, round(flat_share * len(variance)))
    flat = variance.argsort(stable=True)[:count]
    originals = float(power_of_originals[flat].double().sum())
    return float(power[flat].double().sum()) / originals if originals > LEAST_POWER * count else None


def _checked(reconstruction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if reconstruction.shape != target.shape or target.ndim != 4:
        raise ValueError(
            "Reconstruction and target must be two tensors (B, C, H, W) of one shape, "
            f"but are {tuple(reconstruction.shape)} and {tuple(target.shape)}."
        )
    if not (reconstruction.is_floating_point() and target.is_floating_point()):
        raise TypeError(
            f"Pictures must be float tensors in [0, 1], but are {reconstruction.dtype} and {target.dtype}: "
            "divide uint8 pictures by 255 first."
        )
    return reconstruction.float(), target.float()


def _local_mean(pictures: Tensor) -> Tensor:
    """Gaussian-weighted local mean, without padding: (5, B, C, H, W) -> (5, B, C, H', W')."""
    *outer, height, width = pictures.shape
    flat = pictures.reshape(-1, 1, height, width)
    column = torch.tensor(_gaussian(height), device=flat.device).view(1, 1, -1, 1)
    row = torch.tensor(_gaussian(width), device=flat.device).view(1, 1, 1, -1)
    flat = F.conv2d(F.conv2d(flat, column), row)  # the window is separable
    return flat.view(*outer, flat.shape[-2], flat.shape[-1])


@lru_cache(maxsize=16)
def _gaussian(side: int) -> tuple[float, ...]:
    size = min(_SSIM_WINDOW, side if side % 2 else side - 1) if side > 1 else 1
    weights = [math.exp(-((i - size // 2) ** 2) / (2 * _SSIM_SIGMA**2)) for i in range(size)]
    return tuple(weight / sum(weights) for weight in weights)


def snr(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Signal-to-noise ratio of each signal in dB, 10 log10(sum x^2 / sum (y - x)^2): two (B, C, time) -> (B,) float32.

    Between -100 and 100: an exact reconstruction, or one of silence, would be infinite.
    """
    if reconstruction.shape != target.shape or target.ndim != 3:
        raise ValueError(
            f"Reconstruction and target must be two tensors (B, C, time), but are {tuple(reconstruction.shape)} and "
            f"{tuple(target.shape)}."
        )
    power, error = (one.float().square().sum(dim=(1, 2)) for one in (target, reconstruction - target))
    return (10 * (power.clamp(min=1e-12) / error.clamp(min=1e-12)).log10()).clamp(-100, 100)


class SignalErrors:
    """Errors over a whole set of signals, batch by batch.

    Args:
        distance: of n pairs of signals, (n,), measured, too, and called `spectral`.
    """

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        self._distance = distance
        self._distances: list[Tensor] = []
        self._count = 0
        self._error = self._power = 0.0
        self._ratios: list[Tensor] = []

    def add(self, original: Tensor, decoded: Tensor) -> None:
        """Add signals and their reconstructions, (B, C, time) both."""
        self._count += original.numel()
        self._error += float((decoded - original).double().square().sum())
        self._power += float(original.double().square().sum())
        self._ratios.append(snr(decoded, original).cpu())
        if self._distance is not None:
            self._distances.append(self._distance(original, decoded).cpu())

    @property
    def ratios(self) -> Tensor:
        """(n,): the SNR in dB of each example."""
        return torch.cat(self._ratios)

    def figures(self) -> dict[str, float]:
        """`mse`; `snr` in dB of all samples together, sum x^2 over sum (y - x)^2; `snr_mean`, that of each example,
        averaged, in which quiet ones count as much as loud ones; `spectral`, where it is measured, likewise."""
        ratio = 10 * math.log10(max(self._power, 1e-12) / max(self._error, 1e-12))
        distance = {"spectral": torch.cat(self._distances).mean().item()} if self._distances else {}
        return distance | {"mse": self._error / self._count, "snr": ratio, "snr_mean": self.ratios.mean().item()}


class CodeUsage:
    """Counts codes over a whole set. Usage and perplexity depend on the number of codes counted.

    `counts` is an int64 tensor (num_codes,) on the device of the codes; sum it over ranks to merge them.
    `usage` and `perplexity` cover all codes; `usage_of` and `perplexity_of` one range of them, such as one
    level's (`CodeLayout.low`, `CodeLayout.high`).
    """

    def __init__(self, num_codes: int):
        if num_codes < 1:
            raise ValueError(f"num_codes must be at least 1, not {num_codes}.")
        self.num_codes = num_codes
        self.counts = torch.zeros(num_codes, dtype=torch.int64)

    def update(self, codes: Tensor) -> None:
        """Add codes: any shape, an integer type, each in 0 .. num_codes - 1 (ValueError otherwise)."""
        if codes.is_floating_point():
            raise TypeError(f"Codes must be integers, but are {codes.dtype}.")
        if codes.numel() == 0:
            return
        flat = codes.detach().reshape(-1).long()
        low, high = int(flat.min()), int(flat.max())
        if low < 0 or high >= self.num_codes:
            raise ValueError(f"Codes must lie in 0 .. {self.num_codes - 1}, but range from {low} to {high}.")
        self.counts = self.counts.to(flat.device) + torch.bincount(flat, minlength=self.num_codes)

    @property
    def usage(self) -> float:
        """Share of the codes that occur at least once, in [0, 1]."""
        return self.usage_of(0, self.num_codes)

    @property
    def perplexity(self) -> float:
        """exp of the codes' entropy: from 1 (a single code) to num_codes (all equally often); 0 without any code."""
        return self.perplexity_of(0, self.num_codes)

    def usage_of(self, low: int, high: int) -> float:
        """`usage` of the codes low .. high - 1."""
        return float((self._range(low, high) > 0).double().mean())

    def perplexity_of(self, low: int, high: int) -> float:
        """`perplexity` of the codes low .. high - 1 alone."""
        counts = self._range(low, high)
        counts = counts[counts > 0].double()
        if counts.numel() == 0:
            return 0.0
        share = counts / counts.sum()
        return float(torch.exp(-(share * share.log()).sum()))

    def _range(self, low: int, high: int) -> Tensor:
        if not 0 <= low < high <= self.num_codes:
            raise ValueError(f"A range of codes must lie within 0 .. {self.num_codes}, not {low} .. {high}.")
        return self.counts[low:high].cpu()
