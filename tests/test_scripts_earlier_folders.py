"""Folders written by an earlier commit (tests/data/earlier) load, give the same codes and pictures, and go on."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from lm.data.token_cache import TokenCache
from pipelines import ImageToTextPipeline, InterleavedPipeline, TextToImagePipeline
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.language_model import LanguageModelOptions
from scripts import train_lm, train_tokenizer
from tokenizer_image.pictures.loading import load_pictures
from tokenizer_image.preprocessing import preprocess, preprocessing_of, to_pixel_values
from tokenizer_image.registry import load_tokenizer

EARLIER = Path(__file__).parent / "data" / "earlier"


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(EARLIER / "expected.safetensors")


@pytest.fixture()
def folders(tmp_path, monkeypatch) -> Path:
    """Copies of the folders, in the working directory, where their runs were started."""
    for name in ("tokenizer", "model"):
        shutil.copytree(EARLIER / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def sprites(tokenizer) -> torch.Tensor:
    """The first four validation pictures, (4, 3, 32, 32)."""
    source, settings = load_pictures("sprites", "validation", max_examples=4), preprocessing_of(tokenizer)
    return to_pixel_values(np.stack([preprocess(source.image(row), settings) for row in range(4)]))


def as_bytes(pixel_values: torch.Tensor) -> torch.Tensor:
    return ((pixel_values + 1) * 127.5).round()


@pytest.mark.parametrize("name", ["tokenizer", "hierarchy", "model/image_tokenizer"])
def test_image_tokenizers_give_the_same_codes_and_pictures(expected, name):
    tokenizer = load_tokenizer(EARLIER / name)
    key = name.split("/")[0].replace("model", "tokenizer")
    codes = tokenizer.encode(sprites(tokenizer))
    assert codes.equal(expected[f"{key}/codes"])
    pictures = as_bytes(tokenizer.decode(codes))
    assert (pictures - expected[f"{key}/pictures"].float()).abs().max() <= 1, "to the rounding of another processor"


def test_model_folders_draw_the_same_pictures(expected):
    """The likeliest ones since then; those of a seed since codes are drawn by Gumbel noise."""
    pipe = TextToImagePipeline.from_pretrained(EARLIER / "model")
    assert pipe(["a red dog", "a blue house"], temperature=0).codes.equal(expected["greedy/codes"])
    drawn = pipe(["a red dog", "a blue house"], num_images_per_prompt=2, seed=1, output_type="pt")
    assert drawn.codes.equal(expected["drawn/codes"])
    assert ((drawn.images * 255).round() - expected["drawn/pictures"].float()).abs().max() <= 1
    for other in (ImageToTextPipeline, InterleavedPipeline):
        assert other.from_pretrained(EARLIER / "model").vocabulary.num_codes == 32


def test_token_caches_hold_the_same_rows():
    tokenizer, cache = load_tokenizer(EARLIER / "tokenizer"), TokenCache(EARLIER / "model" / "token_cache" / "train")
    source = load_pictures("sprites", "train", max_examples=48, seed=3)
    pictures = [preprocess(source.image(row), preprocessing_of(tokenizer)) for row in range(48)]
    assert len(cache) == 48
    codes = tokenizer.encode(to_pixel_values(np.stack(pictures))).numpy()
    for row in range(48):
        assert (cache.codes(row) == codes[row]).all() and cache.texts(row) == source.texts(row)
        assert cache.image_sizes(row) == [(32, 32)] and cache.order(row) == ""


@pytest.mark.parametrize(("name", "script", "options_class"), [("tokenizer", train_tokenizer, ImageTokenizerOptions),
                                                               ("model", train_lm, LanguageModelOptions)])  # fmt: skip
def test_runs_go_on_with_the_same_next_steps(folders, expected, name, script, options_class):
    settings = json.loads((folders / name / "run.json").read_text())["options"]
    assert settings.keys() <= {field.name for field in fields(options_class)}, "every option of then is one of today"
    AcceleratorState._reset_state(reset_partial_state=True)
    threads = torch.get_num_threads()
    script.main(options_class(**{**settings, "resume": True}))
    torch.set_num_threads(threads)

    lines = [json.loads(line) for line in (folders / name / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "loss" in line}
    assert sorted(steps) == [1, 2, 3, 4]
    for line in json.loads((EARLIER / "expected.json").read_text())[name]:
        if "loss" in line:
            assert steps[line["step"]]["loss"] == pytest.approx(line["loss"], rel=2e-3)
    state = load_file(folders / name / "checkpoints" / "checkpoint-4" / "state.safetensors")
    before = load_file(EARLIER / name / "checkpoints" / "checkpoint-2" / "state.safetensors")
    for key, tensor in state.items():
        wanted = expected.get(f"{name}/final/{key}")
        if wanted is not None and "quantizer" not in key and tensor.is_floating_point():
            moved = (wanted - before[key]).norm()
            # Muon's bfloat16 rounds otherwise on another processor.
            assert (tensor - wanted).norm() <= 0.05 * moved + 1e-6, f"{key}: within 5% of what two steps moved it by"
