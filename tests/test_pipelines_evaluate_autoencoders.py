"""`evaluate.py --autoencoder`: reconstructions, latents, probes and samples of autoencoders without codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_tokenizer_autoencoder import VARIANTS, tiny
from tiny import add_noise, tiny_tokenizer

from pipelines.drawing.latents import seeded_latents
from pipelines.evaluation.autoencoders import draw_samples, evaluate_autoencoder
from pipelines.evaluation.metrics.reconstruction import as_8_bit
from pipelines.options.evaluation import EvaluationOptions
from scripts import evaluate
from tokenizer_image.preprocessing import to_pixel_values

CAPTIONS = ["a blue disc", "a red disc"]
CLASSES: dict[str, Any] = {"bottleneck": "conditional", "class_names": CAPTIONS, "condition": "caption"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Discs with their colour as caption: 40 to learn from, 16 to measure."""
    folder = tmp_path_factory.mktemp("discs")
    for split, count in (("train", 40), ("validation", 16)):
        (folder / split).mkdir()
        for number in range(count):
            colour = (220, 30, 30) if number % 2 else (30, 40, 210)
            pixels = np.full((16, 16, 3), 255, np.uint8)
            rows, columns = np.ogrid[:16, :16]
            pixels[(rows - 8) ** 2 + (columns - 4 - number % 7) ** 2 < 20] = colour
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
            (folder / split / f"{number}.txt").write_text(CAPTIONS[number % 2])
    return folder


def options(folder: Path, data: Path, **changes: Any) -> EvaluationOptions:
    given: dict[str, Any] = {
        "autoencoder": str(folder), "dataset": str(data), "output": str(folder / "report.json"), "device": "cpu",
        "batch_size": 5, "num_workers": 0, "labels_per_class": [8], "cpu_threads": 1,
    }  # fmt: skip
    return EvaluationOptions(**{**given, **changes})


def test_figures_are_those_of_the_whole_split(data, tmp_path):
    model = add_noise(tiny(**CLASSES), 0.05)
    model.save_pretrained(tmp_path)
    found = evaluate_autoencoder(options(tmp_path, data))
    pictures = torch.from_numpy(found.split.pictures.batch(np.arange(16)))
    classes = torch.tensor([CAPTIONS.index(str(text)) for text in found.split.captions])
    made = ((model.reconstruct(to_pixel_values(pictures), classes) + 1) * 127.5).round()
    report = found.report
    assert report["reconstruction"]["mse"] == pytest.approx(float(((made - pictures) / 255).square().mean()), abs=1e-6)
    assert report["reconstruction"]["n"] == report["latents"]["n"] == 16
    assert report["latents"]["kl"] == pytest.approx(model.measure(to_pixel_values(pictures), classes)["kl"], rel=1e-5)
    assert report["latents"]["values"] == 6, "one latent of the whole picture"
    assert report["training"]["split"] == "train" and report["training"]["reconstruction"]["n"] == 16
    rows = report["label_efficiency"]["rows"]
    assert {row["features"] for row in rows} == {"pixels", "latents"} and {row["n"] for row in rows} == {16}
    pixels = next(row for row in rows if row["features"] == "pixels")
    assert pixels["linear"] > 0.9, "the colour of a disc is easily read"


def test_latents_of_several_levels_are_counted_level_by_level(data, tmp_path):
    tiny(**VARIANTS["hierarchical"]).save_pretrained(tmp_path)
    latents = evaluate_autoencoder(options(tmp_path, data)).report["latents"]
    assert latents["level_values"] == [6 * 2 * 2, 6 * 4 * 4] and latents["values"] == sum(latents["level_values"])
    assert latents["kl"] == pytest.approx(latents["kl_level0"] + latents["kl_level1"], rel=1e-5)


def test_samples_are_compared_with_real_pictures(data, tmp_path):
    add_noise(tiny(**CLASSES), 0.05).save_pretrained(tmp_path)
    given = options(tmp_path, data, drawn_per_caption=9, extractor="captions", classifier_steps=3)
    found = evaluate_autoencoder(given)
    assert found.drawn is not None and found.drawn.captions == [name for name in CAPTIONS for _ in range(9)]
    assert found.report["compared"]["drawn"]["n"] == 18 and found.report["compared"]["drawn"]["frechet"] > 0


def test_samples_of_all_classes_share_their_latents_and_depend_on_the_seed():
    model = add_noise(tiny(**CLASSES), 0.1)
    few, many, other = draw_samples(model, 2, 0), draw_samples(model, 3, 0), draw_samples(model, 2, 1)
    assert torch.equal(few.pictures[:2], many.pictures[:2]) and torch.equal(few.pictures[2:], many.pictures[3:5])
    assert not torch.equal(few.pictures, other.pictures)
    for number in range(len(CAPTIONS)):
        expected = model.decode(seeded_latents(model, 2, 0), torch.full((2,), number))
        assert torch.equal(few.pictures[2 * number : 2 * number + 2], as_8_bit(expected))
    assert not torch.equal(few.pictures[:2], few.pictures[2:])


@pytest.mark.parametrize("name", ["none", "conditional", "hierarchical", "mlp"])
def test_the_command_writes_figures_and_a_page(name, data, tmp_path, capsys):
    settings = CLASSES if name == "conditional" else VARIANTS[name]
    add_noise(tiny(**settings), 0.05).save_pretrained(tmp_path)
    evaluate.main(options(tmp_path, data, report=str(tmp_path / "page")))
    printed, page = capsys.readouterr().out, (tmp_path / "page" / "report.html").read_text()
    values = json.loads((tmp_path / "report.json").read_text())["latents"]["values"]
    assert f"{values:,} values of {settings.get('bottleneck', 'none')}" in printed
    assert f"{values:,} latents of" in page or settings.get("bottleneck", "none") in ("none",)
    sheets = {path.stem for path in (tmp_path / "page").glob("*.png")}
    walks = {"reconstructions", "worst_reconstructions", "interpolation", "traversal", "latent_map", "plots"}
    assert sheets == walks | ({"samples"} if name in ("conditional", "hierarchical") else set())
    assert f"Evaluation of {tmp_path}" in page


def test_what_does_not_fit_is_named(data, tmp_path):
    tiny().save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "codes")
    with pytest.raises(ValueError, match="--drawn_per_caption 4: bottleneck 'none' has no prior"):
        evaluate_autoencoder(options(tmp_path / "plain", data, drawn_per_caption=4))
    with pytest.raises(ValueError, match="has a VQVAE, not an autoencoder"):
        evaluate_autoencoder(options(tmp_path / "codes", data))
    plain = str(tmp_path / "plain")
    with pytest.raises(ValueError, match=f"is an autoencoder without codes: measure it by --autoencoder {plain}"):
        evaluate.main(options(tmp_path / "plain", data, autoencoder=None, image_tokenizer=plain))
    with pytest.raises(ValueError, match="measure one at a time"):
        options(tmp_path / "plain", data, image_tokenizer="runs/tokenizer")
    with pytest.raises(ValueError, match="--classification_accuracy is for --model and --image_tokenizer"):
        options(tmp_path / "plain", data, classification_accuracy=True, drawn_per_caption=4)
