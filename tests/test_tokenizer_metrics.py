"""Picture metrics and codebook counts, against formulas written out in the test."""

import math

import numpy as np
import pytest
import torch

from tokenizer_image.metrics import CodeUsage, mse, psnr, ssim


def reference_ssim(x: np.ndarray, y: np.ndarray, size: int = 11, sigma: float = 1.5) -> float:
    """The paper's formula for one channel, one window at a time, in float64."""
    offsets = np.arange(size) - size // 2
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * sigma**2))
    window /= window.sum()
    values = []
    for top in range(x.shape[0] - size + 1):
        for left in range(x.shape[1] - size + 1):
            a, b = (picture[top : top + size, left : left + size] for picture in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            variance_a, variance_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + 1e-4)
                * (2 * covariance + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4))
            )
    return float(np.mean(values))


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 3, 16, 20, generator=generator)
    noise = torch.randn(target.shape, generator=generator)
    return (target + 0.1 * noise).clamp(0, 1), target


def test_mse_and_psnr_are_per_picture(pictures):
    reconstruction, target = pictures
    expected = ((reconstruction.double() - target.double()) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(mse(reconstruction, target).double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(psnr(reconstruction, target).double(), -10 * expected.log10(), rtol=1e-5, atol=0)
    half = psnr(torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, 1, 4, 4))
    assert half.item() == pytest.approx(6.0206, abs=1e-4)


def test_identical_pictures_stay_finite(pictures):
    _, target = pictures
    assert psnr(target, target).tolist() == [100.0] * 3
    torch.testing.assert_close(ssim(target, target), torch.ones(3))


def test_ssim_equals_the_formula_window_by_window(pictures):
    reconstruction, target = pictures
    expected = [
        np.mean([reference_ssim(a, b) for a, b in zip(one, other, strict=True)])
        for one, other in zip(reconstruction.double().numpy(), target.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(ssim(reconstruction, target).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("side, window", [(8, 7), (7, 7), (1, 1), (2, 1)])
def test_ssim_of_pictures_smaller_than_the_window(side, window):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 1, 1, side, side, generator=generator)
    expected = reference_ssim(x[0, 0].double().numpy(), y[0, 0].double().numpy(), size=window)
    assert ssim(x, y).item() == pytest.approx(expected, abs=1e-5)


def test_metrics_do_not_depend_on_the_batch(pictures):
    reconstruction, target = pictures
    alone = [ssim(reconstruction[i : i + 1], target[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(ssim(reconstruction, target), torch.cat(alone))


def test_pictures_of_different_shape_or_type_are_refused(pictures):
    reconstruction, target = pictures
    with pytest.raises(ValueError, match=r"\(3, 3, 16, 20\) and \(3, 3, 15, 20\)"):
        ssim(reconstruction, target[:, :, :15])
    with pytest.raises(TypeError, match="divide uint8 pictures by 255"):
        mse((reconstruction * 255).to(torch.uint8), (target * 255).to(torch.uint8))


def test_code_usage_over_several_updates():
    usage = CodeUsage(8)
    assert usage.usage == 0.0 and usage.perplexity == 0.0
    usage.update(torch.tensor([[0, 0], [1, 1]]))
    usage.update(torch.tensor([4, 4, 4, 4], dtype=torch.uint8))
    assert usage.counts.tolist() == [2, 2, 0, 0, 4, 0, 0, 0]
    assert usage.usage == pytest.approx(3 / 8)
    assert usage.perplexity == pytest.approx(math.exp(1.5 * math.log(2)))  # entropy of 1/4, 1/4, 1/2
    assert usage.usage_of(0, 4) == pytest.approx(0.5)
    assert usage.perplexity_of(0, 4) == pytest.approx(2.0)
    assert usage.perplexity_of(4, 8) == pytest.approx(1.0)


def test_uniform_codes_reach_full_perplexity():
    usage = CodeUsage(64)
    usage.update(torch.arange(64).repeat(3))
    assert usage.usage == 1.0 and usage.perplexity == pytest.approx(64.0)


def test_code_usage_refuses_invalid_codes():
    usage = CodeUsage(4)
    with pytest.raises(ValueError, match="0 .. 3, but range from 1 to 4"):
        usage.update(torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="range from -1"):
        usage.update(torch.tensor([-1, 2]))
    with pytest.raises(TypeError, match="float32"):
        usage.update(torch.tensor([1.0]))
    with pytest.raises(ValueError, match="0 .. 4, not 2 .. 6"):
        usage.usage_of(2, 6)
    assert usage.usage == 0.0
