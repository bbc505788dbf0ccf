"""Commands on folders that people have: they train, or end in one sentence; and they say what the data holds."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.drawing.arguments import list_of_texts
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.language_model import LanguageModelOptions
from scripts import train_lm, train_tokenizer
from tokenizer_image.pictures.dataset import print_summary
from tokenizer_image.pictures.loading import load_pictures
from tokenizer_image.quantizers.kinds import KINDS


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
        "quantizer": "ema",
    }
    train_tokenizer.main(
        ImageTokenizerOptions(
            dataset=str(folder), output_dir=str(output), max_steps=2, num_workers=0, cpu_threads=1,
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
    assert data["train"]["caption_origins"] == {"caption files": count - 1}
    assert data["train"]["left_out"][0]["examples"] == ["captions.csv"] and data["train"]["warnings"]


@pytest.mark.parametrize(
    "count, message", [(1, "holds 1 picture; 2 are needed"), (4, "--batch_size 8 must be at most")]
)
def test_too_few_pictures_end_in_one_sentence(tmp_path, count, message):
    with pytest.raises(ValueError, match=message):
        train(pictures(tmp_path / "set", count), tmp_path / "run", batch_size=8)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("count, white, batch_size", [(2, False, 1), (3, True, 1), (20, True, 4)])
def test_every_quantizer_trains_on_few_or_equal_pictures(tmp_path, kind, count, white, batch_size):
    """A batch has 4 latents, fewer than there are codes for k-means."""
    parts = {"residual": 2, "grouped": 2, "grouped_residual": 4}.get(kind, 1)
    folder = pictures(tmp_path / "set", count, white)
    info = train(folder, tmp_path / "run", quantizer=kind, codebook_sizes=[64] * parts, batch_size=batch_size)
    assert info["finished"] and np.isfinite(info["validation"]["mse"])


@pytest.mark.parametrize("count, white", [(2, False), (3, False), (3, True)])
def test_stage_2_trains_on_few_or_equal_pictures(tmp_path, count, white):
    folder = pictures(tmp_path / "set", count, white)
    train(folder, tmp_path / "tokenizer", batch_size=1)

    def train_model(**options):
        train_lm.main(
            LanguageModelOptions(
                dataset=str(folder), output_dir=str(tmp_path / "model"), image_tokenizer=str(tmp_path / "tokenizer"),
                lm_size="2M", max_steps=2, num_workers=0, cpu_threads=1, overwrite=True, **options,
            )
        )  # fmt: skip

    rows = count - 1
    with pytest.raises(
        ValueError, match=f"--batch_size 64 is larger than the data set, {rows} rows: lower it to {rows}"
    ):
        train_model()
    with pytest.raises(ValueError, match="do not fill one batch of 64 rows .*: lower --batch_size"):
        train_model(pack_length=128)
    for options in ({}, {"pack_length": 128}, {"unconditional": True}):
        train_model(batch_size=1, **options)
        assert json.loads((tmp_path / "model" / "run.json").read_text())["finished"]


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
