"""Commands on folders that people have: they train, or end in one sentence; and they say what the data holds."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.drawing.arguments import list_of_texts
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from scripts import train_tokenizer
from tokenizer_image.pictures.dataset import print_summary
from tokenizer_image.pictures.loading import load_pictures


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which --max_image_pixels changes


def pictures(folder: Path, count: int, white: bool = False) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(np.full_like(pixels, 255) if white else pixels).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"picture {number}")
    return folder


def train(folder: Path, output: Path, **options) -> dict:
    """Two steps of stage 1; run.json."""
    settings = {
        "image_size": 8,
        "patch_size": 4,
        "hidden_sizes": [8],
        "codebook_sizes": [16],
        "code_dim": 4,
        "batch_size": 2,
    }
    train_tokenizer.main(
        ImageTokenizerOptions(
            dataset=str(folder), output_dir=str(output), max_steps=2, num_workers=0, quantizer="ema", cpu_threads=1,
            **settings | options,
        )
    )  # fmt: skip
    return json.loads((output / "run.json").read_text())


@pytest.mark.parametrize("count, white", [(20, False), (3, False), (20, True)])
def test_stage_1_says_what_the_data_holds(tmp_path, capsys, count, white):
    folder = pictures(tmp_path / "set", count, white)
    (folder / "captions.csv").write_text("lost")
    data = train(folder, tmp_path / "run")["data"]
    text = capsys.readouterr().out
    assert f"train: {count - 1} pictures (validation 1)" in text and "WARNING: 1 .csv file not used" in text
    assert (data["train"]["pictures"], data["validation"]["pictures"]) == (count - 1, 1)
    assert data["train"]["caption_origins"] == {"files beside the pictures": count - 1}
    assert data["train"]["left_out"][0]["examples"] == ["captions.csv"] and data["train"]["warnings"]


@pytest.mark.parametrize(
    "count, message", [(1, "holds 1 picture; 2 are needed"), (4, "--batch_size 8 must be at most")]
)
def test_too_few_pictures_end_in_one_sentence(tmp_path, count, message):
    with pytest.raises(ValueError, match=message):
        train(pictures(tmp_path / "set", count), tmp_path / "run", batch_size=8)


def test_the_settings_of_sixteen_bits_travel_with_the_tokenizer(tmp_path):
    train(pictures(tmp_path / "set", 4), tmp_path / "run", sixteen_bit="data", max_image_pixels=200_000_000)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["preprocessing"]["sixteen_bit"] == "data"


def test_prompts_are_cleaned_as_captions_are():
    assert list_of_texts([" hi \ud83d", "a\0b", "\ufeffdog"], "prompt") == ["hi \ufffd", "a b", "dog"]


def test_summary_of_documents_and_of_sprites(tmp_path, capsys):
    folder = pictures(tmp_path / "set", 3)
    lines = [[{"text": "one"}, {"image": "00.png"}], [{"image": "01.png"}, {"image": "02.png"}], [{"text": "three"}]]
    (folder / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = print_summary(load_pictures(str(folder)))
    assert summary is not None and (summary["rows"], summary["row_name"]) == (2, "document")
    assert "in 2 documents (validation 1)" in capsys.readouterr().out
    assert print_summary(load_pictures("sprites", max_examples=3)) is None
