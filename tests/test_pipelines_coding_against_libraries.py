"""Principal components, quantizers and lengths of codes, each equal to scikit-learn's or scipy's on random data."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import optimize, stats
from skimage.metrics import mean_squared_error
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import log_loss
from sklearn.preprocessing import KBinsDiscretizer
from tiny import tiny_tokenizer

from pipelines.evaluation.metrics.rate import rate_figures
from pipelines.evaluation.rates.pca_coding import (
    LLOYD_STEPS,
    LloydQuantizers,
    histogram_code,
)
from pipelines.evaluation.rates.picture_codecs import CodecSetting, EncodedPictures
from pipelines.evaluation.rates.scalar_codes import PRIOR_COUNT, CodeHistogram, uniform_quantizers
from pipelines.evaluation.report.codebook_plot import codebook_views
from tokenizer_image.layout import build_layout
from tokenizer_image.principal_components import fit_components, water_filling


@pytest.fixture
def rows() -> np.ndarray:
    """300 rows of 40 correlated numbers whose variances fall."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 40)) * 0.85 ** np.arange(40) @ rng.normal(size=(40, 40)) + rng.normal(size=40)


def signs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of each column of the first, that of the second: a component's direction is known but for its sign."""
    return np.sign((one * other).sum(axis=0))


@pytest.mark.parametrize("exact_size", [4096, 1])
def test_components_are_scikit_learns(rows, exact_size, monkeypatch):
    """Variances have n - 1 in the denominator. By all eigenvectors, and by subspace iteration."""
    monkeypatch.setattr("tokenizer_image.principal_components.EXACT_SIZE", exact_size)
    data = torch.from_numpy(rows)
    found, wanted = fit_components(lambda: data.split(64), 6), PCA(6, svd_solver="full").fit(rows)
    np.testing.assert_allclose(found.mean, wanted.mean_, atol=1e-6)
    np.testing.assert_allclose(found.variances, wanted.explained_variance_, rtol=1e-4)
    share = float(found.variances.sum()) / found.total_variance
    assert share == pytest.approx(wanted.explained_variance_ratio_.sum(), rel=1e-4)
    turned = found.directions.numpy() * signs(found.directions.numpy(), wanted.components_.T)
    np.testing.assert_allclose(turned, wanted.components_.T, atol=1e-4)
    coefficients = found.coefficients(data)
    np.testing.assert_allclose(np.abs(coefficients), np.abs(wanted.transform(rows)), rtol=1e-4, atol=1e-3)
    restored = wanted.inverse_transform(wanted.transform(rows))
    np.testing.assert_allclose(found.pictures(coefficients), restored, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bits", [0.5, 7.0, 60.0])
def test_water_filling_is_the_minimum_that_scipy_finds(bits):
    """Of sum variance_k 2^(-2 R_k) over R_k >= 0 that add up to the bits."""
    variances = np.array([9.0, 4.0, 2.0, 0.5, 0.1, 0.01])
    found, level = water_filling(variances, bits)
    weights = variances / variances.sum()
    solved = optimize.minimize(
        lambda r: (weights * 2.0 ** (-2 * r)).sum() * 4 ** (bits / 6),
        np.full(6, bits / 6),
        jac=lambda r: -2 * np.log(2) * weights * 2.0 ** (-2 * r) * 4 ** (bits / 6),
        bounds=[(0, None)] * 6,
        constraints=optimize.LinearConstraint(np.ones(6), bits, bits),
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    np.testing.assert_allclose(found, solved.x, atol=1e-4)
    assert np.minimum(level, variances).sum() == pytest.approx((variances * 2.0 ** (-2 * solved.x)).sum(), rel=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_scalar_quantizers_are_clusters_of_scikit_learn(bits):
    """K-means in one dimension, from the same start: the means of the halves of each cell of a bit less."""
    numbers = np.random.default_rng(1).normal(size=(2000, 1))
    quantizers = LloydQuantizers(numbers)
    before, values = quantizers.values(0, bits - 1), quantizers.values(0, bits)
    edges = np.sort(np.concatenate([[-np.inf, np.inf], before, (before[1:] + before[:-1]) / 2]))
    start = stats.binned_statistic(numbers[:, 0], numbers[:, 0], "mean", np.clip(edges, -9, 9)).statistic
    model = KMeans(len(start), init=start[:, None], n_init=1, algorithm="lloyd", tol=0, max_iter=LLOYD_STEPS)
    model.fit(numbers)
    np.testing.assert_allclose(np.sort(model.cluster_centers_[:, 0]), values, atol=1e-4)
    assert quantizers.error(0, bits) == pytest.approx(-model.score(numbers) / len(numbers), rel=1e-4)


def test_uniform_quantizers_are_scikit_learns_bins(rows):
    model = KBinsDiscretizer(8, encode="ordinal", strategy="uniform", subsample=None, dtype=np.float64).fit(rows)
    code = uniform_quantizers(rows, 8, clipped_share=0)
    codes = code.encode(rows)
    np.testing.assert_array_equal(codes - code.low, model.transform(rows))
    np.testing.assert_allclose(code.decode(codes), model.inverse_transform(model.transform(rows)), rtol=1e-6)


# ---- lengths


def test_rates_are_scipys_entropies():
    rng = np.random.default_rng(0)
    layout = build_layout([(1, 1), (2, 2)], [[16], [32]])
    codes = np.concatenate([rng.binomial(15, 0.3, (400, 1)), 16 + rng.binomial(31, 0.1, (400, 4))], axis=1)
    found = rate_figures(torch.from_numpy(codes), layout, (3, 8, 8))
    coarse, fine = (stats.entropy(np.bincount(part), base=2) for part in (codes[:, 0], (codes[:, 1:] - 16).reshape(-1)))
    assert [one["entropy_bits"] for one in found["levels"]] == pytest.approx([coarse, 4 * fine], rel=1e-4)
    assert found["entropy_bits_per_picture"] == pytest.approx(coarse + 4 * fine, rel=1e-4)


def test_lengths_under_a_histogram_are_scikit_learns_log_loss():
    """Of other codes than it was counted over, with half a count more for each code."""
    rng = np.random.default_rng(0)
    counted, others = rng.binomial(7, 0.3, (200, 5)), rng.binomial(7, 0.6, (100, 5))
    counts = np.bincount(counted.reshape(-1), minlength=8) + PRIOR_COUNT
    found = CodeHistogram(counted, np.zeros(5, np.int64), np.full(5, 8)).bits(others)
    given = np.tile(counts / counts.sum(), (others.size, 1))
    wanted = log_loss(others.reshape(-1), given, labels=range(8), normalize=False) / np.log(2)
    assert found.sum() == pytest.approx(wanted, rel=1e-4)


def test_the_bits_of_one_step_are_scipys_entropies(rows):
    """But for the prior count, which vanishes among many rows."""
    many = np.tile(rows - rows.mean(0), (200, 1))[:, :4]
    code, histogram = histogram_code(many, 12.0)
    codes = code.encode(many)
    entropies = [stats.entropy(np.unique(column, return_counts=True)[1], base=2) for column in codes.T]
    assert histogram.bits(codes).mean() == pytest.approx(sum(entropies), rel=1e-4)


def test_errors_of_codecs_are_scikit_images():
    pictures = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
    found = EncodedPictures("JPEG", torch.from_numpy(pictures), [CodecSetting("JPEG", 40, "4:4:4")], progress=False)
    for error, picture in zip(found.errors[0], pictures, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, "JPEG", quality=40, subsampling="4:4:4")
        decoded = np.asarray(Image.open(buffer)).transpose(2, 0, 1)
        assert error == pytest.approx(mean_squared_error(picture / 255, decoded / 255), rel=1e-4)


def test_the_plane_of_codebook_plots_is_scikit_learns():
    tokenizer = tiny_tokenizer(codebook_sizes=[16], quantizer="ema", num_levels=1, code_dim=4)
    table = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    tokenizer.quantizers[0].codebook.copy_(table)

    class Pictures:
        def __len__(self) -> int:
            return 3

        def batch(self, indices: np.ndarray) -> np.ndarray:
            return np.random.default_rng(0).integers(0, 256, (len(indices), 3, 16, 16), dtype=np.uint8)

    (view,) = codebook_views(tokenizer, torch.arange(16)[None], Pictures())
    wanted = PCA(2).fit_transform(table.numpy())
    np.testing.assert_allclose(view.codes * signs(view.codes, wanted), wanted, atol=1e-4)
