"""Rate and distortion: PCA against direct computations, codecs without headers, histograms, curves."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_tokenizer

from pipelines.evaluation.metrics.reconstruction import reconstruct
from pipelines.evaluation.rates.pca_coding import (
    LloydQuantizers,
    allocate_bits,
    fixed_rate_code,
    histogram_code,
)
from pipelines.evaluation.rates.picture_codecs import (
    CodecSetting,
    EncodedPictures,
    available_codecs,
    codec_settings,
    grey_bytes,
    jpeg_scan_bytes,
)
from pipelines.evaluation.rates.quantized_latents import LatentCoding, QuantizedLatents
from pipelines.evaluation.rates.rate_curves import FIXED, HISTOGRAM, best_at, compare, curve, plot
from pipelines.evaluation.rates.rate_distortion import (
    Distortion,
    DistortionMeter,
    RatePoint,
    codec_points,
    in_batches,
    latent_points,
    pca_points,
    tokenizer_point,
    unit_rows,
)
from pipelines.evaluation.rates.scalar_codes import CodeHistogram, uniform_quantizers
from tokenizer_image.principal_components import fit_components, water_filling


def pictures(count: int, side: int = 16, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def gaussian() -> np.ndarray:
    """4,000 rows of 6 independent numbers with variances 16 to 1/64, and an exact mean of zero."""
    rows = np.random.default_rng(0).normal(size=(4000, 6)) * np.array([4, 2, 1, 0.5, 0.25, 0.125])
    return rows - rows.mean(0)


# ---- PCA


def test_components_are_those_of_the_covariance():
    data = unit_rows(pictures(200, side=8)).double()
    found = fit_components(lambda: data.split(64), 5)
    centred = (data - data.mean(0)).double().numpy()
    values, vectors = np.linalg.eigh(centred.T @ centred / 199)
    np.testing.assert_allclose(found.variances, values[::-1][:5], rtol=1e-8)
    np.testing.assert_allclose(np.abs((found.directions.numpy() * vectors[:, ::-1][:, :5]).sum(0)), 1, atol=1e-8)
    assert found.total_variance == pytest.approx(values.sum())


def test_leading_components_of_large_pictures_are_those_of_the_covariance(monkeypatch):
    data = torch.randn(300, 192, generator=torch.Generator().manual_seed(0)) * 0.8 ** torch.arange(192)
    exact = fit_components(lambda: data.split(64), 8)
    monkeypatch.setattr("tokenizer_image.principal_components.EXACT_SIZE", 1)
    found = fit_components(lambda: data.split(64), 8)
    np.testing.assert_allclose(found.variances, exact.variances, rtol=1e-4)
    again = fit_components(lambda: data.split(64), 8)
    assert torch.equal(found.directions, again.directions)


def test_with_enough_bits_the_error_is_that_of_leaving_components_out():
    train = pictures(400, side=8)
    components = fit_components(in_batches(train), 6)
    rows = unit_rows(train).double()
    left_out = float((components.pictures(components.coefficients(rows)) - rows).square().mean())
    assert left_out == pytest.approx((components.total_variance - float(components.variances.sum())) / 192 * 399 / 400)
    coefficients = components.coefficients(rows).numpy()
    fine = fixed_rate_code(LloydQuantizers(coefficients), components.variances.numpy(), 6 * 12)
    step, _ = histogram_code(coefficients, 6 * 8)
    for code in (fine, step):
        restored = components.pictures(torch.from_numpy(code.decode(code.encode(coefficients))))
        assert float((restored - rows).square().mean()) == pytest.approx(left_out, rel=2e-3)


def test_water_filling_is_the_closed_form():
    variances = np.array([16.0, 4.0, 1.0, 0.25])
    rates, level = water_filling(variances, 3.0)
    # Three numbers get bits: level = (16 * 4 * 1) ** (1/3) / 2 ** (2 * 3 / 3) = 4 / 4, and the third is at the brink.
    assert level == pytest.approx(1.0)
    np.testing.assert_allclose(rates, [2, 1, 0, 0], atol=1e-12)
    for bits in (0.0, 0.7, 5.0, 40.0):
        rates, level = water_filling(np.array([0.0, *variances]), bits)
        assert rates.sum() == pytest.approx(bits)
        low, high = 1e-30, 16.0  # the level by bisection of the definition
        for _ in range(200):
            middle = (low * high) ** 0.5
            spent = np.maximum(0, np.log2(variances / middle) / 2).sum()
            low, high = (middle, high) if spent > bits else (low, middle)
        assert level == pytest.approx(high, rel=1e-6)
    with pytest.raises(ValueError, match="bits=-1 for 1 numbers"):
        water_filling(np.array([1.0]), -1)


@pytest.mark.parametrize("bits", [1, 5, 17, 40])
def test_whole_bits_never_exceed_the_budget_and_go_where_they_help(gaussian, bits):
    quantizers = LloydQuantizers(gaussian)
    given = allocate_bits(quantizers, gaussian.var(0), bits)
    assert given.sum() == bits and (np.diff(given) <= 0).all()
    code = fixed_rate_code(quantizers, gaussian.var(0), bits)
    assert code.fixed_bits <= bits and (code.levels <= 2**given).all()
    error = ((code.decode(code.encode(gaussian)) - gaussian) ** 2).mean(0)
    np.testing.assert_allclose(error, [quantizers.error(k, int(b)) for k, b in enumerate(given)], rtol=1e-6)
    ideal = np.minimum(water_filling(gaussian.var(0), bits)[1], gaussian.var(0)).sum()
    assert error.sum() > 0.9 * ideal


def test_scalar_quantizers_are_those_of_max(gaussian):
    """Max (1960), table I: mean squared error of the best quantizer of a normal number of variance 1."""
    quantizers = LloydQuantizers(gaussian / gaussian.std(0))
    for bits, error in ((1, 0.3634), (2, 0.1175), (3, 0.03454)):
        assert quantizers.error(0, bits) == pytest.approx(error, rel=0.06)
    np.testing.assert_allclose(quantizers.values(0, 1), [-0.798, 0.798], atol=0.02)
    few = LloydQuantizers(np.array([[0.0], [0.0], [1.0]]))
    assert few.values(0, 4).tolist() == [0.0, 1.0] and few.error(0, 4) == 0


def test_one_step_spends_its_bits_under_the_histogram(gaussian):
    for bits in (1.0, 6.0, 14.0):
        code, histogram = histogram_code(gaussian, bits)
        codes = code.encode(gaussian)
        spent = histogram.bits(codes)
        assert bits - 0.2 < spent.mean() <= bits
        entropy = 0.0
        for column in codes.T:
            share = np.unique(column, return_counts=True)[1] / len(column)
            entropy -= (share * np.log2(share)).sum()
        assert spent.mean() == pytest.approx(entropy, abs=0.02)
    with pytest.raises(ValueError, match="bits=0 must be above zero"):
        histogram_code(gaussian, 0)


def test_bad_input_to_pca():
    with pytest.raises(ValueError, match="1 pictures have no principal components"):
        fit_components(lambda: [torch.rand(1, 4)], 2)
    with pytest.raises(ValueError, match="count=0"):
        fit_components(lambda: [torch.rand(3, 4)], 0)


# ---- codes and their lengths


def test_histogram_by_hand():
    codes = np.array([[0, 0, 2], [0, 1, 2], [0, 0, 4]])  # two places of codes 0 and 1, one of codes 2 to 4
    histogram = CodeHistogram(codes, np.array([0, 0, 2]), np.array([2, 2, 5]))
    shares = {0: 5.5 / 7, 1: 1.5 / 7, 2: 2.5 / 4.5, 3: 0.5 / 4.5, 4: 1.5 / 4.5}
    expected = [-sum(np.log2(shares[code]) for code in row) for row in ([0, 1, 3], [1, 1, 4])]
    np.testing.assert_allclose(histogram.bits(np.array([[0, 1, 3], [1, 1, 4]])), expected)


def test_uniform_quantizers_by_hand():
    numbers = np.linspace(0, 8, 9)[:, None]
    code = uniform_quantizers(numbers, 4, clipped_share=0)
    assert code.values[0].tolist() == [1, 3, 5, 7] and code.thresholds[0].tolist() == [2, 4, 6]
    assert code.encode(numbers)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3] and code.fixed_bits == 2
    with pytest.raises(ValueError, match="levels=1"):
        uniform_quantizers(numbers, 1)


def test_latents_are_quantized_in_each_channel_and_level():
    coding = LatentCoding(
        lambda pixels: [pixels.mean((2, 3)).view(-1, 1, 1, 3), pixels[:, :2, :2, :2].permute(0, 2, 3, 1)],
        lambda levels: levels[0].permute(0, 3, 1, 2).expand(-1, -1, 4, 4) + levels[1].sum() * 0,
    )
    train = torch.rand(500, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    quantized = QuantizedLatents(coding, [coding.encode(batch) for batch in train.split(100)], 4)
    assert quantized.numbers == 3 + 8 and quantized.fixed_bits == 22
    restored, bits = quantized.restore(train[:50])
    means = train.mean((2, 3)).double().numpy()
    codes = uniform_quantizers(means, 4)
    expected = codes.decode(codes.encode(means[:50]))
    np.testing.assert_allclose(restored[:, :, 0, 0], expected, atol=1e-6)
    assert bits.shape == (50,) and 15 < bits.mean() < 22
    with pytest.raises(ValueError, match="no latents"):
        QuantizedLatents(coding, [], 4)


# ---- codecs


def test_a_jpeg_scan_is_what_lies_between_its_header_and_the_end_marker():
    image = Image.fromarray(pictures(1)[0].permute(1, 2, 0).numpy())
    file = CodecSetting("JPEG", 50, "4:2:0").encode(image)
    start = file.index(b"\xff\xda") + 2
    start += int.from_bytes(file[start : start + 2], "big")
    assert jpeg_scan_bytes(file) == len(file) - start - 2 and file.endswith(b"\xff\xd9")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50, progressive=True)
    whole = buffer.getvalue()
    assert whole.count(b"\xff\xda") > 1  # of several scans, only the data
    parts = 0
    for place in (i for i in range(len(whole)) if whole[i : i + 2] == b"\xff\xda"):
        first = place + 2 + int.from_bytes(whole[place + 2 : place + 4], "big")
        ends = (i for i in range(first, len(whole)) if whole[i] == 0xFF and whole[i + 1] != 0)
        parts += next(ends) - first
    assert jpeg_scan_bytes(whole) == parts
    for damaged in (file[:-2], b"no file", b""):
        with pytest.raises(ValueError, match="no whole JPEG"):
            jpeg_scan_bytes(damaged)


@pytest.mark.parametrize("codec", available_codecs())
@pytest.mark.parametrize("channels", [1, 3])
def test_bits_leave_the_header_out(codec, channels):
    setting = next(one for one in codec_settings(codec, 16, channels == 1) if one.quality >= 75)
    array = pictures(1, channels=channels)[0].permute(1, 2, 0).numpy()
    image = Image.fromarray(array[..., 0] if channels == 1 else array)
    grey = Image.new(image.mode, image.size, (128,) * 3 if channels == 3 else 128)
    file, empty = setting.encode(image), setting.encode(grey)
    bits = setting.bits(file, image.size, image.mode)
    assert 0 < bits < 8 * len(file)
    if codec != "JPEG":
        assert grey_bytes(setting, image.size, image.mode) == len(empty)
        assert bits == 8 * (len(file) - len(empty)) and setting.bits(empty, image.size, image.mode) == 0
    restored = np.asarray(setting.decode(file, image.size, image.mode), np.float64)
    assert restored.shape == np.asarray(image).shape
    assert np.abs(restored - np.asarray(image, np.float64)).mean() < 15


def test_settings_of_pictures_within_bits_and_on_average():
    data = pictures(12)
    encoded = EncodedPictures("JPEG", data, progress=False)
    shrinks = {setting.shrink for setting in encoded.settings}
    assert shrinks == {1, 2} and encoded.bits.shape == (len(encoded.settings), 12)
    budget = encoded.least_bits + 100
    chosen, rows = encoded.within(budget), np.arange(12)
    assert (encoded.bits[chosen, rows] <= budget).all()
    for row in rows:  # by looking at all of them
        fitting = [encoded.errors[s, row] for s in range(len(encoded.settings)) if encoded.bits[s, row] <= budget]
        assert encoded.errors[chosen[row], row] == min(fitting)
    decoded = torch.cat([*encoded.decoded(chosen, batch_size=5)])
    error = ((decoded.double() - data.double()) / 255).square().mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(error, encoded.errors[chosen, rows], rtol=1e-5)
    average = encoded.on_average(budget)
    assert encoded.mean_bits(average) <= budget
    assert encoded.errors[average, rows].mean() <= encoded.errors[chosen, rows].mean() + 1e-9
    with pytest.raises(ValueError, match="too few for JPEG: one needs"):
        encoded.within(encoded.least_bits - 1)
    with pytest.raises(ValueError, match="the mean is at least"):
        encoded.on_average(1)
    with pytest.raises(ValueError, match="this Pillow has no GIF"):
        EncodedPictures("GIF", data)


# ---- points


def test_a_tokenizers_point():
    tokenizer, data, train = tiny_tokenizer(), pictures(7), pictures(20, seed=1)
    meter = DistortionMeter(data)
    point = tokenizer_point(tokenizer, meter, train, "VQ", "tiny")
    assert point.fixed_bits == pytest.approx(4 * 4 + 4 * 3)
    restored, codes = reconstruct(tokenizer, data)
    assert point.distortion.mse == pytest.approx(float(((restored.double() - data.double()) / 255).square().mean()))
    assert point.distortion.n == 7 and point.distortion.frechet is None and meter.feature_size is None
    train_codes = reconstruct(tokenizer, train)[1].numpy()
    lengths = 0.0
    for row in codes.numpy():
        for code in row:
            low, high = (0, 16) if code < 16 else (16, 24)
            inside = ((train_codes >= low) & (train_codes < high)).sum() + (high - low) / 2
            lengths -= np.log2(((train_codes == code).sum() + 0.5) / inside)
    assert point.histogram_bits == pytest.approx(lengths / 7)
    with pytest.raises(ValueError, match="3 reconstructions of 7 pictures"):
        meter.measure([data[:3]])


def test_points_of_pca_codecs_and_latents():
    data, train = pictures(10), pictures(60, seed=1)
    meter = DistortionMeter(data)
    components = fit_components(in_batches(train), 12)
    points = pca_points(components, meter, train, [8, 64])
    assert [point.fixed_bits for point in points] == [8, None, 64, None]
    assert points[2].distortion.mse < points[0].distortion.mse and points[3].distortion.mse < points[1].distortion.mse
    encoded = EncodedPictures("WebP", data, progress=False)
    points = codec_points(encoded, meter, [0, 100_000])
    assert [point.fixed_bits for point in points] == [100_000, None] and points[1].histogram_bits > 0
    coding = LatentCoding(
        lambda pixels: [components.coefficients((pixels.flatten(1) + 1) / 2).view(-1, 1, 1, 12)],
        lambda levels: (components.pictures(levels[0].reshape(-1, 12)) * 2 - 1).view(-1, 3, 16, 16).float(),
    )
    points = latent_points(coding, meter, train, [2, 16], "latents", "linear")
    assert [point.fixed_bits for point in points] == [12, 48]
    assert points[1].distortion.mse < points[0].distortion.mse and 20 < points[1].histogram_bits < 60


# ---- curves


def point(series: str, fixed: float | None, histogram: float | None, error: float) -> RatePoint:
    return RatePoint(series, f"{series} {fixed}", fixed, histogram, Distortion(error, -error, -error, None, 3))


def test_a_curve_keeps_the_best_so_far():
    points = [point("a", 400, 1, 0.1), point("a", 100, 2, 0.4), point("a", 200, None, 0.5), point("a", 100, 3, 0.3)]
    rates, errors = curve(points, FIXED)
    assert rates.tolist() == [100, 200, 400] and errors.tolist() == [0.3, 0.3, 0.1]
    assert curve(points, FIXED, "psnr")[1].tolist() == [-0.3, -0.3, -0.1]
    assert len(curve(points, FIXED, "frechet")[0]) == 0
    assert best_at(points, 399) == 0.3 and best_at(points, 400) == 0.1 and best_at(points, 99) is None


def test_where_curves_cross():
    one = [point("a", 100, None, 0.1), point("a", 400, None, 0.1)]
    other = [point("b", 100, None, 0.4), point("b", 400, None, 0.025)]
    found = compare(one, other, FIXED, ("a", "b"))
    assert found.shared == (100, 400) and found.first_is_lower and found.crossings == (pytest.approx(200),)
    assert found.sentence().endswith("from 100 to 400 bits, a has the lower MSE first; they cross at 200 bits")
    above = [point("c", 50, None, 0.5), point("c", 300, None, 0.2)]
    never = compare(above, one, FIXED, ("c", "a"))
    assert (
        never.shared == (100, 300) and not never.crossings and "a has the lower MSE from 100 to 300" in never.sentence()
    )
    assert "no rate that both reach" in compare(one, other, HISTOGRAM, ("a", "b")).sentence()
    apart = compare(one, [point("d", 500, None, 1), point("d", 600, None, 1)], FIXED, ("a", "d"))
    assert apart.shared is None


def test_the_plot_is_a_picture():
    image = plot([point("a", 100, 90, 0.1), point("a", 400, 300, 0.05), point("b", 100, None, 0.4)])
    assert image.format == "PNG" and image.width > 800
