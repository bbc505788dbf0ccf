"""What pictures cost and what is lost: points of rate and distortion of tokenizers, latents, PCA and codecs.

A rate is in bits a picture. At a *fixed rate* every picture takes as many bits; under a *code histogram* it takes as
many as its codes are surprising, and the rate is the mean over pictures. Histograms are those of training pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.evaluation.metrics.frechet import frechet_distance
from pipelines.evaluation.metrics.reconstruction import as_8_bit, reconstruct
from pipelines.evaluation.pictures_compared import ExtractorPair
from pipelines.evaluation.rates.pca_coding import (
    LloydQuantizers,
    fixed_rate_code,
    histogram_code,
)
from pipelines.evaluation.rates.picture_codecs import EncodedPictures
from pipelines.evaluation.rates.quantized_latents import LatentCoding, QuantizedLatents
from pipelines.evaluation.rates.scalar_codes import CodeHistogram, ScalarQuantizers
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.metrics import mse, psnr, ssim
from tokenizer_image.preprocessing import to_pixel_values
from tokenizer_image.principal_components import PrincipalComponents

BATCH = 100  # pictures at once


@dataclass(frozen=True)
class Distortion:
    """What is lost: means over n pictures of `mse` on [0, 1], `psnr` in dB and `ssim`, and the Frechet distance of all
    of them (None without an extractor)."""

    mse: float
    psnr: float
    ssim: float
    frechet: float | None
    n: int


@dataclass(frozen=True)
class RatePoint:
    """One way to write pictures down.

    Attributes:
        series: what it belongs to: points of one series are joined by a line.
        name: of this one.
        fixed_bits: bits of every picture; None where the code has no fixed rate.
        histogram_bits: mean bits where likelier codes are shorter; None where the code is for a fixed rate alone.
        distortion: of its reconstructions.
    """

    series: str
    name: str
    fixed_bits: float | None
    histogram_bits: float | None
    distortion: Distortion


class DistortionMeter:
    """Compares reconstructions with the pictures.

    Args:
        pictures: uint8 (n, C, H, W).
        extractors: for a Frechet distance; None leaves it out.
    """

    def __init__(self, pictures: Tensor, extractors: ExtractorPair | None = None) -> None:
        self.pictures, self._extractors = pictures, extractors
        self._real = None if extractors is None else extractors.features_of(pictures.split(BATCH)).statistics

    @property
    def feature_size(self) -> int | None:
        """How many features the Frechet distance is over; None without an extractor."""
        return None if self._real is None else self._real.size

    def measure(self, reconstructions: Iterable[Tensor]) -> Distortion:
        """The distortion of batches of reconstructions, uint8 (b, C, H, W), which follow the pictures' order.

        Raises:
            ValueError: they are more or fewer than the pictures.
        """
        whole = torch.cat(list(reconstructions))
        if len(whole) != len(self.pictures):
            raise ValueError(f"{len(whole)} reconstructions of {len(self.pictures)} pictures: give one for each")
        parts = zip(whole.split(BATCH), self.pictures.split(BATCH), strict=True)
        pairs = [(restored.float() / 255, originals.float() / 255) for restored, originals in parts]
        means = [float(torch.cat([one(*pair) for pair in pairs]).double().mean()) for one in (mse, psnr, ssim)]
        frechet = None
        if self._extractors is not None and self._real is not None:
            found = self._extractors.features_of(whole.split(BATCH)).statistics
            frechet = frechet_distance(found, self._real)
        return Distortion(means[0], means[1], means[2], frechet, len(whole))


# ---- points


def tokenizer_point(
    image_tokenizer: ImageTokenizer, meter: DistortionMeter, training: Tensor, series: str, name: str
) -> RatePoint:
    """An image tokenizer. Its histogram is one for each of its codebooks.

    Args:
        training: pictures uint8 (n, C, H, W) whose codes the histogram is counted over.
    """
    height, width = meter.pictures.shape[-2:]
    layout = image_tokenizer.layout((height, width))
    codes = np.concatenate([reconstruct(image_tokenizer, batch)[1].numpy() for batch in training.split(BATCH)])
    histogram = CodeHistogram(codes, layout.low, layout.high)
    bits: list[np.ndarray] = []

    def restored() -> Iterator[Tensor]:
        for batch in meter.pictures.split(BATCH):
            reconstructions, batch_codes = reconstruct(image_tokenizer, batch)
            bits.append(histogram.bits(batch_codes.numpy()))
            yield reconstructions

    distortion = meter.measure(restored())
    fixed = float(np.log2(layout.high - layout.low).sum())
    return RatePoint(series, name, fixed, float(np.concatenate(bits).mean()), distortion)


def latent_points(
    coding: LatentCoding, meter: DistortionMeter, training: Tensor, levels: Sequence[int], series: str, name: str
) -> list[RatePoint]:
    """A model with continuous latents, each number of which is given so many levels: a point for each of `levels`.

    Args:
        training: pictures uint8 (n, C, H, W) that ranges and histograms are of.
    """
    with torch.inference_mode():
        latents = [list(coding.encode(to_pixel_values(batch))) for batch in training.split(BATCH)]
    points = []
    for count in levels:
        quantized = QuantizedLatents(coding, latents, count)
        bits: list[np.ndarray] = []

        def restored(quantized: QuantizedLatents = quantized, bits: list[np.ndarray] = bits) -> Iterator[Tensor]:
            for batch in meter.pictures.split(BATCH):
                pixel_values, batch_bits = quantized.restore(to_pixel_values(batch))
                bits.append(batch_bits)
                yield as_8_bit(pixel_values)

        distortion = meter.measure(restored())
        mean = float(np.concatenate(bits).mean())
        points.append(RatePoint(series, f"{name}, {count} levels", quantized.fixed_bits, mean, distortion))
    return points


def pca_points(
    components: PrincipalComponents, meter: DistortionMeter, training: Tensor, rates: Sequence[int]
) -> list[RatePoint]:
    """Quantized principal components at each rate: with whole bits for each coefficient, and under the histogram.

    Args:
        training: pictures uint8 (n, C, H, W) that quantizers and histograms are fitted to.
    """
    coefficients = components.coefficients(unit_rows(training)).numpy()
    measured = components.coefficients(unit_rows(meter.pictures)).numpy()
    quantizers = LloydQuantizers(coefficients)
    variances = components.variances.numpy()

    def restored(code: ScalarQuantizers) -> Iterator[Tensor]:
        for start in range(0, len(measured), BATCH):
            rows = torch.from_numpy(code.decode(code.encode(measured[start : start + BATCH])))
            pixels = (components.pictures(rows).clamp(0, 1) * 255).round().to(torch.uint8)
            yield pixels.reshape(-1, *meter.pictures.shape[1:])

    points = []
    for rate in rates:
        fixed = fixed_rate_code(quantizers, variances, rate)
        points.append(RatePoint("PCA", f"PCA, {rate} bits", float(rate), None, meter.measure(restored(fixed))))
        code, histogram = histogram_code(coefficients, rate)
        bits = float(histogram.bits(code.encode(measured)).mean())
        points.append(RatePoint("PCA", f"PCA, one step, {rate} bits", None, bits, meter.measure(restored(code))))
    return points


def codec_points(encoded: EncodedPictures, meter: DistortionMeter, rates: Sequence[int]) -> list[RatePoint]:
    """A codec at each rate that it reaches: with every picture within so many bits, and with so many on average."""
    points = []
    for rate in rates:
        for choose, is_fixed in ((encoded.within, True), (encoded.on_average, False)):
            try:
                chosen = choose(rate)
            except ValueError:  # the codec does not reach this rate
                continue
            fixed, mean = (float(rate), None) if is_fixed else (None, encoded.mean_bits(chosen))
            name = f"{encoded.codec}, {'within' if is_fixed else 'on average'} {rate} bits"
            points.append(RatePoint(encoded.codec, name, fixed, mean, meter.measure(encoded.decoded(chosen))))
    return points


def unit_rows(pictures: Tensor) -> Tensor:
    """Pictures uint8 (n, C, H, W) to rows (n, C * H * W) float32 in [0, 1]."""
    return pictures.flatten(1).float() / 255


def in_batches(pictures: Tensor) -> Callable[[], Iterator[Tensor]]:
    """Pictures uint8 (n, C, H, W) as `fit_components` reads them."""
    return lambda: (unit_rows(batch) for batch in pictures.split(1000))
