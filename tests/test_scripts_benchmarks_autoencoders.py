"""The benchmark of the autoencoder family: every member trains and is measured; its table and sheet are written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.parser import parse_options
from scripts.benchmarks import autoencoders


@pytest.fixture
def data(tmp_path) -> Path:
    """Two colours, each a class: 24 pictures to learn from, 10 to measure."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 10)):
        for number in range(count):
            folder = tmp_path / "data" / split / ("red", "blue")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            pixels[..., 0 if number % 2 == 0 else 2] = 220
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.mark.parametrize("name", autoencoders.FAMILY)
def test_every_member_is_a_command_that_train_tokenizer_takes(name):
    given = ["--image_size", "16", "--max_steps", "1", *autoencoders.FAMILY[name].split()]
    options = parse_options(ImageTokenizerOptions, description="test", argv=given)
    assert options.bottleneck == ("quantizer" if name == "quantizer" else name.removesuffix("_of_places"))


def test_table_sheet_and_rows(data, tmp_path, capsys):
    options = autoencoders.Options(
        dataset=str(data), image_size=16, folder=str(tmp_path / "runs"), members=["none", "conditional", "quantizer"],
        max_steps=2, train_options=["patch_size=4", "hidden_sizes=8", "batch_size=8"], labels_per_class=[4],
        classifier_steps=2, samples=7, cpu_threads=1, output=str(tmp_path / "rows.json"),
    )  # fmt: skip
    autoencoders.main(options)
    lines = capsys.readouterr().out.splitlines()
    for start in ("| none | 32 |", "| conditional | 32 |", "| quantizer | 16 codes |", "| pixels |"):
        assert any(line.startswith(start) for line in lines), start
    rows = {one["what"]: one["value"] for one in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["conditional/frechet_samples"] > 0 and "none/frechet_samples" not in rows
    assert 0 <= rows["quantizer/code_histograms/knn/4"] <= 1 and rows["none/mse"] > 0
    sheet = Image.open(tmp_path / "runs" / "autoencoders.png")
    assert sheet.height > 5 * 56, "pictures, three members, samples of one"
    trained = (tmp_path / "runs" / "none" / "model.safetensors").stat().st_mtime_ns
    autoencoders.main(options)
    assert (tmp_path / "runs" / "none" / "model.safetensors").stat().st_mtime_ns == trained
