"""Gumbel noise: its distribution, and that a place's noise depends on its own random number alone."""

from __future__ import annotations

import math

import pytest
import torch

from lm.generation import noise
from lm.generation.noise import PlaceNoise, gumbel


@pytest.fixture(scope="module")
def uniforms() -> torch.Tensor:
    return torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Gumbel noise as numbers that are uniform in (-1/2, 1/2)."""
    return torch.exp(-torch.exp(-values.double())) - 0.5


def test_it_is_gumbel_noise_of_independent_columns_and_rows(uniforms):
    found = gumbel(uniforms, 300)
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert found.mean().item() == pytest.approx(0.5772, abs=0.005) and found.std().item() == pytest.approx(
        math.pi / 6**0.5, abs=0.005
    )
    even, count = ranks(found), found.numel()
    histogram = torch.histc(even, 1000, -0.5, 0.5)
    chi = ((histogram - count / 1000) ** 2 / (count / 1000)).sum().item()
    assert abs(chi - 999) < 4 * (2 * 999) ** 0.5
    for first, second in ((even[1:], even[:-1]), (even[:, 1:], even[:, :-1]), (even[:, 9:], even[:, :-9])):
        assert abs((first * second).mean().item() * 12 * first.numel() ** 0.5) < 4
    correlations = torch.corrcoef(even.T).fill_diagonal_(0)
    assert correlations.abs().max().item() < 6 / len(even) ** 0.5


@pytest.mark.parametrize("bits", [53, 21])
def test_numbers_that_follow_each_other_have_nothing_in_common(bits):
    """Those that differ in their lowest bits, and in their highest ones alone."""
    even = ranks(gumbel(torch.arange(4000, dtype=torch.float64) / 2**bits, 300))
    assert abs(even.mean().item() * 12**0.5 * even.numel() ** 0.5) < 4
    assert abs((even[1:] * even[:-1]).mean().item() * 12 * even[1:].numel() ** 0.5) < 4


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """512 of them, by Zipf's law."""
    probabilities = 1 / torch.arange(1, 513, dtype=torch.float64)
    probabilities /= probabilities.sum()
    numbers = torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    drawn = (probabilities.log().float() + gumbel(numbers, 512)).argmax(-1)
    expected = probabilities * 100_000
    chi = ((drawn.bincount(minlength=512) - expected) ** 2 / expected).sum().item()
    assert abs(chi - 511) < 4 * (2 * 511) ** 0.5


def test_it_depends_on_its_own_number_alone_to_the_last_bit(uniforms):
    """Whatever is beside it, on any number of threads, and however many columns there are."""
    whole, threads = gumbel(uniforms, 100), torch.get_num_threads()
    assert whole.equal(torch.cat([gumbel(one, 100) for one in uniforms.split([1, 6, 93, 900, 3000])]))
    assert gumbel(uniforms[:70], 333)[:, :100].equal(whole[:70])
    assert gumbel(uniforms.view(40, 100), 100).equal(whole.view(40, 100, 100))
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert gumbel(uniforms, 100).equal(whole)
    finally:
        torch.set_num_threads(threads)
    assert not (whole[:-1] == whole[1:]).all(1).any()
    ends = gumbel(torch.tensor([0.0, 1.0], dtype=torch.float64), 50_000)
    assert ends.isfinite().all() and gumbel(torch.rand(3), 5).isfinite().all()


@pytest.mark.parametrize("block", [1, 60, 10**6])
def test_noise_of_places_is_that_of_each(uniforms, monkeypatch, block):
    """Of two kinds of places, in turn, in blocks of any size."""
    monkeypatch.setattr(noise, "BLOCK", block)
    numbers, counts = uniforms[:24].view(3, 8), [5, 7, 5, 7, 5, 5, 7, 7]
    places = PlaceNoise(numbers, counts)
    for place in [0, 1, 2, 3, 7, 6, 4, 5, 0]:
        assert places.at(place).equal(gumbel(numbers[:, place], counts[place]))
    rows, wanted = torch.tensor([2, 0, 0, 1]), torch.tensor([5, 0, 4, 2])
    assert places.of(rows, wanted).equal(gumbel(numbers[rows, wanted], 5))
