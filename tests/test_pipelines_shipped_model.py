"""The model that comes with Tessera: what is in it, which name means it, and how a model is made small."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from test_pipelines_transfer import write_cache
from tiny import tiny_pipeline

from lm.generation.guess_table import GuessTable
from pipelines import ImageToTextPipeline, TextToImagePipeline
from pipelines.example_prompts import example_prompts
from pipelines.model_folder import SHIPPED, default_model, local_folder, model_origin, shipped_folder, shipped_models
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.language_model import LanguageModelOptions
from pipelines.training.image_models import load_init_from
from pipelines.training.image_tokenizer import next_command
from pipelines.training.language_model import check_parts
from pipelines.training.start import start_run
from pipelines.training.transfer import transferred
from scripts import export_model
from scripts.export_model import ExportOptions
from tokenizer_image.registry import load_tokenizer
from tokenizer_image.sprites.captions import describe
from tokenizer_image.sprites.scenes import draw_scene, sample_scene

ROOT = Path(__file__).resolve().parents[1]
FOLDER = SHIPPED / "sprites"


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> TextToImagePipeline:
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    try:
        return TextToImagePipeline.from_pretrained("sprites")
    finally:
        os.chdir(before)


# What is shipped


def test_it_is_small_and_in_16_bits():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12e6
    for part in ("image_tokenizer", "lm"):
        with safe_open(FOLDER / part / "model.safetensors", "pt") as weights:
            dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118  (no mapping)
        assert "BF16" in dtypes and not dtypes & {"F32", "F64"}


def test_it_computes_in_float32(sprites):
    assert sprites.dtype == torch.float32
    assert {value.dtype for value in sprites.image_tokenizer.parameters()} == {torch.float32}


def test_it_draws_what_captions_say(sprites):
    """Of ten scenes that it has not seen, each picture is likelier after its own caption than after the next one's."""
    scenes = [sample_scene(index, seed=2**20, num_objects=1) for index in range(10)]
    captions = [describe(scene, random.Random(0), full=True) for scene in scenes]
    pictures = [draw_scene(scene) for scene in scenes]
    own = sprites.score(captions, pictures).total
    assert (own < sprites.score(captions[1:] + captions[:1], pictures).total).all()
    drawn = sprites(captions[:2], num_images_per_prompt=2, seed=0)
    assert len(drawn.images) == 4 and drawn.images[0].size == (32, 32)


def test_its_card_says_how_it_was_trained_and_what_was_measured():
    card = (FOLDER / "README.md").read_text()
    assert 'from_pretrained("sprites")' in card and "license: apache-2.0" in card
    assert "scripts/train_tokenizer.py" in card and "scripts/train_lm.py" in card
    assert "held-out, samples" in card and "PSNR" in card
    prompts = ModelCard(card).data.widget
    assert example_prompts(FOLDER) == [one["text"] for one in prompts] and len(prompts) == 6


def test_it_is_part_of_the_packages():
    listed = subprocess.run(["git", "check-ignore", "--no-index", str(FOLDER / "lm" / "model.safetensors")], cwd=ROOT)
    assert listed.returncode == 1, "what git ignores is left out of the wheel"


# Which name means it


def test_a_folder_of_the_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped_models() == {"sprites": FOLDER} and local_folder("sprites") == FOLDER == shipped_folder("sprites")
    assert model_origin("sprites") == f"sprites, which comes with Tessera ({FOLDER})"
    for path in (Path("sprites"), "./sprites", str(tmp_path / "sprites"), "Sprites"):
        with pytest.raises(ValueError, match=r"there is no folder .*comes with Tessera \(sprites\)"):
            local_folder(path)
    pipe = tiny_pipeline()
    pipe.save_pretrained("sprites")
    assert TextToImagePipeline.from_pretrained("sprites").vocabulary.image_size == [16, 16]
    assert model_origin("sprites") == "sprites (a folder here)" and model_origin("./sprites") == "./sprites"
    assert model_origin("owner/name") == "owner/name (from the Hub)"


def test_a_folder_of_pictures_that_has_the_name_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sprites").mkdir()
    with pytest.raises(ValueError, match=f"sprites is not a model folder.* or {FOLDER} for the model of this name"):
        TextToImagePipeline.from_pretrained("sprites")
    with pytest.raises(ValueError, match="is not a model folder: it has no model_index.json.*its --output_dir\\)$"):
        TextToImagePipeline.from_pretrained(tmp_path)


def test_ones_own_model_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_model() == "sprites"
    (tmp_path / "runs" / "model").mkdir(parents=True)
    assert default_model() == "runs/model"


def test_commands_draw_with_it_and_say_so(tmp_path):
    """Without --model, in a folder without runs/model; and with one, which is used."""

    def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts" / script), *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = run("generate.py", "a red dog", "--output", "dog.png")
    assert done.returncode == 0, done.stderr
    assert f"model: sprites, which comes with Tessera ({FOLDER})\n" in done.stderr
    assert Image.open(tmp_path / "dog.png").width > 4 * 32
    imported = set(re.findall(r"\| *([\w.]+)$", done.stderr, flags=re.M))
    assert "transformers" in imported and not imported & {"torchvision", "scipy", "datasets"}, "what takes seconds"
    tiny_pipeline(kind=ImageToTextPipeline, formats=["image_and_caption"]).save_pretrained(tmp_path / "runs" / "model")
    done = run("describe.py", "dog.png")
    assert done.returncode == 0, done.stderr
    assert "model: runs/model\n" in done.stderr and done.stdout.startswith("dog.png\t")


# Training that starts from it


def test_both_stages_start_from_it_and_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    named = {"init_from": "sprites", "output_dir": str(tmp_path / "run"), "cpu_threads": 1}
    start_run(ImageTokenizerOptions(**named))
    assert f"starting from: sprites, which comes with Tessera ({FOLDER})\n" in capsys.readouterr().out
    tokenizer = load_init_from(ImageTokenizerOptions(**named))
    assert tokenizer.fingerprint == load_tokenizer(FOLDER).fingerprint
    options = LanguageModelOptions(**named, image_tokenizer="sprites")
    assert load_tokenizer(options.tokenizer_folder).fingerprint == tokenizer.fingerprint
    check_parts(options, tokenizer)
    model, vocabulary, said = transferred(
        options, tokenizer, write_cache(tmp_path / "cache", tokenizer, ["a red dog"] * 4)
    )
    shipped = TextToImagePipeline.from_pretrained(FOLDER)
    assert said is None and vocabulary.formats == shipped.vocabulary.formats
    assert all(value.equal(shipped.model.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_folder_of_the_name_is_what_training_starts_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained("sprites")
    assert load_init_from(ImageTokenizerOptions(init_from="sprites")).config.image_size == 16
    options = LanguageModelOptions(init_from="sprites", image_tokenizer="sprites")
    assert options.earlier_folder == options.tokenizer_folder == Path("sprites")
    for name in ("elsewhere", "./Sprites", "owner/name"):
        with pytest.raises(
            ValueError, match=f"--init_from {name}: no such folder.*'sprites', which comes with Tessera"
        ):
            LanguageModelOptions(init_from=name)
    with pytest.raises(ValueError, match="--init_from is not given"):
        LanguageModelOptions().earlier_folder  # noqa: B018  (it raises)


def test_a_decoder_that_goes_on_learning_leaves_the_shipped_files_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    decoder = {"train": "decoder", "output_dir": "runs/sharper"}
    said = next_command(ImageTokenizerOptions(init_from="sprites", **decoder))
    files = "runs/sharper/config.json runs/sharper/model.safetensors"
    assert said.startswith(f"cp -r {FOLDER} COPY; cp {files} COPY/image_tokenizer ")
    tiny_pipeline().save_pretrained("model")
    for name in ("model", "model/image_tokenizer"):
        said = next_command(ImageTokenizerOptions(init_from=name, **decoder))
        assert said == f"cp {files} model/image_tokenizer  # same codes, new decoder"


# Making a model small


@pytest.fixture(scope="module")
def tiny() -> TextToImagePipeline:
    pipe = tiny_pipeline()
    count = pipe.vocabulary.num_codes
    rng = np.random.default_rng(0)
    vectors, output = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, count + 1, 64), (count, 64)))
    pipe.guess_table = GuessTable(vectors, output, np.zeros(count, np.float32), pipe.image_tokenizer.fingerprint)
    return pipe


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_rounded_weights_are_saved_and_computed_with_in_float32(tiny, tmp_path, dtype):
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    tiny.rounded(dtype).save_pretrained(tmp_path)
    real = torch.bfloat16 if dtype == "bfloat16" else dtype
    loaded = TextToImagePipeline.from_pretrained(tmp_path)
    for name, value in tiny.model.state_dict().items():
        assert value.equal(before[name]) and loaded.model.state_dict()[name].equal(value.to(real).float()), name
    for name, value in tiny.image_tokenizer.state_dict().items():
        expected = value.to(real).float() if value.is_floating_point() else value
        assert loaded.image_tokenizer.state_dict()[name].equal(expected), name
    fingerprint = loaded.image_tokenizer.fingerprint
    assert fingerprint != tiny.image_tokenizer.fingerprint == tiny.vocabulary.image_tokenizer_fingerprint
    assert fingerprint == loaded.vocabulary.image_tokenizer_fingerprint == loaded.guess_table.fingerprint
    assert (loaded.guess_table.vectors == tiny.guess_table.vectors).all()
    picture = tiny("a red dog", seed=0).images[0]
    codes = loaded.encode_images(picture)
    assert loaded.decode_codes(codes).dtype == torch.float32 and loaded("a dog", seed=0).codes.shape == (1, 8)


def report_of(fingerprint: str) -> str:
    """The least that `figures_table` shows."""
    return json.dumps(
        {
            "dataset": "sprites", "split": "validation", "seed": 0, "image_tokenizer_fingerprint": fingerprint,
            "reconstruction": {"psnr": 31.25, "ssim": 0.9, "mse": 0.001, "n": 10},
            "codebook": {"usage": 1.0, "num_codes": 24, "perplexity": 12.0, "tokens_per_image": 8},
            "rate": {"bits_per_picture": 28, "entropy_bits_per_picture": 20.0, "compression": 219.4, "levels": []},
        }
    )  # fmt: skip


def test_export_writes_a_card_with_figures_of_the_new_weights(tiny, tmp_path, capsys):
    source, target, report = tmp_path / "model", tmp_path / "small", tmp_path / "report.json"
    tiny.save_pretrained(source)
    stage_1 = {"command": "train_tokenizer.py --x", "options": {}, "minutes": 1.5, "steps": 7, "finished": True}
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "run.json").write_text(json.dumps(stage_1))
    options = {"image_tokenizer": str(tmp_path / "tokenizer")}
    stage_2 = stage_1 | {"command": "train_lm.py --y", "steps": 1234, "options": options}
    (source / "run.json").write_text(json.dumps(stage_2))
    words = {"model": str(source), "output_dir": str(target)}
    export_model.main(ExportOptions(**words))
    assert f"{target} (bfloat16, " in capsys.readouterr().out
    size = (target / "lm" / "model.safetensors").stat().st_size
    assert size < 0.6 * (source / "lm" / "model.safetensors").stat().st_size
    fingerprint = json.loads((target / "model_index.json").read_text())["image_tokenizer_fingerprint"]
    assert "Figures" not in (target / "README.md").read_text() and example_prompts(target) == []
    with pytest.raises(ValueError, match="holds a model: .*--overwrite"):
        ExportOptions(**words)
    words |= {"report": str(report), "overwrite": True, "license": "mit"}
    report.write_text(report_of(fingerprint))
    (source / "README.md").write_text("---\nwidget:\n- text: a blue cat\n---\n")
    export_model.main(ExportOptions(**words))
    card = (target / "README.md").read_text()
    assert example_prompts(target) == ["a blue cat"]
    assert "PSNR 31.25 dB" in card and "license: mit" in card and "# small" in card
    assert "python train_tokenizer.py --x  # 1.5 minutes, 7 steps\npython train_lm.py --y  # 1.5 minutes, 1,234" in card
    report.write_text(report_of(tiny.image_tokenizer.fingerprint))
    with pytest.raises(ValueError, match="was measured with the image tokenizer .*measure the exported folder"):
        export_model.main(ExportOptions(**words))
    report.write_text("[]")
    with pytest.raises(ValueError, match="is no report of scripts/evaluate.py"):
        export_model.main(ExportOptions(**words))


def test_export_writes_over_nothing_else(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "model" / "lm" / "config.json", tmp_path / "other")
    with pytest.raises(ValueError, match="has files, and none of a model"):
        ExportOptions(model=str(tmp_path / "model"), output_dir=str(tmp_path / "other"), overwrite=True)
    with pytest.raises(ValueError, match="is the folder of --model"):
        ExportOptions(model=str(tmp_path / "model"), output_dir=str(tmp_path / "model"), overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output_dir .* is a file"):
        ExportOptions(model=str(tmp_path / "model"), output_dir=str(tmp_path / "file"))
