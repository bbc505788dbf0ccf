"""Tokenizers of principal components: how these are dealt to codebooks, what they start as, what learns."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer

from pipelines.training.image_tokenizer import QuantizedModel
from scripts import train_tokenizer
from tokenizer_image import VQVAE, VQVAEConfig
from tokenizer_image.principal_components import (
    deal_components,
    fit_components,
    start_from_components,
    water_filling,
)
from tokenizer_image.registry import load_tokenizer

SETTINGS = {
    "network": "components", "image_size": 8, "code_dim": 12, "codebook_sizes": [16, 16, 16, 16], "hidden_sizes": [8],
}  # fmt: skip


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures of 8x8 in [-1, 1], whose components fall quickly."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3, generator=generator)
    return torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear") * 2 - 1


@pytest.fixture
def started() -> VQVAE:
    tokenizer, data = tiny_tokenizer(**SETTINGS), pictures(600)
    start_from_components(tokenizer, lambda: data.split(100), data.split(200))
    return tokenizer


def test_each_codebook_gets_about_its_bits_of_components():
    variances = 4.0 * 0.8 ** np.arange(40)
    dealt = deal_components(variances, [8.0] * 4, 12)
    rates, _ = water_filling(variances, 32)
    assert sorted(component for one in dealt for component in one) == list(range(40)), "each is dealt once"
    assert [one[0] for one in dealt] == [0, 1, 2, 3], "the first codebooks begin with the first components"
    sums = [rates[one].sum() for one in dealt]
    assert max(sums) - min(sums) < 0.5 and sum(sums) == pytest.approx(32)
    one_large = np.array([1e6, *0.9 ** np.arange(19)])
    worth = [int((water_filling(one_large, 16)[0][one] > 0).sum()) for one in deal_components(one_large, [8.0] * 2, 10)]
    assert worth[0] < worth[1], "a part of large components has few that are worth bits"
    full = deal_components(variances, [8.0] * 4, 10)
    assert [len(one) for one in full] == [10] * 4 and [one[0] for one in full] == [0, 1, 2, 3]


def test_a_codebook_of_more_codes_gets_more():
    rates, _ = water_filling(variances := 4.0 * 0.8 ** np.arange(20), 12)
    dealt = deal_components(variances, [10.0, 2.0], 20)
    assert rates[dealt[0]].sum() == pytest.approx(10, abs=0.6) and rates[dealt[1]].sum() == pytest.approx(2, abs=0.6)


def test_no_codebook_gets_more_than_it_has_room_for():
    assert [len(one) for one in deal_components(np.ones(12), [8.0, 1.0, 1.0], 4)] == [4, 4, 4]


def test_it_starts_as_product_quantization_of_components(started):
    """Latents are coefficients, codes the nearest centres, and the error that of the codebooks and what is left out."""
    data = pictures(600)
    (latents,) = started.latents(data)
    components = fit_components(lambda: data.flatten(1).split(100), 12)
    wanted = components.coefficients(data.flatten(1)).float()
    found = latents.flatten(1)
    assert torch.allclose(found.abs().sum(1), wanted.abs().sum(1), atol=1e-3), "in another order"
    decoded = started.decoder.linear(started.quantizer.decode(started.quantizer.encode(latents)).movedim(-1, 1))
    assert torch.equal(started.decode(started.encode(data)), decoded.clamp(-1, 1)), (
        "before it learns, nothing is corrected"
    )
    of_codes = (started.quantizer.decode(started.quantizer.encode(latents)) - latents).square().flatten(1).sum(1)
    left_out = data.flatten(1).var(0).sum() - components.variances.sum()
    total = (decoded - data).square().flatten(1).sum(1).mean()
    assert float(total) == pytest.approx(float(of_codes.mean() + left_out * 599 / 600), rel=1e-3)
    rates, _ = water_filling(components.variances.numpy(), 16)
    bound = float((components.variances * torch.from_numpy(4.0**-rates)).sum() + left_out)
    assert bound < float(total) < 1.2 * bound, "near what 16 bits can tell of Gaussian numbers"


def test_only_the_correction_learns(started, tmp_path):
    before = started.fingerprint
    learning = {name for name, one in started.named_parameters() if one.requires_grad}
    assert learning and all(name.startswith("decoder.") and ".linear." not in name for name in learning)
    data, codes = pictures(64), started.encode(pictures(64))
    optimizer = torch.optim.Adam([one for one in started.parameters() if one.requires_grad], 1e-2)
    started.train()
    first = float(started(data).reconstruction_loss.detach())
    for _ in range(30):
        loss = started(data).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    started.eval()
    assert float(started(data).reconstruction_loss.detach()) < 0.9 * first
    assert started.fingerprint == before and torch.equal(started.encode(data), codes)
    started.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    QuantizedModel(SimpleNamespace(train="all"), again, None, None, SimpleNamespace(device="cpu"))
    assert {name for name, one in again.named_parameters() if one.requires_grad} == learning, "loaded ones, too"
    assert torch.equal(again.decode(codes), started.decode(codes)) and again.has_frozen_codes


@pytest.mark.parametrize(
    ("quantizer", "sizes"),
    [("ema", [256]), ("gradient", [256]), ("residual", [16, 16]), ("grouped_residual", [16, 16, 16, 16])],
)
def test_other_quantizers_start_from_the_same_coefficients(quantizer, sizes):
    tokenizer = tiny_tokenizer(**SETTINGS | {"quantizer": quantizer, "codebook_sizes": sizes})
    data = pictures(600)
    start_from_components(tokenizer, lambda: data.split(100), data.split(200))
    error = (tokenizer.decode(tokenizer.encode(data)) - data).square().mean()
    assert float(error) < 0.75 * float(data.var(0).mean()) and len(tokenizer.encode(data).unique()) > 30


def test_odd_sides_are_corrected_at_full_resolution():
    tokenizer = tiny_tokenizer(**SETTINGS | {"image_size": 7})
    assert tokenizer.decode(tokenizer.encode(torch.zeros(2, 3, 7, 7))).shape == (2, 3, 7, 7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"code_dim": 200, "codebook_sizes": [16]}, "a picture of 192 numbers has as many components"),
        ({"quantizer": "cosine", "codebook_sizes": [16]}, "whose codes have the scale of the components"),
        ({"num_levels": 2}, "has one level"),
        ({"hidden_sizes": [8, 8]}, "has one resolution; give one entry"),
        ({"signal": "audio"}, "is for pictures"),
    ],
)
def test_settings_that_components_cannot_have(settings, message):
    with pytest.raises(ValueError, match=message):
        VQVAEConfig(**SETTINGS | settings)


def test_the_command_makes_it_of_all_training_pictures(tmp_path, capsys):
    options = train_tokenizer.ImageTokenizerOptions(
        network="components", image_size=16, max_examples=300, max_steps=3, output_dir=str(tmp_path / "run"),
        codebook_sizes=[16] * 8, hidden_sizes=[8], batch_size=16, cpu_threads=1, num_workers=0,
    )  # fmt: skip
    train_tokenizer.main(options)
    said = capsys.readouterr().out
    assert "principal components of 300 pictures" in said and "WARNING: 300" not in said
    before = load_tokenizer(tmp_path / "run").fingerprint
    further = replace(options, init_from=str(tmp_path / "run"), output_dir=str(tmp_path / "further"))
    train_tokenizer.main(replace(further, network="conv", codebook_sizes=None, hidden_sizes=None))
    assert load_tokenizer(tmp_path / "further").fingerprint == before, "codes stay"
    tokenizer = load_tokenizer(tmp_path / "run")
    assert tokenizer.config.code_dim == 64 and tokenizer.tokens_per_image == 8
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["final_psnr"] > 20, "codebooks are of all pictures, too"


def test_few_pictures_are_told(tmp_path, capsys):
    options = train_tokenizer.ImageTokenizerOptions(
        network="components", image_size=16, max_examples=40, max_steps=1, output_dir=str(tmp_path / "run"),
        codebook_sizes=[64] * 4, hidden_sizes=[8], batch_size=16, cpu_threads=1, num_workers=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_tokenizer.main(options)
    assert "WARNING: 40 training pictures for codebooks of 64" in capsys.readouterr().out


def test_many_depths_have_many_bits():
    tokenizer = tiny_tokenizer(**SETTINGS | {"quantizer": "residual", "codebook_sizes": [512] * 120})
    data = pictures(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start_from_components(tokenizer, lambda: data.split(30), data.split(30))
    assert tokenizer.encode(data).shape == (60, 120)


def test_options_of_the_command():
    with pytest.raises(ValueError, match=r"--network components has .*leave out --patch_size, --resampling"):
        train_tokenizer.ImageTokenizerOptions(network="components", patch_size=4, resampling="patches")
    with pytest.raises(ValueError, match="do not learn after their start: leave out --codebook_decay"):
        train_tokenizer.ImageTokenizerOptions(network="components", codebook_decay=0.9)
    with pytest.raises(ValueError, match="kmeans_start=False"):
        VQVAEConfig(**SETTINGS, quantizer_options={"kmeans_start": False})
    of_32 = train_tokenizer.ImageTokenizerOptions(network="components", code_dim=32).configuration(False)
    assert of_32.code_dim == 32 and len(of_32.codebook_sizes) == 32
    with pytest.raises(ValueError, match="--network 'components' is for a quantizer"):
        train_tokenizer.ImageTokenizerOptions(network="components", bottleneck="none")
