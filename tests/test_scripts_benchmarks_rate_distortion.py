"""The benchmark of rate and distortion: its tokenizers fit, and a tiny one is trained, measured and plotted."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from scripts.benchmarks import rate_distortion
from scripts.benchmarks.rate_tokenizers import PLANS, check_plans
from tokenizer_image.losses.own_classifier import CaptionClassifier


@pytest.fixture
def folder(tmp_path):
    """40 training and 12 test pictures of 16 x 16: two flat colours each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 12)):
        (tmp_path / "data" / split).mkdir(parents=True)
        for number in range(count):
            array = np.empty((16, 16, 3), np.uint8)
            array[:, :8], array[:, 8:] = rng.integers(0, 256, (2, 3))
            Image.fromarray(array).save(tmp_path / "data" / split / f"{number}.png")
    return tmp_path / "data"


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3)])
def test_every_tokenizer_can_be_had_at_the_sizes_of_the_data(size, channels):
    names = [name for name, plan in PLANS.items() if size != 28 or plan.levels == 1]
    check_plans(names, size, channels)
    if size > 28:
        for name, plan in PLANS.items():
            places = [(plan.places >> (plan.levels - 1 - level)) ** 2 for level in range(plan.levels)]
            share = len(plan.codebook_sizes) // plan.levels
            sizes = [plan.codebook_sizes[level * share : (level + 1) * share] for level in range(plan.levels)]
            bits = sum(count * math.log2(math.prod(part)) for count, part in zip(places, sizes, strict=True))
            assert name.endswith(f"_{bits:.0f}"), "a name ends with the bits"


def test_a_size_that_a_tokenizer_cannot_have_is_refused():
    with pytest.raises(ValueError, match="the tokenizer 2_levels_512 and --image_size 28"):
        rate_distortion.Options(dataset="x", image_size=28, tokenizers=["2_levels_512"])
    with pytest.raises(ValueError, match="--extractor: unknown extractor 'eyes'"):
        rate_distortion.Options(dataset="x", extractor="eyes")
    without = rate_distortion.Options(dataset="x", autoencoders=["none"], codecs=["none"])
    assert without.autoencoders == without.codecs == [] and len(without.tokenizers) > 10
    with pytest.raises(ValueError, match="--codecs JPEG none: give names, or none alone"):
        rate_distortion.Options(dataset="x", codecs=["JPEG", "none"])
    with pytest.raises(ValueError, match="--train_options encoder_kernel_size=3: the tokenizer components_128 has no"):
        rate_distortion.Options(dataset="x", train_options=["batch_size=8", "encoder_kernel_size=3"])
    with pytest.raises(ValueError, match="--codecs 'GIF'"):
        rate_distortion.Options(dataset="x", codecs=["GIF"])


def test_without_an_extractor_it_is_said_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("tokenizer_image.losses.extractors.missing_package", lambda name: "a_package")
    assert rate_distortion.Options(dataset="x").extractor_name() is None
    assert "no Frechet distance: efficientnet_lite0 is not installed" in capsys.readouterr().out
    assert rate_distortion.Options(dataset="x", extractor="none").extractor_name() is None
    assert capsys.readouterr().out == ""


def test_table_plot_and_rows_of_a_tiny_tokenizer(folder, tmp_path, capsys):
    options = rate_distortion.Options(
        dataset=str(folder), image_size=16, folder=str(tmp_path / "runs"), max_steps=2, tokenizers=["2_levels_160"],
        autoencoders=["vae_2"], train_options=["batch_size=8", "hidden_sizes=8", "patch_size=4"],
        codecs=["JPEG", "WebP"], rates=[1024],
        components=8, extractor="none", cpu_threads=1, output=str(tmp_path / "rows.json"),
    )  # fmt: skip
    rate_distortion.main(options)
    shown = capsys.readouterr().out
    assert "12 pictures of" in shown and "| 2_levels_160 | 160 |" in shown and "| PCA, 160 bits | 160 |  |" in shown
    assert "VQ, 2 levels and PCA, at a fixed rate:" in shown and "| vae_2, 4 levels | 64 |" in shown
    assert Image.open(tmp_path / "runs" / "rate_distortion.png").width > 500
    rows = {one["what"]: one for one in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["rate_distortion/2_levels_160/fixed_bits"]["value"] == 160
    assert rows["rate_distortion/2_levels_160/frechet"]["value"] is None
    ratio = rows["rate_distortion/vq_over_pca/160_bits"]
    errors = [rows[f"rate_distortion/{name}/mse"]["value"] for name in ("2_levels_160", "PCA_160_bits")]
    assert ratio["value"] == pytest.approx(errors[0] / errors[1]) and ratio["target"] == 1.0
    first = (tmp_path / "runs" / "2_levels_160" / "model.safetensors").stat().st_mtime_ns
    rate_distortion.main(options)  # again: the finished tokenizer stays, and the digits are the same
    assert (tmp_path / "runs" / "2_levels_160" / "model.safetensors").stat().st_mtime_ns == first
    assert rows == {one["what"]: one for one in json.loads((tmp_path / "rows.json").read_text())}
    capsys.readouterr()
    CaptionClassifier(2).save(tmp_path / "classifier", ["a", "b"])
    extractor = f"classifier={tmp_path / 'classifier'}"
    rate_distortion.main(replace(options, extractor=extractor, extractor_size=16, autoencoders=[], codecs=["JPEG"]))
    rows = {one["what"]: one for one in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["rate_distortion/2_levels_160/frechet"]["value"] > 0
    words = "WARNING: the Frechet distance is over 192 features, but a set has 12 pictures: it is too large, and falls "
    assert f"{words}with their number; at least 193 are needed in each set (--max_examples)" in capsys.readouterr().out
