"""Figures of pictures, of sets of pictures and of counts, each equal to a well-kept library's to 1e-4 on random data.

Likelihoods, codes of numbers, and what reads latents are in files of their own, test_pipelines_*_against_libraries.py;
Inception-v3 is in test_tokenizer_inception.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import fft, stats
from scipy.special import log_softmax
from skimage.measure import block_reduce, shannon_entropy
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import accuracy_score, pairwise_distances, top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors
from tiny import tiny_tokenizer
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.image import FrechetInceptionDistance, PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from pipelines.evaluation.metrics.classes import caption_classes, class_scores
from pipelines.evaluation.metrics.copies import nearest_training
from pipelines.evaluation.metrics.density_coverage import density_and_coverage
from pipelines.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from pipelines.evaluation.metrics.intervals import (
    difference_of_shares,
    mean_interval,
    paired_comparison,
    share_of_misses_removed,
    wilson_interval,
)
from pipelines.evaluation.metrics.neighbours import balls_around, nearest_neighbours
from pipelines.evaluation.metrics.precision_recall import precision_and_recall
from pipelines.evaluation.metrics.rate import entropy_bits
from pipelines.evaluation.metrics.reconstruction import measure_tokenizer, reconstruct
from pipelines.evaluation.probes.alignment import alignment_sets, score
from pipelines.evaluation.probes.sprites_probe import answers
from pipelines.evaluation.rates.rate_distortion import DistortionMeter
from tokenizer_image.metrics import CodeUsage, grid_ratio, mse, psnr, ssim, tile_powers

EQUAL = {"rtol": 1e-4, "atol": 1e-4}


# ---- pictures


def noisy(level: float | None, noise: float, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstructions and targets on [0, 1]; where there is a level, almost flat targets about it."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(4, channels, 40, 33, generator=generator)
    if level is not None:
        target = level + noise * (target - 0.5)
    return (target + noise * torch.randn(target.shape, generator=generator)).clamp(0, 1), target.clamp(0, 1)


@pytest.mark.parametrize(("level", "noise"), [(None, 0.1), (None, 1.0), (0.5, 0.01), (0.02, 0.002), (0.99, 0.002)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_compared_as_by_scikit_image(level, noise, channels):
    """SSIM there: the same Gaussian window, moments weighted by it (not n / (n - 1) times larger), a range of 1, and
    the same positions, those whose window lies inside. Flat pictures, where variances are differences of nearly equal
    numbers, hold to 1e-4 in float32, too."""
    found, target = noisy(level, noise, channels)
    pairs = [*zip(found.double().numpy(), target.double().numpy(), strict=True)]
    np.testing.assert_allclose(mse(found, target), [mean_squared_error(b, a) for a, b in pairs], **EQUAL)
    wanted = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in pairs]
    np.testing.assert_allclose(psnr(found, target), wanted, **EQUAL)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "K1": 0.01, "K2": 0.03}
    wanted = [structural_similarity(b, a, data_range=1, channel_axis=0, **window) for a, b in pairs]
    np.testing.assert_allclose(ssim(found, target), wanted, rtol=0, atol=1e-4)


def test_pictures_are_compared_as_by_torchmetrics():
    """Its SSIM takes a mean over all positions of pictures that are mirrored at their edges: ours is that of its inner
    positions. Its PSNR of a set is of one mean error unless it is told to give one for each picture."""
    found, target = noisy(None, 0.1)
    metric = StructuralSimilarityIndexMeasure(data_range=1.0, reduction="none", return_full_image=True)
    everywhere = metric(found, target)[1]
    np.testing.assert_allclose(ssim(found, target), everywhere[..., 5:-5, 5:-5].mean((1, 2, 3)), rtol=0, atol=1e-4)
    each = PeakSignalNoiseRatio(data_range=1.0, reduction="none", dim=(1, 2, 3))
    np.testing.assert_allclose(psnr(found, target), each(found, target), **EQUAL)


def test_figures_of_a_set_are_means_over_its_8_bit_pictures():
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 256, (7, 3, 24, 24), generator=generator, dtype=torch.uint8)
    found = (target.int() + torch.randint(-20, 21, target.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    distortion = DistortionMeter(target).measure(found.split(3))
    pairs = [*zip(found.numpy(), target.numpy(), strict=True)]
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    wanted = [
        np.mean([mean_squared_error(b / 255, a / 255) for a, b in pairs]),
        np.mean([peak_signal_noise_ratio(b, a, data_range=255) for a, b in pairs]),
        np.mean([structural_similarity(b, a, channel_axis=0, **window) for a, b in pairs]),
    ]
    np.testing.assert_allclose([distortion.mse, distortion.psnr, distortion.ssim], wanted, **EQUAL)


def test_the_power_of_a_grid_is_scipys_spectrum():
    found, target = noisy(None, 0.2)
    tile, side = 5, 10
    power, real, variance = (one.numpy() for one in tile_powers(found, target, tile))
    for number, (top, left) in enumerate((top, left) for top in range(0, 40, side) for left in range(0, 30, side)):
        window = found[:, :, top : top + side, left : left + side].double().numpy()
        spectrum = np.abs(fft.fft2(window - window.mean((-2, -1), keepdims=True), norm="ortho")) ** 2
        np.testing.assert_allclose(power[:, number], spectrum[..., ::2, ::2].sum((-2, -1)).mean(1), **EQUAL)
        window = target[:, :, top : top + side, left : left + side].double().numpy()
        np.testing.assert_allclose(variance[:, number], window.var((-2, -1), ddof=1).mean(1), **EQUAL)
    flat = variance <= np.sort(variance, axis=None)[round(0.1 * variance.size) - 1]
    parts = [torch.from_numpy(one.flatten()) for one in (power, real, variance)]
    assert grid_ratio(*parts) == pytest.approx(power[flat].sum() / real[flat].sum(), rel=1e-4)


# ---- counts


def test_usage_and_perplexity_are_those_of_the_entropy_of_counts():
    codes = np.random.default_rng(0).zipf(1.3, 5000) % 64
    usage = CodeUsage(80)
    usage.update(torch.from_numpy(codes))
    counts = np.bincount(codes, minlength=80)
    assert usage.usage == len(np.unique(codes)) / 80
    assert usage.perplexity == pytest.approx(math.exp(stats.entropy(counts)), rel=1e-4)
    assert usage.perplexity == pytest.approx(math.exp(shannon_entropy(codes, base=math.e)), rel=1e-4)
    assert usage.perplexity_of(1, 9) == pytest.approx(math.exp(stats.entropy(counts[1:9])), rel=1e-4)
    assert entropy_bits(usage.counts) == pytest.approx(stats.entropy(counts, base=2), rel=1e-4)


# ---- intervals


@pytest.mark.parametrize(("right", "n"), [(0, 5), (3, 7), (1, 1), (950, 1000), (1000, 1000)])
def test_intervals_of_shares_are_scipys(right, n):
    wanted = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, n) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_intervals_of_means_are_scipys():
    """Normal, with n - 1 in the variance: for a few values Student's, which scipy has as another law, is wider."""
    values = np.random.default_rng(0).exponential(size=200)
    wanted = stats.norm.interval(0.95, loc=values.mean(), scale=stats.sem(values))
    assert mean_interval(torch.from_numpy(values)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("statistic", [difference_of_shares, share_of_misses_removed])
def test_intervals_of_changes_are_scipys_bootstrap(statistic):
    """Percentiles over pairs drawn anew: the same draws of the same generator."""
    rng = np.random.default_rng(3)
    before, after = rng.random(150) < 0.6, rng.random(150) < 0.8
    found = paired_comparison(statistic, {"all": before}, {"all": after})
    wanted = stats.bootstrap(
        (before, after), statistic, paired=True, vectorized=False, n_resamples=2000, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert found["interval"]["all"] == pytest.approx([wanted.low, wanted.high], rel=1e-4)


# ---- sets of features


def features(rows: int, size: int, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Correlated features about a mean, (rows, size) float32."""
    generator = torch.Generator().manual_seed(seed)
    mixture = torch.randn(size, size, generator=torch.Generator().manual_seed(7)) / size**0.5
    return (torch.randn(rows, size, generator=generator) + shift) @ mixture + 3


class Rows(torch.nn.Module):
    """Takes rows as pictures of one pixel."""

    num_features = 24

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)


@pytest.mark.parametrize(("n", "m"), [(200, 150), (20, 200), (15, 12)])
def test_frechet_distances_are_torch_fidelitys_and_torchmetrics(n, m):
    """Covariances with n - 1 in the denominator; with fewer rows than features, too."""
    one, other = features(n, Rows.num_features), features(m, Rows.num_features, shift=0.3, seed=1)
    statistics, metric = [FeatureStatistics(), FeatureStatistics()], FrechetInceptionDistance(Rows())
    for number, rows in enumerate((one, other)):
        for part in rows.split(64):
            statistics[number].update(part)
            metric.update(part[:, :, None, None], real=number == 0)
    found = frechet_distance(*statistics)
    wanted = fid_statistics_to_metric(*map(fid_features_to_statistics, (one, other)), verbose=False)[KEY_METRIC_FID]
    assert found == pytest.approx(wanted, rel=1e-4) and wanted > 0.1
    assert found == pytest.approx(float(metric.compute()), rel=1e-4)


def test_neighbours_are_scikit_learns():
    queries, references = features(60, 9).numpy(), features(90, 9, seed=1).numpy()
    wanted, places = (
        NearestNeighbors(n_neighbors=4, algorithm="brute")
        .fit(references.astype(np.float64))
        .kneighbors(queries.astype(np.float64))
    )
    found = nearest_neighbours(torch.from_numpy(queries), torch.from_numpy(references), 4)
    np.testing.assert_allclose(found.distances, wanted, **EQUAL)
    np.testing.assert_array_equal(found.indices, places)
    model = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(references.astype(np.float64))
    found = nearest_neighbours(*[torch.from_numpy(references)] * 2, 3, skip_same=True)
    np.testing.assert_allclose(found.distances, model.kneighbors()[0], **EQUAL)  # without the row itself
    near = model.radius_neighbors(queries.astype(np.float64), radius=2.5, return_distance=False)
    radii = torch.full((90,), 2.5, dtype=torch.float64)
    found = balls_around(torch.from_numpy(queries), torch.from_numpy(references), radii)
    np.testing.assert_array_equal(found, [len(one) for one in near])


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_precision_and_recall_are_torch_fidelitys(shift):
    real, drawn = features(150, 6), features(120, 6, shift=shift, seed=1)
    found = precision_and_recall(real, drawn)
    settings = {"prc_neighborhood": 3, "prc_batch_size": 50, "save_cpu_ram": False, "verbose": False}
    wanted = prc_features_to_metric(drawn, real, **settings)
    assert found["precision"] == pytest.approx(wanted[KEY_METRIC_PRECISION], abs=1e-6)
    assert found["recall"] == pytest.approx(wanted[KEY_METRIC_RECALL], abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_density_and_coverage_by_scikit_learns_distances(shift):
    """No well-kept library has them: equations 4 and 5 of Naeem et al. 2020 over its neighbours and distances."""
    real, drawn = features(150, 6).double(), features(120, 6, shift=shift, seed=1).double()
    found = density_and_coverage(real, drawn)
    radii = NearestNeighbors(n_neighbors=5).fit(real).kneighbors()[0][:, -1]
    inside = pairwise_distances(drawn, real) <= radii
    assert found["density"] == pytest.approx(inside.sum() / (5 * len(drawn)), abs=1e-6)
    assert found["coverage"] == pytest.approx(inside.any(axis=0).mean(), abs=1e-6)


@pytest.mark.parametrize("side", [12, 64])
def test_nearest_training_pictures_are_scikit_learns(side):
    """Of pictures of more than 32 pixels the means of blocks, as scikit-image reduces them."""
    generator = torch.Generator().manual_seed(0)
    drawn, training = torch.randint(0, 256, (50, 3, side, side), generator=generator, dtype=torch.uint8).split([10, 40])
    block = max(1, side // 32)
    rows = [block_reduce(one.numpy(), (1, 1, block, block), np.mean).reshape(len(one), -1) for one in (drawn, training)]
    distances, places = NearestNeighbors(n_neighbors=2).fit(rows[1]).kneighbors(rows[0])
    found = nearest_training(drawn, training)
    np.testing.assert_array_equal(found.indices, places[:, 0])
    np.testing.assert_allclose(found.distances, distances[:, 0] / 255 / math.sqrt(rows[0].shape[1]), **EQUAL)
    np.testing.assert_allclose(found.ratios, distances[:, 0] / distances[:, 1], **EQUAL)


# ---- classes


def test_scores_of_classes_are_scikit_learns_and_torchmetrics():
    rng = np.random.default_rng(0)
    logits, named = rng.normal(size=(300, 12)), rng.integers(0, 12, 300)
    logits[np.arange(300), named] += 1
    captions = [f"class {answer}" for answer in named]
    found = class_scores(torch.from_numpy(logits), captions, {f"class {one}": one for one in range(12)})
    for share, k in ((found.first, 1), (found.among_five, 5)):
        assert share == pytest.approx(top_k_accuracy_score(named, logits, k=k, labels=range(12)), abs=1e-6)
        metric = MulticlassAccuracy(12, top_k=k, average="micro")
        assert share == pytest.approx(float(metric(torch.from_numpy(logits), torch.from_numpy(named))), abs=1e-6)
    expected = log_softmax(logits, axis=1)
    wanted = {f"class {one}": int(expected[named == one].mean(0).argmax()) for one in range(12)}
    assert caption_classes(torch.from_numpy(logits), captions) == wanted


def test_alignment_is_scikit_learns_accuracy():
    """Of each attribute, and of all at once: its accuracy of rows that must be right in every column."""
    scenes = alignment_sets(60, seed=1)[0]
    wanted = [answers(scene) for scene in scenes.scenes]
    rng = np.random.default_rng(0)
    readings = [
        {name: value if rng.random() < 0.8 else f"not {value}" for name, value in one.items()} for one in wanted
    ]
    found = score(scenes, readings)
    for name, questions in scenes.scores.items():
        right = np.array(
            [[reading[q] == one[q] for q in questions] for reading, one in zip(readings, wanted, strict=True)]
        )
        assert found[name] == pytest.approx(accuracy_score(np.ones_like(right), right), abs=1e-6)
        low_high = stats.binomtest(int(right.all(1).sum()), 60).proportion_ci(0.95, method="wilson")
        assert found["interval"][name] == pytest.approx([low_high.low, low_high.high], abs=1e-6)


def test_a_tokenizers_figures_are_the_libraries():
    """Of a real tokenizer over a whole set, in batches of which the last is not full."""

    class Pictures:
        def __init__(self) -> None:
            self.pixels = np.random.default_rng(0).integers(0, 256, (11, 3, 16, 16), dtype=np.uint8)

        def __len__(self) -> int:
            return len(self.pixels)

        def batch(self, indices: np.ndarray) -> np.ndarray:
            return self.pixels[indices]

    pictures, tokenizer = Pictures(), tiny_tokenizer()
    found = measure_tokenizer(tokenizer, pictures, batch_size=4, progress=False)
    restored, codes = reconstruct(tokenizer, torch.from_numpy(pictures.pixels))
    pairs = [*zip(restored.numpy(), pictures.pixels, strict=True)]
    quality = found.figures["reconstruction"]
    wanted = [peak_signal_noise_ratio(b, a, data_range=255) for a, b in pairs]
    assert quality["psnr"] == pytest.approx(np.mean(wanted), rel=1e-4)
    assert quality["interval"]["psnr"] == pytest.approx(
        stats.norm.interval(0.95, loc=np.mean(wanted), scale=stats.sem(wanted)), rel=1e-4
    )
    counts = np.bincount(codes.numpy().reshape(-1))
    assert found.figures["codebook"]["perplexity"] == pytest.approx(math.exp(stats.entropy(counts)), rel=1e-4)
